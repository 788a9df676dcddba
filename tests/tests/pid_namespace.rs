//! A restart whose process ids are in use: the program gets a pid namespace of its own, and nobody can tell.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::sandbox::Leak;
use ckpt_tests::scenario::{Holder, MODES, held, let_go, listener, stepper, supervised, verb, walk_until};
use ckpt_tests::{Cmd, Expected, Job, Mode, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
const SAID: &str = "in a pid namespace of its own";

/// A stepper of `steps` that has printed its first line, has one checkpoint and is dead; the id it has in its image.
fn dead_stepper(sandbox: &Sandbox, steps: u32) -> (Job<'_>, i32) {
    let mut job = Job::launch(sandbox, &[], &stepper(steps));
    job.running().wait_for_output("0 ", SOON);
    let id = job.program();
    job.checkpoint();
    job.kill_all();
    (job, id)
}

fn expected(sandbox: &Sandbox, steps: u32) -> Expected {
    let bare = victim_cmd("memory").args(["1", &steps.to_string(), "f", "-"]);
    Expected::of(sandbox, &bare, Some("f"))
}

fn assert_whole(sandbox: &Sandbox, job: &Job, expected: &Expected) {
    assert_same("standard output", &expected.stdout, &job.stdout());
    assert_same("the file", &expected.file, &std::fs::read(sandbox.dir().join("f")).unwrap());
}

/// Restarts, and waits until it is said that it runs in a namespace of its own, or, where it is not to, until it runs.
fn restart(sandbox: &Sandbox, job: &mut Job, mode: Mode, inside: bool) {
    job.restart(mode, &["-v"]);
    sandbox.wait_for("the restart", SOON, || {
        assert!(!job.running().has_ended(), "{}", job.running().stderr());
        job.running().stderr().contains("restart: ckptbpf restart")
    });
    assert_eq!(job.running().stderr().contains(SAID), inside, "{}", job.running().stderr());
}

/// One step of the stepper, by a signal to process `to`.
fn step(sandbox: &Sandbox, job: &Job, to: i32, number: u32) {
    sandbox.kill(to, Signal::SIGUSR1 as i32).unwrap();
    let begins = |line: &str| line.starts_with(&format!("{number} "));
    sandbox.wait_for(&format!("step {number}"), SOON, || {
        String::from_utf8_lossy(&job.stdout()).lines().any(begins)
    });
}

fn status(sandbox: &Sandbox, job: &Job) -> Value {
    let shown = sandbox.run(verb("status", ["--json"]).arg(job.dir())).success();
    serde_json::from_slice(&shown.stdout).unwrap()
}

fn id_of(value: &Value) -> i32 {
    i32::try_from(value.as_i64().unwrap_or_else(|| panic!("no id: {value}"))).unwrap()
}

fn named(sandbox: &Sandbox, name: &str) -> Vec<i32> {
    sandbox.ps().iter().filter(|p| p.comm == name && p.state != 'Z').map(|p| p.pid).collect()
}

/// kill -9 of one process of ckptbpf's.
fn kill(sandbox: &Sandbox, pid: i32) {
    sandbox.kill(pid, Signal::SIGKILL as i32).unwrap();
}

#[test]
fn a_process_id_that_somebody_has_means_a_namespace_and_the_same_bytes() {
    for mode in MODES {
        let sandbox = Sandbox::new("pid_in_use");
        let (mut job, id) = dead_stepper(&sandbox, 6);
        let holder = Holder::of(&sandbox, id);
        restart(&sandbox, &mut job, *mode, true);
        let said = job.running().stderr();
        let here = job.program();
        let line = format!(
            "process id {id} is in use (sleep): the program runs {SAID}, as pid {id} there (here: {here})"
        );
        assert!(said.contains(&line) && here != id, "{said}");
        step(&sandbox, &job, here, 1);
        let newest = job.checkpoint();
        assert_eq!(newest.kind, "delta", "{newest:?}");
        step(&sandbox, &job, here, 2);
        job.kill_all();
        holder.end();
        // Where the id is free again it needs no namespace; where it is not, it gets one again.
        restart(&sandbox, &mut job, *mode, false);
        assert_eq!(job.program(), id);
        step(&sandbox, &job, id, 2);
        job.checkpoint();
        job.kill_all();
        let holder = Holder::of(&sandbox, id);
        restart(&sandbox, &mut job, *mode, true);
        let here = job.program();
        for number in 3..=6 {
            step(&sandbox, &job, here, number);
        }
        job.wait(SOON).success();
        assert_whole(&sandbox, &job, &expected(&sandbox, 6));
        holder.end();
    }
}

#[test]
fn one_thread_s_id_that_somebody_has_is_enough() {
    for mode in MODES {
        let sandbox = Sandbox::new("tid_in_use");
        let program = victim_cmd("threads16").args(["600", "3000"]);
        // The box's first ids: ckptbpf's own threads are not to take those of the program in a new namespace.
        let mut job = Job::launch(&sandbox, &[], &held(&sandbox, program.clone()));
        job.running().wait_for_output("\n3 ", SOON);
        let tasks = sandbox.see(format!("/proc/{}/task", job.program()).as_ref());
        let tids =
            std::fs::read_dir(tasks).unwrap().map(|one| one.unwrap().file_name().into_string().unwrap());
        let tid: i32 = tids.map(|name| name.parse().unwrap()).max().unwrap();
        job.checkpoint();
        job.kill_all();
        let holder = Holder::of(&sandbox, tid);
        restart(&sandbox, &mut job, *mode, true);
        assert!(
            job.running().stderr().contains(&format!("process id {tid} is in use")),
            "{}",
            job.running().stderr()
        );
        let_go(&sandbox);
        job.wait(SOON).success();
        let expected = Expected::of(&sandbox, &program, None);
        assert_same("standard output", &expected.stdout, &job.stdout());
        holder.end();
    }
}

#[test]
fn signals_stops_and_the_exit_status_pass_through() {
    let sandbox = Sandbox::new("inside_signals");
    let mut job = Job::launch(&sandbox, &[], &listener());
    job.running().wait_for_output("ready\n", SOON);
    let id = job.program();
    job.checkpoint();
    job.kill_all();
    let holder = Holder::of(&sandbox, id);
    restart(&sandbox, &mut job, Mode::Eager, true);
    let (ckptbpf, program) = (job.running().pid, job.program());
    job.running().kill(Signal::SIGTERM);
    job.running().wait_for_output("15\n", SOON);
    sandbox.kill(ckptbpf, nix::libc::SIGRTMIN()).unwrap();
    job.running().wait_for_output("15\n34\n", SOON);
    let state = |pid: i32| sandbox.ps().iter().find(|one| one.pid == pid).expect("the process lives").state;
    for _ in 0..3 {
        sandbox.kill(program, Signal::SIGSTOP as i32).unwrap();
        sandbox.wait_for("ckptbpf to stop", SOON, || state(ckptbpf) == 'T');
        job.running().kill(Signal::SIGCONT);
        sandbox.wait_for("both to go on", SOON, || state(ckptbpf) != 'T' && state(program) != 'T');
    }
    job.running().kill(Signal::SIGUSR2);
    let rest = job.wait(SOON).expect_code(3).stdout;
    assert_eq!(String::from_utf8_lossy(&rest), "15\n34\n12\n");
    // Ended by a signal, and by a checkpoint.
    restart(&sandbox, &mut job, Mode::Eager, true);
    sandbox.kill(job.program(), Signal::SIGKILL as i32).unwrap();
    let killed = job.wait(SOON).expect_code(137).stderr_text();
    assert!(killed.contains("last checkpoint 1"), "{killed}");
    restart(&sandbox, &mut job, Mode::Eager, true);
    let done = sandbox.run(verb("checkpoint", ["--kill", "--json"]).arg(job.program().to_string())).success();
    assert!(done.stdout_text().contains(r#""killed":true"#), "{}", done.stdout_text());
    job.wait(SOON).expect_code(85);
    holder.end();
}

#[test]
fn without_its_stand_in_it_is_supervised_all_the_same() {
    for mode in MODES {
        let sandbox = Sandbox::new("no_stand_in");
        let (mut job, id) = dead_stepper(&sandbox, 4);
        let holder = Holder::of(&sandbox, id);
        restart(&sandbox, &mut job, *mode, true);
        let here = job.kill_supervisor();
        let shown = status(&sandbox, &job);
        assert_eq!((&shown["supervised"], id_of(&shown["pid"])), (&true.into(), here));
        step(&sandbox, &job, here, 1);
        // Asked by directory and by the ids of here; refused to run twice.
        sandbox.run(verb("checkpoint", [job.dir()])).success();
        sandbox.run(verb("checkpoint", [here.to_string()])).success();
        let refused = sandbox.run(verb("restart", [job.dir()])).expect_code(125).stderr_text();
        assert!(refused.contains(&format!("pid {}", shown["supervisor_pid"])), "{refused}");
        for number in 2..=4 {
            step(&sandbox, &job, here, number);
        }
        holder.end();
        sandbox.wait_for("everybody's end", SOON, || sandbox.ps().is_empty());
        assert_whole(&sandbox, &job, &expected(&sandbox, 4));
    }
}

#[test]
fn without_its_supervisor_it_goes_on_and_is_attached_again() {
    let sandbox = Sandbox::new("inside_orphan");
    let (mut job, id) = dead_stepper(&sandbox, 6);
    let holder = Holder::of(&sandbox, id);
    restart(&sandbox, &mut job, Mode::Eager, true);
    let here = job.program();
    kill(&sandbox, id_of(&status(&sandbox, &job)["supervisor_pid"]));
    let told = job.wait(SOON).expect_code(137).stderr_text();
    assert!(told.contains("supervisor") && told.contains("was killed"), "{told}");
    step(&sandbox, &job, here, 1);
    let refused = sandbox.run(verb("restart", [job.dir()])).expect_code(125).stderr_text();
    assert!(refused.contains(&format!("ckptbpf attach -d {} {here}", job.dir().display())), "{refused}");
    // One checkpoint without a supervisor, then one that stays.
    let once = sandbox.run(verb("checkpoint", ["--json", &here.to_string()])).success();
    assert!(once.stdout_text().contains(r#""kind":"full""#), "{}", once.stdout_text());
    job.attach(here, &[]);
    let shown = status(&sandbox, &job);
    assert_eq!((&shown["supervised"], id_of(&shown["pid"])), (&true.into(), here));
    step(&sandbox, &job, here, 2);
    assert!(job.checkpoint().id > 2);
    step(&sandbox, &job, here, 3);
    job.kill_all();
    holder.end();
    restart(&sandbox, &mut job, Mode::Eager, false);
    job.walk().success();
    assert_whole(&sandbox, &job, &expected(&sandbox, 6));
}

#[test]
fn an_attached_supervisor_inside_is_let_go_and_sees_the_end() {
    let sandbox = Sandbox::new("inside_let_go");
    let (mut job, id) = dead_stepper(&sandbox, 3);
    let holder = Holder::of(&sandbox, id);
    restart(&sandbox, &mut job, Mode::Eager, true);
    let here = job.program();
    kill(&sandbox, id_of(&status(&sandbox, &job)["supervisor_pid"]));
    job.wait(SOON).expect_code(137);
    job.attach(here, &[]);
    job.running().kill(Signal::SIGTERM);
    job.wait(SOON).expect_code(143);
    step(&sandbox, &job, here, 1);
    job.attach(here, &["-i", "0.05"]);
    let newest = job.newest();
    job.wait_for_checkpoint(newest + 1);
    walk_until(&sandbox, || job.running().has_ended());
    job.wait(SOON).success();
    holder.end();
    assert_whole(&sandbox, &job, &expected(&sandbox, 3));
}

#[test]
fn a_last_checkpoint_without_a_supervisor_is_taken_inside() {
    let sandbox = Sandbox::new("inside_once");
    let (mut job, id) = dead_stepper(&sandbox, 3);
    let holder = Holder::of(&sandbox, id);
    restart(&sandbox, &mut job, Mode::Eager, true);
    let here = job.program();
    kill(&sandbox, id_of(&status(&sandbox, &job)["supervisor_pid"]));
    job.wait(SOON).expect_code(137);
    step(&sandbox, &job, here, 1);
    sandbox.run(verb("checkpoint", ["--kill", &here.to_string()])).success();
    assert!(named(&sandbox, "memory").is_empty());
    sandbox.tolerate(Leak::Run, "kill -9 of a supervisor leaves its socket behind");
    job.restart(Mode::Eager, &[]);
    walk_until(&sandbox, || job.running().has_ended());
    assert!(job.wait(SOON).success().stderr_text().contains(SAID));
    holder.end();
    assert_whole(&sandbox, &job, &expected(&sandbox, 3));
}

/// Sessions, groups, orphans and ended children: also the ids that are made for the time of the making alone.
#[test]
fn trees_come_back_inside_as_they_were() {
    for (mode, name, args) in [
        (Mode::Eager, "family", &["600", "3000"][..]),
        (Mode::Lazy, "family", &["600", "3000"]),
        (Mode::Lazy, "forktree", &["40", "50000", "zombie"]),
    ] {
        let sandbox = Sandbox::new("inside_tree");
        let program = victim_cmd(name).args(args);
        let expected = Expected::of(&sandbox, &program, None);
        let mut job = Job::launch(&sandbox, &[], &held(&sandbox, program));
        let lines = |count| job.stdout().iter().filter(|&&byte| byte == b'\n').count() >= count;
        sandbox.wait_for("its first lines", SOON, || lines(10));
        let id = job.program();
        job.checkpoint();
        job.kill_all();
        let holder = Holder::of(&sandbox, id);
        restart(&sandbox, &mut job, mode, true);
        // Once more from inside: what is outside of the namespace has no ids there.
        job.checkpoint();
        job.kill_all();
        holder.end();
        restart(&sandbox, &mut job, mode, false);
        let_go(&sandbox);
        job.wait(SOON).success();
        assert_same(name, &expected.stdout, &job.stdout());
    }
}

#[test]
fn without_init_all_of_it_is_gone_and_is_restarted() {
    let sandbox = Sandbox::new("no_init");
    let (mut job, id) = dead_stepper(&sandbox, 4);
    let holder = Holder::of(&sandbox, id);
    restart(&sandbox, &mut job, Mode::Eager, true);
    step(&sandbox, &job, job.program(), 1);
    let init = named(&sandbox, "ckptbpf-init");
    assert_eq!(init.len(), 1);
    kill(&sandbox, init[0]);
    let told = job.wait(SOON).expect_code(137).stderr_text();
    assert!(told.contains("init of the program's pid namespace was killed"), "{told}");
    assert!(named(&sandbox, "memory").is_empty());
    sandbox.tolerate(Leak::Run, "kill -9 of a supervisor leaves its socket behind");
    holder.end();
    restart(&sandbox, &mut job, Mode::Eager, false);
    job.walk().success();
    assert_whole(&sandbox, &job, &expected(&sandbox, 4));
}

/// A lazy restart whose pages are held back: whoever of ckptbpf's is killed, not one wrong byte is printed.
#[test]
fn while_pages_are_missing_the_program_dies_with_supervisor_and_with_init() {
    let sandbox = Sandbox::new("inside_lazy");
    sandbox.tolerate(Leak::Run, "kill -9 of a supervisor leaves its socket behind");
    let program = |gate| victim_cmd("lazymem").args(["16", "100000", gate, "40", "3"]);
    let expected = victim_cmd("lazymem").args(["16", "2000", "-", "40", "3"]);
    let expected = Expected::of(&sandbox, &expected, None).stdout;
    let end = expected.windows(4).position(|w| w == b"all ").unwrap();
    let mut job = Job::launch(&sandbox, &[], &program("1000"));
    job.running().wait_for_output("\n3 ", SOON);
    let id = job.program();
    job.checkpoint();
    job.kill_all();
    let hold = sandbox.dir().join("hold");
    std::fs::write(&hold, "").unwrap();
    for round in 0..10 {
        let holder = Holder::of(&sandbox, id);
        let hold = hold.to_str().unwrap();
        job.restart(Mode::Lazy, &["--json", "--hold-fill", hold]);
        sandbox.wait_for("its resumption", SOON, || {
            assert!(!job.running().has_ended(), "{}", job.running().stderr());
            job.running().stderr().contains("resume_us")
        });
        assert!(job.running().stderr().contains(SAID), "{}", job.running().stderr());
        job.program();
        assert_eq!(named(&sandbox, "page-guardian").len(), 1);
        let victim = match round % 2 {
            0 => named(&sandbox, "ckptbpf-init")[0],
            _ => id_of(&status(&sandbox, &job)["supervisor_pid"]),
        };
        kill(&sandbox, victim);
        job.wait(SOON).expect_code(137);
        sandbox.wait_for("every task to be dead", SOON, || named(&sandbox, "lazymem").is_empty());
        let printed = job.stdout();
        let until = printed.len().min(end);
        assert_same(&format!("round {round}"), &expected[..until], &printed[..until]);
        holder.end();
        sandbox.wait_for("the rest to be gone", SOON, || sandbox.ps().is_empty());
    }
}

#[test]
fn detached_it_returns_and_the_program_ends_as_ever() {
    let sandbox = Sandbox::new("inside_detached");
    let (job, id) = dead_stepper(&sandbox, 3);
    let holder = Holder::of(&sandbox, id);
    let out = sandbox.dir().join("out");
    let detached = verb("restart", ["--detach", "--json", "-i", "0.05"]).arg(job.dir()).stdout(&out);
    let told = sandbox.run(detached).success().stderr_text();
    assert!(told.contains(SAID) && told.contains(r#""mode":"eager""#), "{told}");
    assert_eq!(status(&sandbox, &job)["supervised"], true);
    sandbox.wait_for("two more checkpoints", SOON, || job.newest() > 2);
    walk_until(&sandbox, || named(&sandbox, "memory").is_empty());
    holder.end();
    sandbox.wait_for("everybody's end", SOON, || sandbox.ps().is_empty());
    let all = [job.stdout(), std::fs::read(out).unwrap()].concat();
    assert_same("standard output", &expected(&sandbox, 3).stdout, &all);
}

#[test]
fn a_user_s_capabilities_are_not_enough_and_the_holder_is_named() {
    let sandbox = Sandbox::new("inside_refused");
    let (job, id) = dead_stepper(&sandbox, 3);
    let holder = Holder::of(&sandbox, id);
    let written = std::fs::metadata(sandbox.dir().join("f")).unwrap().len();
    // All of root's but the one that makes namespaces.
    let without = Cmd::new("setpriv").args(["--bounding-set", "-sys_admin"]);
    let refused = sandbox.run(without.program(&verb("restart", [job.dir()]))).expect_code(125).stderr_text();
    assert!(refused.contains(&format!("process id {id}")) && refused.contains("sleep"), "{refused}");
    assert!(refused.contains("restart as root") && refused.contains("not permitted"), "{refused}");
    assert_eq!(std::fs::metadata(sandbox.dir().join("f")).unwrap().len(), written);
    holder.end();
}

/// Ids near the program's are what comes next, as after a reboot: ckptbpf's own processes and threads do not take them.
#[test]
fn what_ckptbpf_starts_for_itself_takes_none_of_the_program_s_ids() {
    let sandbox = Sandbox::with_limit("own_ids", Duration::from_secs(170));
    let program = victim_cmd("threads16").args(["600", "3000"]);
    let expected = Expected::of(&sandbox, &program, None);
    let mut job = Job::launch(&sandbox, &[], &held(&sandbox, program));
    job.running().wait_for_output("\n3 ", SOON);
    let pid = job.program();
    job.checkpoint();
    let (dir, mut printed) = (job.dir().to_owned(), Vec::new());
    job.kill_all();
    for before in 2..14 {
        let mode: &[&str] = if before % 2 == 0 { &["--lazy"] } else { &[] };
        let line = "echo $(($0 - $1)) > /proc/sys/kernel/ns_last_pid; shift; exec \"$@\"";
        let cmd = Cmd::sh(line).args([pid, before].map(|n| n.to_string()));
        let running = sandbox.spawn(cmd.program(&verb("restart", mode).args(["--at", "1"]).arg(&dir)));
        sandbox.wait_for("the program", SOON, || {
            assert!(!running.has_ended(), "{before} before: {}", running.stderr());
            supervised(&sandbox, &dir).is_some()
        });
        let said = running.stderr();
        if before == 13 {
            let_go(&sandbox);
            printed = running.wait(SOON).success().stdout;
        } else {
            for one in sandbox.ps() {
                let _ = sandbox.kill(one.pid, Signal::SIGKILL as i32);
            }
            running.wait(SOON);
            sandbox.wait_for("everybody's end", SOON, || sandbox.ps().is_empty());
        }
        // The shell that becomes ckptbpf, or one that looks whether the program runs, may itself have had one of them.
        assert!(!said.contains("has just been taken"), "{before} before: {said}");
    }
    assert!(!printed.is_empty() && expected.stdout.ends_with(&printed));
}
