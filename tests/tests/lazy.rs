//! A lazily restarted program runs before its memory is there, and nobody can tell from what it says.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::time::Duration;

use ckpt_tests::sandbox::let_pass;
use ckpt_tests::scenario::{fills_done, held, let_go, missing_pages, time_of_a_fill, verb};
use ckpt_tests::{Cmd, Expected, Job, Mode, Random, Sandbox, assert_same, skip, victim_cmd};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// A file that holds the background fill while it exists.
struct Hold(PathBuf, String);

impl Hold {
    fn new(sandbox: &Sandbox) -> Self {
        let inside = sandbox.dir().join("hold");
        let outside = sandbox.see(&inside);
        std::fs::write(&outside, "").unwrap();
        Self(outside, inside.to_str().unwrap().to_owned())
    }

    fn let_go(&self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

/// `memory` in MiB, steps, gate, pages a step, further tasks.
fn lazymem(args: [u64; 3], gate: &str, tasks: u64) -> Cmd {
    let [mib, steps, touch] = args.map(|n| n.to_string());
    victim_cmd("lazymem").args([&mib, &steps, gate, &touch, &tasks.to_string()])
}

/// Restarts and waits until the program runs and the job can be asked.
fn restart(sandbox: &Sandbox, job: &mut Job, from: u64, mode: Mode, options: &[&str]) {
    job.restart_at(from, mode, &[&["--json"], options].concat());
    sandbox.wait_for("the restarted job", SOON, || {
        assert!(!job.running().has_ended(), "{}", job.running().stderr());
        sandbox.run(verb("status", ["--json"]).arg(job.dir())).code() == 0
    });
}

/// The line of `restart --json`.
fn resumed(job: &Job) -> Value {
    let said = job.running().stderr();
    let line = said.lines().find(|l| l.starts_with('{')).unwrap_or_else(|| panic!("no line of JSON: {said}"));
    serde_json::from_str(line).unwrap()
}

fn wait_until_full(sandbox: &Sandbox, job: &Job) {
    let before = fills_done(sandbox, job);
    let is_full = || job.pages_missing() == 0 && fills_done(sandbox, job) >= before.max(1);
    sandbox.wait_for("lazy-done", SOON, is_full);
}

fn signal(sandbox: &Sandbox, pid: i32) {
    sandbox.kill(pid, Signal::SIGUSR1 as i32).expect("the program lives");
}

/// What has been printed is the beginning of what is expected: not one wrong byte.
fn assert_begins(what: &str, expected: &[u8], printed: &[u8]) {
    let end = printed.len().min(expected.len());
    assert_same(what, &expected[..end], printed);
}

fn guards(sandbox: &Sandbox) -> usize {
    sandbox.ps().iter().filter(|p| p.comm == "page-guardian" && p.state != 'Z').count()
}

/// Size of the large ones: `CKPTBPF_LAZY_MIB=1024` for the promise's own size.
fn mib() -> u64 {
    std::env::var("CKPTBPF_LAZY_MIB").ok().and_then(|n| n.parse().ok()).unwrap_or(256)
}

#[test]
fn the_first_output_comes_before_one_percent_of_the_memory() {
    let sandbox = Sandbox::with_limit("lazy_first", Duration::from_secs(170));
    let program = lazymem([mib(), 4, 8], "signal", 0);
    let expected = Expected::of(&sandbox, &lazymem([mib(), 4, 8], "-", 0), None);
    let mut job = Job::launch(&sandbox, &[], &program);
    job.running().wait_for_output("ready", SOON);
    let from = job.checkpoint().id;
    job.kill_all();
    restart(&sandbox, &mut job, from, Mode::Eager, &[]);
    let eager = resumed(&job);
    job.kill_all();
    let hold = Hold::new(&sandbox);
    restart(&sandbox, &mut job, from, Mode::Lazy, &["--hold-fill", &hold.1]);
    let line = resumed(&job);
    let total = line["pages_lazy"].as_u64().unwrap();
    println!("{} MiB: resume_us eager {}, lazy {}", mib(), eager["resume_us"], line["resume_us"]);
    assert!(line["mode"] == "lazy" && total >= mib() << 8, "{line}");
    signal(&sandbox, job.program());
    job.running().wait_for_output("1 ", SOON);
    let served = total - job.pages_missing();
    println!("{served} of {total} pages were served by the first output");
    assert!(served > 0 && served * 100 <= total, "{served} of {total} pages");
    assert_eq!(guards(&sandbox), 1);
    hold.let_go();
    wait_until_full(&sandbox, &job);
    sandbox.wait_for("the guardian's end", SOON, || guards(&sandbox) == 0);
    let pid = job.program();
    for step in 2..=4 {
        signal(&sandbox, pid);
        job.running().wait_for_output(&format!("{step} "), SOON);
    }
    job.wait(SOON).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
}

#[test]
fn the_program_outlives_its_pager_once_all_pages_are_there() {
    let sandbox = Sandbox::new("lazy_outlives");
    let program = held(&sandbox, lazymem([32, 60, 50], "20000", 0));
    let expected = Expected::of(&sandbox, &lazymem([32, 60, 50], "-", 0), None);
    let mut job = Job::launch(&sandbox, &[], &program);
    job.running().wait_for_output("\n3 ", SOON);
    let from = job.checkpoint().id;
    job.kill_all();
    restart(&sandbox, &mut job, from, Mode::Lazy, &[]);
    wait_until_full(&sandbox, &job);
    let pager = job.running().pid;
    sandbox.kill(pager, Signal::SIGKILL as i32).unwrap();
    let_go(&sandbox);
    sandbox.wait_for("the program's own end", SOON, || sandbox.ps().is_empty());
    job.wait(SOON);
    assert_same("standard output", &expected.stdout, &job.stdout());
}

/// In every other round the background is held: only faults are served, and pages are missing for sure. In the others the kill
/// meets the fill at a random moment of it: what is still missing decides between death and life.
#[test]
fn a_pager_killed_while_pages_are_missing_takes_every_task_with_it() {
    let times = std::env::var("CKPTBPF_LAZY_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let sandbox = Sandbox::with_limit("lazy_kill", Duration::from_secs(110 + 3 * times));
    let mut random = Random::for_test("lazy_kill");
    let (mut job, from, expected) = endless(&sandbox);
    let hold = Hold::new(&sandbox);
    let longest = time_of_a_fill(&sandbox, &mut job, from) * 2;
    let (mut within, mut met, mut whole) = (longest / 2, 0, 0);
    for round in 0..times {
        let what = format!("round {round}");
        let is_held = round % 2 == 0;
        let options: &[&str] = if is_held { &["--json", "--hold-fill", &hold.1] } else { &["--json"] };
        let filled_before = fills_done(&sandbox, &job);
        job.restart_at(from, Mode::Lazy, options);
        sandbox.wait_for("its resumption", SOON, || job.running().stderr().contains("resume_us"));
        let_pass(random.moment(if is_held { Duration::from_millis(60) } else { within }));
        let missing = missing_pages(&sandbox, "lazymem");
        assert!(missing > 0 || !is_held, "{what}: the fill is not held");
        sandbox.kill(job.running().pid, Signal::SIGKILL as i32).unwrap();
        job.wait(SOON).expect_code(137);
        let printed = job.stdout().len();
        let dead = || all_are_dead(&sandbox);
        let goes_on = || guards(&sandbox) == 0 && job.stdout().len() > printed + 100;
        // Nobody writes to it any more.
        if fills_done(&sandbox, &job) > filled_before {
            sandbox.wait_for("the program to go on", SOON, || {
                assert!(!dead(), "{what}: it is dead, and had all its pages");
                goes_on()
            });
        } else {
            sandbox.wait_for("every task to be dead", Duration::from_secs(5), || dead() || goes_on());
        }
        if dead() {
            if !is_held {
                met += u64::from(missing > 0);
                within = (within * 2).min(longest);
            }
        } else {
            // All came before the kill, if only just: what is missing now would have become zeros.
            let tasks = sandbox.ps().iter().filter(|one| one.comm == "lazymem" && one.state != 'Z').count();
            assert_eq!(
                (missing_pages(&sandbox, "lazymem"), tasks),
                (0, 4),
                "{what}: pages missing, tasks alive"
            );
            assert!(!is_held, "{what}: it lives");
            for process in sandbox.ps() {
                let _ = sandbox.kill(process.pid, Signal::SIGKILL as i32);
            }
            sandbox.wait_for("every task to be dead", SOON, dead);
            whole += 1;
            within /= 2;
        }
        assert_begins(&what, &expected, &job.stdout());
    }
    println!("of {times} kills half came while the fill was held, {met} met it, {whole} came after it");
    assert!(
        met >= (times / 8).max(u64::from(times > 1)),
        "too few kills met the fill: {met}, and {whole} came after it"
    );
    restart(&sandbox, &mut job, from, Mode::Lazy, &[]);
    wait_until_full(&sandbox, &job);
    job.kill_all();
    assert_begins("the last run", &expected, &job.stdout());
}

/// Four tasks of 64 MiB that go on for minutes, dead after a checkpoint; its number, and their output for half a minute.
fn endless<'b>(sandbox: &'b Sandbox) -> (Job<'b>, u64, Vec<u8>) {
    let expected = Expected::of(sandbox, &lazymem([64, 10_000, 40], "-", 3), None);
    // Without the last line, which only a complete run has.
    let end = expected.stdout.windows(4).position(|w| w == b"all ").unwrap();
    let mut job = Job::launch(sandbox, &[], &lazymem([64, 100_000, 40], "3000", 3));
    job.running().wait_for_output("\n3 ", SOON);
    let from = job.checkpoint().id;
    job.kill_all();
    (job, from, expected.stdout[..end].to_vec())
}

fn restarted(sandbox: &Sandbox, job: &mut Job, from: u64, hold: &Hold) {
    job.restart_at(from, Mode::Lazy, &["--json", "--hold-fill", &hold.1]);
    sandbox.wait_for("its resumption", SOON, || job.running().stderr().contains("resume_us"));
}

fn all_are_dead(sandbox: &Sandbox) -> bool {
    sandbox.ps().iter().all(|one| one.state == 'Z')
}

#[test]
fn a_guardian_killed_while_pages_are_missing_takes_every_task_with_it_and_it_is_said() {
    let sandbox = Sandbox::with_limit("lazy_guardian", Duration::from_secs(170));
    let mut random = Random::for_test("lazy_guardian");
    let (mut job, from, expected) = endless(&sandbox);
    let hold = Hold::new(&sandbox);
    for round in 0..8 {
        restarted(&sandbox, &mut job, from, &hold);
        let_pass(random.moment(Duration::from_millis(60)));
        let guardian = sandbox.ps().into_iter().find(|one| one.comm == "page-guardian").expect("a guardian");
        sandbox.kill(guardian.pid, Signal::SIGKILL as i32).unwrap();
        sandbox.wait_for("every task to be dead", SOON, || all_are_dead(&sandbox));
        let ended = job.wait(SOON);
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.code() == 125 && said.contains("guardian"), "{}: {said}", ended.code());
        assert_begins(&format!("round {round}"), &expected, &job.stdout());
    }
    hold.let_go();
    restart(&sandbox, &mut job, from, Mode::Lazy, &[]);
    wait_until_full(&sandbox, &job);
    job.kill_all();
    assert_begins("the last run", &expected, &job.stdout());
}

/// A child alone, and then the first process: the others go on, and ckptbpf and its guardian end with the last.
#[test]
fn a_process_killed_while_pages_are_missing_takes_nobody_with_it() {
    let sandbox = Sandbox::with_limit("lazy_victims", Duration::from_secs(170));
    let (mut job, from, expected) = endless(&sandbox);
    let hold = Hold::new(&sandbox);
    for _ in 0..4 {
        restarted(&sandbox, &mut job, from, &hold);
        let program = job.program();
        let child = sandbox.ps().into_iter().find(|one| one.parent == program).expect("a child").pid;
        sandbox.kill(child, Signal::SIGKILL as i32).unwrap();
        job.checkpoint();
        let printed = job.stdout().len();
        sandbox.wait_for("the others to go on", SOON, || job.stdout().len() > printed);
        assert_begins("with a child less", &expected, &job.stdout());
        sandbox.kill(program, Signal::SIGKILL as i32).unwrap();
        for other in sandbox.ps().iter().filter(|one| one.comm == "lazymem") {
            let _ = sandbox.kill(other.pid, Signal::SIGKILL as i32);
        }
        job.wait(SOON).expect_code(137);
        sandbox.wait_for("the guardian's end, too", SOON, || all_are_dead(&sandbox));
    }
    hold.let_go();
}

/// As by pkill(1) or `pkill -f`: whoever has the name in its own or in its command line, in the order of ids.
#[test]
fn everybody_called_ckptbpf_killed_at_once_takes_every_task_with_it() {
    let sandbox = Sandbox::with_limit("lazy_pkill", Duration::from_secs(170));
    let mut random = Random::for_test("lazy_pkill");
    let (mut job, from, expected) = endless(&sandbox);
    let hold = Hold::new(&sandbox);
    for round in 0..8 {
        restarted(&sandbox, &mut job, from, &hold);
        let_pass(random.moment(Duration::from_millis(60)));
        let line =
            |pid: i32| std::fs::read(sandbox.root().join(format!("proc/{pid}/cmdline"))).unwrap_or_default();
        let is_meant = |bytes: &[u8]| bytes.windows(7).any(|word| word == b"ckptbpf");
        let mut meant = sandbox.ps();
        meant.retain(|one| {
            one.comm != "lazymem" && (is_meant(one.comm.as_bytes()) || is_meant(&line(one.pid)))
        });
        meant.sort_by_key(|one| one.pid);
        assert!(meant.len() > 1, "{meant:?}");
        for one in meant {
            let _ = sandbox.kill(one.pid, Signal::SIGKILL as i32);
        }
        sandbox.wait_for("every task to be dead", SOON, || all_are_dead(&sandbox));
        job.wait(SOON).expect_code(137);
        assert_begins(&format!("round {round}"), &expected, &job.stdout());
    }
}

const ACTS: [&str; 10] =
    ["replace", "drop", "move", "leave behind", "split", "fork", "race", "trade", "guard", "all"];

/// All acts of the program after one restart; the fill is let go about when the act `against` begins.
fn address_space_changes(name: &str, against: &[Option<&str>]) {
    let sandbox = Sandbox::with_limit(name, Duration::from_secs(110));
    let mut random = Random::for_test(name);
    let expected = Expected::of(&sandbox, &victim_cmd("lazyops").args(["-"]), None);
    let mut job = Job::launch(&sandbox, &[], &victim_cmd("lazyops").args(["signal"]));
    job.running().wait_for_output("ready", SOON);
    let from = job.checkpoint().id;
    job.kill_all();
    for against in against {
        let hold = Hold::new(&sandbox);
        restart(&sandbox, &mut job, from, Mode::Lazy, &["--hold-fill", &hold.1]);
        let pid = job.program();
        for act in ACTS {
            if *against == Some(act) {
                hold.let_go();
                // The pager looks every 10 ms.
                let_pass(random.moment(Duration::from_millis(12)));
            }
            signal(&sandbox, pid);
            job.running().wait_for_output(act, SOON);
        }
        job.wait(SOON).success();
        assert_same(&format!("let go at {against:?}: output"), &expected.stdout, &job.stdout());
    }
}

#[test]
fn the_address_space_changes_while_the_fill_is_held() {
    address_space_changes("lazy_ops_held", &[None]);
}

#[test]
fn the_address_space_changes_against_the_fill() {
    address_space_changes("lazy_ops_fill", &ACTS.map(Some));
}

fn forks_while_pages_are_missing(name: &str, threads: &str, is_held: bool) {
    let sandbox = Sandbox::with_limit(name, Duration::from_secs(110));
    let program = |gate: &str| victim_cmd("forkwipe").args([gate, "300", threads]);
    let expected = Expected::of(&sandbox, &program("-"), None);
    let mut job = Job::launch(&sandbox, &[], &program("signal"));
    job.running().wait_for_output("ready", SOON);
    let from = job.checkpoint().id;
    job.kill_all();
    let hold = Hold::new(&sandbox);
    restart(&sandbox, &mut job, from, Mode::Lazy, &["--hold-fill", &hold.1]);
    signal(&sandbox, job.program());
    if !is_held {
        hold.let_go();
    }
    job.wait(SOON).success();
    assert_same("what the children saw", &expected.stdout, &job.stdout());
}

#[test]
fn a_fork_wipes_what_was_advised_when_it_was_called() {
    forks_while_pages_are_missing("lazy_wipe", "0", true);
}

/// Faults and events of other threads come between.
#[test]
fn a_fork_wipes_what_was_advised_among_threads() {
    forks_while_pages_are_missing("lazy_wipe_threads", "4", true);
}

#[test]
fn a_fork_wipes_what_was_advised_against_the_fill() {
    forks_while_pages_are_missing("lazy_wipe_fill", "4", false);
}

/// No event tells of it: a limitation, and it is asserted what happens instead.
#[test]
fn a_guard_page_removed_from_a_missing_page_is_a_limitation() {
    const PROGRAM: &str = "import ctypes, mmap, signal
libc = ctypes.CDLL(None, use_errno=True)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
area = mmap.mmap(-1, 64 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.write(b'x' * 64 * 4096)
at = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(area, 32 * 4096)))
print('ready', flush=True)
signal.sigwait([signal.SIGUSR1])
failed = [libc.madvise(at, ctypes.c_size_t(4096), advice) for advice in (102, 103)]
print('cannot' if any(failed) else area[32 * 4096], flush=True)
";
    let sandbox = Sandbox::new("lazy_guard");
    let mut job = Job::launch(&sandbox, &[], &Cmd::new("/usr/bin/python3").args(["-c", PROGRAM]));
    job.running().wait_for_output("ready", SOON);
    let from = job.checkpoint().id;
    job.kill_all();
    for (mode, reads) in [(Mode::Eager, "0"), (Mode::Lazy, "120")] {
        let hold = Hold::new(&sandbox);
        let options = ["--hold-fill", &hold.1];
        restart(&sandbox, &mut job, from, mode, if mode == Mode::Lazy { &options } else { &[] });
        signal(&sandbox, job.program());
        let printed = job.wait(SOON).success().stdout_text();
        if printed.contains("cannot") {
            return skip::skip("a_guard_page_removed_from_a_missing_page_is_a_limitation", "no guard pages");
        }
        assert_eq!(printed.trim_end(), reads, "{mode:?}");
    }
}

