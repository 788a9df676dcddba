//! SIGSTOP of everything, ckptbpf and the program, at any moment, and SIGCONT: afterwards all is as if nothing had been.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::sandbox::let_pass;
use ckpt_tests::scenario::{MODES, verb};
use ckpt_tests::{Cmd, Expected, Job, Mode, Process, Random, Sandbox, assert_same, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(60);
const STEPS: u64 = 8;

/// Whom a stop meets first: their ids ascend from ckptbpf to the program, or the other way round.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    ToTheProgram,
    FromTheProgram,
}

fn signal_all(sandbox: &Sandbox, signal: Signal, order: Order) {
    let mut all = sandbox.ps();
    all.sort_by_key(|one| one.pid);
    if order == Order::FromTheProgram {
        all.reverse();
    }
    for one in all {
        // It may have ended since.
        let _ = sandbox.kill(one.pid, signal as i32);
    }
}

fn is_stopped(process: &Process) -> bool {
    matches!(process.state, 'T' | 't' | 'Z')
}

/// A call of it needs a page that only somebody stopped could bring. The kernel lets it stop no earlier, and leaves it
/// runnable: a fault of the kernel's own is tried again for as long as a signal other than a deadly one is pending
/// (`fault_signal_pending`, arch/x86/mm/fault.c). It executes nothing of its own before it has stopped.
fn waits_for_a_page_of_the_stopped(sandbox: &Sandbox, process: &Process) -> bool {
    let others = || sandbox.ps().into_iter().filter(|one| one.comm != "lazymem");
    process.comm == "lazymem"
        && process.state == 'R'
        && others().any(|one| one.comm == "ckptbpf")
        && others().all(|one| is_stopped(&one))
        && sandbox.is_pending(process.pid, Signal::SIGSTOP as i32)
}

/// Stops everybody, those too that are started meanwhile, and lets them go on after a while.
fn stop_all(sandbox: &Sandbox, order: Order, mode: Mode) {
    let stands_still = |one: &Process| {
        is_stopped(one) || mode == Mode::Lazy && waits_for_a_page_of_the_stopped(sandbox, one)
    };
    sandbox.wait_for("everybody to stand still", SOON, || {
        signal_all(sandbox, Signal::SIGSTOP, order);
        sandbox.ps().iter().all(stands_still)
    });
    let_pass(Duration::from_millis(50));
    signal_all(sandbox, Signal::SIGCONT, order);
}

/// Takes the next step, which needs pages of all of the program's memory.
fn step(sandbox: &Sandbox, job: &Job, number: u64) {
    sandbox.kill(job.program(), Signal::SIGUSR1 as i32).expect("the program lives");
    job.running().wait_for_output(&format!("{number} "), SOON);
}

/// A job of 64 MiB and its output, undisturbed.
fn launch(sandbox: &Sandbox) -> (Job<'_>, Vec<u8>) {
    launch_with(sandbox, "signal")
}

fn launch_with<'b>(sandbox: &'b Sandbox, gate: &str) -> (Job<'b>, Vec<u8>) {
    let program = |gate: &str| {
        let [mib, steps, touch, tasks] = [64, STEPS, 40, 40].map(|n| n.to_string());
        victim_cmd("lazymem").args([mib.as_str(), &steps, gate, &touch, &tasks])
    };
    let expected = Expected::of(sandbox, &program("-"), None).stdout;
    let job = Job::launch(sandbox, &["--keep", "100"], &program(gate));
    job.running().wait_for_output("ready", SOON);
    job.program();
    (job, expected)
}

