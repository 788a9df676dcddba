//! The tables of docs/benchmarks.md: what is in each, of one case a row.

use super::case::Content;
use super::contender::Kind;
use super::format::{percent, size, time, times};
use super::measure::{Measured, Outcome};
use super::report::{Middle, Slowdown};
use super::stats::median;
use super::victim::rate;

/// Where there is nothing to tell.
const NOTHING: &str = "–";

/// One table.
pub struct Table {
    pub name: &'static str,
    pub means: &'static str,
    /// Of all columns but the first, which is the case.
    pub heading: &'static [&'static str],
    pub row: fn(&Outcome) -> Vec<String>,
}

pub const ALL: [Table; 4] = [
    Table { name: "The freeze", means: FREEZE_MEANS, heading: FREEZE, row: freeze },
    Table { name: "Full checkpoints", means: FULL_MEANS, heading: FULL, row: full },
    Table { name: "Deltas", means: DELTA_MEANS, heading: DELTA, row: delta },
    Table { name: "What it costs the program", means: COST_MEANS, heading: COST, row: cost },
];

const FREEZE_MEANS: &str = "\
*Alone* is the longest time between two looks of the program that is left alone, in an interval between two checkpoints;
*memcpy* a copy of as much memory as the program has. A ratio is how many times longer than ckptbpf's the other's freeze is.
";
const FREEZE: &[&str] = &[
    "checkpoints",
    "seen, p50",
    "p99",
    "max",
    "told, p50",
    "criu, seen",
    "ratio",
    "criu, told",
    "DMTCP, seen",
    "ratio",
    "alone",
    "memcpy",
];

fn freeze(outcome: &Outcome) -> Vec<String> {
    let ours = outcome.of("ckptbpf").and_then(Measured::seen_us);
    let us = |us: Option<u64>| cell(us.map(|us| time(us as f64)));
    let seen = |tool: &str| outcome.of(tool).and_then(Measured::seen_us).map(|seen| seen.p50);
    let told = |tool: &str| {
        let taken = outcome.of(tool)?.checkpoints.iter().filter_map(|one| one.taken.told_us);
        median(taken)
    };
    let ratio = |tool: &str| cell(over(seen(tool), ours.map(|ours| ours.p50)).map(times));
    let alone =
        outcome.of("native").and_then(|alone| median(alone.between.iter().map(|one| one.longest_ns / 1000)));
    vec![
        cell(ours.map(|ours| ours.count.to_string())),
        us(ours.map(|ours| ours.p50)),
        us(ours.map(|ours| ours.p99)),
        us(ours.map(|ours| ours.max)),
        us(told("ckptbpf")),
        us(seen("criu")),
        ratio("criu"),
        us(told("criu")),
        us(seen("dmtcp")),
        ratio("dmtcp"),
        us(alone),
        us(median(outcome.limits.memcpy_us.iter().copied())),
    ]
}

const FULL_MEANS: &str = "\
From the request until it is durable. *Of the disk*: bytes stored in that time, as a part of what one file written in a row
and synced has. *Of lz4*: bytes of memory in that time, as a part of what lz4 takes on all processors while nothing else runs.
Memory is the peak of all of ckptbpf's processes, in all of the case. CPU time is outside of the program.
";
const FULL: &[&str] = &[
    "durable",
    "stored",
    "disk alone",
    "of the disk",
    "lz4 alone",
    "of lz4",
    "CPU time",
    "ckptbpf's memory",
    "criu, durable",
    "stored",
    "DMTCP, durable",
    "stored",
];

fn full(outcome: &Outcome) -> Vec<String> {
    let of = |tool: &str| outcome.of(tool).and_then(|measured| Middle::of(measured, Kind::Full));
    let ours = of("ckptbpf");
    let (disk, lz4) = (&outcome.limits.disk_bytes_per_s, &outcome.limits.lz4_bytes_per_s);
    let (disk, lz4) = (median(disk.iter().copied()), median(lz4.iter().copied()));
    let per_second = |bytes: u64, us: u64| over(Some(bytes), Some(us)).map(|per_us| (1e6 * per_us) as u64);
    let stored = ours.and_then(|ours| per_second(ours.bytes_stored, ours.durable_us));
    let taken = ours.and_then(|ours| per_second(outcome.case.bytes(), ours.durable_us));
    let speed = |speed: Option<u64>| cell(speed.map(|speed| format!("{}/s", size(speed))));
    let cached = if outcome.limits.disk_is_direct { "" } else { " (page cache)" };
    let is_random = outcome.case.content == Content::Random;
    let peak = outcome.of("ckptbpf").and_then(|ours| ours.peak_kib);
    let mut cells = both(ours);
    cells.extend([
        speed(disk) + cached,
        cell(over(stored, disk).filter(|_| is_random).map(percent)),
        speed(lz4),
        cell(over(taken, lz4).map(percent)),
        cell(ours.and_then(|ours| ours.cpu_us).map(|us| time(us as f64))),
        cell(peak.map(|kib| size(kib << 10))),
    ]);
    cells.extend(["criu", "dmtcp"].into_iter().flat_map(|tool| both(of(tool))));
    cells
}

const DELTA_MEANS: &str =
    "What has changed since the checkpoint before. Its time is also given as a part of a full one's.\n";
const DELTA: &[&str] = &["durable", "stored", "pages", "of a full one's time", "CPU time"];