#[test]
fn checkpoints_taken_while_pages_are_missing_are_whole() {
    let sandbox = Sandbox::with_limit("lazy_ckpt", Duration::from_secs(170));
    let expected = Expected::of(&sandbox, &victim_cmd("lazyops").args(["-"]), None);
    let mut job = Job::launch(&sandbox, &[], &victim_cmd("lazyops").args(["signal"]));
    job.running().wait_for_output("ready", SOON);
    let first = job.checkpoint();
    job.kill_all();
    let hold = Hold::new(&sandbox);
    let mut from = first.id;
    // Before every act: restart with the fill held, act, checkpoint, and go on from that one.
    for act in &ACTS[..9] {
        restart(&sandbox, &mut job, from, Mode::Lazy, &["--hold-fill", &hold.1]);
        signal(&sandbox, job.program());
        job.running().wait_for_output(act, SOON);
        let taken = job.checkpoint();
        assert!(taken.kind == "delta" && job.pages_missing() > 0, "{act}: {taken:?}");
        if *act == "replace" {
            assert!(taken.pages * 10 < first.pages, "unfilled pages count as dirty: {taken:?}");
        }
        from = taken.id;
        job.kill_all();
    }
    for mode in [Mode::Eager, Mode::Lazy] {
        restart(&sandbox, &mut job, from, mode, &[]);
        signal(&sandbox, job.program());
        job.wait(SOON).success();
        assert_same("what the program saw", &expected.stdout, &job.stdout());
    }
}

