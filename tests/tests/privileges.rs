//! Who owns what: under sudo program and images are the user's, and a crafted image gives nobody root.

// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::time::Duration;

use ckpt_tests::scenario::verb;
use ckpt_tests::user::UID;
use ckpt_tests::{Cmd, Job, Sandbox, User, ckptbpf, victim, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn under_sudo_program_and_images_are_the_user_s() {
    let sandbox = Sandbox::new("sudo");
    let user = User::of(&sandbox);
    let tool = Cmd::new(user.copy_of(&ckptbpf()));
    let count = user.copy_of(&victim("count_static"));
    let launch =
        tool.clone().args(["launch", "-d", "images", "--"]).arg(count).args(["numbers", "100000", "1000"]);
    let running = sandbox.spawn(user.runs_by_sudo(&launch));
    running.wait_for_output("\n5 ", SOON);
    sandbox.run(user.runs_by_sudo(&tool.clone().args(["checkpoint", "images"]))).success();
    let images = user.home().join("images");
    let (folder, file) = (images.metadata().unwrap(), images.join("000001.ckpt").metadata().unwrap());
    assert_eq!((folder.uid(), folder.gid(), folder.mode() & 0o7777), (UID, UID, 0o700));
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (UID, UID, 0o600));
    assert_eq!(user.home().join("numbers").metadata().unwrap().uid(), UID);
    let program = sandbox.ps().into_iter().find(|process| process.comm == "count_static").expect("it runs");
    let status =
        std::fs::read_to_string(sandbox.root().join(format!("proc/{}/status", program.pid))).unwrap();
    for line in ["Uid:\t4242\t4242\t4242\t4242", "Gid:\t4242\t4242\t4242\t4242", "CapEff:\t0000000000000000"]
    {
        assert!(status.contains(line), "no {line:?} in {status}");
    }
    sandbox.kill(program.pid, 15).unwrap();
    running.wait(SOON).expect_code(143);
}

#[test]
fn under_sudo_root_is_kept_where_that_is_asked_for() {
    let sandbox = Sandbox::new("sudo_root");
    let user = User::of(&sandbox);
    let tool = Cmd::new(user.copy_of(&ckptbpf()));
    let count = user.copy_of(&victim("count_static"));
    let launch = tool.clone().args(["launch", "-u", "root", "-d", "images", "--"]).arg(count);
    let running = sandbox.spawn(user.runs_by_sudo(&launch.args(["numbers", "100000", "1000"])));
    running.wait_for_output("\n5 ", SOON);
    sandbox.run(user.runs_by_sudo(&tool.args(["checkpoint", "images"]))).success();
    for file in ["images", "images/000001.ckpt", "numbers"] {
        assert_eq!(user.home().join(file).metadata().unwrap().uid(), 0, "{file}");
    }
    let program = sandbox.ps().into_iter().find(|process| process.comm == "count_static").expect("it runs");
    let status = sandbox.root().join(format!("proc/{}/status", program.pid));
    let status = std::fs::read_to_string(status).unwrap();
    assert!(status.contains("Uid:\t0\t0\t0\t0"), "{status}");
    sandbox.kill(program.pid, 15).unwrap();
    running.wait(SOON).expect_code(143);
}

/// sudo takes away by what a program finds its libraries: who looks at the end of it is told.
#[test]
fn under_sudo_a_program_that_lacks_something_is_told_of_what_sudo_does() {
    let sandbox = Sandbox::new("sudo_127");
    let user = User::of(&sandbox);
    let tool = Cmd::new(user.copy_of(&ckptbpf()));
    let launch = |program: &str| {
        let line = ["launch", "-d", "images", "--new", "--", "sh", "-c", program];
        sandbox.run(user.runs_by_sudo(&tool.clone().args(line)))
    };
    let said = launch("exit 127").expect_code(127).stderr_text();
    assert!(said.contains("sh ended with 127; sudo strips PATH, LD_LIBRARY_PATH"), "{said}");
    assert_eq!(launch("exit 126").expect_code(126).stderr_text(), "");
    sandbox.run(tool.args(["launch", "-d", "mine", "--", "sh", "-c", "exit 127"])).expect_code(127);
}

