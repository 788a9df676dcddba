//! The options of a restart.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{stepper, steps, verb, walk, walk_through, walk_until};
use ckpt_tests::{Cmd, Expected, Job, Mode, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// A program in `images` with one checkpoint, killed two steps after it; what its whole run would give, and the size of
/// its file now.
fn killed_job(sandbox: &Sandbox) -> (Cmd, Expected, u64) {
    let program = stepper(6);
    let launched = sandbox.spawn(verb("launch", ["-d", "images", "--"]).program(&program));
    let step = |number: u32| {
        sandbox.run("kill -USR1 $(pidof memory)").success();
        launched.wait_for_output(&format!("\n{number} "), SOON);
    };
    launched.wait_for_output("0 ", SOON);
    step(1);
    sandbox.run(verb("checkpoint", ["images"])).success();
    step(2);
    step(3);
    let size = std::fs::metadata(sandbox.dir().join("f")).unwrap().len();
    sandbox.run("kill -9 $(pidof memory)").success();
    launched.wait(SOON).expect_code(137);
    let bare = victim_cmd("memory").args(["1", "6", "f", "-"]);
    (program, Expected::of(sandbox, &bare, Some("f")), size)
}

fn ends_like(sandbox: &Sandbox, expected: &Expected, restarted: &[u8]) {
    assert!(expected.stdout.ends_with(restarted) && !restarted.is_empty(), "not the end of the same output");
    assert_same("the file", &expected.file, &std::fs::read(sandbox.dir().join("f")).unwrap());
}

#[test]
fn a_line_of_json_that_nobody_takes_is_nothing_to_the_program() {
    let sandbox = Sandbox::new("restart-json-in-vain");
    let (_, expected, _) = killed_job(&sandbox);
    let restart = verb("restart", ["--json", "images"]);
    let ended = walk_through(&sandbox, Cmd::sh("exec \"$@\" 2> /dev/full").arg("sh").program(&restart));
    ends_like(&sandbox, &expected, &ended.success().stdout);
}

#[test]
fn somebody_looks_at_every_process_during_restarts() {
    // As ps(1) does: a look at the arguments of a process that has no page there yet makes one, of zeros.
    let sandbox = Sandbox::new("looked-at");
    let program = victim_cmd("memory").args(["4", "6", "f", "signal"]);
    let mut job = Job::launch(&sandbox, &[], &program);
    job.running().wait_for_output("0 ", SOON);
    let from = job.checkpoint().id;
    job.kill_all();
    for _ in 0..10 {
        let look = "while :; do cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; done > /dev/null 2>&1";
        sandbox.spawn(look);
        job.restart_at(from, Mode::Eager, &[]);
        job.program();
        job.kill_all();
    }
    job.restart_at(from, Mode::Eager, &[]);
    job.walk().success();
    let expected = Expected::of(&sandbox, &victim_cmd("memory").args(["4", "6", "f", "-"]), Some("f"));
    assert_same("standard output", &expected.stdout, &job.stdout());
}

/// Whoever looks at a process that is being rebuilt, before its memory is watched, leaves pages of zeros there: as ps(1) does
/// with the arguments, and a debugger anywhere.
#[test]
fn somebody_looks_at_a_process_before_its_memory_is_watched() {
    // It says of each process when it has found zeros where there are none in the program.
    const LOOKER: &str = "import glob, os
def look(name, at, count):
    try:
        fd = os.open(name, os.O_RDONLY)
    except OSError:
        return b''
    try:
        return os.pread(fd, count, at)
    except OSError:
        return b''
    finally:
        os.close(fd)
missing = {'arguments', 'variables', 'area'}
print('looking', flush=True)
while True:
    for of in glob.glob('/proc/[0-9]*'):
        seen = (('arguments', 'cmdline', 0, 4096), ('variables', 'environ', 0, 4096), ('area', 'mem', 0x200000000000, 4096))
        for what, name, at, count in seen:
            found = look(f'{of}/{name}', at, count)
            if found and not any(found) and what in missing:
                missing.remove(what)
                print('zeros for', what, flush=True)
        if not missing:
            missing.add('')
            print('everything', flush=True)
";
    const ROUNDS: usize = 100;
    let sandbox = Sandbox::with_limit("lazy_looked_at", Duration::from_secs(170));
    let program = |gate| {
        let called = ["first", "second argument", "x".repeat(300).as_str()].map(str::to_owned);
        let program = victim_cmd("lookedat").arg(gate).args(called);
        program.env("LOOKED_1", "a variable").env("LOOKED_2", &"y".repeat(300))
    };
    let expected = Expected::of(&sandbox, &program("-"), None);
    let mut job = Job::launch(&sandbox, &[], &program("signal"));
    job.running().wait_for_output("step 0", SOON);
    let from = job.checkpoint().id;
    job.kill_all();
    for mode in [Mode::Lazy, Mode::Eager] {
        // Until it has looked in time.
        let looked = (0..ROUNDS).any(|round| {
            if round > 0 {
                job.kill_all();
            }
            let looker = sandbox.spawn(Cmd::new("/usr/bin/python3").args(["-c", LOOKER]));
            looker.wait_for_output("looking", SOON);
            job.restart_at(from, mode, &[]);
            job.program();
            String::from_utf8_lossy(&looker.stdout()).contains("everything")
        });
        assert!(looked, "{mode:?}: in none of {ROUNDS} restarts it has looked in time");
        job.signal(Signal::SIGUSR1);
        job.running().wait_for_output("step 1", SOON);
        let again = job.checkpoint().id;
        job.kill_all();
        for then in [Mode::Eager, Mode::Lazy] {
            job.restart_at(again, then, &[]);
            for step in ["step 2", "step 3"] {
                job.signal(Signal::SIGUSR1);
                job.running().wait_for_output(step, SOON);
            }
            job.wait(SOON).success();
            assert_same(&format!("looked at {mode:?}, then {then:?}"), &expected.stdout, &job.stdout());
        }
    }
}

#[test]
fn files_are_rolled_back_kept_or_compared() {
    let sandbox = Sandbox::new("files");
    let (program, expected, grown) = killed_job(&sandbox);
    let size = || std::fs::metadata(sandbox.dir().join("f")).unwrap().len();
    let run = verb("run", ["-d", "images", "--files", "check", "--"]).program(&program);
    for cmd in [verb("restart", ["--files", "check", "images"]), run] {
        let refused = sandbox.run(cmd).expect_code(125).stderr_text();
        assert!(refused.contains("has grown from"), "{refused}");
        assert_eq!(size(), grown, "a restart that failed has changed a file");
    }
    let kept = walk_through(&sandbox, verb("restart", ["--files", "keep", "images"])).success();
    ends_like(&sandbox, &expected, &kept.stdout);
    assert!(!sandbox.dir().join("images/cut").exists());
    let rolled = walk_through(&sandbox, verb("restart", ["--files", "rollback", "images"])).success();
    ends_like(&sandbox, &expected, &rolled.stdout);
    // What was cut is kept: the file was whole by then. So it is where that is done once more.
    let cut = || {
        let all = std::fs::read_dir(sandbox.dir().join("images/cut")).unwrap();
        all.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect::<Vec<_>>()
    };
    let first = cut();
    assert!(first.len() == 1 && expected.file.ends_with(&first[0]));
    sandbox.run("echo somebody adds a line >> f").success();
    walk_through(&sandbox, verb("restart", ["images"])).success();
    let both = cut();
    let is_second = |cut: &Vec<u8>| cut.ends_with(b"somebody adds a line\n");
    assert!(both.len() == 2 && both.contains(&first[0]) && both.iter().any(is_second), "a cut is lost");
    // Until there is a checkpoint of the run that goes on without it.
    let going_on = ["-d", "images", "--exit-after-ckpt", "-i", "0.01"];
    sandbox.run(verb("restart", going_on).arg("images")).expect_code(85);
    assert!(!sandbox.dir().join("images/cut").exists(), "what was cut is still there");
    sandbox.run("rm images/000002.ckpt").success();
    // Shorter than at the checkpoint, or missing: named, with the way on where there is one.
    for (spoil, says) in [(": > f", "(--files keep goes on"), ("rm f", "had it open for writing")] {
        sandbox.run(spoil).success();
        let refused = sandbox.run(verb("restart", ["images"])).expect_code(125).stderr_text();
        assert!(refused.contains(says), "{refused}");
    }
    let refused = sandbox.run(verb("restart", ["--files", "keep", "images"])).expect_code(125).stderr_text();
    assert!(refused.contains("had it open for writing"), "{refused}");
}

/// Opens the file `f` of 6 MB by `mode`, and goes on writing at `at`, or at its end, a line each time.
const WRITER: &str = r"
import os, select, sys
flags, at = int(sys.argv[1]), int(sys.argv[2])
os.close(os.open('f', os.O_WRONLY | os.O_CREAT))
os.truncate('f', 6000000)
f = os.open('f', flags)
os.lseek(f, 0, os.SEEK_END)
for i in range(10 ** 8):
    os.pwrite(f, b'%9d' % i, at) if at >= 0 else os.write(f, b'%9d' % i)
    print(i, flush=True)
    select.select([], [], [], 0.005)
";

/// What a program only writes, or only adds to, is no reason to refuse it.
#[test]
fn a_file_that_was_overwritten_is_refused_where_the_program_reads_it() {
    const MIDDLE: i64 = 3_000_000;
    let cases = [
        (libc::O_RDWR, MIDDLE, false),
        (libc::O_RDWR, 0, false),
        (libc::O_RDWR, -1, true),
        (libc::O_RDWR | libc::O_APPEND, -1, true),
        (libc::O_WRONLY, MIDDLE, true),
    ];
    for (flags, at, goes_on) in cases {
        let sandbox = Sandbox::new("overwritten");
        let program = Cmd::new("/usr/bin/python3").args(["-c", WRITER, &flags.to_string(), &at.to_string()]);
        let mut job = Job::launch(&sandbox, &[], &program);
        job.running().wait_for_output("\n9\n", SOON);
        job.checkpoint();
        let lines = || job.running().stdout().iter().filter(|&&byte| byte == b'\n').count();
        let then = lines();
        sandbox.wait_for("it to write more", SOON, || lines() > then + 3);
        job.kill_all();
        // Twice: the first one leaves the file so that the second can do the same.
        for _ in 0..2 {
            if goes_on {
                job.restart(Mode::Lazy, &[]);
                sandbox.wait_for("it to go on", SOON, || job.running().stdout().len() > 30);
                job.kill_all();
            } else {
                let refused = sandbox.run(verb("restart", [job.dir()])).expect_code(125).stderr_text();
                assert!(refused.contains("/f: bytes that it held"), "{flags:o} at {at}: {refused}");
            }
        }
    }
}

/// Adds to `log`, and has what it held at first mapped to be read, by a descriptor that it may then close.
const MAPPER: &str = "
import ctypes, os, select, sys
PROT_READ = 1
kind, closes = int(sys.argv[1]), sys.argv[2] == 'closes'
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
log = open('log', 'ab', 0)
log.write(b'at first ' * 1000)
reader = os.open('log', os.O_RDONLY)
at = libc.mmap(None, 9000, PROT_READ, kind, reader, 0)
if closes: os.close(reader)
for i in range(10 ** 8):
    assert ctypes.string_at(at, 9000) == b'at first ' * 1000
    assert os.stat('log').st_size == 9000 + 9 * i
    log.write(b'%9d' % i)
    print(i, flush=True)
    select.select([], [], [], 0.005)
";

/// Cutting it back makes it what is mapped, if that can be told.
#[test]
fn a_file_that_is_mapped_to_be_read_and_was_added_to_is_cut_back() {
    for (kind, closes) in
        [(libc::MAP_PRIVATE, "stays"), (libc::MAP_SHARED, "stays"), (libc::MAP_PRIVATE, "closes")]
    {
        let sandbox = Sandbox::new("mapped_log");
        let program = Cmd::new("/usr/bin/python3").args(["-c", MAPPER, &kind.to_string(), closes]);
        let mut job = Job::launch(&sandbox, &[], &program);
        steps(&sandbox, job.running());
        job.checkpoint();
        steps(&sandbox, job.running());
        job.kill_all();
        if closes == "stays" {
            for mode in [Mode::Eager, Mode::Lazy, Mode::Eager] {
                job.restart(mode, &[]);
                steps(&sandbox, job.running());
                job.checkpoint();
                steps(&sandbox, job.running());
                job.kill_all();
            }
            sandbox.run("printf X | dd of=log conv=notrunc status=none").success();
        }
        let refused = sandbox.run(verb("restart", [job.dir()])).expect_code(125).stderr_text();
        let says =
            if closes == "stays" { "/log: bytes that it held" } else { "/log: the program has it mapped" };
        assert!(refused.contains(says), "{refused}");
    }
}

/// Adds to `log` and, where it has a lease, to `leased`; watches `w` where there is one.
const HOLDER: &str = "
import ctypes, fcntl, os, select
libc = ctypes.CDLL(None)
log = open('log', 'ab', 0)
leased = open('leased', 'a+b', 0)
fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
watch = os.path.isdir('w') and libc.inotify_add_watch(libc.inotify_init(), b'w', 0xfff)
for i in range(10 ** 8):
    log.write(b'%9d' % i)
    leased.write(b'%9d' % i)
    print(i, fcntl.fcntl(leased, fcntl.F_GETLEASE) == fcntl.F_WRLCK, flush=True)
    select.select([], [], [], 0.005)
";

/// A job of [`HOLDER`] that has a checkpoint, has written more, and was killed.
fn killed_holder(sandbox: &Sandbox) -> Job<'_> {
    let program = Cmd::new("/usr/bin/python3").args(["-c", HOLDER]);
    let mut job = Job::launch(sandbox, &[], &program);
    job.running().wait_for_output("\n9 True\n", SOON);
    job.checkpoint();
    let lines = || job.running().stdout().iter().filter(|&&byte| byte == b'\n').count();
    let then = lines();
    sandbox.wait_for("it to write more", SOON, || lines() > then + 3);
    job.kill_all();
    job
}