#[test]
fn after_the_last_page_checkpoints_are_deltas() {
    let sandbox = Sandbox::with_limit("lazy_delta", Duration::from_secs(110));
    let expected = Expected::of(&sandbox, &lazymem([64, 6, 20], "-", 0), None);
    let mut job = Job::launch(&sandbox, &[], &lazymem([64, 6, 20], "signal", 0));
    job.running().wait_for_output("ready", SOON);
    let from = job.checkpoint().id;
    job.kill_all();
    restart(&sandbox, &mut job, from, Mode::Lazy, &[]);
    let pid = job.program();
    signal(&sandbox, pid);
    job.running().wait_for_output("1 ", SOON);
    wait_until_full(&sandbox, &job);
    for step in 2..=4 {
        signal(&sandbox, pid);
        job.running().wait_for_output(&format!("{step} "), SOON);
        let taken = job.checkpoint();
        assert!(taken.kind == "delta" && taken.pages < 500, "{taken:?}");
    }
    let from = job.newest();
    job.kill_all();
    restart(&sandbox, &mut job, from, Mode::Eager, &[]);
    let pid = job.program();
    for step in 5..=6 {
        signal(&sandbox, pid);
        job.running().wait_for_output(&format!("{step} "), SOON);
    }
    job.wait(SOON).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
}

