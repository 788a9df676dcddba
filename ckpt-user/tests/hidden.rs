//! Both sources of hidden state give the same image of the same stopped program.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use ckptbpf::capture::capture;
use ckptbpf::freeze::freeze;
use ckptbpf::record::Image;
use ckptbpf::task::iterators::{Hidden, Kernel};
use nix::unistd::Pid;

/// Handlers, an ignored signal, a pending one, an alternate stack, a timer, and four threads.
const PROGRAM: &str = "
import faulthandler, os, signal, threading, time
os.closerange(3, 1024)
faulthandler.enable()
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN + 1])
os.kill(os.getpid(), signal.SIGRTMIN + 1)
signal.setitimer(signal.ITIMER_REAL, 1000, 7)
signal.setitimer(signal.ITIMER_PROF, 2000)
for _ in range(4):
    threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
print('ready', flush=True)
time.sleep(1000)
";

/// Times are never the same twice: what remains of them is whether there are any.
fn without_times(mut image: Image) -> Image {
    image.clocks = None;
    for timer in image.processes.iter_mut().flat_map(|p| &mut p.timers) {
        timer.left = timer.left.min(1);
    }
    image
}

#[test]
fn iterators_and_injected_calls_find_the_same() {
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", PROGRAM])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    let kernel = Kernel::default();
    kernel.load(None);
    let mut tree = freeze(pid, &kernel).unwrap();
    let hidden = kernel.read(&[pid]);
    let by_iterators = capture(&mut tree, pid, &hidden, false).unwrap();
    let by_injection = capture(&mut tree, pid, &Hidden::default(), false).unwrap();
    tree.thaw();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(by_iterators.injected, 0);
    assert!(by_injection.injected > 60, "{}", by_injection.injected);
    let process = &by_iterators.image.processes[0];
    assert_eq!((process.threads.len(), process.timers.len()), (5, 3));
    assert!(
        process.actions.len() >= 2
            && process.pending.len() + process.threads[0].signals.as_ref().unwrap().pending.len() == 1
    );
    assert!(process.threads.iter().any(|t| t.signals.as_ref().is_some_and(|s| s.altstack_size > 0)));
    assert!(process.threads.iter().all(|t| t.clear_child_tid != 0 && t.robust_list != 0));
    assert_eq!(without_times(by_iterators.image), without_times(by_injection.image));
}
