//! Whatever a checkpoint fails of, the program goes on, all of it, and so do the checkpoints after it where they can.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ckpt_tests::sandbox::until;
use ckpt_tests::scenario::{MODES, Tool, ckptbpf, verb};
use ckpt_tests::victim::victim;
use ckpt_tests::{Cmd, Job, Sandbox, skip, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

/// A program of Debian's Python that begins with `body`, and then counts for as long as it lives.
fn counting(body: &str) -> Cmd {
    const BEGIN: &str =
        "import ctypes, os, signal, sys, threading, time\nlibc = ctypes.CDLL(None, use_errno=True)\n";
    const COUNT: &str = "\nnumber = 0\nwhile True:\n    number += 1\n    print('step', number, flush=True)\n    time.sleep(0.01)\n";
    Cmd::new("/usr/bin/python3").arg("-c").arg(format!("{BEGIN}{body}{COUNT}"))
}

fn goes_on(sandbox: &Sandbox, job: &Job) {
    let now = job.running().stdout().len();
    sandbox.wait_for("the program to go on", SOON, || job.running().stdout().len() > now);
}

/// Hands the system calls of its own thread back, but for now.
const HANDED_BACK: &str = "selector = ctypes.c_uint8(0)
if libc.prctl(59, 1, 0, 0, ctypes.byref(selector)):
    print('cannot', flush=True)
    sys.exit()";

/// With PR_SET_SYSCALL_USER_DISPATCH on the thread that `at` has it done on; whether this kernel has that.
fn launch_handed_back<'b>(sandbox: &'b Sandbox, options: &[&str]) -> Option<Job<'b>> {
    let mut job = Job::launch(sandbox, options, &counting(HANDED_BACK));
    sandbox.wait_for("the program to begin", SOON, || !job.running().stdout().is_empty());
    if job.running().stdout().starts_with(b"cannot") {
        skip::skip("system calls that are handed back", "this kernel has no PR_SET_SYSCALL_USER_DISPATCH");
        job.wait(SOON);
        return None;
    }
    job.running().wait_for_output("step 2\n", SOON);
    Some(job)
}

/// Its first thread makes no system call for ckptbpf.
#[test]
fn a_program_whose_calls_are_handed_back_to_its_first_thread() {
    let sandbox = Sandbox::new("handed_back");
    let Some(mut job) = launch_handed_back(&sandbox, &[]) else { return };
    let whole = job.checkpoint().pages;
    for mode in MODES {
        goes_on(&sandbox, &job);
        let pages = job.checkpoint().pages;
        // A restart tracks its memory before its calls are handed back.
        assert_eq!(pages * 2 > whole, job.restarts() == 0, "{pages} of {whole}");
        goes_on(&sandbox, &job);
        job.kill_all();
        job.restart(*mode, &[]);
        goes_on(&sandbox, &job);
    }
    job.kill_all();
}

#[test]
fn a_program_whose_calls_are_handed_back_and_no_bpf() {
    let sandbox = Sandbox::new("handed_back_injected");
    let Some(mut job) = launch_handed_back(&sandbox, &["--no-bpf"]) else { return };
    job.program();
    for _ in 0..2 {
        let said = job.try_checkpoint().expect_code(125).stderr_text();
        assert!(said.contains("handed back to it (PR_SET_SYSCALL_USER_DISPATCH)"), "{said}");
        goes_on(&sandbox, &job);
    }
    assert!(job.checkpoints().is_empty());
    job.kill_all();
}

/// As under many a service manager: its filters are the program's too, and it can neither read nor suspend any.
#[test]
fn a_ckptbpf_that_has_seccomp_filters_itself() {
    let sandbox = Sandbox::new("filtered_ckptbpf");
    let wrapped = sandbox.dir().join("wrapped");
    let script = format!(
        "#!/usr/bin/python3\nimport ctypes, os, sys\nlibc = ctypes.CDLL(None)\ncode = ctypes.c_uint64(0x7fff000000000006)\n\
         program = (ctypes.c_uint64 * 2)(1, ctypes.addressof(code))\n\
         assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0\n\
         os.execv('{0}', ['{0}'] + sys.argv[1:])\n",
        ckptbpf().display()
    );
    std::fs::write(&wrapped, script).unwrap();
    std::fs::set_permissions(&wrapped, std::fs::Permissions::from_mode(0o755)).unwrap();
    let tool = Tool { binary: wrapped, ..Tool::default() };
    let images = sandbox.dir().join("images");
    let mut job = Job::launch_by(&sandbox, tool, images, &[], &counting(""));
    job.running().wait_for_output("step 2\n", SOON);
    job.program();
    for _ in 0..2 {
        let said = job.try_checkpoint().expect_code(125).stderr_text();
        assert!(said.contains("seccomp filter"), "{said}");
        goes_on(&sandbox, &job);
    }
    assert!(job.checkpoints().is_empty());
    job.kill_all();
}