#[test]
fn a_damaged_block_ends_the_program_and_names_its_generation() {
    let sandbox = Sandbox::new("lazy_damage");
    let program = lazymem([32, 100_000, 40], "1000", 1);
    let expected = Expected::of(&sandbox, &lazymem([32, 3000, 40], "-", 0), None);
    let mut job = Job::launch(&sandbox, &[], &program);
    job.running().wait_for_output("\n3 ", SOON);
    let from = job.checkpoint().id;
    job.kill_all();
    let image = sandbox.see(&job.image(from));
    let mut bytes = std::fs::read(&image).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&image, bytes).unwrap();
    job.restart_at(from, Mode::Lazy, &[]);
    let printed_to = job.running().stdout_path().to_owned();
    let ended = job.wait(SOON);
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.code() == 125, "{}: {said}", ended.code());
    assert!(said.contains("000001.ckpt") && said.contains("damaged page block"), "{said}");
    // Or met before it has run: while it is rebuilt the kernel touches its memory, and not all of it comes later.
    let what_became = ["the program is killed", "the program has not run"];
    assert!(what_became.iter().any(|one| said.contains(one)) && said.contains("--at"), "{said}");
    assert!(!String::from_utf8_lossy(&std::fs::read(printed_to).unwrap()).contains("WRONG"));
    assert_begins("what it printed", &expected.stdout, &job.stdout());
    // The guardian looks once more after the last task is gone.
    sandbox.wait_for("the end of all tasks", SOON, || sandbox.ps().iter().all(|p| p.state == 'Z'));
}
