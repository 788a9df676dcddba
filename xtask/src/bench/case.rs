//! What is measured: programs that differ from one of them in one thing each.

use std::fmt;

use anyhow::{Result, bail};
use serde::Serialize;

use super::format::size;

/// What is in a program's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    Random,
    /// lz4 makes a third of it.
    Compressible,
}

impl Content {
    fn word(self) -> &'static str {
        match self {
            Content::Random => "random",
            Content::Compressible => "compressible",
        }
    }
}

/// Whether its memory is in huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Huge {
    /// As the system has it.
    Unsaid,
    Asked,
    Forbidden,
}

/// A program under measurement: `tests/victims/bench.c` with these arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Case {
    pub name: &'static str,
    /// Size of its memory.
    pub mib: u64,
    pub content: Content,
    /// Pages that it writes to in a second.
    pub rate: u64,
    pub threads: u32,
    pub mappings: u32,
    pub files: u32,
    pub huge: Huge,
}

const BASE: Case = Case {
    name: "freeze-1g",
    mib: 1024,
    content: Content::Random,
    rate: 10_000,
    threads: 1,
    mappings: 0,
    files: 0,
    huge: Huge::Unsaid,
};
const COMPRESSIBLE: Case = Case { content: Content::Compressible, ..BASE };

pub const ALL: &[Case] = &[
    Case { name: "freeze-256m", mib: 256, ..BASE },
    BASE,
    Case { name: "freeze-4g", mib: 4096, ..BASE },
    Case { name: "freeze-8g", mib: 8192, ..BASE },
    Case { name: "compressible-256m", mib: 256, ..COMPRESSIBLE },
    Case { name: "compressible-1g", ..COMPRESSIBLE },
    Case { name: "compressible-4g", mib: 4096, ..COMPRESSIBLE },
    Case { name: "compressible-8g", mib: 8192, ..COMPRESSIBLE },
    Case { name: "rate-0", rate: 0, ..BASE },
    Case { name: "rate-1k", rate: 1000, ..BASE },
    Case { name: "rate-100k", rate: 100_000, ..BASE },
    Case { name: "threads-16", threads: 16, ..BASE },
    Case { name: "threads-256", threads: 256, ..BASE },
    Case { name: "mappings-4000", mappings: 4000, ..BASE },
    Case { name: "files-1000", files: 1000, ..BASE },
    Case { name: "huge-asked", huge: Huge::Asked, ..BASE },
    Case { name: "huge-forbidden", huge: Huge::Forbidden, ..BASE },
];

/// What --quick measures at most, unless it is named.
const QUICK_MIB: u64 = 1024;
/// Beside a program's memory: its supervisor, and the buffers of a copy.
const MEMORY_BESIDE: u64 = 1 << 30;
/// Images: a full one, one that is merged, changes; and a file to find out how fast the disk is.
const DISK_TIMES: u64 = 3;
const DISK_BESIDE: u64 = 2 << 30;

/// A case that was not measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    pub case: &'static str,
    pub why: String,
}

/// What the machine has to spare, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Spare {
    pub memory: u64,
    pub disk: u64,
}

impl Case {
    /// Size of its memory.
    pub fn bytes(&self) -> u64 {
        self.mib << 20
    }

    /// Of the program.
    pub fn arguments(&self) -> [String; 7] {
        let huge = match self.huge {
            Huge::Unsaid => "-",
            Huge::Asked => "on",
            Huge::Forbidden => "off",
        };
        [
            self.mib.to_string(),
            self.content.word().to_owned(),
            self.rate.to_string(),
            self.threads.to_string(),
            self.mappings.to_string(),
            self.files.to_string(),
            huge.to_owned(),
        ]
    }