/// No restart goes on, says `why`, or changes a file.
fn refused_with_files_as_they_are(sandbox: &Sandbox, job: &Job<'_>, why: &str) {
    let read = || ["log", "leased"].map(|file| std::fs::read(sandbox.dir().join(file)).unwrap());
    let before = read();
    for mode in [&[][..], &["--lazy"]] {
        let said = sandbox.run(verb("restart", mode).arg(job.dir())).expect_code(125).stderr_text();
        assert!(said.contains(why), "{said}");
        assert!(read() == before, "a restart that failed has changed a file");
        let record = std::fs::read_to_string(sandbox.dir().join("images/job.json")).unwrap();
        let record: Value = serde_json::from_str(&record).unwrap();
        assert!(
            record["ended"] == 125 || record["starting"] == false,
            "nothing of it may still run: {record}"
        );
    }
}

/// It goes on in each mode, where it was, with its lease, and so once more from a checkpoint of its own.
fn holder_goes_on(sandbox: &Sandbox, job: &mut Job<'_>) {
    for mode in [Mode::Eager, Mode::Lazy, Mode::Eager] {
        job.restart(mode, &[]);
        let goes_on = || job.running().stdout().ends_with(b" True\n");
        sandbox.wait_for("it to go on", SOON, goes_on);
        job.checkpoint();
        job.kill_all();
        // The kill may have come in the midst of a write, which waits for a page.
        let said = String::from_utf8(job.stdout()).unwrap();
        let whole: String = (0..=said.lines().count()).map(|i| format!("{i} True\n")).collect();
        assert!(whole.starts_with(&said), "{said}");
    }
}

