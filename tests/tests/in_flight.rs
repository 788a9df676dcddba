//! Reads that are in flight over a scan, over a freeze and over whole checkpoints: what they bring is never lost.
//!
//! The disk answers when the test says so, and the test says so at a place in ckptbpf, not at a moment.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::calls::{Calls, From, interrupts};
use ckpt_tests::sandbox::until;
use ckpt_tests::sys::kill;
use ckpt_tests::{Cmd, Finished, Job, Mode, Sandbox, SlowDisk, skip, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(60);

/// A program that reads from a slow disk in one of the ways of `tests/victims/inflight.c`.
struct Reader<'b> {
    sandbox: &'b Sandbox,
    disk: &'b SlowDisk,
    job: Job<'b>,
    program: i32,
}

impl<'b> Reader<'b> {
    /// Launched, with a first checkpoint.
    fn launch(sandbox: &'b Sandbox, disk: &'b SlowDisk, how: &str, options: &[&str]) -> Self {
        let program = victim_cmd("inflight").arg(how).arg(disk.folder());
        let job = Job::launch(sandbox, options, &program);
        job.running().wait_for_output("ready\n", SOON);
        let program = job.program();
        assert_eq!(job.checkpoint().kind, "full");
        Self { sandbox, disk, job, program }
    }

    fn tell(&self, answer: &str) {
        self.sandbox.kill(self.program, Signal::SIGUSR1 as i32).expect("the program lives");
        self.job.running().wait_for_output(answer, SOON);
    }

    /// Whether it has begun to read: there may be no io_uring, and then it has ended.
    fn begins(&mut self) -> bool {
        self.sandbox.kill(self.program, Signal::SIGUSR1 as i32).unwrap();
        let said = |job: &Job| String::from_utf8_lossy(&job.running().stdout()).into_owned();
        self.sandbox.wait_for("its answer", SOON, || {
            ["reading\n", "no io_uring"].iter().any(|word| said(&self.job).contains(word))
        });
        let begins = !said(&self.job).contains("no io_uring");
        if !begins {
            self.job.wait(SOON).success();
        }
        begins
    }

    /// A read is in flight, and the program has done what it does meanwhile.
    fn read(&self) {
        self.disk.hold();
        self.tell("reading\n");
        self.disk.wait_for_a_read(self.sandbox);
        self.tell("meanwhile\n");
    }

    /// A checkpoint that is refused in words that hold each of `what`.
    fn assert_refused(&self, what: &[&str]) {
        let newest = self.job.newest();
        let said = self.job.try_checkpoint().expect_code(125).stderr_text();
        assert!(what.iter().all(|word| said.contains(word)), "{what:?} is not in {said}");
        assert_eq!(self.job.newest(), newest, "a refused checkpoint left a file");
        assert!(!self.job.running().has_ended(), "{}", self.job.running().stderr());
    }

    /// A checkpoint, which the data gets ahead of by a hair: it lands after the scan beside the program, which took the
    /// pages' marks, and before the program is stopped.
    fn checkpoint_over_a_landing(&self) -> Finished {
        let ckptbpf = self.job.running().outside_pid().expect("it runs");
        let release = self.disk.release();
        let calls = Calls::before(ckptbpf, From::Now, interrupts, Box::new(move || release.let_go()));
        let taken = self.job.try_checkpoint();
        assert!(calls.is_done(), "the data has not landed: {}", taken.stderr_text());
        taken
    }

    /// The same, and by the time that the program is stopped there is nothing left of what has read. Where the kernel is still
    /// at taking that away, the checkpoint is refused, in a word that is `what`, and another one is taken.
    fn checkpoint_over_a_landing_and_its_end(&self, what: &str) {
        let ckptbpf = self.job.running().outside_pid().expect("it runs");
        let program = self.sandbox.outside_pid(self.program).expect("it runs");
        let (release, stdout) = (self.disk.release(), self.job.running().stdout_path().to_owned());
        let land = move || {
            release.let_go();
            kill(program, Signal::SIGUSR1 as i32).expect("the program lives");
            let has_landed = || std::fs::read_to_string(&stdout).unwrap().ends_with("landed\n");
            assert_eq!(until(SOON, || None, has_landed), None);
        };
        let calls = Calls::before(ckptbpf, From::Now, interrupts, Box::new(land));
        let mut taken = self.job.try_checkpoint();
        assert!(calls.is_done() && self.ends_with("landed\n"), "it has not landed: {}", taken.stderr_text());
        self.sandbox.wait_for("a checkpoint", SOON, || {
            let refused = taken.code() != 0;
            if refused {
                assert!(taken.stderr_text().contains(what), "{}", taken.stderr_text());
                taken = self.job.try_checkpoint();
            }
            !refused
        });
    }