fn delta(outcome: &Outcome) -> Vec<String> {
    let of = |kind: Kind| outcome.of("ckptbpf").and_then(|measured| Middle::of(measured, kind));
    let (full, delta) = (of(Kind::Full), of(Kind::Delta));
    let part = over(delta.map(|delta| delta.durable_us), full.map(|full| full.durable_us));
    let mut cells = both(delta);
    cells.extend([
        cell(delta.and_then(|delta| delta.pages).map(|pages| pages.to_string())),
        cell(part.map(percent)),
        cell(delta.and_then(|delta| delta.cpu_us).map(|us| time(us as f64))),
    ]);
    cells
}

const COST_MEANS: &str = "\
How much less the program does than the one that is left alone, between checkpoints and while one is taken; *lost* is the
time that one checkpoint costs it.
";
const COST: &[&str] = &[
    "alone, pages/s",
    "between",
    "during",
    "lost",
    "criu, between",
    "during",
    "lost",
    "DMTCP, between",
    "during",
    "lost",
];

fn cost(outcome: &Outcome) -> Vec<String> {
    let alone = outcome.of("native").and_then(|alone| rate(&alone.between)).filter(|&rate| rate > 0.0);
    let mut cells = vec![cell(alone.map(|rate| format!("{rate:.0}")))];
    for tool in ["ckptbpf", "criu", "dmtcp"] {
        let slowdown = outcome.of(tool).zip(alone).map(|(measured, alone)| Slowdown::of(measured, alone));
        cells.extend([
            cell(slowdown.and_then(|slowdown| slowdown.between).map(percent)),
            cell(slowdown.and_then(|slowdown| slowdown.during).map(percent)),
            cell(slowdown.and_then(|slowdown| slowdown.lost_us).map(|us| time(us.max(0.0)))),
        ]);
    }
    cells
}

/// Time and size of a checkpoint.
fn both(middle: Option<Middle>) -> Vec<String> {
    vec![
        cell(middle.map(|middle| time(middle.durable_us as f64))),
        cell(middle.map(|middle| size(middle.bytes_stored))),
    ]
}

fn cell(text: Option<String>) -> String {
    text.unwrap_or_else(|| NOTHING.to_owned())
}

fn over(part: Option<u64>, whole: Option<u64>) -> Option<f64> {
    let whole = whole.filter(|&whole| whole > 0)?;
    Some(part? as f64 / whole as f64)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::bench::case;
    use crate::bench::contender::Taken;
    use crate::bench::limits::Limits;
    use crate::bench::measure::Checkpoint;
    use crate::bench::victim::Interval;

    fn checkpoint(kind: Kind, durable_us: u64, longest_ns: u64) -> Checkpoint {
        let taken = Taken {
            kind,
            durable_us,
            told_us: Some(longest_ns / 2000),
            bytes_stored: 1 << 30,
            pages: Some(262_144),
            cpu_us: Some(10_000),
        };
        Checkpoint { taken, during: Interval { ns: 2_000_000_000, sums: 100, written: 0, longest_ns } }
    }

    /// Of a case, ckptbpf with two checkpoints and criu with one.
    pub fn outcome() -> Outcome {
        let between = vec![Interval { ns: 1_000_000_000, sums: 100, written: 0, longest_ns: 20_000 }];
        let native = Measured { tool: "native", between: between.clone(), ..Measured::default() };
        let checkpoints =
            vec![checkpoint(Kind::Full, 1_000_000, 4_000_000), checkpoint(Kind::Delta, 50_000, 2_000_000)];
        let ours = Measured {
            tool: "ckptbpf",
            between,
            checkpoints,
            peak_kib: Some(200 << 10),
            ..Measured::default()
        };
        let criu = Measured {
            tool: "criu",
            checkpoints: vec![checkpoint(Kind::Full, 2_000_000, 600_000_000)],
            failed: Some("no space".to_owned()),
            ..Measured::default()
        };
        let limits = Limits {
            memcpy_us: vec![90_000],
            disk_bytes_per_s: vec![2 << 30],
            disk_is_direct: true,
            lz4_bytes_per_s: Vec::new(),
        };
        Outcome { case: case::ALL[1], limits, tools: vec![native, ours, criu] }
    }

    #[test]
    fn a_row_has_as_many_cells_as_its_heading() {
        for table in ALL {
            assert_eq!((table.row)(&outcome()).len(), table.heading.len(), "{}", table.name);
        }
    }

    #[test]
    fn numbers_and_ratios() {
        let freeze = freeze(&outcome());
        assert_eq!(freeze[..5], ["2", "2.00 ms", "4.00 ms", "4.00 ms", "1.00 ms"]);
        assert_eq!(freeze[5..], ["600 ms", "300 ×", "300 ms", "–", "–", "20 µs", "90.0 ms"]);
        let full = full(&outcome());
        assert_eq!(full[..4], ["1.00 s", "1.00 GiB", "2.00 GiB/s", "50.0 %"]);
        assert_eq!(full[4..8], ["–", "–", "10.0 ms", "200 MiB"]);
        assert_eq!(full[8..], ["2.00 s", "1.00 GiB", "–", "–"]);
        assert_eq!(delta(&outcome()), ["50.0 ms", "1.00 GiB", "262144", "5.0 %", "10.0 ms"]);
        let cost = cost(&outcome());
        assert_eq!(cost[..4], ["100", "0.0 %", "50.0 %", "1.00 s"]);
        assert_eq!(cost[4..7], ["–", "50.0 %", "1.00 s"]);
    }
}