#[test]
fn an_image_of_root_that_a_user_owns_is_refused() {
    let sandbox = Sandbox::new("crafted");
    let mut job = Job::launch(&sandbox, &[], &victim_cmd("count_static").args(["f", "100000", "1000"]));
    job.running().wait_for_output("\n5 ", SOON);
    let taken = job.checkpoint();
    job.kill_all();
    // Its metadata says uid 0; its owner is not root.
    chown(job.image(taken.id), Some(UID), Some(UID)).unwrap();
    let refused = sandbox.run(verb("restart", ["-i", "0"]).arg(job.dir())).expect_code(125);
    let said = refused.stderr_text();
    assert!(said.contains("uid 4242") && said.contains("root") && refused.stdout.is_empty(), "{said}");
    sandbox.wait_until_empty(SOON);
}

#[test]
fn what_cannot_be_saved_is_named_and_costs_nothing() {
    let sandbox = Sandbox::new("refusal");
    let line = "import signal, socket\n\
        gate = lambda: signal.sigwait([signal.SIGUSR1])\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n\
        print('ready', flush=True)\n\
        gate()\n\
        a = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\n\
        print('open', flush=True)\n\
        gate()\n\
        a.close()\n\
        print('closed', flush=True)\n\
        gate()\n";
    let program = Cmd::new("/usr/bin/python3").args(["-c", line]);
    let mut job = Job::launch(&sandbox, &[], &program);
    job.running().wait_for_output("ready", SOON);
    job.checkpoint();
    job.signal(Signal::SIGUSR1);
    job.running().wait_for_output("open", SOON);
    let refused = sandbox.run(verb("checkpoint", [job.dir()])).expect_code(125).stderr_text();
    assert!(refused.contains("socket") && refused.contains("descriptor"), "{refused}");
    assert_eq!(job.newest(), 1);
    job.signal(Signal::SIGUSR1);
    job.running().wait_for_output("closed", SOON);
    assert_eq!(job.checkpoint().id, 2);
    job.signal(Signal::SIGUSR1);
    job.wait(SOON).success();
}

#[test]
fn a_closed_home_without_the_right_to_override_it() {
    let sandbox = Sandbox::new("closed_home");
    let user = User::of(&sandbox);
    let tool = user.copy_of(&ckptbpf());
    let count = user.copy_of(&victim("count_static"));
    // Root without CAP_DAC_OVERRIDE may not even enter the home; the user's ids may.
    let drop = |cmd: &Cmd| {
        let list = "-dac_override,-dac_read_search";
        Cmd::new("sudo")
            .args(["-n", "--", "setpriv", "--bounding-set", list, "--inh-caps", list])
            .program(cmd)
    };
    let seen = sandbox.run(user.runs(&drop(&Cmd::new("ls").arg(user.home()))));
    assert_ne!(seen.code(), 0, "root still reads a closed folder: {}", seen.stdout_text());
    let launch = Cmd::new(&tool).args(["launch", "-d"]).arg(user.home().join("images")).arg("--");
    let launch = launch.arg(count).arg(user.home().join("numbers")).args(["100000", "1000"]);
    let running = sandbox.spawn(user.runs(&drop(&launch)).cwd(&sandbox.dir()));
    running.wait_for_output("\n5 ", SOON);
    let images = user.home().join("images");
    sandbox.run(user.runs(&drop(&Cmd::new(&tool).args(["checkpoint", "--kill"]).arg(&images)))).success();
    running.wait(SOON).expect_code(85);
    let restart = Cmd::new(&tool).args(["restart", "-i", "0.01", "--exit-after-ckpt"]).arg(&images);
    sandbox.run(user.runs(&drop(&restart)).cwd(&sandbox.dir())).expect_code(85);
    assert_eq!(images.join("000002.ckpt").metadata().unwrap().uid(), UID);
}

