//! Standard output.

use std::io::{self, Write};

use serde_json::Value;

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
}
