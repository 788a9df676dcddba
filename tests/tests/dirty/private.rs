//! Private memory.

use super::{Case, OWN, SOON, Taken, compare, restart, signal};
use ckpt_tests::{Sandbox, skip};

fn run(row: &str) -> Taken {
    Case::of(&[row]).run()
}

#[test]
fn new_mapping() {
    let delta = run("new").delta().pages;
    assert!((64..64 + OWN).contains(&delta), "{delta}");
}

#[test]
fn brk_growth() {
    let delta = run("brk").delta().pages;
    assert!((32..32 + OWN).contains(&delta), "{delta}");
}

#[test]
fn hole_mapped_again() {
    assert!(run("hole").delta().zero_pages >= 6);
}

#[test]
fn fork_child() {
    // A child is an address space of its own: saved whole the first time, a delta after the restart.
    let taken = run("child");
    assert!(taken.delta().pages >= 64, "{:?}", taken.delta());
    assert!(taken.restarted.pages <= 2 * OWN, "{:?}", taken.restarted);
}

#[test]
fn parent_after_fork() {
    run("parent").assert_clean();
}

#[test]
fn mremap_grown_and_moved() {
    run("mremap");
}

#[test]
fn mremap_to_beside_another_mapping() {
    run("joined").assert_clean_after_restart();
}

#[test]
fn dontneed_private_anonymous_is_now_zero() {
    let taken = run("dropped");
    assert!(taken.delta().zero_pages >= 22, "{:?}", taken.delta());
    taken.assert_clean_after_restart();
}

#[test]
fn dontneed_private_file_is_back_to_file() {
    let taken = run("file");
    assert!(taken.delta().pages <= OWN, "{:?}", taken.delta());
    taken.assert_clean_after_restart();
}

#[test]
fn file_cut_off_below_changed_pages() {
    run("shortened");
}

#[test]
fn file_mapped_over_pages_that_were_dropped() {
    Case { steps: 2, ..Case::of(&["over"]) }.run();
}

#[test]
fn munmap_and_mmap_at_the_same_place() {
    assert!(run("again").delta().zero_pages >= 31);
}

#[test]
fn one_touched_page_in_a_reservation_of_64_gib() {
    let sandbox = Sandbox::new("dirty-reserved");
    let mut job = Case::of(&["reserved"]).launch(&sandbox);
    let program = job.program();
    let tables = || {
        let status = std::fs::read_to_string(sandbox.root().join(format!("proc/{program}/status"))).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:")).expect("VmPTE").to_owned();
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of KiB")
    };
    let before = tables();
    let full = job.checkpoint();
    signal(&sandbox, program);
    job.running().wait_for_output("done 1\n", SOON);
    let delta = job.checkpoint();
    // The step itself touches one page in a place of its own: up to three tables.
    assert!(tables() <= before + 16, "page tables grew from {before} to {} KiB", tables());
    assert!(full.bytes_stored < 2 << 20, "{full:?}");
    assert!(delta.pages <= OWN && delta.bytes_stored < 256 << 10, "{delta:?}");
    job.kill_all();
    restart(&sandbox, &mut job);
    assert!(tables() <= before + 64, "page tables are {} KiB after a restart", tables());
    compare(&sandbox, &job, program, 1);
    assert!(job.checkpoint().pages <= OWN);
    assert!(tables() <= before + 64, "page tables grew to {} KiB after a restart", tables());
    job.kill_all();
}

#[test]
fn guard_pages_over_changed_pages_of_a_file() {
    let sandbox = Sandbox::new("dirty-guarded");
    let mut job = Case::of(&["guarded"]).launch(&sandbox);
    let program = job.program();
    job.checkpoint();
    signal(&sandbox, program);
    // A page with a mark of write protection would have the call go on for ever.
    job.running().wait_for_output("done 1\n", SOON);
    if let Some((_, why)) = String::from_utf8_lossy(&job.running().stdout()).split_once("no guard pages: ") {
        skip::skip("guard_pages_over_changed_pages_of_a_file", why.trim_end());
        return job.kill_all();
    }
    assert!(job.checkpoint().pages <= OWN);
    for time in 1..=2 {
        job.kill_all();
        restart(&sandbox, &mut job);
        compare(&sandbox, &job, program, time);
        assert!(job.checkpoint().pages <= OWN);
    }
    job.kill_all();
}

#[test]
fn mremap_across_an_unregistered_neighbour_is_a_limitation() {
    // What is tracked and what is new are one mapping natively, two under tracking: docs/limitations.md.
    let sandbox = Sandbox::new("dirty-across");
    let case = Case { steps: 2, ..Case::of(&["across"]) };
    let mut job = case.launch(&sandbox);
    let program = job.program();
    job.checkpoint();
    signal(&sandbox, program);
    job.running().wait_for_output("mremap 1 untouched: Bad address\n", SOON);
    job.running().wait_for_output("mremap 1 touched: Bad address\n", SOON);
    job.checkpoint();
    signal(&sandbox, program);
    // Registered by now and one mapping again, unless it had pages of its own before that.
    job.running().wait_for_output("mremap 2 untouched: moved\n", SOON);
    job.running().wait_for_output("mremap 2 touched: Bad address\ndone 2\n", SOON);
    job.checkpoint();
    job.kill_all();
    restart(&sandbox, &mut job);
    compare(&sandbox, &job, program, 1);
    job.kill_all();
}

#[test]
fn mprotect() {
    run("mprotect").assert_clean();
}

#[test]
fn madv_free() {
    run("free").assert_clean();
}

#[test]
fn stack_growth() {
    let delta = run("stack").delta().pages;
    assert!((256..256 + OWN).contains(&delta), "{delta}");
}

#[test]
fn exec_is_a_new_address_space() {
    let sandbox = Sandbox::new("dirty-exec");
    let mut job = Case::of(&["exec"]).launch(&sandbox);
    let program = job.program();
    let full = job.checkpoint();
    signal(&sandbox, program);
    job.running().wait_for_output("ready\nready\n", SOON);
    let after = job.checkpoint();
    assert_eq!((after.kind.as_str(), after.parent), ("full", None), "{after:?}");
    assert!(after.pages + 400 < full.pages, "the old program's pages are gone: {full:?} {after:?}");
    job.kill_all();
    restart(&sandbox, &mut job);
    compare(&sandbox, &job, program, 1);
    assert_eq!(job.checkpoint().kind, "delta");
    job.kill_all();
}

#[test]
fn vdso_and_vvar_are_never_dirty() {
    run("idle").assert_clean();
}

#[test]
fn one_store_into_a_huge_page_dirties_one_page() {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if enabled.is_empty() || enabled.contains("[never]") {
        skip::skip("one_store_into_a_huge_page_dirties_one_page", "no transparent huge pages here");
        return;
    }
    run("huge").assert_clean();
}

#[test]
fn pages_without_access() {
    let taken = run("none");
    assert!(taken.delta().pages <= OWN, "{:?}", taken.delta());
    taken.assert_clean_after_restart();
}

#[test]
fn zero_pages_cost_nothing() {
    let taken = run("zero");
    for one in [&taken.full, taken.delta(), &taken.restarted] {
        assert!(one.bytes_stored < 1 << 20, "{one:?}");
    }
    assert!(taken.full.zero_pages >= 4096, "{:?}", taken.full);
}
