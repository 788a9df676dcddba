//! A program that tells what it hears.

use crate::sandbox::Cmd;

const LISTENER: &str = r#"
import signal, sys
known = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGWINCH, signal.SIGRTMIN]
signal.pthread_sigmask(signal.SIG_BLOCK, known)
print("ready", flush=True)
while True:
    got = signal.sigwait(known)
    print(int(got), flush=True)
    if got == signal.SIGUSR2:
        sys.exit(3)
"#;

/// Prints `ready`, then the number of each signal it gets; USR2 is its end, with status 3. Of signals that wait it takes
/// the lowest number first, and so does ckptbpf.
pub fn listener() -> Cmd {
    Cmd::new("/usr/bin/python3").args(["-c", LISTENER])
}
