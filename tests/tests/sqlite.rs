//! A database: a transaction is open at the checkpoint, files are overwritten in place after it.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use ckpt_tests::scenario::{MODES, verb};
use ckpt_tests::{Cmd, Job, Mode, Sandbox, assert_same};

const SOON: Duration = Duration::from_secs(60);

/// 300 rows of a kilobyte: more than fits into the two ends of a file that a checkpoint looks at.
const TABLE: &str = "create table t(a integer primary key, b);
    insert into t select value, printf('%1000d', value) from generate_series(1, 300);";
/// 300 more, into the file as well as behind its end.
const MORE: &str = "insert into t select value, printf('%1000d', value) from generate_series(301, 600);
    update t set b = b + 1 where a % 7 = 0;";

/// sqlite3 that reads from the FIFO `in`, which it holds open itself.
fn sqlite() -> Cmd {
    Cmd::sh("mkfifo in; exec sqlite3 db '.read in' 8<>in")
}

/// Has the program run statements; returns when they are done.
fn tell(sandbox: &Sandbox, job: &Job<'_>, statements: &str, done: &str) {
    let write = |text: &str| {
        let mut fifo = std::fs::OpenOptions::new();
        let fifo = fifo.write(true).custom_flags(libc::O_NONBLOCK).open(sandbox.dir().join("in"));
        fifo.and_then(|mut fifo| fifo.write_all(text.as_bytes()))
    };
    let line = format!("{statements}\nselect '{done}', count(*), sum(b) from t;\n");
    // While it is restarted, whoever has the FIFO open is somebody else who uses it.
    job.program();
    sandbox.wait_for("sqlite3 to read", SOON, || {
        assert!(!job.running().has_ended(), "it has ended: {}", job.running().stderr());
        write(&line).is_ok()
    });
    job.running().wait_for_output(&format!("{done}|"), SOON);
}

/// What the database holds, byte for byte and in words; it is whole.
fn content(sandbox: &Sandbox, folder: &Path) -> (Vec<u8>, Vec<u8>) {
    let asked = Cmd::new("sqlite3").args(["db", "pragma integrity_check", ".dump"]).cwd(folder);
    let said = sandbox.run(asked).success().stdout;
    assert!(said.starts_with(b"ok\n"), "{}", String::from_utf8_lossy(&said[..said.len().min(300)]));
    (std::fs::read(folder.join("db")).unwrap(), said)
}

/// The same statements without ckptbpf.
fn undisturbed(sandbox: &Sandbox, statements: &str) -> (Vec<u8>, Vec<u8>) {
    let folder = sandbox.dir().join("undisturbed");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("statements"), statements).unwrap();
    let run = Cmd::new("sqlite3").arg("db").cwd(&folder).stdin(&folder.join("statements"));
    sandbox.run(run).success();
    content(sandbox, &folder)
}

fn begins(mode: &str) -> String {
    format!("pragma journal_mode = {mode}; {TABLE}")
}

/// A transaction is open at the checkpoint. What it did after that, and has not committed, is done again.
fn transaction_goes_on(mode: &str) {
    let sandbox = Sandbox::new(&format!("sqlite-{mode}"));
    let update = "update t set b = -b where a between 100 and 200;";
    let all = format!(
        "{} begin; {MORE} {update} {update} commit; begin; delete from t where a % 2; commit;",
        begins(mode)
    );
    let expected = undisturbed(&sandbox, &all);
    let mut job = Job::launch(&sandbox, &[], &sqlite());
    tell(&sandbox, &job, &begins(mode), "made");
    tell(&sandbox, &job, &format!("begin; {MORE}"), "open");
    let open = job.checkpoint().id;
    for how in MODES {
        // Once killed as it stood at the checkpoint, once after more of the same transaction.
        if *how == Mode::Lazy {
            tell(&sandbox, &job, update, "more");
        }
        job.kill_all();
        job.restart_at(open, *how, &[]);
        job.program();
        // It has its locks.
        let other = Cmd::new("sqlite3").args(["db", "begin immediate"]);
        let locked = sandbox.run(other).stderr_text();
        assert!(locked.contains("locked"), "{mode}, {how:?}: {locked}");
    }
    tell(&sandbox, &job, &format!("{update} {update}"), "changed");
    job.checkpoint();
    job.kill_all();
    job.restart(Mode::Eager, &[]);
    tell(&sandbox, &job, "commit;", "committed");
    job.checkpoint();
    job.kill_all();
    job.restart(Mode::Lazy, &[]);
    tell(&sandbox, &job, "begin; delete from t where a % 2; commit;", "deleted");
    std::fs::write(sandbox.dir().join("in"), ".quit\n").unwrap();
    job.wait(SOON).success();
    let found = content(&sandbox, &sandbox.dir());
    assert_same(&format!("{mode}: the dump"), &expected.1, &found.1);
    assert_same(&format!("{mode}: the database"), &expected.0, &found.0);
}

