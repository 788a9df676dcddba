//! Each kind of memory that a program can have: set up, checkpointed, killed and restarted in turns, eager and lazy,
//! while the program changes it and checks it from inside; its output is that of an undisturbed run.

use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::{Sandbox, skip, victim_cmd};

/// Four rounds: each kind of restart twice, so that checkpoints of restarted programs are restarted from, too.
fn kind(case: &str) {
    let program = victim_cmd("memkinds").args([case, "1000", "3000"]);
    survive(&Survival { rounds: 4, ..Survival::of(case, program) });
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
    let sandbox = Sandbox::new("guard-probe");
    let probed = sandbox.run(victim_cmd("memkinds").args(["guard", "1", "0"])).stdout_text();
    match probed.strip_prefix("cannot: ") {
        Some(why) => skip::skip("guard_pages", why),
        None => kind("guard"),
    }
}

/// mlockall(2), over memory that nobody may touch, too.
#[test]
fn everything_locked() {
    kind("everything_locked");
}
