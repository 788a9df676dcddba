//! A sleeping call goes on for the time that was left, whatever interrupts it: checkpoints, or death and restart.

use std::time::Duration;

use ckpt_tests::sandbox::scaled;
use ckpt_tests::scenario::{MODES, Survival, held, let_go, stepper, survive, walk_through};
use ckpt_tests::{Cmd, Expected, Job, Mode, Sandbox, assert_same, victim, victim_cmd};

/// All that the kernel or we continue; a call that begins anew after each stop would not end before the program.
const KINDS: &str = "nanosleep,clock_nanosleep,clock_nanosleep_boot,clock_nanosleep_abs,poll,ppoll,select,epoll_wait,\
    epoll_pwait2,futex,sigtimedwait,semtimedop,pause,read,flock,range_lock";

#[test]
fn they_go_on_after_a_restart() {
    let program = victim_cmd("sleeps").args(["900", "4", KINDS]);
    survive(&Survival { rounds: 3, ..Survival::of("sleeps", program) });
}

/// What begins anew takes nearly twice as long then.
#[test]
fn they_go_on_after_restarts_late_in_them() {
    let sandbox = Sandbox::new("sleeps_late");
    let program = victim_cmd("sleeps").args(["1500", "7", KINDS]);
    let expected = Expected::of(&sandbox, &program, None);
    let mut job = Job::launch(&sandbox, &[], &held(&sandbox, program));
    for mode in MODES.iter().cycle().take(4) {
        job.running().wait_for_output(" late", Duration::from_secs(30));
        job.checkpoint();
        job.kill_all();
        job.restart(*mode, &[]);
    }
    let_go(&sandbox);
    job.wait(Duration::from_secs(60)).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
}

#[test]
fn twenty_checkpoints_do_not_make_them_longer() {
    let sandbox = Sandbox::new("sleeps_through_checkpoints");
    let ms = scaled(Duration::from_secs(5)).as_millis().to_string();
    let program = victim_cmd("sleeps").args([&ms, "1", KINDS]);
    let expected = Expected::of(&sandbox, &program, None);
    let mut job = Job::launch(&sandbox, &["-i", "0.1"], &program);
    job.wait_for_checkpoint(20);
    assert!(!job.running().has_ended());
    job.wait(Duration::from_secs(30)).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
}

#[test]
fn epoll_wait_ends_neither_early_nor_late() {
    let sandbox = Sandbox::new("epoll_wait");
    let program = victim_cmd("sleeps").args(["3000", "1", "epoll_wait"]);
    let expected = Expected::of(&sandbox, &program, None);
    let mut job = Job::launch(&sandbox, &["-i", "0.1"], &program);
    job.wait(Duration::from_secs(30)).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
}

/// While the parent of a vfork(2) waits, nothing can be checkpointed: each try stops the others in vain. select(2) and ppoll(2)
/// would be longer by the time that they stood, as those of any program that stands.
#[test]
fn freezes_that_are_given_up_do_not_make_them_longer() {
    const KINDS: &str = "nanosleep,clock_nanosleep,clock_nanosleep_boot,clock_nanosleep_abs,poll,epoll_wait,epoll_pwait2,\
        futex,sigtimedwait,semtimedop,pause,read,flock,range_lock";
    let sandbox = Sandbox::new("sleeps_through_refusals");
    let ms = scaled(Duration::from_secs(3)).as_millis();
    let expected = Expected::of(&sandbox, &victim_cmd("sleeps").args([&ms.to_string(), "1", KINDS]), None);
    let [vfork, sleeps] = ["vfork", "sleeps"].map(|name| victim(name).display().to_string());
    let program = Cmd::sh(&format!("{vfork} {} & exec {sleeps} {ms} 1 {KINDS}", ms * 5 / 4));
    let mut job = Job::launch(&sandbox, &["-i", "0.1"], &program);
    sandbox
        .wait_for("a refusal", Duration::from_secs(30), || job.running().stderr().contains("does not stop"));
    let ended = job.wait(Duration::from_secs(30)).success();
    assert_same("standard output", &expected.stdout, &ended.stdout);
}

/// The refusal names who does not stop and where; once the child is gone, a checkpoint holds everything.
#[test]
fn the_parent_of_a_vfork_is_refused_by_name_until_its_child_is_gone() {
    const SOON: Duration = Duration::from_secs(30);
    let sandbox = Sandbox::new("vfork_refused");
    let folder = sandbox.dir().join("undisturbed");
    std::fs::create_dir(&folder).unwrap();
    let expected = walk_through(&sandbox, stepper(4).cwd(&folder)).success().stdout;
    let [vfork, memory] = ["vfork", "memory"].map(|name| victim(name).display().to_string());
    let program = Cmd::sh(&format!("{vfork} ./go-on & exec {memory} 1 4 f signal"));
    let mut job = Job::launch(&sandbox, &[], &program);
    job.running().wait_for_output("0 ", SOON);
    let alive = || {
        let all = sandbox.ps();
        all.iter()
            .filter(|one| one.comm == "vfork" && one.state != 'Z')
            .map(|one| one.pid)
            .collect::<Vec<_>>()
    };
    sandbox.wait_for("the child of a vfork", SOON, || alive().len() == 2);
    job.program();
    for _ in 0..2 {
        let said = job.try_checkpoint().expect_code(125).stderr_text();
        let parent = alive()[0];
        let named =
            format!("thread {parent} of process {parent} (vfork) does not stop (system call 58, waiting in ");
        assert!(said.contains(&named), "{named:?} is not in {said}");
    }
    std::fs::write(sandbox.dir().join("go-on"), "").unwrap();
    sandbox.wait_for("its end", SOON, || alive().is_empty());
    job.checkpoint();
    job.kill_all();
    job.restart(Mode::Lazy, &[]);
    job.walk().success();
    assert_same("standard output", &expected, &job.stdout());
}
