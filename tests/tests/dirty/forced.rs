//! The other ways of finding dirty pages, by the hidden option `--track`: every class of the table again, many rows
//! in one program.

use super::{Case, OWN, SOON, Taken};
use ckpt_tests::{Sandbox, skip};
use nix::sys::signal::Signal;

/// Rows that can be in one program: none of them ends or leaves it.
const PRIVATE: &[&str] =
    &["new", "brk", "hole", "mremap", "dropped", "file", "again", "mprotect", "free", "huge", "none"];
const OTHERS: &[&str] = &["idle", "zero", "punched", "alias", "child", "parent", "read", "reserved"];

fn run(rows: &[&str], steps: u64, how: &str) -> Taken {
    Case { rows, steps, options: &["--track", how] }.run()
}

fn assert_full(taken: &Taken) {
    for one in taken.steps.iter().chain([&taken.restarted]) {
        assert!(one.kind == "full" && one.parent.is_none() && one.pages > 500, "{one:?}");
    }
}

#[test]
fn full_private_memory() {
    assert_full(&run(PRIVATE, 1, "full"));
}

#[test]
fn full_shared_memory_and_other_processes() {
    assert_full(&run(OTHERS, 1, "full"));
}

#[test]
fn full_over_two_steps() {
    assert_full(&run(&["over", "idle"], 2, "full"));
}

#[test]
fn full_a_deep_stack() {
    assert_full(&run(&["stack", "idle"], 1, "full"));
}

#[test]
fn pagemap_scan_many_rows_at_once() {
    let taken = run(PRIVATE, 1, "pagemap-scan");
    let most = taken.full.pages / 4;
    assert!(taken.delta().pages < most && taken.restarted.pages <= 2 * OWN, "{:?}", taken.delta());
    run(OTHERS, 1, "pagemap-scan");
}

/// What the supervisor says at the start when soft-dirty bits are asked for.
fn said_about_soft_dirty() -> String {
    let sandbox = Sandbox::new("dirty-soft");
    let mut job = Case { rows: &["idle"], steps: 1, options: &["--track", "soft-dirty"] }.launch(&sandbox);
    let kinds: Vec<String> = (0..3).map(|_| job.checkpoint().kind).collect();
    let said = job.running().stderr();
    if said.contains("every checkpoint is a full one") {
        assert_eq!(kinds, ["full"; 3]);
    }
    job.kill_all();
    said
}

/// Pages are on their way to other frames all the time (mm/compaction.c), also while their marks are taken off.
#[test]
fn soft_dirty_while_pages_are_moved() {
    const NAME: &str = "soft_dirty_while_pages_are_moved";
    if said_about_soft_dirty().contains("every checkpoint is a full one") {
        return skip::skip(NAME, "this kernel has no soft-dirty bits");
    }
    let mover = Sandbox::new("dirty-mover");
    let moving = mover.spawn("while echo 1 > /proc/sys/vm/compact_memory; do sleep 0.02; done; exit 7");
    for rows in [&["new", "again", "mprotect", "huge"][..], &["idle", "child", "parent"]] {
        run(rows, 1, "soft-dirty");
    }
    assert!(!moving.has_ended(), "nothing was moved: {}", moving.stderr());
    moving.kill_group(Signal::SIGKILL);
    moving.wait(SOON).expect_code(137);
}

#[test]
fn soft_dirty_or_one_warning() {
    let said = said_about_soft_dirty();
    let warnings = said.matches("every checkpoint is a full one").count();
    if warnings == 1 {
        skip::skip("soft_dirty_or_one_warning: the rows of the table", "this kernel has no soft-dirty bits");
        return;
    }
    assert_eq!(warnings, 0, "{said}");
    for rows in [PRIVATE, OTHERS] {
        let delta = run(rows, 1, "soft-dirty").delta().clone();
        assert_eq!(delta.kind, "delta");
    }
    run(&["over"], 2, "soft-dirty");
    run(&["stack"], 1, "soft-dirty");
}
