//! CRIU: the whole program at each dump, as its packaged form does it.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::case::Case;
use super::contender::{Contender, Kind, Taken, make_durable, micros};
use super::stage::{Room, Stage};
use super::usage;
use super::victim::Victim;
use crate::cmd;

/// First words of the file `stats-dump` (`criu/include/magic.h`: IMG_SERVICE_MAGIC, STATS_MAGIC).
const MAGIC: [u32; 2] = [0x5510_5940, 0x5709_3306];
/// Numbers of fields in `images/stats.proto`: `stats_entry.dump`, `dump_stats_entry.frozen_time` in microseconds.
const DUMP: u64 = 1;
const FROZEN_TIME: u64 = 2;

/// A program that is dumped and left running.
pub struct Dumped {
    victim: Victim,
    room: Room,
}

/// The version; none where it is not installed.
pub fn version() -> Option<String> {
    let said = cmd::output(Command::new("criu").arg("--version")).ok()?;
    let version = said.lines().find_map(|line| line.strip_prefix("Version:"))?;
    Some(format!("criu {}", version.trim()))
}

impl Dumped {
    /// Starts a program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(stage: &Stage, case: &Case) -> Result<Self> {
        let room = stage.room("criu")?;
        // A session of its own is what it saves without more ado.
        let victim = Victim::start(&mut stage.long("setsid"), stage, case, &room)?;
        Ok(Self { victim, room })
    }
}

impl Contender for Dumped {
    fn victim(&mut self) -> &mut Victim {
        &mut self.victim
    }

    fn checkpoint(&mut self) -> Result<Option<Taken>> {
        let images = self.room.images();
        fs::create_dir(&images).with_context(|| images.display().to_string())?;
        let mut dump = Command::new("criu");
        dump.args(["dump", "--leave-running", "--log-file", "dump.log", "--tree"]);
        dump.arg(self.victim.program().to_string()).arg("--images-dir").arg(&images);
        dump.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let cpu_before = usage::of_waited();
        let begun = Instant::now();
        let status = dump.status().context("starting criu")?;
        if !status.success() {
            let log = fs::read_to_string(images.join("dump.log")).unwrap_or_default();
            bail!("criu dump: {status}: {}", last_error(&log));
        }
        let bytes_stored = make_durable(&images)?;
        let durable_us = micros(begun.elapsed());
        let cpu_us = usage::of_waited().saturating_sub(cpu_before);
        let stats = fs::read(images.join("stats-dump")).unwrap_or_default();
        Ok(Some(Taken {
            kind: Kind::Full,
            durable_us,
            told_us: frozen_us(&stats),
            bytes_stored,
            pages: None,
            cpu_us: Some(cpu_us),
        }))
    }

    fn forget(&mut self) -> Result<()> {
        let images = self.room.images();
        fs::remove_dir_all(&images).with_context(|| images.display().to_string())
    }
}

/// The last line of its log that is an error.
fn last_error(log: &str) -> &str {
    log.lines().rfind(|line| line.contains("Error")).unwrap_or("its log has no error").trim()
}

/// `frozen_time` of a file `stats-dump`: two magic numbers, the length of what follows, and a message of Protocol Buffers.
fn frozen_us(file: &[u8]) -> Option<u64> {
    let word = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?));
    if [word(0)?, word(4)?] != MAGIC {
        return None;
    }
    let message = file.get(12..)?.get(..usize::try_from(word(8)?).ok()?)?;
    match field(field(message, DUMP)?.bytes()?, FROZEN_TIME)? {
        Field::Number(us) => Some(us),
        Field::Bytes(_) => None,
    }
}

/// What a field of a message holds.
#[derive(Clone, Copy)]
enum Field<'m> {
    Number(u64),
    Bytes(&'m [u8]),
}

impl<'m> Field<'m> {
    fn bytes(self) -> Option<&'m [u8]> {
        match self {
            Field::Bytes(bytes) => Some(bytes),
            Field::Number(_) => None,
        }
    }
}

/// The first field with that number; none of a message with other types than numbers and bytes, or that is cut off.
fn field(mut message: &[u8], number: u64) -> Option<Field<'_>> {
    loop {
        let key = varint(&mut message)?;
        let value = match key & 7 {
            0 => Field::Number(varint(&mut message)?),
            2 => {
                let length = varint(&mut message)?;
                let (bytes, rest) = message.split_at_checked(usize::try_from(length).ok()?)?;
                message = rest;
                Field::Bytes(bytes)
            }
            _ => return None,
        };
        if key >> 3 == number {
            return Some(value);
        }
    }
}

/// A number of seven bits a byte, the lowest first; its bytes are taken off.
fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// freezing_time 300, frozen_time 401 234, memdump_time 5; the entry, and the file.
    fn file() -> Vec<u8> {
        let dump: [u8; 9] = [0x08, 0xac, 0x02, 0x10, 0xd2, 0xbe, 0x18, 0x18, 0x05];
        let entry = [&[0x0a, dump.len() as u8][..], &dump].concat();
        let words = [MAGIC[0], MAGIC[1], entry.len() as u32].map(u32::to_le_bytes);
        [words.concat(), entry].concat()
    }

    #[test]
    fn the_frozen_time_is_found() {
        assert_eq!(frozen_us(&file()), Some(401_234));
    }

    #[test]
    fn what_is_cut_off_or_of_another_kind_has_none() {
        let file = file();
        for end in 0..file.len() {
            assert_eq!(frozen_us(&file[..end]), None, "{end}");
        }
        let mut other = file.clone();
        other[4] ^= 1;
        assert_eq!(frozen_us(&other), None);
        // Its one field is that of a restore.
        let mut restore = file;
        restore[12] = 0x12;
        assert_eq!(frozen_us(&restore), None);
    }

    #[test]
    fn the_last_error_is_what_is_told() {
        let log = "(00.1) fine\n(00.2) Error (criu/files.c:1): no\n(00.3) Error (criu/cr-dump.c:2): Dumping FAILED.\nend\n";
        assert_eq!(last_error(log), "(00.3) Error (criu/cr-dump.c:2): Dumping FAILED.");
        assert_eq!(last_error(""), "its log has no error");
    }
}
