//! How far long work has come, for a person who waits.

use std::fs::DirEntry;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::terminal;
use crate::image;

/// Work that is over sooner needs no bar.
const QUICK: Duration = Duration::from_millis(500);
const REDRAW: Duration = Duration::from_millis(100);
const WIDTH: u64 = 30;

/// A bar on standard error: on a terminal, and for work of more than half a second. Gone when dropped.
#[derive(Debug)]
pub struct Bar {
    label: &'static str,
    begun: Instant,
    drawn: Option<Instant>,
    shown: bool,
}

impl Bar {
    /// A bar for work that begins now.
    pub fn new(label: &'static str) -> Self {
        Self { label, begun: Instant::now(), drawn: None, shown: io::stderr().is_terminal() }
    }

    /// So much of so much is done.
    pub fn set(&mut self, done: u64, total: u64) {
        let recent = self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW);
        if !self.shown || recent || self.begun.elapsed() < QUICK {
            return;
        }
        self.drawn = Some(Instant::now());
        let _ = write!(io::stderr(), "\r\x1b[K{}", bar(self.label, done, total));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// How much of a checkpoint is written, for whoever has asked another process for it; shown and gone as a [`Bar`] is.
#[derive(Debug)]
pub struct Written {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Written {
    /// Of the checkpoint that is being written in `dir`.
    pub fn watch(dir: PathBuf) -> Self {
        if !io::stderr().is_terminal() {
            return Self { stop: None, thread: None };
        }
        let (stop, stopped) = channel();
        let thread = Builder::new().spawn(move || {
            let mut is_drawn = false;
            let mut wait = QUICK;
            while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                wait = REDRAW;
                if let Some(length) = unfinished(&dir) {
                    let _ = write!(
                        io::stderr(),
                        "\r\x1b[Kckptbpf: checkpoint: {} written",
                        terminal::bytes(length)
                    );
                    is_drawn = true;
                }
            }
            if is_drawn {
                let _ = write!(io::stderr(), "\r\x1b[K");
            }
        });
        // Without a thread nothing is shown.
        Self { stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It only draws.
            let _ = thread.join();
        }
    }
}

/// The length of what a writer has not finished in `dir`.
fn unfinished(dir: &Path) -> Option<u64> {
    let files = std::fs::read_dir(dir).ok()?.flatten();
    let is_one = |file: &DirEntry| file.file_name().to_str().is_some_and(image::is_temporary);
    files.filter(is_one).filter_map(|file| Some(file.metadata().ok()?.len())).max()
}

fn bar(label: &str, done: u64, total: u64) -> String {
    let part = |of: u64| u128::from(done.min(total)) * u128::from(of) / u128::from(total.max(1));
    let filled = usize::try_from(part(WIDTH)).unwrap_or(0);
    let empty = usize::try_from(WIDTH).unwrap_or(0).saturating_sub(filled);
    format!("ckptbpf: {label} [{}{}] {:3} %", "=".repeat(filled), " ".repeat(empty), part(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_never_leaves_its_frame() {
        assert!(bar("verify", 1, 2).ends_with("]  50 %"));
        assert!(bar("verify", 9, 2).ends_with("] 100 %"));
        assert!(bar("verify", 0, 0).ends_with("]   0 %"));
        assert!(bar("verify", u64::MAX, u64::MAX).contains(&"=".repeat(30)));
    }
}
