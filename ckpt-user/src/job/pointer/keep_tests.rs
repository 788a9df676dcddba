use super::*;
use crate::job::lease::{Claim, Purpose};
use crate::job::options::JobOptions;
use crate::job::record::RecordedOptions;
use crate::sys::ids::FsIds;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "ckpt_count_0123456789abcdef.dmtcp";

fn job(above: &Path, dmtcp: Option<&str>) -> Lease {
    let dir = above.join(".ckpt_count_0123456789abcdef");
    let dir = Arc::new(JobDir::create(&dir, &FsIds::current()).unwrap());
    let given = JobOptions { dmtcp: dmtcp.map(str::to_owned), ..Default::default() };
    let options = RecordedOptions::merged(&given, None);
    let purpose = Purpose::Launch { new: false };
    let claim = Claim { purpose, take_over: false, options, argv: vec!["./count".into()] };
    Lease::claim(&dir, claim).unwrap().lease
}

fn read(path: &Path) -> Pointer {
    Pointer::parse(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn it_is_there_after_the_first_and_as_old_as_the_last() {
    let base = tempfile::tempdir().unwrap();
    let lease = job(base.path(), Some("7779"));
    let pointer = base.path().join(NAME);
    keep(&lease);
    assert_eq!(read(&pointer).job, lease.record().job);
    assert_eq!(pointer.metadata().unwrap().nlink(), 2);
    let old = SystemTime::now() - Duration::from_secs(100);
    File::open(&pointer).unwrap().set_modified(old).unwrap();
    let before = pointer.metadata().unwrap().ino();
    keep(&lease);
    let after = pointer.metadata().unwrap();
    assert!(after.modified().unwrap() > old && after.ino() == before);
    for script in [script::NAME, "dmtcp_restart_script_0123456789abcdef.sh"] {
        let mode = base.path().join(script).metadata().unwrap().mode();
        assert_eq!(mode & 0o7777, 0o755, "{script}");
    }
    // Nothing else is left beside the two names and the directory.
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 4);
}

#[test]
fn one_that_was_removed_or_replaced_is_there_again_and_nothing_is_followed() {
    let base = tempfile::tempdir().unwrap();
    let lease = job(base.path(), Some("7779"));
    let (pointer, other) = (base.path().join(NAME), base.path().join("other"));
    fs::write(&other, "theirs").unwrap();
    let again = || {
        keep(&lease);
        assert_eq!(read(&pointer).job, lease.record().job);
        assert_eq!(fs::read_to_string(&other).unwrap(), "theirs");
    };
    std::os::unix::fs::symlink(&other, &pointer).unwrap();
    std::os::unix::fs::symlink(&other, base.path().join(script::NAME)).unwrap();
    again();
    assert!(base.path().join(script::NAME).symlink_metadata().unwrap().is_file());
    fs::remove_file(&pointer).unwrap();
    again();
    fs::write(&pointer, "something else").unwrap();
    again();
}

#[test]
fn it_follows_a_directory_that_is_moved() {
    let base = tempfile::tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| base.path().join(name));
    fs::create_dir(&first).unwrap();
    let lease = job(&first, Some("7779"));
    keep(&lease);
    fs::rename(&first, &second).unwrap();
    keep(&lease);
    let dir: PathBuf = fs::canonicalize(second.join(".ckpt_count_0123456789abcdef")).unwrap();
    assert_eq!(read(&second.join(NAME)).dir, Some(dir));
    assert!(!first.exists());
}

#[test]
fn it_tells_of_its_other_name_once_that_is_there_and_a_copy_tells_nothing() {
    let base = tempfile::tempdir().unwrap();
    let lease = job(base.path(), Some("7779"));
    let (pointer, path) = (base.path().join(NAME), lease.dir().path().join(OWN));
    let own = || File::open(&path).unwrap();
    let is_settled = || is_settled(&own().metadata().unwrap());
    // Something that is not replaced is in its place.
    fs::create_dir_all(pointer.join("x")).unwrap();
    keep(&lease);
    assert!(!is_settled());
    fs::remove_dir_all(&pointer).unwrap();
    keep(&lease);
    assert!(is_settled() && is_first(&own()).unwrap());
    let copy = lease.dir().path().join("copy");
    fs::copy(&path, &copy).unwrap();
    fs::rename(&copy, &path).unwrap();
    assert!(!is_first(&own()).unwrap());
    keep(&lease);
    assert!(is_settled() && is_first(&own()).unwrap());
    assert_eq!(pointer.metadata().unwrap().ino(), own().metadata().unwrap().ino());
    // On another host it is the same file, wherever it has been moved to; in another place it is not.
    let (here, there) = (read(&pointer), Some(PathBuf::from("/elsewhere")));
    assert!(leads(&own(), &Pointer { host: "n9".into(), ..here.clone() }.text()).unwrap());
    assert!(!leads(&own(), &Pointer { dir: there, ..here }.text()).unwrap());
}

#[test]
fn other_jobs_have_none() {
    let base = tempfile::tempdir().unwrap();
    keep(&job(base.path(), None));
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
}
