//! Each kind of memory that a program can have: set up, checkpointed, killed and restarted in turns, eager and lazy,
//! while the program changes it and checks it from inside; its output is that of an undisturbed run.

use std::time::Duration;

use ckpt_tests::scenario::{Mode, Survival, held, survive, verb};
use ckpt_tests::{Cmd, Job, Sandbox, skip, victim_cmd};

/// Four rounds: each kind of restart twice, so that checkpoints of restarted programs are restarted from, too.
fn kind(case: &str) {
    survive(&Survival { rounds: 4, ..Survival::of(case, program(case)) });
}

fn program(case: &str) -> Cmd {
    victim_cmd("memkinds").args([case, "1000", "3000"])
}

fn without_bpf(case: &str) {
    let name = format!("{case}_injected");
    survive(&Survival { rounds: 2, options: &["--no-bpf"], ..Survival::of(&name, program(case)) });
}

/// A kind that not every machine has: the program says so.
fn where_there_is(case: &str, test: fn(&str)) {
    let sandbox = Sandbox::new(&format!("{case}-probe"));
    let probed = sandbox.run(victim_cmd("memkinds").args([case, "1", "0"])).stdout_text();
    match probed.strip_prefix("cannot: ") {
        Some(why) => skip::skip(case, why),
        None => test(case),
    }
}

/// Mapped shared and private, read-only, open by several descriptions, mapped and closed, open and unmapped.
#[test]
fn memfd() {
    kind("memfd");
}

/// Sealed against writing, for the future only, and against sealing.
#[test]
fn memfd_sealed() {
    kind("memfd_sealed");
}

#[test]
fn memfd_shared() {
    kind("memfd_shared");
}

/// Locked at once and on fault, advised in every way, growing, droppable, sealed: smaps shows the same in every round.
#[test]
fn flags_of_mappings() {
    kind("flags");
}

/// Guard pages over contents and over nothing; removed, they are zeros.
#[test]
fn guard_pages() {
    where_there_is("guard", kind);
}

#[test]
fn names_of_mappings() {
    where_there_is("names", kind);
}

/// shm_open(3): with its name and without, in two processes.
#[test]
fn posix_shared_memory() {
    kind("posix");
}

/// Alone and beside memory of other protection, of a file, shared, locked, sealed; its code changes.
#[test]
fn memory_that_may_only_be_executed() {
    kind("execute_only");
}

/// Of the program, of none that it has any more, of memory that may only be executed; rights of two threads.
#[test]
fn protection_keys() {
    where_there_is("keys", kind);
}

#[test]
fn protection_keys_without_bpf() {
    where_there_is("keys", without_bpf);
}

/// mbind(2): private, of files, shared, of what nobody may touch; changed in each round.
#[test]
fn memory_policies_of_ranges() {
    where_there_is("policies", kind);
}

#[test]
fn memory_policies_of_ranges_without_bpf() {
    without_bpf("policies");
}

/// Ten thousand, of alternating protection.
#[test]
fn many_mappings() {
    survive(&Survival { rounds: 2, ..Survival::of("many", program("many")) });
    let pages = pages_of_a_delta("many");
    assert!(pages < 1000, "{pages} pages in a delta, of ten thousand mappings");
}

/// All but five of what vm.max_map_count allows, and eight that grow in each round, which takes no further one natively.
#[test]
fn nearly_as_many_mappings_as_there_may_be() {
    const NAME: &str = "nearly_as_many_mappings_as_there_may_be";
    let sandbox = Sandbox::new("crowd");
    let program = |rounds: &str| victim_cmd("memkinds").args(["crowd", rounds, "3000"]);
    if let Some(why) = sandbox.run(program("1")).stdout_text().strip_prefix("cannot: ") {
        return skip::skip(NAME, why);
    }
    survive(&Survival { rounds: 2, ..Survival::of("crowded", program("1500")) });
    let mut job = Job::launch(&sandbox, &[], &program("100000"));
    job.running().wait_for_output("\n", Duration::from_secs(30));
    job.checkpoint();
    assert_eq!(job.running().stderr().matches("vm.max_map_count").count(), 1, "{}", job.running().stderr());
    let delta = job.checkpoint();
    assert!(delta.kind == "delta" && delta.pages < 200, "{delta:?}");
    job.kill_all();
    job.restart(Mode::Lazy, &[]);
    job.running().wait_for_output("\n", Duration::from_secs(60));
    let said = job.running().stderr();
    assert!(said.contains("a restart that is asked to be lazy is none"), "{said}");
    job.kill_all();
}