    /// Killed, restarted in both ways, and with a checkpoint in between: memory is what was there, byte for byte.
    fn assert_restarts(mut self) {
        for (time, mode) in [Mode::Lazy, Mode::Eager, Mode::Lazy].into_iter().enumerate() {
            self.job.kill_all();
            self.job.restart(mode, &[]);
            assert_eq!(self.job.program(), self.program);
            if time == 0 && self.ends_with("meanwhile\n") {
                self.tell("landed\n");
            }
            self.tell("right ");
            self.job.checkpoint();
        }
        self.job.kill_all();
    }

    fn ends_with(&self, text: &str) -> bool {
        self.job.stdout().ends_with(text.as_bytes())
    }
}

/// Does `test` with the disk, where there can be one.
fn with_disk(name: &str, test: impl FnOnce(&Sandbox, &SlowDisk)) {
    let sandbox = Sandbox::new(name);
    match SlowDisk::mounted(&sandbox) {
        Some(disk) => test(&sandbox, &disk),
        None => skip::skip(name, "no /dev/fuse here"),
    }
}

/// The data lands between scan and freeze; what is saved is what the program has.
fn over_a_scan(name: &str, how: &str) {
    with_disk(name, |sandbox, disk| {
        let reader = Reader::launch(sandbox, disk, how, &[]);
        reader.read();
        reader.checkpoint_over_a_landing().success();
        let taken = reader.job.checkpoints().pop().unwrap();
        assert_eq!(taken.kind, "delta", "{taken:?}");
        reader.assert_restarts();
    });
}

#[test]
fn a_direct_read_over_a_scan() {
    over_a_scan("flight_o_direct", "o_direct");
}

#[test]
fn a_direct_read_over_a_scan_whose_descriptor_is_closed() {
    over_a_scan("flight_o_direct_closed", "o_direct-closed");
}

#[test]
fn a_read_past_the_page_cache_over_a_scan() {
    over_a_scan("flight_direct", "direct");
}

#[test]
fn a_read_past_the_page_cache_over_a_scan_whose_descriptor_is_closed() {
    over_a_scan("flight_direct_closed", "direct-closed");
}

#[test]
fn process_vm_writev_over_a_scan() {
    over_a_scan("flight_writev", "writev");
}

#[test]
fn a_direct_read_over_a_scan_while_pages_are_missing() {
    with_disk("flight_lazy", |sandbox, disk| {
        let mut reader = Reader::launch(sandbox, disk, "direct", &[]);
        let hold = sandbox.dir().join("hold");
        std::fs::write(&hold, "").unwrap();
        reader.job.kill_all();
        reader.job.restart(Mode::Lazy, &["--hold-fill", hold.to_str().unwrap()]);
        assert_eq!(reader.job.program(), reader.program);
        reader.read();
        reader.checkpoint_over_a_landing().success();
        std::fs::remove_file(hold).unwrap();
        reader.assert_restarts();
    });
}

/// What reads has no thread and no descriptor to read from, lands between scan and freeze, and is gone by the freeze. Without
/// eBPF, which would see what is left of an io_uring and have the first checkpoint refused.
fn asynchronously_over_a_scan(name: &str, how: &str, what: &str) {
    with_disk(name, |sandbox, disk| {
        let mut reader = Reader::launch(sandbox, disk, how, &["--no-bpf"]);
        disk.hold();
        if !reader.begins() {
            return skip::skip(name, "no io_uring");
        }
        disk.wait_for_a_read(sandbox);
        reader.tell("meanwhile\n");
        reader.checkpoint_over_a_landing_and_its_end(what);
        let taken = reader.job.checkpoints().pop().unwrap();
        assert_eq!(taken.kind, "delta", "{taken:?}");
        reader.assert_restarts();
    });
}

#[test]
fn an_asynchronous_read_over_a_scan_whose_context_is_destroyed() {
    asynchronously_over_a_scan("flight_aio_alone", "aio-alone", "[aio]");
}

#[test]
fn a_read_of_an_io_uring_over_a_scan_that_is_closed() {
    asynchronously_over_a_scan("flight_ring_alone", "ring-alone", "io_uring");
}