#[test]
fn everything_stopped_in_checkpoints() {
    let sandbox = Sandbox::new("stopped_ckpt");
    let mut random = Random::for_test("stopped_ckpt");
    let (mut job, expected) = launch(&sandbox);
    for number in 1..=STEPS - 2 {
        let asked = sandbox.spawn(verb("checkpoint", [job.dir()]));
        let_pass(random.moment(Duration::from_millis(80)));
        let order = if number % 2 == 0 { Order::ToTheProgram } else { Order::FromTheProgram };
        stop_all(&sandbox, order, Mode::Eager);
        let asked = asked.wait(SOON);
        // A stop in the middle of a freeze may outlast that's deadline: then it is said, and nothing was changed.
        assert!(
            asked.code() == 0 || asked.stderr_text().contains("does not stop"),
            "{}",
            asked.stderr_text()
        );
        job.checkpoint();
        step(&sandbox, &job, number);
    }
    sandbox.run(verb("verify", [job.dir()])).success();
    job.checkpoint();
    job.kill_all();
    job.restart(Mode::Lazy, &[]);
    step(&sandbox, &job, STEPS - 1);
    step(&sandbox, &job, STEPS);
    job.wait(SOON).success();
    assert_same("standard output", &expected, &job.stdout());
}

fn everything_stopped_in_restarts(name: &str, mode: Mode) {
    let sandbox = Sandbox::new(name);
    let mut random = Random::for_test(name);
    let (mut job, expected) = launch(&sandbox);
    let from = job.checkpoint().id;
    for round in 0..4 {
        let order = if round % 2 == 0 { Order::ToTheProgram } else { Order::FromTheProgram };
        job.kill_all();
        job.restart_at(from, mode, &[]);
        let_pass(random.moment(Duration::from_millis(if mode == Mode::Lazy { 150 } else { 400 })));
        stop_all(&sandbox, order, mode);
        step(&sandbox, &job, 1);
    }
    for number in 2..=STEPS {
        job.checkpoint();
        step(&sandbox, &job, number);
    }
    job.wait(SOON).success();
    assert_same("standard output", &expected, &job.stdout());
}

#[test]
fn everything_stopped_in_eager_restarts() {
    everything_stopped_in_restarts("stopped_eager", Mode::Eager);
}

#[test]
fn everything_stopped_in_lazy_restarts() {
    everything_stopped_in_restarts("stopped_lazy", Mode::Lazy);
}

/// A program that is stopped in the middle of a call that needs a missing page, after those who could bring it: it goes on
/// with them as if nothing had been.
#[test]
fn a_call_waits_for_a_page_while_everything_is_stopped() {
    let sandbox = Sandbox::new("stopped_call");
    let (mut job, expected) = launch_with(&sandbox, "call");
    let from = job.checkpoint().id;
    job.kill_all();
    let hold = sandbox.dir().join("hold");
    std::fs::write(&hold, "").unwrap();
    job.restart_at(from, Mode::Lazy, &["--hold-fill", hold.to_str().unwrap()]);
    let program = job.program();
    // Brings all that it needs on its way to the next call.
    step(&sandbox, &job, 1);
    let others = || sandbox.ps().into_iter().filter(|one| one.comm != "lazymem");
    sandbox.wait_for("the others to be stopped", SOON, || {
        others().for_each(|one| sandbox.kill(one.pid, Signal::SIGSTOP as i32).unwrap());
        others().all(|one| is_stopped(&one))
    });
    sandbox.kill(program, Signal::SIGUSR1 as i32).unwrap();
    let call = sandbox.root().join(format!("proc/{program}/syscall"));
    let access = format!("{} ", libc::SYS_access);
    sandbox.wait_for("the call", SOON, || {
        std::fs::read_to_string(&call).is_ok_and(|shown| shown.starts_with(&access))
    });
    stop_all(&sandbox, Order::ToTheProgram, Mode::Lazy);
    job.running().wait_for_output("2 ", SOON);
    std::fs::remove_file(hold).unwrap();
    for number in 3..=STEPS {
        job.checkpoint();
        step(&sandbox, &job, number);
    }
    job.wait(SOON).success();
    assert_same("standard output", &expected, &job.stdout());
}

