//! Standard output, and bars on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Work that is over sooner needs no bar.
const QUICK: Duration = Duration::from_millis(500);
const REDRAW: Duration = Duration::from_millis(100);
const WIDTH: u64 = 30;

/// Writes to standard output. A reader that has left (`ckptbpf list | head -1`) is no error.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes one line of JSON to standard output.
pub fn json(value: &Value) -> io::Result<()> {
    print(&format!("{value}\n"))
}

/// Columns, as wide as they must be; the last one is not padded. `right`: columns of numbers.
///
/// Some of it comes from files that are not trusted: nothing that a terminal acts upon is let through.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            let padded = if right.contains(&column) {
                format!("{gap}{cell:>width$}")
            } else {
                format!("{gap}{cell:<width$}")
            };
            line.push_str(&padded);
        }
        text.extend(line.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }));
        text.push('\n');
    }
    text
}

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
    fn columns_line_up() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect();
        let text =
            table(&[row(&["ID", "KIND", "PAGES"]), row(&["10", "full", "7"]), row(&["9", "é"])], &[0, 2]);
        assert_eq!(text, "ID  KIND  PAGES\n10  full      7\n 9  é\n");
        assert_eq!(table(&[row(&["a\u{1b}[2J\nb"])], &[]), "a?[2J?b\n");
    }

    #[test]
    fn a_bar_never_leaves_its_frame() {
        assert!(bar("verify", 1, 2).ends_with("]  50 %"));
        assert!(bar("verify", 9, 2).ends_with("] 100 %"));
        assert!(bar("verify", 0, 0).ends_with("]   0 %"));
        assert!(bar("verify", u64::MAX, u64::MAX).contains(&"=".repeat(30)));
    }
}
