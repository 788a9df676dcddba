//! An eBPF program that the kernel refuses costs a warning, once, and what it would have told is found another way: never the
//! job.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::{Job, Sandbox, victim_cmd};

const SOON: Duration = Duration::from_secs(30);

fn without(program: &str) {
    let options = ["--without-program", program];
    let sandbox = Sandbox::new(&format!("without_{program}"));
    let mut job = Job::launch(&sandbox, &options, &victim_cmd("count").args(["f", "100000", "3000"]));
    job.running().wait_for_output("\n", SOON);
    job.checkpoint();
    job.checkpoint();
    let said = job.running().stderr();
    assert_eq!(said.matches(&format!("eBPF program {program} is ")).count(), 1, "{said}");
    job.kill_all();
    let name = format!("goes_on_without_{program}");
    let tried = victim_cmd("threads16").args(["1200", "3000"]);
    survive(&Survival { rounds: 2, options: &options, ..Survival::of(&name, tried) });
}

macro_rules! without {
    ($($test:ident: $program:literal;)*) => {$(
        #[test]
        fn $test() {
            without($program);
        }
    )*};
}

without! {
    no_forks_are_reported: "on_fork";
    no_execs_are_reported: "on_exec";
    no_exits_are_reported: "on_group_exit";
    no_write_faults_are_reported: "on_write_fault";
    no_write_faults_of_system_calls_are_reported: "on_kernel_write_fault";
    no_process_ids_are_read: "iter_pids";
    no_threads_are_read: "iter_tasks";
    no_processes_are_read: "iter_processes";
    no_signal_actions_are_read: "iter_signal_actions";
    no_waits_are_read: "iter_waits";
    no_timers_are_read: "iter_timers";
    no_mappings_are_read: "iter_vmas";
    no_descriptors_are_read: "iter_descriptors";
}