/// Two of a terabyte, of which sixteen pages are touched: neither images nor page tables grow with them.
#[test]
fn reservations_of_a_terabyte() {
    kind("sparse");
    let pages = pages_of_a_delta("sparse");
    assert!(pages < 200, "{pages} pages in a delta");
}

/// Of the second of two checkpoints, while the program goes round.
fn pages_of_a_delta(case: &str) -> u64 {
    let sandbox = Sandbox::new(&format!("{case}-delta"));
    // Bounded, however long there is between the two.
    let program = held(&sandbox, victim_cmd("memkinds").args([case, "20", "3000"]));
    let mut job = Job::launch(&sandbox, &[], &program);
    job.running().wait_for_output("\n", Duration::from_secs(30));
    let full = job.checkpoint();
    assert!(full.kind == "full" && full.pages < 12_000, "{full:?}");
    let delta = job.checkpoint();
    job.kill_all();
    assert_eq!(delta.kind, "delta");
    delta.pages
}

/// Under a key and without one, removed and not, attached twice, by two processes, read-only; ids, keys and owners stay.
#[test]
fn system_v_memory() {
    kind("sysv");
}

/// A segment is not taken from whoever has it, nor a key.
#[test]
fn a_segment_that_somebody_has_is_refused_at_restart_by_name() {
    const PROGRAM: &str = "import ctypes, signal, sys
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
key, act = 0x77, sys.argv[1]
if act == 'other':
    libc.shmctl(libc.shmget(key, 0, 0), 0, None)
id = libc.shmget(key, 8192, 0o1600)
at = libc.shmat(id, None, 0)
ctypes.c_char.from_address(at).value = b'a'
print('made', flush=True)
signal.sigwait([signal.SIGUSR1])
print(ctypes.c_char.from_address(at).value.decode(), libc.shmget(key, 0, 0) == id, flush=True)
libc.shmctl(id, 0, None)
";
    const SOON: Duration = Duration::from_secs(30);
    let sandbox = Sandbox::new("segment-taken");
    let python = |act: &str| Cmd::new("/usr/bin/python3").args(["-c", PROGRAM, act]);
    let mut job = Job::launch(&sandbox, &[], &python("program"));
    job.running().wait_for_output("made", SOON);
    job.checkpoint();
    job.kill_all();
    for (act, reason) in
        [("attach", "somebody has attached it"), ("other", "its key 0x77 is that of segment")]
    {
        let other = sandbox.spawn(python(act));
        other.wait_for_output("made", SOON);
        let said = sandbox.run(verb("restart", [job.dir()])).expect_code(125).stderr_text();
        assert!(said.contains("System V segment") && said.contains(reason), "{said}");
        other.kill(nix::sys::signal::Signal::SIGUSR1);
        // What the other has is as it was.
        assert!(other.wait(SOON).success().stdout_text().ends_with("a True\n"));
    }
    job.restart(Mode::Eager, &[]);
    sandbox.wait_for("it to run", SOON, || job.running().stderr().is_empty() && job.program() > 0);
    job.signal(nix::sys::signal::Signal::SIGUSR1);
    assert!(job.wait(SOON).success().stdout_text().ends_with("a True\n"));
}

/// Which no call tells: BPF has seen it before the restart and after it.
#[test]
fn the_home_node_of_a_range() {
    let sandbox = Sandbox::new("home-node");
    if sandbox.run(victim_cmd("memkinds").args(["policies", "60", "0"])).stdout_text().starts_with("cannot: ")
    {
        return skip::skip("the_home_node_of_a_range", "no memory policies");
    }
    let program = victim_cmd("memkinds").args(["policies", "100000", "3000"]);
    let mut job = Job::launch(&sandbox, &[], &program);
    for mode in [None, Some(Mode::Eager), Some(Mode::Lazy)] {
        if let Some(mode) = mode {
            job.kill_all();
            job.restart(mode, &[]);
        }
        // By then a range is bound, and has a home.
        job.running().wait_for_output("\n", Duration::from_secs(30));
        sandbox.wait_for("a home node", Duration::from_secs(30), || {
            let image = job.image(job.checkpoint().id);
            sandbox
                .run(verb("inspect", ["--json"]).arg(image))
                .success()
                .stdout_text()
                .contains("\"home_node\":0")
        });
    }
    job.kill_all();
}

/// mlockall(2), over memory that nobody may touch, and over what is mapped from then on.
#[test]
fn everything_locked() {
    kind("everything_locked");
}

#[test]
fn memory_to_come_is_locked_on_fault() {
    kind("locked_to_come");
}

#[test]
fn memory_to_come_is_locked_without_bpf() {
    without_bpf("everything_locked");
    without_bpf("locked_to_come");
}
