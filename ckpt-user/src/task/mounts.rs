//! What is mounted where: /proc/PID/mountinfo (proc_pid_mountinfo(5)).

use super::proc::ProcDir;
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `mnt_id` of fdinfo.
    pub id: u64,
    /// Major and minor number.
    pub device: (u32, u32),
    /// Of the file system, not of a directory in it.
    pub is_whole: bool,
    pub path: PathBuf,
    /// The file system's name, and its subtype behind a dot: `ext4`, `fuse.sshfs`.
    pub kind: String,
}

/// Those of our own mount namespace, below our root directory.
pub fn ours() -> io::Result<Vec<Mount>> {
    ProcDir::process(Pid::this()).bytes("mountinfo").map(|text| parse(&text))
}

/// `36 35 98:0 / /mnt rw,noatime master:1 - ext4 /dev/root rw`; a line that is none is left out.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n').filter_map(of_line).collect()
}

fn of_line(line: &[u8]) -> Option<Mount> {
    let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let word = |at: usize| std::str::from_utf8(words.get(at)?).ok();
    let (major, minor) = word(2)?.split_once(':')?;
    // Optional fields come before the dash.
    let dash = words.iter().skip(6).position(|word| *word == b"-")? + 6;
    Some(Mount {
        id: word(0)?.parse().ok()?,
        device: (major.parse().ok()?, minor.parse().ok()?),
        is_whole: words[3] == b"/",
        path: PathBuf::from(OsString::from_vec(unescaped(words[4]))),
        kind: word(dash + 1)?.to_owned(),
    })
}

/// Blanks, backslashes and the like are shown as `\040` (fs/proc_namespace.c).
fn unescaped(word: &[u8]) -> Vec<u8> {
    let (mut bytes, mut at) = (Vec::with_capacity(word.len()), 0);
    while let Some(&byte) = word.get(at) {
        let escaped = escaped(&word[at..]);
        bytes.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 4 } else { 1 };
    }
    bytes
}

fn escaped(word: &[u8]) -> Option<u8> {
    let digits = word.strip_prefix(b"\\")?.first_chunk::<3>()?;
    let add = |sum: u16, digit: &u8| matches!(digit, b'0'..=b'7').then(|| 8 * sum + u16::from(digit - b'0'));
    u8::try_from(digits.iter().try_fold(0, add)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn lines_are_taken_apart_whatever_the_path() {
        let text = b"36 35 98:0 / /mnt rw,noatime master:1 - ext4 /dev/root rw\n\
            40 36 0:52 /sub /a\\040b\\134\xff rw shared:3 master:1 - fuse.sshfs host:/ rw,user_id=0\n\
            41 36 0:53 / /none rw\n\n";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        let (first, second) = (&found[0], &found[1]);
        assert_eq!((first.id, first.device, first.is_whole, &*first.kind), (36, (98, 0), true, "ext4"));
        assert_eq!(first.path, std::path::Path::new("/mnt"));
        assert_eq!(
            (second.id, second.device, second.is_whole, &*second.kind),
            (40, (0, 52), false, "fuse.sshfs")
        );
        assert_eq!(second.path.as_os_str().as_bytes(), b"/a b\\\xff");
    }

    #[test]
    fn what_is_no_escape_is_left_as_it_is() {
        for word in [&b"\\"[..], b"\\04", b"\\400", b"\\+12", b"a\\8"] {
            assert_eq!(unescaped(word), word);
        }
    }

    #[test]
    fn ours_has_a_root() {
        assert!(ours().unwrap().iter().any(|mount| mount.path.as_os_str() == "/"));
    }
}
