use super::*;
use crate::job::identity::fs_ids_of;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

fn fresh() -> (tempfile::TempDir, JobDir) {
    let base = tempfile::tempdir().unwrap();
    let dir = JobDir::create(&base.path().join("ckpt_x"), &FsIds::current()).unwrap();
    (base, dir)
}

#[test]
fn the_directory_is_the_given_the_environments_or_named_after_the_program() {
    let dir = |given: Option<&str>, env: Option<&str>, program: &str| {
        resolve(given.map(Path::new), env.map(OsStr::new), OsStr::new(program)).display().to_string()
    };
    assert_eq!(dir(Some("d"), Some("e"), "p"), "d");
    assert_eq!(dir(None, Some("e"), "p"), "e");
    assert_eq!(dir(None, Some(""), "./a/count"), "./ckpt_count");
}

#[test]
fn only_numbered_files_are_generations() {
    assert_eq!(generation_of(b"000017.ckpt"), Some(17));
    assert_eq!(generation_of(b"1234567.ckpt"), Some(1_234_567));
    for name in [
        "17.ckpt",
        "0000017.ckpt",
        "000017.ckpt.tmp",
        "00001x.ckpt",
        "000000.ckpt",
        ".ckpt",
        "99999999999999999999999.ckpt",
    ] {
        assert_eq!(generation_of(name.as_bytes()), None, "{name}");
    }
}

#[test]
fn it_is_private_and_so_are_its_files() {
    let (_base, dir) = fresh();
    assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o7777, 0o700);
    dir.open_file("events.jsonl", OFlag::O_WRONLY | OFlag::O_CREAT).unwrap();
    assert_eq!(fs::metadata(dir.path().join("events.jsonl")).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn an_open_directory_is_closed_if_empty_and_refused_if_it_holds_other_things() {
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    JobDir::create(base.path(), &FsIds::current()).unwrap();
    assert_eq!(fs::metadata(base.path()).unwrap().mode() & 0o7777, 0o700);
    fs::write(base.path().join("thesis.tex"), "").unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let error = JobDir::create(base.path(), &FsIds::current()).unwrap_err();
    assert!(error.to_string().contains("chmod 700"), "{error}");
}

#[test]
fn a_link_in_it_is_not_followed() {
    let (base, dir) = fresh();
    let precious = base.path().join("precious");
    fs::write(&precious, "kept").unwrap();
    symlink(&precious, dir.path().join("lock")).unwrap();
    symlink(&precious, dir.path().join("job.json")).unwrap();
    assert!(dir.open_file("lock", OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC).is_err());
    assert!(dir.read_record().is_err());
    assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
}

#[test]
fn earlier_generations_move_aside_and_nothing_else_does() {
    let (_base, dir) = fresh();
    assert_eq!(dir.move_aside().unwrap(), None);
    for name in ["000001.ckpt", "000002.ckpt", "events.jsonl", "lock", "notes"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    fs::create_dir(dir.path().join("old-4")).unwrap();
    let error = dir.refuse_checkpoints().unwrap_err().to_string();
    for way in ["run", "restart", "-d", "--new", "newest is 2"] {
        assert!(error.contains(way), "{error}");
    }
    let moved = dir.move_aside().unwrap().unwrap();
    assert!(moved.ends_with("old-5"));
    assert!(moved.join("000002.ckpt").exists() && moved.join("events.jsonl").exists());
    assert!(dir.path().join("lock").exists() && dir.path().join("notes").exists());
    dir.refuse_checkpoints().unwrap();
    assert!(dir.require_checkpoints().is_err());
}

#[test]
fn a_damaged_record_is_named() {
    let (_base, dir) = fresh();
    assert!(dir.read_record().unwrap().is_none());
    fs::write(dir.path().join("job.json"), b"{\"job\":").unwrap();
    assert!(matches!(dir.read_record(), Err(DirectoryError::BadRecord { .. })));
    fs::remove_file(dir.path().join("job.json")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("job.json"), Mode::S_IRWXU).unwrap();
    assert!(dir.read_record().is_err());
}

#[test]
fn root_makes_and_opens_it_as_the_user_it_is_for() {
    if crate::skipped::without_root() {
        return;
    }
    let nobody = fs_ids_of(65534).unwrap();
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("theirs");
    // Root may write there, the user may not; as the user it fails.
    assert!(JobDir::create(&path, &nobody).is_err());
    std::os::unix::fs::chown(base.path(), Some(nobody.uid), Some(nobody.gid)).unwrap();
    let dir = JobDir::create(&path, &nobody).unwrap();
    assert_eq!(dir.owner().unwrap(), nobody.uid);
    dir.open_file("000001.ckpt", OFlag::O_WRONLY | OFlag::O_CREAT).unwrap();
    assert_eq!(fs::metadata(path.join("000001.ckpt")).unwrap().uid(), nobody.uid);
    let reopened = JobDir::open(&path, &FsIds::current()).unwrap();
    assert_eq!(reopened.ids().uid, nobody.uid);
    let root = JobDir::create(&path, &FsIds::current());
    assert!(matches!(root, Err(DirectoryError::NotOurs { .. })));
}
