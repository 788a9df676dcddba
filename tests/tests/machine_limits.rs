//! Machines that allow less than the one of the checkpoint: what can be done all the same is done, and the rest is named.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use ckpt_tests::scenario::{Tool, are_counted, ckptbpf, steps, verb};
use ckpt_tests::skip::skip;
use ckpt_tests::{Cmd, Job, Mode, Sandbox};

const SOON: Duration = Duration::from_secs(30);

/// A ckptbpf that a shell starts which has done `first`.
fn after(sandbox: &Sandbox, name: &str, first: &str) -> Tool {
    let binary = sandbox.dir().join(name);
    std::fs::write(&binary, format!("#!/bin/bash\n{first}\nexec {} \"$@\"\n", ckptbpf().display())).unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    Tool { binary, ..Tool::default() }
}

/// Once it is set up by `begin`, it says what `say` evaluates to, again and again.
fn python(begin: &str, say: &str) -> Cmd {
    let script = format!(
        "import ctypes, fcntl, mmap, os, resource, select\n{begin}\nwhile True:\n    print({say}, flush=True)\n    \
         select.select([], [], [], 0.01)\n"
    );
    Cmd::new("/usr/bin/python3").args(["-c", &script])
}

fn launch<'b>(sandbox: &'b Sandbox, tool: Tool, program: &Cmd) -> Job<'b> {
    Job::launch_by(sandbox, tool, sandbox.dir().join("images"), &[], program)
}

/// Why a restart is refused.
fn refused(sandbox: &Sandbox, restart: &Cmd) -> String {
    sandbox.run(restart.clone()).expect_code(125).stderr_text()
}

#[test]
fn a_soft_limit_of_file_sizes_is_the_program_s_and_not_ckptbpf_s() {
    let sandbox = Sandbox::new("file_sizes");
    let tool = after(&sandbox, "with-small-files", "ulimit -Sf 100");
    // Memory that a restart makes a file of, larger than that.
    let begin = "fd = os.memfd_create('large', 0)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, resource.RLIM_INFINITY))\n\
                 os.write(fd, bytes([7]) * (1 << 20))\nresource.setrlimit(resource.RLIMIT_FSIZE, (102400, resource.RLIM_INFINITY))";
    let say =
        "resource.getrlimit(resource.RLIMIT_FSIZE)[0], os.pread(fd, 1 << 20, 0) == bytes([7]) * (1 << 20)";
    let mut job = launch(&sandbox, tool, &python(begin, say));
    for mode in [Mode::Eager, Mode::Lazy] {
        job.running().wait_for_output("102400 True\n", SOON);
        job.checkpoint();
        job.kill_all();
        job.restart(mode, &[]);
    }
    job.running().wait_for_output("102400 True\n", SOON);
    job.kill_all();
}

#[test]
fn memory_beyond_the_hard_limit_of_file_sizes_is_refused_by_name() {
    let sandbox = Sandbox::new("file_sizes_made");
    let begin = "fd = os.memfd_create('large', 0)\nos.write(fd, bytes([7]) * (1 << 20))";
    let mut job = launch(&sandbox, Tool::default(), &python(begin, "os.fstat(fd).st_size"));
    job.running().wait_for_output("1048576\n", SOON);
    job.checkpoint();
    job.kill_all();
    let limited = after(&sandbox, "with-small-files", "ulimit -f 512");
    let said = refused(&sandbox, &limited.verb("restart", [job.dir()]));
    assert!(said.contains("of 1048576 bytes") && said.contains("ulimit -f unlimited"), "{said}");
    job.restart(Mode::Eager, &[]);
    job.running().wait_for_output("1048576\n", SOON);
    job.kill_all();
}

