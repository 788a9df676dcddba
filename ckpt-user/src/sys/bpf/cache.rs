//! Keeps the offsets between runs: parsing BTF takes 0.1 to 0.4 s, reading them back 0.1 ms.
//!
//! The file is named by what identifies the kernel (its build notes, the size of its BTF) and by our table of fields.
//! It is untrusted: wrong offsets would make programs report nonsense. It counts only if it and its directory belong
//! to us and nobody else may write them, no symbolic link is followed, and every name and value is as we would have
//! written it. Anything else is as if it were not there. Failing to write it costs nothing but time.
use std::{
    collections::BTreeMap,
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use ckpt_common::ABSENT;
use xxhash_rust::xxh3::xxh3_64;

use super::{Offsets, btf::VMLINUX, fields::FIELDS};

/// Identifies the running kernel's build.
const NOTES: &str = "/sys/kernel/notes";
/// More than a hundred names and numbers need.
const MAX_FILE: u64 = 64 << 10;
/// No field of a kernel structure is further in, in bits.
const MAX_OFFSET: u32 = 1 << 20;

/// The offsets kept for this kernel, if there are any to be trusted.
pub(super) fn read() -> Option<Offsets> {
    let directory = directory()?;
    check(&fs::symlink_metadata(&directory).ok()?, true)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(directory.join(file_name()?))
        .ok()?;
    check(&file.metadata().ok()?, false)?;
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).ok()?;
    parse(&text)
}

/// Keeps them; in silence if that is not possible.
pub(super) fn write(offsets: &Offsets) {
    if let Err(e) = try_write(offsets) {
        log::debug!("kernel offsets not kept: {e}");
    }
}

fn try_write(offsets: &Offsets) -> io::Result<()> {
    let (Some(directory), Some(name)) = (directory(), file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    match DirBuilder::new().mode(0o755).create(&directory) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    check(&fs::symlink_metadata(&directory)?, true).ok_or(io::ErrorKind::PermissionDenied)?;
    let temporary = directory.join(format!("{name}.{}", std::process::id()));
    let mut file = create(&temporary)?;
    let done = file
        .write_all(&serde_json::to_vec_pretty(&offsets.0)?)
        .and_then(|()| fs::rename(&temporary, directory.join(name)));
    if done.is_err() {
        fs::remove_file(&temporary)?;
    }
    done
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Every field, no other one, each with a value that a kernel could have.
pub(super) fn parse(text: &[u8]) -> Option<Offsets> {
    let known: BTreeMap<String, u32> = serde_json::from_slice(text).ok()?;
    let valid = known.len() == FIELDS.len()
        && FIELDS
            .iter()
            .all(|f| known.get(f.name).is_some_and(|&value| value == ABSENT || value < MAX_OFFSET));
    valid.then_some(Offsets(known))
}

/// Ours alone, and of the right kind.
fn check(metadata: &fs::Metadata, directory: bool) -> Option<()> {
    let kind = if directory { metadata.is_dir() } else { metadata.is_file() };
    (kind && metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & 0o022 == 0).then_some(())
}

fn directory() -> Option<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Some(PathBuf::from("/run/ckptbpf"));
    }
    let runtime = PathBuf::from(env::var_os("XDG_RUNTIME_DIR")?);
    runtime.is_absolute().then(|| runtime.join("ckptbpf"))
}

fn file_name() -> Option<String> {
    let mut key = fs::read(NOTES).ok()?;
    key.extend(fs::metadata(VMLINUX).ok()?.len().to_le_bytes());
    for field in FIELDS {
        key.extend(field.identity().into_bytes());
    }
    Some(format!("offsets-{:016x}.json", xxh3_64(&key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> BTreeMap<String, u32> {
        FIELDS.iter().map(|f| (f.name.to_owned(), 8)).collect()
    }

    #[test]
    fn what_we_would_write_is_read_back() {
        let text = serde_json::to_vec(&whole()).unwrap();
        assert_eq!(parse(&text), Some(Offsets(whole())));
    }

    #[test]
    fn a_field_that_is_missing_unknown_or_too_far_in_refuses_the_file() {
        let mut less = whole();
        less.remove("TASK_PID");
        assert_eq!(parse(&serde_json::to_vec(&less).unwrap()), None);
        let mut more = whole();
        more.insert("unheard of".into(), 1);
        assert_eq!(parse(&serde_json::to_vec(&more).unwrap()), None);
        let mut far = whole();
        far.insert("TASK_PID".into(), MAX_OFFSET);
        assert_eq!(parse(&serde_json::to_vec(&far).unwrap()), None);
        assert_eq!(parse(b"{"), None);
    }

    #[test]
    fn a_symbolic_link_and_a_file_others_may_write_do_not_count() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        drop(create(&file).unwrap());
        assert!(check(&fs::symlink_metadata(&file).unwrap(), false).is_some());
        assert!(check(&fs::symlink_metadata(&file).unwrap(), true).is_none());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(check(&fs::symlink_metadata(&file).unwrap(), false).is_none());
        let link = directory.path().join("l");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(check(&fs::symlink_metadata(&link).unwrap(), false).is_none());
    }
}