/// Refused by name twice, and the program sees nothing of it.
fn is_refused_and_sees_nothing(name: &str, reason: &str) {
    match std::process::Command::new(victim(name)).stdout(std::process::Stdio::null()).spawn() {
        Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => {
            skip::skip(name, "this kernel executes no 32-bit programs");
            return;
        }
        tried => {
            let mut tried = tried.unwrap();
            tried.kill().unwrap();
            tried.wait().unwrap();
        }
    }
    let sandbox = Sandbox::new(name);
    // Below one that could be saved.
    let program = Cmd::sh("\"$0\" & wait").arg(victim(name));
    let mut job = Job::launch(&sandbox, &[], &program);
    job.running().wait_for_output("step\n", SOON);
    job.program();
    for _ in 0..2 {
        let said = job.try_checkpoint().expect_code(125).stderr_text();
        assert!(said.contains(reason), "{said}");
        goes_on(&sandbox, &job);
        let status = |pid: i32| std::fs::read_to_string(sandbox.root().join(format!("proc/{pid}/status")));
        let is_free = |pid: i32| status(pid).is_ok_and(|status| status.contains("TracerPid:\t0\n"));
        sandbox.wait_for("nobody to be traced", SOON, || sandbox.ps().iter().all(|one| is_free(one.pid)));
    }
    assert!(job.checkpoints().is_empty());
    let printed = String::from_utf8(job.running().stdout()).unwrap();
    assert!(printed.lines().all(|line| "step".starts_with(line)), "{printed}");
    job.kill_all();
}

#[test]
fn a_32_bit_program() {
    is_refused_and_sees_nothing("thirtytwo", "(thirtytwo) is a 32-bit program");
}

#[test]
fn a_thread_in_32_bit_code() {
    is_refused_and_sees_nothing("mixed", "(mixed) has a thread in 32-bit code");
}

/// One for which there is no room: the next one is made, and the end of the program is ckptbpf's.
#[test]
fn a_checkpoint_without_a_thread_for_it() {
    let sandbox = Sandbox::new("no_thread");
    let mut job = Job::launch(&sandbox, &["--ckpt-signal", "USR1"], &counting(""));
    // Nobody has asked it anything: there is no thread that has ended, whose stack another one could have.
    job.running().wait_for_output("step 2\n", SOON);
    let limited = |bytes: &str| {
        let ckptbpf = job.running().pid.to_string();
        sandbox
            .run(Cmd::new("/usr/bin/prlimit").args(["--pid", &ckptbpf]).arg(format!("--as={bytes}")))
            .success();
    };
    let status =
        std::fs::read_to_string(sandbox.see(Path::new(&format!("/proc/{}/statm", job.running().pid))));
    let pages: u64 = status.unwrap().split(' ').next().unwrap().parse().unwrap();
    // A stack takes two MiB.
    limited(&format!("{}:unlimited", (pages << 12) + (1 << 20)));
    job.running().kill(Signal::SIGUSR1);
    let refused = "no checkpoint: cannot start a thread for it";
    sandbox.wait_for("the failure", SOON, || job.running().stderr().contains(refused));
    goes_on(&sandbox, &job);
    limited("unlimited:unlimited");
    job.running().kill(Signal::SIGUSR1);
    job.wait_for_checkpoint(1);
    sandbox.kill(job.program(), Signal::SIGKILL as i32).unwrap();
    job.wait(SOON).expect_code(137);
}

/// A control group that gets a processor for 5 ms of each second, as a container with a limit may; it goes with the value.
struct Throttled {
    folder: PathBuf,
}

impl Throttled {
    /// Version 1 has a folder for the controller; in version 2 it may be given to nobody.
    fn make() -> Option<Self> {
        let name = format!("ckptbpf-of-{}", std::process::id());
        let limits = [
            ("/sys/fs/cgroup/cpu", "cpu.cfs_period_us", "1000000"),
            ("/sys/fs/cgroup", "cpu.max", "5000 1000000"),
        ];
        for (root, file, value) in limits {
            let folder = Path::new(root).join(&name);
            if std::fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = Self { folder };
            let quota = || group.write("cpu.cfs_quota_us", "5000");
            if group.write(file, value) && (file == "cpu.max" || quota()) {
                return Some(group);
            }
        }
        None
    }