/// A file that is there is only opened, and what the program has done to it by its mapping is undone by one.
#[test]
fn a_mapped_file_beyond_the_hard_limit_of_file_sizes_is_no_larger_one_that_is_made() {
    let sandbox = Sandbox::new("file_sizes_mapped");
    std::fs::write(sandbox.dir().join("large"), vec![7; 40 << 20]).unwrap();
    // 32 MiB.
    let tool = after(&sandbox, "with-smaller-files", "ulimit -f 32768");
    let begin = "file = os.open('large', os.O_RDWR)\nmemory = mmap.mmap(file, 40 << 20)\nmemory[-9:] = b'%9d' % 0\n\
                 def step():\n    memory[-9:] = b'%9d' % (int(memory[-9:]) + 1)\n    return int(memory[-9:])";
    let mut job = launch(&sandbox, tool, &python(begin, "step()"));
    for mode in [Mode::Eager, Mode::Lazy] {
        steps(&sandbox, job.running());
        job.checkpoint();
        // That is undone.
        steps(&sandbox, job.running());
        job.kill_all();
        job.restart(mode, &[]);
    }
    steps(&sandbox, job.running());
    job.kill_all();
    are_counted(&job);
}

/// The kernel sends ckptbpf SIGXFSZ then, which is not for the program.
#[test]
fn a_hard_limit_of_file_sizes_costs_checkpoints_and_not_the_program() {
    let sandbox = Sandbox::new("file_sizes_hard");
    let tool = after(&sandbox, "with-tiny-files", "ulimit -f 4");
    let mut job =
        launch(&sandbox, tool, &Cmd::sh("exec 8<> <(:); echo ready; while :; do read -t 0.1 -u 8; done"));
    job.running().wait_for_output("ready\n", SOON);
    job.program();
    for _ in 0..30 {
        let said = job.try_checkpoint().expect_code(125).stderr_text();
        assert!(said.contains("file-size limit") || said.contains("File too large"), "{said}");
    }
    assert!(!job.running().has_ended(), "{}", job.running().stderr());
    job.kill_all();
}

#[test]
fn a_process_id_beyond_what_a_kernel_gives_is_named() {
    const NAME: &str = "pid_max";
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(6), Some(14)) {
        return skip(NAME, "kernel.pid_max is the whole machine's before Linux 6.14");
    }
    let sandbox = Sandbox::new(NAME);
    sandbox.run("echo 5000 > /proc/sys/kernel/ns_last_pid").success();
    let mut job = launch(&sandbox, Tool::default(), &python("", "os.getpid() > 5000"));
    job.running().wait_for_output("True\n", SOON);
    job.checkpoint();
    job.kill_all();
    sandbox.run("echo 1000 > /proc/sys/kernel/pid_max").success();
    let said = refused(&sandbox, &verb("restart", [job.dir()]));
    assert!(said.contains("gives none from 1000 on (kernel.pid_max)"), "{said}");
    sandbox.run("echo 32768 > /proc/sys/kernel/pid_max").success();
    job.restart(Mode::Eager, &[]);
    job.running().wait_for_output("True\n", SOON);
    job.kill_all();
}

/// A restart where fs.nr_open says 1500.
fn with_few_descriptors(job: &Job<'_>) -> Cmd {
    const LINE: &str = "echo 1500 > nr_open; mount --bind nr_open /proc/sys/fs/nr_open; exec \"$@\"";
    let unshare = Cmd::new("/usr/bin/unshare").args(["--mount", "/bin/bash", "-c", LINE, "bash"]);
    unshare.program(&verb("restart", [job.dir()]))
}

#[test]
fn a_limit_of_open_files_beyond_the_machine_s_is_lowered_and_a_descriptor_beyond_it_is_named() {
    let sandbox = Sandbox::new("nr_open");
    let limit = "resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))";
    let say = "resource.getrlimit(resource.RLIMIT_NOFILE)";
    let mut job = launch(&sandbox, Tool::default(), &python(limit, say));
    job.running().wait_for_output("(2048, 2048)\n", SOON);
    job.checkpoint();
    job.kill_all();
    let running = sandbox.spawn(with_few_descriptors(&job));
    running.wait_for_output("(1500, 1500)\n", SOON);
    let said = running.stderr();
    assert!(said.contains("limit of open files was 2048, and is 1500 from now on"), "{said}");
    sandbox.run(verb("checkpoint", ["--kill"]).arg(job.dir())).success();
    running.wait(SOON).expect_code(85);

    let high = format!("{limit}\nos.dup2(os.open('/dev/null', os.O_RDONLY), 1800)");
    let other = sandbox.dir().join("other");
    let mut job = Job::launch_in(&sandbox, other, &[], &python(&high, say));
    job.running().wait_for_output("(2048, 2048)\n", SOON);
    job.checkpoint();
    job.kill_all();
    let said = refused(&sandbox, &with_few_descriptors(&job));
    assert!(said.contains("fs.nr_open is 1500 here") && said.contains("sysctl fs.nr_open=2048"), "{said}");
}

