//! POSIX shared memory on a machine that has none of it: another node, or this one started anew.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ckpt_tests::scenario::{Expected, steps, verb};
use ckpt_tests::{Cmd, Job, Mode, Sandbox, victim_cmd};

const SOON: Duration = Duration::from_secs(60);

/// It never ends, and looks at all of its memory in each round.
fn victim() -> Cmd {
    victim_cmd("memkinds").args(["posix", "1000000000", "3000"])
}

/// Whether those are the last lines of an undisturbed run of as many rounds; its names are free.
fn require_right(sandbox: &Sandbox, printed: &[u8]) {
    let whole = printed.iter().rposition(|&byte| byte == b'\n').map_or(&[][..], |end| &printed[..=end]);
    let last = String::from_utf8_lossy(whole).lines().last().unwrap().to_owned();
    let rounds = last.split(' ').next().unwrap().to_owned();
    let undisturbed = victim_cmd("memkinds").args(["posix", &rounds, "0"]);
    let expected = Expected::of(sandbox, &undisturbed, None).stdout;
    assert!(expected.ends_with(whole), "round {rounds}: {last}");
}

/// What [`victim`] has, as seen from outside.
fn names(sandbox: &Sandbox) -> [PathBuf; 3] {
    ["", "-2", "-3"].map(|end| sandbox.see(Path::new(&format!("/dev/shm/victim-memkinds{end}"))))
}

#[test]
fn posix_shared_memory_that_is_gone_with_its_machine_is_made_again() {
    let sandbox = Sandbox::new("remade");
    let all = names(&sandbox);
    let mut job = Job::launch(&sandbox, &[], &victim());
    steps(&sandbox, job.running());
    // Of a group that nobody is in.
    all.iter().for_each(|name| std::os::unix::fs::chown(name, None, Some(4321)).unwrap());
    let look = || {
        let of = |found: std::fs::Metadata| (found.mode(), found.uid(), found.gid(), found.len());
        all.each_ref().map(|name| of(name.metadata().unwrap()))
    };
    let was = look();
    assert!(was.iter().all(|found| found.0 & 0o7777 == 0o640));
    for modes in [[Mode::Lazy, Mode::Eager], [Mode::Eager, Mode::Lazy]] {
        job.checkpoint();
        let first = job.newest();
        steps(&sandbox, job.running());
        job.kill_all();
        all.iter().for_each(|name| std::fs::remove_file(name).unwrap());
        job.restart(modes[0], &[]);
        steps(&sandbox, job.running());
        assert_eq!(look(), was);
        // They have changed by now, and there is no checkpoint that says so.
        job.kill_all();
        job.restart(modes[1], &[]);
        steps(&sandbox, job.running());
        job.checkpoint();
        job.kill_all();
        // As the older one has them, under the inodes that they have by now.
        job.restart_at(first, modes[0], &[]);
        steps(&sandbox, job.running());
    }
    let table = std::fs::read_to_string(job.dir().join("remade.json")).unwrap();
    assert_eq!(table.matches("/dev/shm/victim-memkinds").count(), 3, "{table}");
    job.kill_all();
    all.iter().for_each(|name| std::fs::remove_file(name).unwrap());
    assert!(job.stdout().starts_with(b"1 "));
    require_right(&sandbox, &job.stdout());
}

/// A command on another node: another boot, and nothing in /dev/shm but what `there` makes.
fn on(node: &str, there: &str, cmd: &Cmd) -> Cmd {
    const LINE: &str =
        "set -e; echo boot-of-$0 > $0.boot; mount --bind $0.boot /proc/sys/kernel/random/boot_id
        mount -t tmpfs none /dev/shm; eval \"$1\"; shift; exec \"$@\"";
    Cmd::new("/usr/bin/unshare").args(["--mount", "/bin/bash", "-c", LINE, node, there]).program(cmd)
}

#[test]
fn it_is_made_on_another_node_and_found_again_on_the_first_one() {
    let sandbox = Sandbox::new("remade-nodes");
    let all = names(&sandbox);
    let mut job = Job::launch(&sandbox, &[], &victim());
    steps(&sandbox, job.running());
    job.checkpoint();
    job.kill_all();
    let dir = job.dir();
    let restart = verb("restart", ["--lazy", "--take-over"]).arg(dir);
    let checkpoint = verb("checkpoint", ["--kill"]).arg(dir);
    let goes_on = |cmd: &Cmd| {
        let running = sandbox.spawn(cmd.clone());
        steps(&sandbox, &running);
        // A job of another node that starts is not waited for.
        sandbox.wait_for("a checkpoint", SOON, || sandbox.run(checkpoint.clone()).code() == 0);
        running.wait(SOON).expect_code(85).stdout
    };
    let inodes = || all.each_ref().map(|name| name.metadata().unwrap().ino());
    let was = inodes();
    // Other files have the inodes that the program's had, and one has one of its names.
    let crowd = "for i in $(seq 1 40); do : > /dev/shm/$i; done";
    let theirs = format!(
        "{crowd}; head -c {} /dev/zero > /dev/shm/victim-memkinds-2",
        all[1].metadata().unwrap().len()
    );
    let said = sandbox.run(on("node-c", &theirs, &restart)).expect_code(125).stderr_text();
    let wanted = "/dev/shm/victim-memkinds-2: it is another file than at the checkpoint: that one is gone with its machine";
    assert!(said.contains(wanted), "{said}");
    goes_on(&on("node-b", crowd, &restart));
    // What is left there is what the program had before.
    goes_on(&restart);
    assert_eq!(inodes(), was);
    goes_on(&on("node-b", "true", &restart));
    let last = goes_on(&restart);
    all.iter().for_each(|name| std::fs::remove_file(name).unwrap());
    require_right(&sandbox, &last);
}

#[test]
fn a_restart_that_fails_leaves_none_of_it() {
    let sandbox = Sandbox::new("remade-not");
    let program = Cmd::sh("exec \"$@\" 7> beside").args(["sh"]).program(&victim());
    let all = names(&sandbox);
    let mut job = Job::launch(&sandbox, &[], &program);
    steps(&sandbox, job.running());
    job.checkpoint();
    job.kill_all();
    let dir = job.dir().to_owned();
    let restart =
        |options: &[&str]| sandbox.run(verb("restart", options).arg(&dir)).expect_code(125).stderr_text();
    let none_is_there = || all.iter().all(|name| !name.exists());
    // Somebody has one of that name: it is theirs.
    let shm = &all[0];
    let kept = shm.with_extension("kept");
    std::fs::rename(shm, &kept).unwrap();
    std::fs::write(shm, vec![7; usize::try_from(kept.metadata().unwrap().len()).unwrap()]).unwrap();
    let said = restart(&[]);
    assert!(said.contains("/dev/shm/victim-memkinds: it is another file than at the checkpoint"), "{said}");
    assert!(std::fs::read(shm).unwrap().iter().all(|&byte| byte == 7));
    all.iter().chain([&kept]).for_each(|name| std::fs::remove_file(name).unwrap());
    // Where files are only compared, none is made.
    let said = restart(&["--files", "check"]);
    assert!(said.contains("/dev/shm/victim-memkinds") && said.contains("No such file"), "{said}");
    // Another one stands in the way.
    std::fs::remove_file(sandbox.dir().join("beside")).unwrap();
    let said = restart(&[]);
    assert!(said.contains("/beside: ") && none_is_there(), "{said}");
    // A table that is none.
    std::fs::write(dir.join("remade.json"), "{").unwrap();
    let said = restart(&[]);
    assert!(said.contains("remade.json: cannot be understood; remove it") && none_is_there(), "{said}");
}