    /// Why the machine is too small for it.
    pub fn shortage(&self, spare: Spare) -> Option<String> {
        let memory = self.bytes() + MEMORY_BESIDE;
        let disk = DISK_TIMES * self.bytes() + DISK_BESIDE;
        let short = |what: &str, needed: u64, there: u64| {
            (needed > there).then(|| format!("{what}: {} needed, {} there", size(needed), size(there)))
        };
        short("memory", memory, spare.memory).or_else(|| short("disk", disk, spare.disk))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, content) = (size(self.bytes()), self.content.word());
        write!(out, "{size} of {content} memory, {} pages/s written", self.rate)?;
        for (count, what) in [(self.mappings, "mappings"), (self.files, "descriptors")] {
            if count > 0 {
                write!(out, ", {count} {what}")?;
            }
        }
        if self.threads > 1 {
            write!(out, ", {} threads", self.threads)?;
        }
        match self.huge {
            Huge::Unsaid => Ok(()),
            Huge::Asked => write!(out, ", huge pages asked for"),
            Huge::Forbidden => write!(out, ", huge pages forbidden"),
        }
    }
}

/// Those with one of the filters in their name, all if there is none; and what --quick leaves out of them.
///
/// # Errors
/// There is none.
pub fn select(filters: &[String], quick: bool) -> Result<(Vec<Case>, Vec<Skipped>)> {
    let is_wanted = |case: &&Case| filters.is_empty() || filters.iter().any(|part| case.name.contains(part));
    let is_left_out = |case: &Case| quick && filters.is_empty() && case.mib > QUICK_MIB;
    let (large, cases): (Vec<Case>, Vec<Case>) = ALL.iter().filter(is_wanted).copied().partition(is_left_out);
    if cases.is_empty() {
        bail!("no case has {} in its name: `cargo xtask bench --list` names all", filters.join(" or "));
    }
    let why = format!("larger than {}, and --quick does not name it", size(QUICK_MIB << 20));
    let skipped = large.iter().map(|case| Skipped { case: case.name, why: why.clone() }).collect();
    Ok((cases, skipped))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(filters: &[&str], quick: bool) -> (Vec<&'static str>, Vec<&'static str>) {
        let filters: Vec<String> = filters.iter().map(|&part| part.to_owned()).collect();
        let (cases, skipped) = select(&filters, quick).unwrap();
        (cases.iter().map(|case| case.name).collect(), skipped.iter().map(|one| one.case).collect())
    }

    #[test]
    fn a_filter_is_a_part_of_a_name() {
        assert_eq!(names(&["freeze-1g"], false).0, ["freeze-1g"]);
        assert_eq!(names(&["256m", "rate-0"], false).0, ["freeze-256m", "compressible-256m", "rate-0"]);
        assert_eq!(names(&[], false).0.len(), ALL.len());
        assert!(select(&["nothing".to_owned()], false).is_err());
    }

    #[test]
    fn large_ones_are_left_out_where_it_is_to_be_quick_and_are_said() {
        let (cases, skipped) = names(&[], true);
        assert_eq!(skipped, ["freeze-4g", "freeze-8g", "compressible-4g", "compressible-8g"]);
        assert_eq!(cases.len() + skipped.len(), ALL.len());
        assert_eq!(names(&["freeze-4g"], true), (vec!["freeze-4g"], vec![]));
    }

    #[test]
    fn no_two_cases_have_one_name_or_are_the_same() {
        for (at, one) in ALL.iter().enumerate() {
            for other in &ALL[at + 1..] {
                assert_ne!(one.name, other.name);
                assert_ne!(one.arguments(), other.arguments(), "{} and {}", one.name, other.name);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_said_with_its_size() {
        let spare = |memory: u64, disk: u64| Spare { memory: memory << 30, disk: disk << 30 };
        assert_eq!(BASE.shortage(spare(2, 5)), None);
        assert_eq!(BASE.shortage(spare(1, 5)), Some("memory: 2.00 GiB needed, 1.00 GiB there".to_owned()));
        assert_eq!(BASE.shortage(spare(2, 4)), Some("disk: 5.00 GiB needed, 4.00 GiB there".to_owned()));
    }
}
