use super::*;
use crate::job::lease::{Claim, Lease, Purpose};
use crate::job::options::JobOptions;
use crate::job::record::RecordedOptions;
use std::fs::FileTimes;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

struct Job {
    base: tempfile::TempDir,
    dir: PathBuf,
    pointer: PathBuf,
    lease: Option<Lease>,
}

/// A job whose first process is this one, with a checkpoint as far as its directory tells.
fn job() -> Job {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join(".ckpt_count_0123456789abcdef");
    let pointer = base.path().join("ckpt_count_0123456789abcdef.dmtcp");
    let mut job = Job { base, dir, pointer, lease: None };
    job.begins();
    job
}

impl Job {
    fn begins(&mut self) {
        let dir = Arc::new(JobDir::create(&self.dir, &FsIds::current()).unwrap());
        let given = JobOptions { dmtcp: Some("7779".into()), ..Default::default() };
        let options = RecordedOptions::merged(&given, None);
        let purpose = Purpose::Launch { new: false };
        let claim = Claim { purpose, take_over: false, options, argv: vec!["./count".into()] };
        let lease = Lease::claim(&dir, claim).unwrap().lease;
        fs::write(self.dir.join("000001.ckpt"), "").unwrap();
        keep::keep(&lease);
        self.lease = Some(lease);
    }

    fn swept(&self) -> Vec<String> {
        sweep(self.base.path(), &FsIds::current())
    }

    fn stays(&self) {
        assert_eq!(self.swept(), Vec::<String>::new());
        assert!(self.dir.exists());
    }

    /// It stays, and that is said.
    fn stays_for(&self, why: &str) {
        let said = self.swept();
        assert!(said.len() == 1 && said[0].contains(why), "{why}: {said:?}");
        assert!(self.dir.join("000001.ckpt").exists());
    }

    /// Its supervisor is gone; the job ended unless `record` says otherwise.
    fn ends(&mut self, change: impl FnOnce(&mut JobRecord)) {
        let lease = self.lease.take().unwrap();
        lease.end(0).unwrap();
        let mut record = lease.record();
        drop(lease);
        change(&mut record);
        JobDir::open(&self.dir, &FsIds::current()).unwrap().write_record(&record).unwrap();
    }
}

#[test]
fn who_removes_the_pointer_removes_the_checkpoints_once_the_job_is_over() {
    let mut job = job();
    fs::remove_file(&job.pointer).unwrap();
    job.stays();
    job.ends(|_| ());
    let said = job.swept();
    assert!(said.len() == 1 && said[0].contains("0123456789abcdef.dmtcp was removed"), "{said:?}");
    assert!(!job.dir.exists());
}

#[test]
fn checkpoints_of_a_pointer_that_is_there_or_was_moved_stay() {
    let mut job = job();
    job.ends(|_| ());
    job.stays();
    fs::create_dir(job.base.path().join("kept")).unwrap();
    fs::rename(&job.pointer, job.base.path().join("kept/last.dmtcp")).unwrap();
    job.stays();
}

#[test]
fn checkpoints_of_a_pointer_that_may_be_elsewhere_stay_and_that_is_said() {
    let job_that_is_over = || {
        let mut job = job();
        job.ends(|_| ());
        job
    };
    // As mv does from one file system to another, whatever its file system notes of it here.
    let copied = job_that_is_over();
    let read = FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH);
    File::open(&copied.pointer).unwrap().set_times(read).unwrap();
    copied.stays();
    fs::remove_file(&copied.pointer).unwrap();
    copied.stays_for("it was read since the last checkpoint");
    // A file system without links.
    let alone = job_that_is_over();
    fs::remove_file(alone.dir.join(OWN)).unwrap();
    alone.stays();
    fs::rename(&alone.pointer, alone.base.path().join("last.dmtcp")).unwrap();
    alone.stays_for("whether it was removed or moved");
    // A copy of the whole by a program that knows no links; of the copy the file is moved.
    let whole = job_that_is_over();
    let (own, copy) = (whole.dir.join(OWN), whole.base.path().join("copy"));
    let written = own.metadata().unwrap().modified().unwrap();
    fs::copy(&own, &copy).unwrap();
    let times = FileTimes::new().set_accessed(written).set_modified(written);
    File::open(&copy).unwrap().set_times(times).unwrap();
    fs::rename(&copy, &own).unwrap();
    whole.stays();
    fs::rename(&whole.pointer, whole.base.path().join("last.dmtcp")).unwrap();
    whole.stays_for("its directory is a copy");
}

#[test]
fn checkpoints_of_a_pointer_that_could_not_be_written_stay_and_that_is_said() {
    let mut job = job();
    fs::remove_dir_all(&job.dir).unwrap();
    fs::remove_file(&job.pointer).unwrap();
    // Something that is not replaced is in its place.
    fs::create_dir_all(job.pointer.join("x")).unwrap();
    job.begins();
    job.ends(|_| ());
    job.stays();
    fs::remove_dir_all(&job.pointer).unwrap();
    let temporary = job.base.path().join(".ckpt_count_0123456789abcdef.dmtcp.tmp");
    fs::remove_file(temporary).unwrap();
    job.stays_for("could not be written");
}

#[test]
fn a_job_that_may_run_elsewhere_keeps_its_checkpoints_and_that_is_said() {
    let mut job = job();
    fs::remove_file(&job.pointer).unwrap();
    job.ends(|record| {
        record.ended = None;
        record.here = Here { host: "n9".into(), boot_id: "x".into(), machine: None };
    });
    let said = job.swept();
    assert!(said.len() == 1 && said[0].contains("running on host n9"), "{said:?}");
    assert!(job.dir.exists());
}

#[test]
fn a_directory_without_a_checkpoint_goes_without_a_word_and_other_ones_stay() {
    let mut job = job();
    fs::remove_file(job.dir.join("000001.ckpt")).unwrap();
    let other = job.base.path().join(".ckpt_other_1");
    fs::create_dir(&other).unwrap();
    std::os::unix::fs::symlink(&job.dir, job.base.path().join(".ckpt_link_1")).unwrap();
    job.ends(|record| record.options.dmtcp = None);
    job.stays();
    let open = JobDir::open(&job.dir, &FsIds::current()).unwrap();
    let mut record = open.read_record().unwrap().unwrap();
    record.options.dmtcp = Some("7779".into());
    open.write_record(&record).unwrap();
    // What a rollback has cut off a file that is somebody's.
    fs::create_dir(job.dir.join("cut")).unwrap();
    job.stays();
    fs::remove_dir(job.dir.join("cut")).unwrap();
    assert_eq!(job.swept(), Vec::<String>::new());
    assert!(!job.dir.exists() && other.exists());
}