#[test]
fn a_transaction_goes_on_with_a_journal() {
    transaction_goes_on("delete");
}

#[test]
fn a_transaction_goes_on_with_a_journal_that_stays() {
    transaction_goes_on("persist");
}

#[test]
fn a_transaction_goes_on_with_a_write_ahead_log() {
    transaction_goes_on("wal");
}

/// Transactions committed to the log after the checkpoint are cut off with it, and done again.
#[test]
fn a_write_ahead_log_that_has_grown_is_cut_back() {
    let sandbox = Sandbox::new("sqlite-log");
    let expected = undisturbed(&sandbox, &format!("{} {MORE} delete from t where a % 3;", begins("wal")));
    let mut job = Job::launch(&sandbox, &[], &sqlite());
    tell(&sandbox, &job, &begins("wal"), "made");
    let idle = job.checkpoint().id;
    for how in MODES {
        tell(&sandbox, &job, MORE, "more");
        job.kill_all();
        job.restart_at(idle, *how, &[]);
    }
    tell(&sandbox, &job, &format!("{MORE} delete from t where a % 3;"), "done");
    std::fs::write(sandbox.dir().join("in"), ".quit\n").unwrap();
    job.wait(SOON).success();
    assert_same("the dump", &expected.1, &content(&sandbox, &sandbox.dir()).1);
}

/// `before` the checkpoint and `after` it: a restart names `file` and changes nothing.
fn overwritten(name: &str, before: &str, after: &str, file: &str) {
    let sandbox = Sandbox::new(name);
    let mut job = Job::launch(&sandbox, &[], &sqlite());
    tell(&sandbox, &job, before, "before");
    job.checkpoint();
    tell(&sandbox, &job, after, "after");
    job.kill_all();
    let was = std::fs::read(sandbox.dir().join("db")).unwrap();
    for options in [&[][..], &["--lazy"], &["--files", "check"]] {
        let refused = sandbox.run(verb("restart", options).arg(job.dir())).expect_code(125).stderr_text();
        assert!(refused.contains(&format!("/{file}: ")), "{name}: {refused}");
        assert_same("the database", &was, &std::fs::read(sandbox.dir().join("db")).unwrap());
    }
    content(&sandbox, &sandbox.dir());
}

#[test]
fn a_database_that_was_committed_to_since_is_refused() {
    let begins = begins;
    overwritten("idle", &begins("delete"), MORE, "db");
    // No row more: the size stays.
    overwritten("same-size", &begins("delete"), "update t set b = -b where a = 150;", "db");
    overwritten("open", &format!("{} begin; {MORE}", begins("delete")), "commit;", "db");
    overwritten("persist", &format!("{} begin; {MORE}", begins("persist")), "commit;", "db");
    // The log is written to the database, then from its start again.
    let again = format!("{MORE} pragma wal_checkpoint(restart); update t set b = -b where a = 150;");
    overwritten("log", &begins("wal"), &again, "db");
}

/// sqlite3 itself notices that its file has changed, as long as it was between two transactions.
#[test]
fn kept_as_it_is_the_database_is_whole() {
    let sandbox = Sandbox::new("sqlite-keep");
    let mut job = Job::launch(&sandbox, &[], &sqlite());
    tell(&sandbox, &job, &begins("delete"), "made");
    job.checkpoint();
    tell(&sandbox, &job, MORE, "more");
    job.kill_all();
    job.restart(Mode::Eager, &["--files", "keep"]);
    tell(&sandbox, &job, "delete from t where a > 500;", "deleted");
    assert!(job.running().stderr().contains("overwritten since"), "{}", job.running().stderr());
    std::fs::write(sandbox.dir().join("in"), ".quit\n").unwrap();
    job.wait(SOON).success();
    content(&sandbox, &sandbox.dir());
    let last = String::from_utf8(job.stdout()).unwrap().lines().last().unwrap().to_owned();
    assert!(last.starts_with("deleted|500|"), "what was committed is there: {last}");
}