#[test]
fn a_read_into_a_registered_buffer_over_a_scan_whose_io_uring_is_closed() {
    asynchronously_over_a_scan("flight_fixed_alone", "fixed-alone", "io_uring");
}

/// The program does not stop: the refusal names the thread, its system call and what it waits in; nothing is lost.
fn over_a_freeze(name: &str, how: &str) {
    const PREAD64: &str = "(system call 17, waiting in ";
    with_disk(name, |sandbox, disk| {
        let reader = Reader::launch(sandbox, disk, how, &[]);
        reader.read();
        let threads = sandbox.root().join(format!("proc/{}/task", reader.program));
        let threads = || std::fs::read_dir(&threads).unwrap().flatten().map(|entry| entry.path());
        let id = reader.program.to_string();
        let other = threads().find(|path| !path.ends_with(&id)).expect("the reading thread");
        let thread = format!("thread {} of process {id} ", other.file_name().unwrap().to_string_lossy());
        // A read by way of the cache sleeps as long as no signal comes, and only then waits where none reaches it.
        let sleeps_first = how == "cached";
        sandbox.wait_for(&format!("{thread}to wait in the kernel"), SOON, || {
            let status = std::fs::read_to_string(other.join("status")).unwrap();
            (sleeps_first || status.contains("State:\tD"))
                && std::fs::read_to_string(other.join("wchan")).unwrap().len() > 1
        });
        reader.assert_refused(&[&thread, "does not stop", PREAD64]);
        reader.assert_refused(&[&thread, PREAD64]);
        disk.let_go();
        sandbox.wait_for("nobody to be traced", SOON, || {
            threads().all(|path| {
                let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
                status.is_empty() || status.contains("TracerPid:\t0\n")
            })
        });
        reader.tell("landed\n");
        assert_eq!(reader.job.checkpoint().kind, "delta");
        reader.assert_restarts();
    });
}

#[test]
fn a_read_that_the_kernel_waits_for_over_a_freeze() {
    over_a_freeze("flight_freeze", "cached");
}

#[test]
fn a_direct_read_over_a_freeze() {
    over_a_freeze("flight_direct_freeze", "o_direct");
}

/// Asynchronous reads are refused by name for as long as what was made for them is there; then the data is in the delta.
fn refused_until_it_is_over(name: &str, how: &str, options: &[&str], what: &[&str]) {
    with_disk(name, |sandbox, disk| {
        let mut reader = Reader::launch(sandbox, disk, how, options);
        disk.hold();
        if !reader.begins() {
            return skip::skip(name, "no io_uring");
        }
        disk.wait_for_a_read(sandbox);
        reader.tell("meanwhile\n");
        reader.assert_refused(what);
        reader.assert_refused(what);
        disk.let_go();
        reader.tell("landed\n");
        // The kernel takes an io_uring away after the last read, on a thread of its own.
        let mut taken = reader.job.try_checkpoint();
        sandbox.wait_for("a checkpoint", SOON, || {
            let refused = taken.code() != 0;
            if refused {
                let said = taken.stderr_text();
                assert!(what.iter().all(|word| said.contains(word)), "{said}");
                taken = reader.job.try_checkpoint();
            }
            !refused
        });
        let taken = reader.job.checkpoints().pop().unwrap();
        assert!(taken.kind == "delta" && taken.pages >= 8, "{taken:?}");
        reader.assert_restarts();
    });
}

#[test]
fn an_asynchronous_read_is_refused_until_its_context_is_destroyed() {
    refused_until_it_is_over("flight_aio", "aio", &[], &["[aio]"]);
}

/// io_destroy(2) itself waits for the data.
#[test]
fn a_context_that_is_destroyed_waits_for_what_is_in_flight() {
    with_disk("flight_aio_destroyed", |sandbox, disk| {
        let reader = Reader::launch(sandbox, disk, "aio-destroyed", &[]);
        reader.read();
        reader.sandbox.kill(reader.program, Signal::SIGUSR1 as i32).unwrap();
        reader.assert_refused(&[]);
        disk.let_go();
        reader.job.running().wait_for_output("landed\n", SOON);
        let taken = reader.job.checkpoint();
        assert!(taken.kind == "delta" && taken.pages >= 8, "{taken:?}");
        reader.assert_restarts();
    });
}