#[test]
fn a_lease_that_cannot_be_had_is_told_before_a_file_is_changed() {
    let sandbox = Sandbox::new("lease_taken");
    let mut job = killed_holder(&sandbox);
    let other = sandbox.spawn(Cmd::sh("exec 7< leased; echo have; sleep 1000"));
    other.wait_for_output("have\n", SOON);
    refused_with_files_as_they_are(&sandbox, &job, "/leased of process");
    other.kill_group(nix::sys::signal::Signal::SIGKILL);
    other.wait(SOON);
    sandbox.wait_for("nobody to have the file", SOON, || sandbox.ps().is_empty());
    holder_goes_on(&sandbox, &mut job);
}

#[test]
fn what_an_inotify_watches_is_looked_for_before_a_file_is_changed() {
    let sandbox = Sandbox::new("watched_gone");
    let watched = sandbox.dir().join("w");
    std::fs::create_dir(&watched).unwrap();
    let mut job = killed_holder(&sandbox);
    // So that another one does not get its inode.
    let away = sandbox.dir().join("away");
    std::fs::rename(&watched, &away).unwrap();
    refused_with_files_as_they_are(&sandbox, &job, "/w: the program watches it");
    std::fs::create_dir(&watched).unwrap();
    refused_with_files_as_they_are(&sandbox, &job, "/w: the program watches it");
    std::fs::remove_dir(&watched).unwrap();
    std::fs::rename(&away, &watched).unwrap();
    holder_goes_on(&sandbox, &mut job);
}

