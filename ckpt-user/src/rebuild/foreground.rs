//! The terminal's foreground process group: given to the tree's own where one had it.

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, tcsetpgrp};
use std::fs::OpenOptions;
use std::io;

/// Gives the terminal of this session to `group`; 0 leaves it with whoever has it.
///
/// # Errors
/// ENXIO when there is no terminal here.
pub fn give(group: i32) -> io::Result<()> {
    if group == 0 {
        return Ok(());
    }
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
    // From the background this call stops whoever does not block the signal (tcsetpgrp(3)).
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTTOU);
    let before = stop.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    let given = tcsetpgrp(terminal, Pid::from_raw(group));
    before.thread_set_mask()?;
    Ok(given?)
}