#[test]
fn a_read_of_an_io_uring_is_refused_until_that_is_closed() {
    refused_until_it_is_over("flight_ring", "ring", &[], &["io_uring"]);
}

#[test]
fn a_read_into_a_registered_buffer_is_refused_until_the_io_uring_is_closed() {
    refused_until_it_is_over("flight_fixed", "fixed", &[], &["io_uring"]);
}

/// Closed with a read in flight: nothing of it is to be seen in the program, and yet the data lands.
#[test]
fn a_read_of_an_io_uring_that_is_closed_is_refused_until_it_is_over() {
    refused_until_it_is_over("flight_ring_closed", "ring-closed", &[], &["io_uring"]);
}

#[test]
fn a_read_into_a_registered_buffer_of_an_io_uring_that_is_closed() {
    refused_until_it_is_over("flight_fixed_closed", "fixed-closed", &[], &["io_uring"]);
}

/// Where only /proc tells, memory that is pinned does.
#[test]
fn a_read_into_a_registered_buffer_of_an_io_uring_that_is_closed_without_bpf() {
    refused_until_it_is_over("flight_fixed_bare", "fixed-closed", &["--no-bpf"], &["io_uring"]);
}

/// Its first thread has ended, its other one is killed as soon as the disk answers: of the program, or of a child.
const ENDS: &str = "
import os, signal, sys, threading
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGCHLD])
def say(what): print(what, flush=True)
def told(): signal.sigwait([signal.SIGUSR1])
def reads():
    threading.Thread(target=os.read, args=(os.open(sys.argv[2] + '/direct', os.O_RDONLY), 4096), daemon=True).start()
say('ready')
told()
if sys.argv[1] == 'itself':
    reads()
    told()
    os._exit(7)
pipe = os.pipe()
child = os.fork()
if child == 0:
    reads()
    os.read(pipe[0], 1)
    os._exit(7)
told()
os.write(pipe[1], b'!')
while True:
    told()
    ended = signal.sigtimedwait([signal.SIGCHLD], 60)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    say(f'{ended.si_pid == child} {ended.si_status} {status}')
    told()
    say('on')
";

/// [`ENDS`], launched, and ended but for what the disk holds.
fn half_ended<'b>(sandbox: &'b Sandbox, disk: &'b SlowDisk, which: &str) -> Reader<'b> {
    let program = Cmd::new("/usr/bin/python3").args(["-c", ENDS, which]).arg(disk.folder());
    let job = Job::launch(sandbox, &[], &program);
    job.running().wait_for_output("ready\n", SOON);
    let program = job.program();
    let reader = Reader { sandbox, disk, job, program };
    let tell = || sandbox.kill(program, Signal::SIGUSR1 as i32).expect("the program lives");
    disk.hold();
    tell();
    disk.wait_for_a_read(sandbox);
    tell();
    sandbox.wait_for("the first thread to end", SOON, || {
        sandbox.ps().iter().any(|p| p.comm == "python3" && p.state == 'Z')
    });
    let said = reader.job.try_checkpoint().expect_code(125).stderr_text();
    assert!(said.contains("does not stop") && !said.contains("first thread"), "{said}");
    assert!(reader.job.checkpoints().is_empty(), "something was written");
    reader
}

/// A process that ends is met when its first thread has ended and another has not. That is not one that goes on without
/// its first thread: the freeze waits until it is gone, and its parent has been told.
#[test]
fn a_process_on_its_way_out_at_a_freeze() {
    with_disk("flight_ends", |sandbox, disk| {
        let mut reader = half_ended(sandbox, disk, "child");
        reader.checkpoint_over_a_landing().success();
        for mode in [Mode::Eager, Mode::Lazy] {
            reader.job.kill_all();
            reader.job.restart(mode, &[]);
            assert_eq!(reader.job.program(), reader.program);
            reader.tell("True 7 7\n");
        }
        reader.job.checkpoint();
        reader.job.kill_all();
        reader.job.restart(Mode::Eager, &[]);
        assert_eq!(reader.job.program(), reader.program);
        reader.tell("on\n");
        reader.job.kill_all();
    });
}

/// The program's first process likewise: once it has ended, so has the job.
#[test]
fn a_program_on_its_way_out_at_a_freeze() {
    with_disk("flight_ends_itself", |sandbox, disk| {
        let mut reader = half_ended(sandbox, disk, "itself");
        disk.let_go();
        reader.job.wait(SOON).expect_code(7);
    });
}
