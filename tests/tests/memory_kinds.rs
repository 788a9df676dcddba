//! Each kind of memory that a program can have: set up, checkpointed, killed and restarted in turns, eager and lazy,
//! while the program changes it and checks it from inside; its output is that of an undisturbed run.

use std::time::Duration;

use ckpt_tests::scenario::{Mode, Survival, survive, verb};
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

/// A kind that not every kernel has: the program says so.
fn kind_where_there_is(case: &str) {
    let sandbox = Sandbox::new(&format!("{case}-probe"));
    let probed = sandbox.run(victim_cmd("memkinds").args([case, "1", "0"])).stdout_text();
    match probed.strip_prefix("cannot: ") {
        Some(why) => skip::skip(case, why),
        None => kind(case),
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
    kind_where_there_is("guard");
}

/// mbind(2): private, of files, shared, of what nobody may touch; changed in each round.
#[test]
fn memory_policies_of_ranges() {
    kind_where_there_is("policies");
}

#[test]
fn memory_policies_of_ranges_without_bpf() {
    without_bpf("policies");
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
