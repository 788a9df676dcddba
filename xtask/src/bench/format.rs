//! Numbers as people read them: three digits and a unit.

/// A time in microseconds.
pub fn time(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us:.0} µs"),
        us if us < 1e6 => format!("{} ms", digits(us / 1e3)),
        us => format!("{} s", digits(us / 1e6)),
    }
}

/// A number of bytes.
pub fn size(bytes: u64) -> String {
    let units: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.iter().find(|&&(_, shift)| bytes >> shift > 0);
    unit.map_or_else(
        || format!("{bytes} B"),
        |&(name, shift)| format!("{} {name}", digits(bytes as f64 / (1_u64 << shift) as f64)),
    )
}

/// A part of one.
pub fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

/// How many times as much.
pub fn times(ratio: f64) -> String {
    format!("{} ×", digits(ratio))
}

fn digits(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        for (us, shown) in [(0.0, "0 µs"), (999.0, "999 µs"), (1500.0, "1.50 ms"), (23_400.0, "23.4 ms")] {
            assert_eq!(time(us), shown);
        }
        assert_eq!((time(456_000.0), time(3_300_000.0)), ("456 ms".to_owned(), "3.30 s".to_owned()));
        for (bytes, shown) in [(0, "0 B"), (1023, "1023 B"), (7 << 10, "7.00 KiB"), (256 << 20, "256 MiB")] {
            assert_eq!(size(bytes), shown);
        }
        assert_eq!(size(8 << 30), "8.00 GiB");
        assert_eq!((percent(0.856), percent(-0.002)), ("85.6 %".to_owned(), "-0.2 %".to_owned()));
        assert_eq!((times(350.2), times(2.0)), ("350 ×".to_owned(), "2.00 ×".to_owned()));
    }
}
