use super::*;
use crate::sys::ids::FsIds;
use std::fs;

fn fresh() -> (tempfile::TempDir, Arc<JobDir>) {
    let base = tempfile::tempdir().unwrap();
    let dir = JobDir::create(&base.path().join("d"), &FsIds::current()).unwrap();
    (base, Arc::new(dir))
}

fn claim(purpose: Purpose) -> Claim {
    let options = RecordedOptions { keep: Some(2), ..Default::default() };
    Claim { purpose, take_over: false, options, argv: vec!["./count".into()] }
}

const LAUNCH: Purpose = Purpose::Launch { new: false };

#[test]
fn one_writer_at_a_time_and_the_second_learns_who_it_is() {
    let (_base, dir) = fresh();
    let first = Lease::claim(&dir, claim(LAUNCH)).unwrap();
    let error = Lease::claim(&dir, claim(Purpose::Restart)).unwrap_err().to_string();
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    drop(first);
    Lease::claim(&dir, claim(Purpose::Restart)).unwrap();
}

/// As a guardian has it for a moment after ckptbpf's death.
#[test]
fn a_lock_that_has_outlived_its_ckptbpf_is_waited_for() {
    let (_base, dir) = fresh();
    let mut record = Lease::claim(&dir, claim(LAUNCH)).unwrap().lease.record();
    let gone = ProcessId { start_time: 0, ..record.supervisor };
    let held = || dir.open_file("lock", OFlag::O_RDWR).inspect(|file| file.try_lock().unwrap()).unwrap();
    let still = held();
    assert!(matches!(Lease::claim(&dir, claim(Purpose::Restart)), Err(DirectoryError::Busy { .. })));
    record.supervisor = gone;
    dir.write_record(&record).unwrap();
    let (begun, waits) = std::sync::mpsc::channel();
    let claimed = std::thread::scope(|scope| {
        let claimed = scope.spawn(|| {
            begun.send(()).unwrap();
            Lease::claim(&dir, claim(Purpose::Restart))
        });
        waits.recv().unwrap();
        // One that does not wait is done with it by now.
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(still);
        claimed.join().unwrap()
    });
    assert_eq!(claimed.unwrap().lease.record().epoch, 2);
}

#[test]
fn a_restart_is_the_same_job_in_the_next_epoch() {
    let (_base, dir) = fresh();
    let first = Lease::claim(&dir, claim(LAUNCH)).unwrap().lease.record();
    let second =
        Lease::claim(&dir, Claim { argv: Vec::new(), ..claim(Purpose::Restart) }).unwrap().lease.record();
    assert_eq!((first.epoch, second.epoch), (1, 2));
    assert_eq!((&first.job, &first.argv), (&second.job, &second.argv));
    let third = Lease::claim(&dir, claim(LAUNCH)).unwrap().lease.record();
    assert_eq!(third.epoch, 3);
    assert_ne!(third.job, first.job);
}

#[test]
fn a_program_that_still_runs_is_not_restarted_but_can_be_attached() {
    let (_base, dir) = fresh();
    let lease = Lease::claim(&dir, claim(LAUNCH)).unwrap().lease;
    let me = ProcessId::current().unwrap();
    lease.started(me, Some("/run/x.sock".into())).unwrap();
    drop(lease);
    let refused = Lease::claim(&dir, claim(Purpose::Restart));
    assert!(matches!(refused, Err(DirectoryError::StillRuns { pid, .. }) if pid == me.pid));
    let refused = Lease::claim(&dir, claim(Purpose::Attach(1)));
    assert!(matches!(refused, Err(DirectoryError::StillRuns { .. })));
    let again = Lease::claim(&dir, claim(Purpose::Attach(me.pid))).unwrap().lease;
    again.started(me, None).unwrap();
    again.end(0).unwrap();
    drop(again);
    Lease::claim(&dir, claim(Purpose::Restart)).unwrap();
}

#[test]
fn another_host_is_reported_and_taken_over_only_when_the_person_vouches() {
    let (_base, dir) = fresh();
    let first = Lease::claim(&dir, claim(LAUNCH)).unwrap();
    let mut record = first.lease.record();
    record.here = Here { host: "node7".into(), boot_id: "b".into(), machine: None };
    dir.write_record(&record).unwrap();
    // The writer that lost its directory may commit nothing more.
    let lost = first.lease.check().unwrap_err().to_string();
    assert!(lost.contains("node7"), "{lost}");
    assert!(first.lease.end(0).is_err());
    drop(first);
    let error = Lease::claim(&dir, claim(Purpose::Restart)).unwrap_err().to_string();
    assert!(error.contains("node7") && error.contains("--take-over"), "{error}");
    let taken = Lease::claim(&dir, Claim { take_over: true, ..claim(Purpose::Restart) }).unwrap();
    assert!(taken.notes[0].contains("node7") && taken.notes[0].contains("both write to the same files"));
    taken.lease.check().unwrap();
    // Who prunes runs no program.
    drop(taken);
    dir.write_record(&record).unwrap();
    let pruner = Claim { take_over: true, argv: Vec::new(), ..claim(Purpose::Prune) };
    let taken = Lease::claim(&dir, pruner).unwrap();
    assert!(taken.notes[0].contains("node7") && !taken.notes[0].contains("files"), "{:?}", taken.notes);
    fs::remove_file(dir.path().join("job.json")).unwrap();
    assert!(taken.lease.check().is_err());
}