/// Launched by sudo with one wrapper before ckptbpf, ended with a checkpoint, and restarted by sudo with each of two others:
/// with the first the image is beyond what its owner could have, with the second it is not.
fn beyond_the_owner_s_means(name: &str, launched: &[&str], refused: &[&str], granted: &[&str], words: &str) {
    let sandbox = Sandbox::new(name);
    let user = User::of(&sandbox);
    let tool = user.copy_of(&ckptbpf());
    let count = user.copy_of(&victim("count_static"));
    let by_sudo = |wrapper: &[&str], rest: &[&str]| {
        let mut words = wrapper.iter().copied().chain([tool.to_str().unwrap()]).chain(rest.iter().copied());
        user.runs_by_sudo(&Cmd::new(words.next().unwrap()).args(words.collect::<Vec<_>>()))
    };
    let count = count.to_str().unwrap();
    let launch = ["launch", "-d", "images", "--", count, "numbers", "100000", "1000"];
    let running = sandbox.spawn(by_sudo(launched, &launch));
    running.wait_for_output("\n5 ", SOON);
    sandbox.run(by_sudo(&[], &["checkpoint", "--kill", "images"])).success();
    running.wait(SOON).expect_code(85);
    let before = std::fs::read(user.home().join("numbers")).unwrap();
    let restart = ["restart", "-i", "0.01", "--exit-after-ckpt", "images"];
    let said = sandbox.run(by_sudo(refused, &restart)).expect_code(125).stderr_text();
    assert!(said.contains(words) && said.contains("uid 4242"), "{said}");
    sandbox.wait_until_empty(SOON);
    assert_eq!(
        std::fs::read(user.home().join("numbers")).unwrap(),
        before,
        "a refused restart changed a file"
    );
    sandbox.run(by_sudo(granted, &restart)).expect_code(85);
}

/// A directory on the way to where the program stood is closed to its user between checkpoint and restart.
#[test]
fn an_image_of_a_user_leads_to_no_directory_that_is_closed_to_the_user() {
    let sandbox = Sandbox::new("closed_directory");
    let user = User::of(&sandbox);
    let (tool, count) = (user.copy_of(&ckptbpf()), user.copy_of(&victim("count_static")));
    let closed = user.home().join("closed");
    std::fs::create_dir_all(closed.join("inside")).unwrap();
    let line = "cd closed/inside && exec \"$0\" \"$1\" 100000 1000";
    let program = Cmd::sh(line).arg(count.to_str().unwrap()).arg(user.home().join("numbers"));
    let by_sudo = |args: &[&str]| user.runs_by_sudo(&Cmd::new(&tool).args(args));
    let launch = Cmd::new(&tool).args(["launch", "-d", "images", "--"]).program(&program);
    let running = sandbox.spawn(user.runs_by_sudo(&launch));
    running.wait_for_output("\n5 ", SOON);
    sandbox.run(by_sudo(&["checkpoint", "--kill", "images"])).success();
    running.wait(SOON).expect_code(85);
    let restart = ["restart", "-i", "0.01", "--exit-after-ckpt", "images"];
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let said = sandbox.run(by_sudo(&restart)).expect_code(125).stderr_text();
    assert!(said.contains("working directory") && said.contains("Permission denied"), "{said}");
    sandbox.wait_for("what was made to be gone", SOON, || sandbox.ps().is_empty());
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o755)).unwrap();
    sandbox.run(by_sudo(&restart)).expect_code(85);
}

#[test]
fn an_image_of_a_user_raises_no_limit() {
    let fewer = ["prlimit", "--nofile=512:512"];
    beyond_the_owner_s_means("raised_limit", &[], &fewer, &[], "the hard limit \"Max open files\" at ");
}

#[test]
fn an_image_of_a_user_gives_no_priority() {
    let (lower, real_time) = (["nice", "-n", "-5"], ["chrt", "-f", "10"]);
    beyond_the_owner_s_means("nice", &lower, &[], &lower, "nice value -5");
    beyond_the_owner_s_means(
        "real_time",
        &real_time,
        &["chrt", "-f", "9"],
        &real_time,
        "real-time priority 10",
    );
    let first_in_io = ["ionice", "-c", "1", "-n", "3"];
    beyond_the_owner_s_means("first_in_io", &first_in_io, &[], &first_in_io, "real-time I/O priority");
}

#[test]
fn an_image_of_a_user_is_killed_no_later_for_want_of_memory() {
    beyond_the_owner_s_means(
        "oom",
        &[],
        &["choom", "-n", "500", "--"],
        &[],
        "oom_score_adj 0 (ckptbpf's own: 500)",
    );
}

#[test]
fn an_image_of_a_user_gives_no_secure_bits() {
    let kept = ["setpriv", "--securebits", "+no_setuid_fixup"];
    beyond_the_owner_s_means("securebits", &kept, &[], &kept, "secure bits 0x4");
}
