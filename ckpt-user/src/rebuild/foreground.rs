//! The terminal, given to those who had it: its modes, and its foreground process group.

use super::nursery::Nursery;
use crate::freeze::tree;
use crate::object::terminal::{self, Modes};
use crate::record::Image;
use crate::task::outside;
use crate::task::proc::Stat;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::Pid;
use std::fs::File;
use std::io;

/// Before the program runs: one that reads from a terminal it does not have is stopped.
///
/// # Errors
/// ENXIO when a group of the program had the terminal, and there is none here.
pub fn give(image: &Image, nursery: &Nursery) -> io::Result<()> {
    let Some(modes) = &image.terminal else { return Ok(()) };
    let terminal = match terminal::open() {
        Err(_) if image.foreground == 0 => return Ok(()),
        opened => opened?,
    };
    // From the background either call stops whoever does not block the signal (tcsetpgrp(3), tcsetattr(3)).
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTTOU);
    let before = stop.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let given = hand_over(modes, image.foreground, &terminal, nursery);
    before.thread_set_mask()?;
    given
}

/// Whether the process group of ckptbpf, of a worker's front, has the terminal. Groups are compared by their ids outside: in a pid
/// namespace of the program's own, all that are not in there are called 0.
///
/// # Errors
/// /proc is not as it should be.
pub fn is_ours() -> io::Result<bool> {
    let front = tree::noted_front().map_or_else(|| "self".to_owned(), |front| front.to_string());
    let own = Stat::parse(&String::from_utf8_lossy(&outside::read(&format!("{front}/stat"))?))?;
    Ok(own.foreground() == own.process_group())
}

/// Who is started in the background has no terminal to give.
fn hand_over(modes: &Modes, group: i32, terminal: &File, nursery: &Nursery) -> io::Result<()> {
    if !is_ours()? {
        return Ok(());
    }
    modes.set(terminal)?;
    // 0: ckptbpf's own group had it, and has it.
    if group == 0 { Ok(()) } else { nursery.give_terminal(Pid::from_raw(group)) }
}
