//! Signals that are sent to more than ckptbpf: the program, which has them itself, gets them once.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use ckpt_tests::scenario::{Holder, listener, verb};
use ckpt_tests::{Cmd, Job, Mode, Sandbox};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

const WITNESS: &str = "ckptbpf-witness";

/// What the program has heard. A signal that comes twice would be there before the one that is sent next, which has a
/// higher number.
struct Heard(String);

impl Heard {
    fn next(&mut self, job: &Job, signal: Signal) {
        self.0 += &format!("{}\n", signal as i32);
        job.running().wait_for_output(&self.0, SOON);
        assert_eq!(String::from_utf8_lossy(&job.running().stdout()), self.0);
    }

    /// To the group, to ckptbpf alone, to the group again, and alone.
    fn both_ways(&mut self, job: &Job) {
        for _ in 0..2 {
            job.running().kill_group(Signal::SIGUSR1);
            self.next(job, Signal::SIGUSR1);
            job.running().kill(Signal::SIGTERM);
            self.next(job, Signal::SIGTERM);
        }
    }
}

fn begin<'b>(sandbox: &'b Sandbox, options: &[&str]) -> (Job<'b>, Heard) {
    let job = Job::launch(sandbox, options, &listener());
    job.running().wait_for_output("ready\n", SOON);
    (job, Heard("ready\n".to_owned()))
}

fn end(job: &mut Job) {
    job.running().kill_group(Signal::SIGUSR2);
    job.wait(SOON).expect_code(3);
}

fn witnesses(sandbox: &Sandbox) -> Vec<i32> {
    sandbox.ps().iter().filter(|one| one.comm == WITNESS).map(|one| one.pid).collect()
}

#[test]
fn what_is_sent_to_the_whole_group_reaches_the_program_once() {
    let sandbox = Sandbox::new("group");
    let (mut job, mut heard) = begin(&sandbox, &[]);
    job.program();
    heard.both_ways(&job);
    for mode in [Mode::Eager, Mode::Lazy] {
        job.checkpoint();
        job.kill_all();
        job.restart(mode, &[]);
        job.program();
        Heard(String::new()).both_ways(&job);
    }
    end(&mut job);
}

/// Stand-in, supervisor and program are in one group, and each of the first two has somebody to ask.
#[test]
fn what_is_sent_to_the_whole_group_reaches_a_program_in_a_pid_namespace_of_its_own_once() {
    let sandbox = Sandbox::new("group_inside");
    let (mut job, _) = begin(&sandbox, &[]);
    let id = job.program();
    job.checkpoint();
    job.kill_all();
    let holder = Holder::of(&sandbox, id);
    job.restart(Mode::Lazy, &[]);
    job.program();
    assert_eq!(witnesses(&sandbox).len(), 2);
    Heard(String::new()).both_ways(&job);
    end(&mut job);
    holder.end();
}

/// As batch systems signal a step: every process of its cgroup in turn, ckptbpf first.
#[test]
fn what_is_sent_to_every_process_in_turn_reaches_the_program_once() {
    // What is certain to be waited for, of the 50 ms.
    const AT_ONCE: Duration = Duration::from_millis(40);
    let sandbox = Sandbox::new("in_turn");
    let (mut job, mut heard) = begin(&sandbox, &[]);
    let program = job.program();
    let mut seen = 0;
    for _ in 0..200 {
        let [witness] = witnesses(&sandbox)[..] else { panic!("one witness") };
        let begun = Instant::now();
        for pid in [job.running().pid, witness, program] {
            sandbox.kill(pid, Signal::SIGUSR1 as i32).unwrap();
        }
        let in_time = begun.elapsed() < AT_ONCE;
        heard.0 += "10\n";
        job.running().wait_for_output(&heard.0, SOON);
        job.running().kill(Signal::SIGTERM);
        if !in_time {
            // This machine was too busy to send them in one go: it may have come twice.
            sandbox.wait_for("the next signal", SOON, || job.running().stdout().ends_with(b"15\n"));
            heard.0 = String::from_utf8(job.running().stdout()).unwrap();
            continue;
        }
        heard.next(&job, Signal::SIGTERM);
        seen += 1;
        if seen == 5 {
            end(&mut job);
            return;
        }
    }
    panic!("the signals could not be sent within {AT_ONCE:?}");
}