#[test]
fn json_tells_of_the_resume_once_the_program_runs() {
    let sandbox = Sandbox::new("restart_json");
    let (program, expected, _) = killed_job(&sandbox);
    let run = verb("run", ["-d", "images", "--json", "--lazy", "--"]).program(&program);
    for (cmd, lazy) in [(verb("restart", ["--json", "images"]), false), (run, true)] {
        let ended = walk_through(&sandbox, cmd).success();
        ends_like(&sandbox, &expected, &ended.stdout);
        let told = ended.stderr_text();
        let line = told.lines().find(|line| line.starts_with('{')).expect("a line of JSON");
        let told: Value = serde_json::from_str(line).unwrap();
        assert!(told["resume_us"].as_u64().unwrap() > 0 && told["mode"].is_string(), "{told}");
        let pages = told["pages_eager"].as_u64().unwrap() + told["pages_lazy"].as_u64().unwrap();
        assert!(pages > 0 && (lazy || told["pages_lazy"] == 0), "{told}");
    }
}

#[test]
fn detached_it_returns_and_the_program_goes_on() {
    let sandbox = Sandbox::new("detach");
    let (program, expected, _) = killed_job(&sandbox);
    let run = verb("run", ["-d", "images", "--detach", "--"]).program(&program);
    let launch = verb("run", ["-d", "another", "--detach", "--"]).program(&program);
    for (cmd, dir) in
        [(verb("restart", ["--detach", "images"]), "images"), (run, "images"), (launch, "another")]
    {
        sandbox.run("rm -f out").success();
        let quick = sandbox.run(cmd.stdout(&sandbox.dir().join("out"))).success();
        assert!(!String::from_utf8_lossy(&quick.stdout).contains("\n6 "), "it waited for the end");
        let shown = sandbox.run(verb("status", [dir])).success().stdout_text();
        assert!(shown.contains("memory"), "{shown}");
        walk_until(&sandbox, || sandbox.ps().is_empty());
        ends_like(&sandbox, &expected, &std::fs::read(sandbox.dir().join("out")).unwrap());
    }
    // What fails in the background fails like that in the foreground.
    let none = sandbox.run(verb("run", ["-d", "third", "--detach", "--", "./none"])).expect_code(127);
    assert!(none.stderr_text().contains("./none: not found"), "{}", none.stderr_text());
}