/// SIGCONT to the program alone: ckptbpf, which has stopped with it, goes on with it, and so does its pager.
#[test]
fn ckptbpf_goes_on_with_the_program() {
    let sandbox = Sandbox::new("stopped_alone");
    let (mut job, expected) = launch(&sandbox);
    job.checkpoint();
    job.kill_all();
    job.restart(Mode::Lazy, &[]);
    let (program, ckptbpf) = (job.program(), job.running().pid);
    let is_stopped = |pid| sandbox.ps().iter().any(|one| one.pid == pid && one.state == 'T');
    for number in 1..=STEPS {
        sandbox.kill(program, Signal::SIGSTOP as i32).unwrap();
        // Whom ckptbpf has just let go of runs for a moment on its way back to its stop.
        sandbox.wait_for("ckptbpf to stop, too", SOON, || is_stopped(ckptbpf) && is_stopped(program));
        sandbox.kill(program, Signal::SIGCONT as i32).unwrap();
        sandbox.wait_for("both to go on", SOON, || !is_stopped(program) && !is_stopped(ckptbpf));
        if number < STEPS {
            job.checkpoint();
        }
        step(&sandbox, &job, number);
    }
    job.wait(SOON).success();
    assert_same("standard output", &expected, &job.stdout());
}

/// A program that is killed while it is stopped is over, and ckptbpf, which has stopped with it, says so.
#[test]
fn a_stopped_program_that_is_killed_is_over() {
    let sandbox = Sandbox::new("stopped_killed");
    let (mut job, _) = launch(&sandbox);
    let (program, ckptbpf) = (job.program(), job.running().pid);
    sandbox.kill(program, Signal::SIGSTOP as i32).unwrap();
    let is_stopped = |pid| sandbox.ps().iter().any(|one| one.pid == pid && one.state == 'T');
    sandbox.wait_for("ckptbpf to stop, too", SOON, || is_stopped(ckptbpf));
    sandbox.kill(program, Signal::SIGKILL as i32).unwrap();
    job.wait(SOON).expect_code(137);
}

/// While pages are missing it does not stop with the program's first process: others wait for them.
#[test]
fn ckptbpf_serves_pages_while_the_first_process_is_stopped() {
    let sandbox = Sandbox::new("stopped_serves");
    let program = victim_cmd("lazymem").args(["64", "100000", "signal", "4", "2"]);
    let mut job = Job::launch(&sandbox, &[], &program);
    job.running().wait_for_output("ready", SOON);
    job.checkpoint();
    job.kill_all();
    let hold = sandbox.dir().join("hold");
    std::fs::write(&hold, "").unwrap();
    job.restart(Mode::Lazy, &["--hold-fill", hold.to_str().unwrap()]);
    let (program, ckptbpf) = (job.program(), job.running().pid);
    let is_stopped = |pid| sandbox.ps().iter().any(|one| one.pid == pid && one.state == 'T');
    sandbox.kill(program, Signal::SIGSTOP as i32).unwrap();
    sandbox.wait_for("the stop", SOON, || is_stopped(program));
    let before = job.pages_missing();
    sandbox.wait_for("pages for the others", SOON, || job.pages_missing() < before);
    std::fs::remove_file(hold).unwrap();
    sandbox.wait_for("ckptbpf to stop, once all are there", SOON, || is_stopped(ckptbpf));
    sandbox.kill(program, Signal::SIGCONT as i32).unwrap();
    sandbox.wait_for("both to go on", SOON, || !is_stopped(program) && !is_stopped(ckptbpf));
    job.checkpoint();
    job.kill_all();
    assert!(!String::from_utf8_lossy(&job.stdout()).contains("WRONG"));
}

/// Children that are stopped, and have signals that wait for the end of that: one that nothing holds up ends them, or has them
/// run its handler. One of them has a second thread, another one has lost its first.
const STOPPED_WITH_SIGNALS: &str = "import ctypes, os, select, signal, threading
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
libc = ctypes.CDLL(None)
told = os.pipe()
def say(what): print(what, flush=True)
def read(pid, name): return open(f'/proc/{pid}/{name}').read()
def state(pid): return read(pid, f'task/{max(os.listdir(f\"/proc/{pid}/task\"), key=int)}/stat').rsplit(') ', 1)[1][0]
def until(holds):
    while not holds(): select.select([], [], [], 0.001)