#[test]
fn the_checkpoint_signal_to_the_whole_group_is_a_checkpoint_too() {
    let sandbox = Sandbox::new("group_ckpt_signal");
    let (mut job, mut heard) = begin(&sandbox, &["--ckpt-signal", "USR1"]);
    for id in 1..=2 {
        job.running().kill_group(Signal::SIGUSR1);
        job.wait_for_checkpoint(id);
        heard.next(&job, Signal::SIGUSR1);
        job.running().kill(Signal::SIGTERM);
        heard.next(&job, Signal::SIGTERM);
    }
    end(&mut job);
}

/// Without its word, a signal is taken as sent to ckptbpf alone: better twice than not at all.
#[test]
fn a_witness_that_is_stopped_or_dead_holds_nothing_up() {
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        let sandbox = Sandbox::new("no_witness");
        let (mut job, mut heard) = begin(&sandbox, &[]);
        let [witness] = witnesses(&sandbox)[..] else { panic!("one witness") };
        sandbox.kill(witness, signal as i32).unwrap();
        sandbox.wait_for("its end or stop", SOON, || {
            sandbox.ps().iter().all(|one| one.pid != witness || one.state == 'T')
        });
        for _ in 0..2 {
            job.running().kill(Signal::SIGUSR1);
            heard.next(&job, Signal::SIGUSR1);
        }
        let _ = sandbox.kill(witness, Signal::SIGCONT as i32);
        job.running().kill(Signal::SIGUSR2);
        job.wait(SOON).expect_code(3);
    }
}

/// Tells each SIGCONT, too.
const CONTINUED: &str = "
import signal, sys
known = [signal.SIGUSR2, signal.SIGTERM, signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP]
signal.pthread_sigmask(signal.SIG_BLOCK, known)
print('ready', flush=True)
got = 0
while got != signal.SIGUSR2:
    got = signal.sigwait(known)
    print(int(got), flush=True)
";

/// On a terminal of its own: while ckptbpf asks whether a SIGCONT was everybody's, and gets no answer, ^Z is pressed.
const OVERTAKEN: &str = r#"
import os, pty, signal, sys, time
pid, master = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
seen = b""
def until(text):
    global seen
    while text not in seen:
        seen += os.read(master, 4096)
def of(process, name):
    fields = dict(line.split(":", 1) for line in open("/proc/%s/status" % process))
    return fields[name].strip()
def pending(number):
    return any(int(of(pid, which), 16) >> (number - 1) & 1 for which in ("ShdPnd", "SigPnd"))
until(b"checkpoint on request")
until(b"ready")
witness, = (int(p) for p in os.listdir("/proc") if p.isdigit() and of(p, "Name") == "ckptbpf-witness")
os.kill(witness, signal.SIGSTOP)
while of(witness, "State")[0] != "T":
    pass
begun = time.monotonic()
os.kill(pid, signal.SIGCONT)
while pending(signal.SIGCONT):
    pass
os.write(master, b"\x1a")
late = time.monotonic() - begun > 0.4
until(b"20\r\n")
for number in signal.SIGTERM, signal.SIGWINCH:
    os.kill(pid, number)
    until(b"%d\r\n" % number)
os.kill(witness, signal.SIGCONT)
os.kill(pid, signal.SIGUSR2)
os.waitpid(pid, 0)
print("late" if late else seen)
"#;

/// Nobody can tell any more whose a SIGCONT was when the next ^Z has come, and it is over by then. The program, passed it on,
/// would go on after that ^Z.
#[test]
fn a_stop_is_not_undone_by_what_came_before_it() {
    for attempt in 0..20 {
        let sandbox = Sandbox::new(&format!("overtaken_{attempt}"));
        let launch = verb("launch", ["-d", "images", "--"])
            .program(&Cmd::new("/usr/bin/python3").args(["-c", CONTINUED]));
        let typed = sandbox.run(Cmd::new("/usr/bin/python3").args(["-c", OVERTAKEN]).program(&launch));
        let heard = typed.success().stdout_text();
        // ckptbpf waits for an answer for half a second: this machine was too busy to type in that time.
        if heard.trim() != "late" {
            assert!(heard.contains("28\\r") && !heard.contains("18\\r"), "{heard}");
            return;
        }
    }
    panic!("the key could not be pressed in time");
}
