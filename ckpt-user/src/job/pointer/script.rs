//! The script that DMTCP leaves beside its images: it starts dmtcp_restart of them.

use super::Names;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What it is called, whichever job was checkpointed last.
pub const NAME: &str = "dmtcp_restart_script.sh";

/// Its text. `above` is where the pointer is now, from the root: batch systems run a copy of a script that lies elsewhere. Options
/// are dmtcp_restart's, which knows those of DMTCP's script, too.
pub fn text(names: &Names, above: &Path) -> Vec<u8> {
    let (pointer, above) = (quoted(names.pointer().as_bytes()), quoted(above.as_os_str().as_bytes()));
    let begin = "#!/bin/sh\n\
         # Restarts the program from its last checkpoint. Options are those of dmtcp_restart.\n\
         here=$(dirname -- \"$0\")\n\
         pointer=";
    let elsewhere = "\n[ -e \"$here/$pointer\" ] || here=";
    let end = "\nexec dmtcp_restart \"$@\" \"$here/$pointer\"\n";
    [begin.as_bytes(), &pointer, elsewhere.as_bytes(), &above, end.as_bytes()].concat()
}

/// As one word of a shell's, whatever its bytes are.
fn quoted(text: &[u8]) -> Vec<u8> {
    let parts: Vec<&[u8]> = text.split(|byte| *byte == b'\'').collect();
    [b"'".as_slice(), &parts.join(b"'\\''".as_slice()), b"'"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::process::Command;

    #[test]
    fn it_finds_the_pointer_beside_itself_or_where_it_was() {
        let base = tempfile::tempdir().unwrap();
        let names = Names::new(OsStr::new("it's $HOME"), "0123456789abcdef");
        let shown = base.path().join("dmtcp_restart");
        std::fs::write(&shown, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
        std::fs::set_permissions(&shown, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", base.path().display());
        let above = Path::new(OsStr::from_bytes(b"/else where\xff"));
        let run = |args: &[&str]| {
            let script = base.path().join(NAME);
            std::fs::write(&script, text(&names, above)).unwrap();
            let ran = Command::new("/bin/sh").arg(script).args(args).env("PATH", &path).output().unwrap();
            // The byte that is no UTF-8 is replaced.
            String::from_utf8_lossy(&ran.stdout).into_owned()
        };
        assert_eq!(run(&["-i", "5 5"]), format!("-i\n5 5\n/else where\u{fffd}/{}\n", names.pointer()));
        let beside = base.path().join(names.pointer());
        std::fs::write(&beside, "").unwrap();
        assert_eq!(run(&[]), format!("{}\n", beside.display()));
    }
}