    fn write(&self, file: &str, value: &str) -> bool {
        let path = self.folder.join(file);
        path.exists() && std::fs::write(path, value).is_ok()
    }

    /// Has process `pid` of the sandbox in the group.
    fn take(&self, sandbox: &Sandbox, pid: i32) {
        let pid = sandbox.outside_pid(pid).unwrap();
        assert!(self.write("cgroup.procs", &pid.to_string()));
    }

    /// How often it has had all that it may have.
    fn times(&self) -> u64 {
        let stat = std::fs::read_to_string(self.folder.join("cpu.stat")).unwrap();
        let line = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        line.expect("how often it was throttled").parse().unwrap()
    }
}

impl Drop for Throttled {
    fn drop(&mut self) {
        // Its processes go with the box; what stays is found.
        until(SOON, || None, || std::fs::remove_dir(&self.folder).is_ok());
    }
}

/// A thread that has no processor for most of a second does not stop before it has one: that is waited for.
#[test]
fn a_program_that_hardly_gets_a_processor() {
    let Some(group) = Throttled::make() else {
        skip::skip(
            "a_program_that_hardly_gets_a_processor",
            "no control group with a limit can be made here",
        );
        return;
    };
    let sandbox = Sandbox::new("throttled");
    let mut job = Job::launch(&sandbox, &[], &Cmd::sh("echo begun; while :; do :; done"));
    job.running().wait_for_output("begun\n", SOON);
    job.checkpoint();
    group.take(&sandbox, job.program());
    for _ in 0..3 {
        let before = group.times();
        sandbox.wait_for("the program to have no processor", SOON, || group.times() > before);
        job.checkpoint();
    }
    job.kill_all();
}

/// It stands only after the first tries were given up, when it waits no longer: what was left of its wait is known all the same.
#[test]
fn a_wait_of_a_program_that_hardly_gets_a_processor() {
    const MS: u64 = 6000;
    let name = "a_wait_of_a_program_that_hardly_gets_a_processor";
    let Some(group) = Throttled::make() else {
        skip::skip(name, "no control group with a limit can be made here");
        return;
    };
    let sandbox = Sandbox::new("idle_wait");
    let hog = sandbox.spawn("echo busy; while :; do :; done");
    hog.wait_for_output("busy\n", SOON);
    group.take(&sandbox, hog.pid);
    let mut job = Job::launch(&sandbox, &[], &victim_cmd("onewait").arg(MS.to_string()));
    job.running().wait_for_output("begun\n", SOON);
    let begun = Instant::now();
    group.take(&sandbox, job.program());
    sandbox.wait_for("half of it", SOON, || begun.elapsed() > Duration::from_millis(MS / 2));
    // A checkpoint at the end of the group's second gets through at once, and then there is another. While it stands still for
    // one it does not wait, and where a processor is hardly to be had that is long.
    let asked = Instant::now();
    while !checkpoint_after_tries_in_vain(&sandbox, &job) {
        assert!(asked.elapsed() < SOON, "it got a processor each time");
    }
    let stood = asked.elapsed().as_millis() as u64;
    hog.kill(Signal::SIGKILL);
    hog.wait(SOON);
    let printed = job.wait(SOON).success().stdout_text();
    let words: Vec<&str> = printed.lines().nth(1).expect("a second line").split(' ').collect();
    let took: u64 = words[2].parse().unwrap();
    assert_eq!(words[..2], ["-1", "11"], "EAGAIN, as if nothing had been: {printed}");
    assert!((MS..MS * 7 / 5 + stood).contains(&took), "{took} ms instead of {MS}, {stood} of checkpoints");
}

/// Makes a checkpoint of `onewait`; whether the first tries were in vain.
fn checkpoint_after_tries_in_vain(sandbox: &Sandbox, job: &Job) -> bool {
    /// Longer than the first tries.
    const IN_VAIN: Duration = Duration::from_millis(200);
    let asked = sandbox.spawn(verb("checkpoint", [job.dir()]));
    // Woken in order to stop, and without a processor since.
    let mut woken: Option<Instant> = None;
    let mut in_vain = false;
    sandbox.wait_for("tries in vain, or a checkpoint", SOON, || {
        let waits = sandbox.ps().iter().any(|one| one.comm == "onewait" && one.state == 'R');
        woken = if waits { Some(woken.unwrap_or_else(Instant::now)) } else { None };
        in_vain |= woken.is_some_and(|since| since.elapsed() > IN_VAIN);
        asked.has_ended()
    });
    asked.wait(SOON).success();
    in_vain
}
