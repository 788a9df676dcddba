//! How far long work has come, for a person who waits.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

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