def idle():
    os.write(told[1], b'x')
    while True: signal.pause()
def with_a_thread(): threading.Thread(target=idle).start(), idle()
def without_its_first(): threading.Thread(target=idle).start(), libc.syscall(60, 0)
def with_a_handler(): signal.signal(signal.SIGUSR2, lambda *_: os._exit(7)), idle()
def in_a_suspension():
    # TERM gets through in it only.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    os.write(told[1], b'x')
    while True: libc.syscall(130, ctypes.byref(ctypes.c_uint64(1 << 9)), 8)
def with_an_alarm(): signal.setitimer(signal.ITIMER_REAL, 3 * float(os.environ.get('CKPTBPF_TEST_TIMEOUT_SCALE', 1))), idle()
children = []
for of, number in [(idle, 15), (idle, 1), (idle, 14), (idle, 9 + 26), (with_a_thread, 15), (without_its_first, 15), (with_a_handler, 12), (in_a_suspension, 15), (with_an_alarm, 0)]:
    pid = os.fork()
    if not pid: of()
    for _ in range(1 + (of is with_a_thread)): os.read(told[0], 1)
    until(lambda: of is not without_its_first or read(pid, 'stat').rsplit(') ', 1)[1][0] == 'Z')
    until(lambda: of is not in_a_suspension or read(pid, 'syscall').startswith('130 '))
    # In pause(2): before it, a handler would run too early to end that.
    until(lambda: of is not with_a_handler or read(pid, 'syscall').startswith('34 '))
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    if number: os.kill(pid, number)
    children.append(pid)
until(lambda: f'ShdPnd:\\t{1 << 13:016x}' in read(children[-1], 'status'))
say('ready')
while True:
    signal.sigwait([signal.SIGUSR1])
    try:
        for pid in children: until(lambda: state(pid) in 'TZ')
        say('all stopped' if not any(os.waitpid(pid, os.WNOHANG)[0] for pid in children) else 'one has ended')
    except FileNotFoundError: say('one is gone')
    if os.path.exists('end'): break
for pid in children:
    os.kill(pid, signal.SIGCONT)
    say(f'ended with {os.waitpid(pid, 0)[1]}')
";

fn signals_wait(name: &str, options: &[&str]) {
    let sandbox = Sandbox::new(name);
    let mut job =
        Job::launch(&sandbox, options, &Cmd::new("/usr/bin/python3").args(["-c", STOPPED_WITH_SIGNALS]));
    job.running().wait_for_output("ready\n", SOON);
    for mode in MODES {
        for _ in 0..2 {
            // The second one has them make system calls: they have outlived the first, and are tracked.
            job.checkpoint();
            job.checkpoint();
            job.kill_all();
            job.restart(*mode, options);
        }
        let before = job.running().stdout().len();
        job.signal(Signal::SIGUSR1);
        sandbox.wait_for("an answer", SOON, || job.running().stdout().len() > before);
        assert_eq!(String::from_utf8_lossy(&job.running().stdout()), "all stopped\n");
    }
    std::fs::write(sandbox.dir().join("end"), "").unwrap();
    job.signal(Signal::SIGUSR1);
    let printed = job.wait(SOON).success().stdout_text();
    let ends =
        [15, 1, 14, 35, 15, 15, 7 << 8, 15, 14].map(|status| format!("ended with {status}\n")).concat();
    assert_eq!(printed, format!("all stopped\nall stopped\n{ends}"));
}

#[test]
fn signals_wait_for_the_end_of_a_stop() {
    signals_wait("stopped_signals", &[]);
}

#[test]
fn signals_wait_for_the_end_of_a_stop_without_bpf() {
    signals_wait("stopped_signals_injected", &["--no-bpf"]);
}