#[test]
fn memory_that_may_not_be_executed_is_made_where_no_other_is_allowed() {
    const NAME: &str = "memfd_noexec";
    let sandbox = Sandbox::new(NAME);
    if sandbox.run("cat /proc/sys/vm/memfd_noexec").code() != 0 {
        return skip(NAME, "there is no vm.memfd_noexec before Linux 6.3");
    }
    let program = |flags: u32| {
        python(&format!("fd = os.memfd_create('a', {flags})\nos.write(fd, b'kept')"), "os.pread(fd, 9, 0)")
    };
    const NOEXEC_SEAL: u32 = 8;
    let mut ordinary = launch(&sandbox, Tool::default(), &program(0));
    ordinary.running().wait_for_output("b'kept'\n", SOON);
    ordinary.checkpoint();
    ordinary.kill_all();
    // Of this box alone, and for good.
    sandbox.run("echo 2 > /proc/sys/vm/memfd_noexec").success();
    let executable = Cmd::new("/usr/bin/python3").args(["-c", "import os; os.memfd_create('a', 16)"]);
    // Before Linux 6.6 who asks for it may have it.
    if sandbox.run(executable).code() != 0 {
        let said = refused(&sandbox, &verb("restart", [ordinary.dir()]));
        assert!(said.contains("memfd_create(2)") && said.contains("vm.memfd_noexec is 2"), "{said}");
    }
    let mut sealed = Job::launch_in(&sandbox, sandbox.dir().join("sealed"), &[], &program(NOEXEC_SEAL));
    for mode in [Mode::Eager, Mode::Lazy] {
        sealed.running().wait_for_output("b'kept'\n", SOON);
        sealed.checkpoint();
        sealed.kill_all();
        sealed.restart(mode, &[]);
    }
    sealed.running().wait_for_output("b'kept'\n", SOON);
    sealed.kill_all();
}

/// Shared memory that is only promised (MAP_NORESERVE), more than the machine has.
#[test]
fn shared_memory_larger_than_the_machine() {
    let sandbox = Sandbox::new("promised");
    let begin =
        "memory = mmap.mmap(-1, 1 << 42, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x4000)\nmemory[1 << 41] = 7";
    let mut job = launch(&sandbox, Tool::default(), &python(begin, "memory[0], memory[1 << 41]"));
    for mode in [Mode::Eager, Mode::Lazy] {
        job.running().wait_for_output("0 7\n", SOON);
        job.checkpoint();
        job.kill_all();
        job.restart(mode, &[]);
    }
    job.running().wait_for_output("0 7\n", SOON);
    job.kill_all();
}

/// Has flock(2) give ENOSYS, as on Lustre that is mounted without it, and executes what follows.
const NO_LOCKS: &str = "
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
FLOCK, ENOSYS = 73, 38
load, equal, give = 0x20, 0x15, 0x06
filter = b''.join(struct.pack('HBBI', *one) for one in [
    (load, 0, 0, 0), (equal, 0, 1, FLOCK), (give, 0, 0, 0x50000 | ENOSYS), (give, 0, 0, 0x7fff0000)])
kept = ctypes.create_string_buffer(filter)
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', 4, ctypes.addressof(kept)))
assert libc.prctl(38, 1, 0, 0, 0) == 0   # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, program) == 0   # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn a_directory_without_locks_is_named_before_the_program_begins() {
    let sandbox = Sandbox::new("no_locks");
    let launch = verb("launch", ["-d", "images", "--", "/bin/touch", "begun"]);
    let without = Cmd::new("/usr/bin/python3").args(["-c", NO_LOCKS]).program(&launch);
    let said = refused(&sandbox, &without);
    assert!(said.contains("images is on a file system without locks (flock(2))"), "{said}");
    assert!(said.contains("-d") && said.contains("-o flock"), "{said}");
    assert!(!sandbox.dir().join("begun").exists());
}
