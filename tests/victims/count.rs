//! count FILE N PERIOD_US: counts to N; each line, with a checksum over a table, to standard output and to FILE.
//!
//! Linked statically: it runs where there is no distribution.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let number = |index: usize| words[index].parse::<u64>().expect("a number");
    let (count, period) = (number(2), Duration::from_micros(number(3)));
    let mut file = File::create(&words[1])?;
    let mut table: BTreeMap<u64, Vec<u64>> = (0..2000).map(|key| (key, vec![key * key])).collect();
    let mut sum = 0u64;
    for step in 1..=count {
        let hold = std::env::var("VICTIM_HOLD").ok().filter(|_| step == count);
        while hold.as_ref().is_some_and(|path| !Path::new(path).exists()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let row = table.entry(step * 7919 % 2000).or_default();
        row.push(step);
        for word in table.values().flatten() {
            sum = (sum ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(7);
        }
        let line = format!("{step} {sum:016x}\n");
        io::stdout().write_all(line.as_bytes())?;
        file.write_all(line.as_bytes())?;
        std::thread::sleep(period);
    }
    Ok(())
}