#[test]
fn launch_refuses_checkpoints_and_new_moves_them() {
    let (_base, dir) = fresh();
    fs::write(dir.path().join("000001.ckpt"), "").unwrap();
    assert!(matches!(Lease::claim(&dir, claim(LAUNCH)), Err(DirectoryError::HoldsCheckpoints { .. })));
    let claimed = Lease::claim(&dir, claim(Purpose::Launch { new: true })).unwrap();
    assert!(claimed.moved.unwrap().join("000001.ckpt").exists());
    assert!(dir.read_record().unwrap().is_some());
}

#[test]
fn pruning_leaves_the_recorded_options() {
    let (_base, dir) = fresh();
    drop(Lease::claim(&dir, claim(LAUNCH)).unwrap());
    let pruner = Claim { options: RecordedOptions::default(), argv: Vec::new(), ..claim(Purpose::Prune) };
    let record = Lease::claim(&dir, pruner).unwrap().lease.record();
    assert_eq!(record.options.keep, Some(2));
    assert_eq!(record.argv, ["./count"]);
}

#[test]
fn attaching_to_another_program_does_not_continue_a_chain() {
    let (_base, dir) = fresh();
    drop(Lease::claim(&dir, claim(LAUNCH)).unwrap());
    fs::write(dir.path().join("000001.ckpt"), "").unwrap();
    let me = ProcessId::current().unwrap();
    assert!(matches!(
        Lease::claim(&dir, claim(Purpose::Attach(me.pid))),
        Err(DirectoryError::HoldsCheckpoints { .. })
    ));
}

#[test]
fn a_lost_record_is_made_again_with_the_identity_of_the_generations() {
    use crate::image::{Codec, GenerationId, GenerationWriter, Header, Summary};
    let (_base, dir) = fresh();
    let header =
        Header { id: GenerationId(1), parent: None, job: [0x1f; 16], features: vec![], created_unix_ns: 0 };
    let writer = GenerationWriter::create(dir.path(), header, Codec::None, 0).unwrap();
    writer.commit(b"", Summary::default(), || Ok(())).unwrap();
    let record = Lease::claim(&dir, claim(Purpose::Restart)).unwrap().lease.record();
    assert_eq!(record.job, "1f1f1f1f-1f1f-1f1f-1f1f-1f1f1f1f1f1f");
}

#[test]
fn what_killed_writers_left_goes_with_the_next_claim_and_what_is_written_stays() {
    use crate::image::{Codec, GenerationId, GenerationWriter, Header};
    let (_base, dir) = fresh();
    let header =
        Header { id: GenerationId(2), parent: None, job: [0x1f; 16], features: vec![], created_unix_ns: 0 };
    let left = || {
        let entries = fs::read_dir(dir.path()).unwrap();
        entries
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".tmp"))
            .count()
    };
    let purposes =
        [LAUNCH, Purpose::Restart, Purpose::Attach(1), Purpose::Prune, Purpose::Launch { new: true }];
    for purpose in purposes {
        // Where the lock does not reach, somebody may have the directory, and write.
        let written = GenerationWriter::create(dir.path(), header.clone(), Codec::None, 0).unwrap();
        fs::write(dir.path().join(".000001.ckpt.1f-0.tmp"), "half of it").unwrap();
        fs::write(dir.path().join("job.json.tmp"), "{").unwrap();
        assert_eq!(Lease::claim(&dir, claim(purpose)).unwrap().freed, 10);
        assert_eq!(left(), 1, "{purpose:?}");
        drop(written);
        assert_eq!(left(), 0);
    }
}

#[test]
fn a_source_that_is_only_read_must_not_run_here() {
    let (_base, dir) = fresh();
    assert_eq!(Lease::look(&dir).unwrap(), None);
    let lease = Lease::claim(&dir, claim(LAUNCH)).unwrap().lease;
    lease.started(ProcessId::current().unwrap(), None).unwrap();
    assert!(matches!(Lease::look(&dir), Err(DirectoryError::StillRuns { .. })));
    let mut record = lease.record();
    record.here.host = "node7".into();
    dir.write_record(&record).unwrap();
    assert!(Lease::look(&dir).unwrap().unwrap().contains("node7"));
}

#[test]
fn what_has_not_come_to_run_is_not_said_to_run() {
    let (_base, dir) = fresh();
    // A launch of nothing.
    drop(Lease::claim(&dir, claim(LAUNCH)).unwrap());
    assert_eq!(dir.read_record().unwrap().unwrap().ended, Some(ended::FAILED));
    // A job that has ended on another node, and a restart that fails here.
    let lease = Lease::claim(&dir, claim(LAUNCH)).unwrap().lease;
    lease.started(ProcessId::current().unwrap(), None).unwrap();
    lease.end(85).unwrap();
    drop(lease);
    let mut before = dir.read_record().unwrap().unwrap();
    before.here.host = "node7".into();
    dir.write_record(&before).unwrap();
    let failed = Lease::claim(&dir, claim(Purpose::Restart)).unwrap().lease;
    let during = failed.record();
    assert_eq!((during.ended, during.starting), (None, true));
    drop(failed);
    let after = dir.read_record().unwrap().unwrap();
    assert_eq!(after, JobRecord { epoch: during.epoch, ..before });
    // One that has come to run, and is gone without a word.
    let lease = Lease::claim(&dir, claim(Purpose::Restart)).unwrap().lease;
    lease.starting(ProcessId { pid: 1 << 22, start_time: 1 }, Vec::new()).unwrap();
    drop(lease);
    assert_eq!(dir.read_record().unwrap().unwrap().ended, Some(ended::FAILED));
    // And one that has lost the directory meanwhile.
    let lease = Lease::claim(&dir, claim(Purpose::Restart)).unwrap().lease;
    let other = JobRecord { epoch: 99, ..lease.record() };
    dir.write_record(&other).unwrap();
    drop(lease);
    assert_eq!(dir.read_record().unwrap(), Some(other));
}
