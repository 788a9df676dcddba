//! An image of another kernel, whose vdso is another one: something stands in for it. One of another processor: its registers
//! have other places here.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{MODES, held, let_go, verb};
use ckpt_tests::{Expected, Job, Sandbox, assert_same, victim_cmd};

const SOON: Duration = Duration::from_secs(30);

/// Lets the program go on to `step`, and waits until that is done.
fn go_on_to(sandbox: &Sandbox, job: &Job, step: usize) {
    std::fs::write(sandbox.dir().join("steps"), vec![b'.'; step]).unwrap();
    job.running().wait_for_output(&format!("{step} right\n"), SOON);
}

/// Where the kernel's own vdso lies in the program.
fn vdso(sandbox: &Sandbox, job: &Job) -> String {
    let maps = std::fs::read_to_string(sandbox.root().join(format!("proc/{}/maps", job.program()))).unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).expect("a vdso");
    line.split(' ').next().unwrap().to_owned()
}

#[test]
fn a_program_goes_on_with_the_vdso_of_another_kernel() {
    let sandbox = Sandbox::new("vdso");
    let mut job = Job::launch(&sandbox, &[], &victim_cmd("clocks").args(["steps", "60"]));
    go_on_to(&sandbox, &job, 10);
    job.checkpoint();
    // Each restart finds the one before standing in, and takes the image for one of yet another kernel.
    for (round, mode) in (2..).zip(MODES.iter().cycle().take(4)) {
        let before = vdso(&sandbox, &job);
        job.kill_all();
        job.restart(*mode, &["--foreign-vdso"]);
        assert_ne!(vdso(&sandbox, &job), before, "nothing stands in for it");
        go_on_to(&sandbox, &job, 10 * round);
        assert_eq!(job.checkpoint().kind, "delta");
    }
    job.kill_all();
    // And with this kernel's own, which the last restart has given it.
    job.restart(MODES[0], &[]);
    std::fs::write(sandbox.dir().join("steps"), [b'.'; 60]).unwrap();
    job.wait(SOON).success();
    let expected: String = (1..=60).map(|step| format!("{step} right\n")).collect();
    assert_eq!(String::from_utf8_lossy(&job.stdout()), expected);
}

#[test]
fn registers_of_every_width_go_to_other_places() {
    let sandbox = Sandbox::new("xsave");
    let program = victim_cmd("fpu").args(["1200", "3000"]);
    let expected = Expected::of(&sandbox, &program, None);
    let mut job = Job::launch(&sandbox, &[], &held(&sandbox, program));
    for mode in MODES {
        let steps = || job.running().stdout().iter().filter(|byte| **byte == b'\n').count();
        sandbox.wait_for("twenty steps", SOON, || steps() > 20);
        job.checkpoint();
        job.kill_all();
        job.restart(*mode, &["--foreign-xsave"]);
    }
    let_go(&sandbox);
    job.wait(SOON).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
}

#[test]
fn who_is_in_a_handler_does_not_go_to_another_processor() {
    let sandbox = Sandbox::new("handler");
    let mut job = Job::launch(&sandbox, &[], &victim_cmd("handler").arg("awaited"));
    job.running().wait_for_output("in the handler of 10\n", SOON);
    job.checkpoint();
    job.kill_all();
    for options in [&["--foreign-xsave"][..], &["--foreign-xsave", "--lazy"]] {
        let refused = sandbox.run(verb("restart", options).arg(job.dir())).expect_code(125).stderr_text();
        assert!(refused.contains("may be in a signal handler") && refused.contains("--at"), "{refused}");
    }
    job.restart(MODES[0], &[]);
    std::fs::write(sandbox.dir().join("awaited"), "").unwrap();
    job.wait(SOON).success();
    assert_eq!(String::from_utf8_lossy(&job.stdout()), "in the handler of 10\nback\n");
}