#[test]
fn a_restart_in_the_midst_has_the_next_number_and_those_between_stay() {
    let sandbox = Sandbox::new("midst");
    let mut job = Job::launch(&sandbox, &["--keep", "20"], &stepper(20));
    job.running().wait_for_output("0 ", SOON);
    for step in 1..=7 {
        job.signal(Signal::SIGUSR1);
        job.running().wait_for_output(&format!("\n{step} "), SOON);
        job.checkpoint();
    }
    job.kill_all();
    job.restart_at(3, Mode::Lazy, &[]);
    let taken = job.checkpoint();
    assert_eq!((taken.id, taken.parent), (8, Some(3)));
    let ids: Vec<u64> = job.checkpoints().iter().map(|one| one.id).collect();
    assert_eq!(ids, (1..=8).collect::<Vec<_>>());
    job.kill_all();
}

/// What cannot be written is read, and new checkpoints go elsewhere.
#[test]
fn a_source_that_cannot_be_written_needs_another_directory() {
    let sandbox = Sandbox::new("read_only_source");
    let (_, expected, _) = killed_job(&sandbox);
    sandbox.run("mount --bind images images && mount -o remount,bind,ro images").success();
    let refused = sandbox.run(verb("restart", ["images"])).expect_code(125).stderr_text();
    assert!(refused.contains("images cannot be written") && refused.contains("-d"), "{refused}");
    let again = walk_through(&sandbox, verb("restart", ["-d", "elsewhere", "images"])).success();
    ends_like(&sandbox, &expected, &again.stdout);
    sandbox.run("umount images").success();
}

#[test]
fn a_branch_has_a_directory_of_its_own() {
    let sandbox = Sandbox::new("branch");
    let (_, expected, _) = killed_job(&sandbox);
    // From one generation's file, and with checkpoints elsewhere: the source stays as it was.
    let checkpoint_and_end = |cmd: Cmd, dir: &str| {
        let running = sandbox.spawn(cmd);
        sandbox.wait_for("the checkpoint", SOON, || sandbox.run(verb("checkpoint", [dir])).code() == 0);
        ends_like(&sandbox, &expected, &walk(&sandbox, running).success().stdout);
    };
    checkpoint_and_end(verb("restart", ["-d", "branch", "images/000001.ckpt"]), "branch");
    let names = sandbox.run("echo images/*.ckpt branch/*.ckpt").success().stdout_text();
    assert_eq!(names, "images/000001.ckpt branch/000001.ckpt\n");
    let again = walk_through(&sandbox, verb("restart", ["branch"])).success();
    ends_like(&sandbox, &expected, &again.stdout);
    // In the same directory it goes on from there: number 2 with parent 1.
    checkpoint_and_end(verb("restart", ["--at", "1", "images"]), "images");
    let listed: Vec<Value> =
        serde_json::from_slice(&sandbox.run(verb("list", ["--json", "images"])).success().stdout).unwrap();
    assert_eq!(
        (&listed[1]["id"], &listed[1]["parent"], &listed[1]["kind"]),
        (&2.into(), &1.into(), &"delta".into())
    );
    let missing = sandbox.run(verb("restart", ["--at", "99", "images"])).expect_code(125).stderr_text();
    assert!(missing.contains("99"), "{missing}");
}
