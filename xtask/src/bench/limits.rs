//! What the machine itself reaches, in the same run: a copy of memory, the disk, lz4.

use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use nix::fcntl::OFlag;
use serde::Serialize;

use super::case::{Case, Content};
use super::contender::micros;

/// Two of them are beyond any cache.
const BUFFER: u64 = 256 << 20;
const CHUNK: usize = 4 << 20;
/// Of what is written past the page cache.
const ALIGNMENT: usize = 4096;
/// What each thread compresses, in blocks as ckptbpf has them (`ckpt-user/src/image/block.rs`).
const TO_COMPRESS: usize = 64 << 20;
const BLOCK: usize = 64 << 10;
const WORDS: usize = 512;

/// One number a round.
#[derive(Debug, Default, Serialize)]
pub struct Limits {
    /// A copy of as much memory as the program has.
    pub memcpy_us: Vec<u64>,
    /// One file, written in a row and synced.
    pub disk_bytes_per_s: Vec<u64>,
    /// Whether that went past the page cache.
    pub disk_is_direct: bool,
    /// What lz4 takes on all processors, where the memory is compressible.
    pub lz4_bytes_per_s: Vec<u64>,
}

impl Limits {
    /// Measures once more, with a file of at most `disk` bytes in `folder`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn measure(&mut self, case: &Case, folder: &Path, disk: u64) -> Result<()> {
        self.memcpy_us.push(micros(memcpy(case.bytes())));
        let (speed, is_direct) = write(&folder.join("disk"), disk.min(case.bytes()))?;
        self.disk_bytes_per_s.push(speed);
        self.disk_is_direct = is_direct;
        if case.content == Content::Compressible {
            self.lz4_bytes_per_s.push(lz4());
        }
        Ok(())
    }
}

/// Copies that many bytes from one warm buffer to another, again and again where they are smaller.
fn memcpy(bytes: u64) -> Duration {
    let size = bytes.min(BUFFER) as usize;
    let (from, mut to) = (vec![1_u8; size], vec![2_u8; size]);
    to.copy_from_slice(black_box(&from));
    let begun = Instant::now();
    for _ in 0..bytes.div_ceil(size as u64) {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
    }
    begun.elapsed()
}

/// Bytes a second, and whether they went past the page cache, which not every file system allows.
fn write(path: &Path, bytes: u64) -> Result<(u64, bool)> {
    let attempt = |flags: OFlag| {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).custom_flags(flags.bits());
        options.open(path).and_then(|file| write_to(&file, bytes))
    };
    let direct = attempt(OFlag::O_DIRECT);
    let is_direct = direct.is_ok();
    let written = direct.or_else(|_| attempt(OFlag::empty()));
    let removed = fs::remove_file(path);
    let time = written.and_then(|time| removed.map(|()| time)).with_context(|| path.display().to_string())?;
    Ok((per_second(bytes, time), is_direct))
}

fn write_to(mut file: &File, bytes: u64) -> std::io::Result<Duration> {
    let mut room = vec![0_u8; CHUNK + ALIGNMENT];
    let at = room.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    let chunk = &mut room[at..at + CHUNK];
    let mut seed = 7;
    for word in chunk.chunks_exact_mut(8) {
        word.copy_from_slice(&next_random(&mut seed).to_le_bytes());
    }
    let begun = Instant::now();
    for _ in 0..bytes.div_ceil(CHUNK as u64) {
        file.write_all(chunk)?;
    }
    file.sync_all()?;
    Ok(begun.elapsed())
}

/// Bytes a second that all processors together compress.
fn lz4() -> u64 {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let memory = compressible(TO_COMPRESS);
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| compress(&memory));
        }
    });
    per_second((threads * TO_COMPRESS) as u64, begun.elapsed())
}

/// Bytes that are left.
fn compress(memory: &[u8]) -> usize {
    let mut compressed = vec![0; get_maximum_output_size(BLOCK)];
    let mut table = CompressTable::large();
    let sizes = memory.chunks(BLOCK).map(|block| {
        // It fits: the buffer has room for the worst.
        let size = compress_into_with_table(block, &mut compressed, &mut table).unwrap_or(block.len());
        black_box(&compressed);
        size
    });
    sizes.sum()
}

/// Memory as the program has it (`tests/victims/bench.c`).
fn compressible(size: usize) -> Vec<u8> {
    let mut memory = vec![0; size];
    let mut seed = 7;
    for (at, page) in memory.chunks_exact_mut(8 * WORDS).enumerate().filter(|(at, _)| at % 16 != 0) {
        for (i, word) in page.chunks_exact_mut(8).enumerate() {
            let value = if i % 4 == 0 { next_random(&mut seed) } else { at as u64 };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    memory
}

/// xorshift64*.
fn next_random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    (bytes as f64 / time.as_secs_f64().max(1e-9)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lz4_makes_a_third_of_what_is_called_compressible() {
        let memory = compressible(1 << 20);
        let left = compress(&memory);
        assert!((memory.len() / 4..memory.len() / 2).contains(&left), "{left} of {}", memory.len());
    }

    #[test]
    fn a_file_is_written_and_gone() {
        let path = std::env::temp_dir().join(format!("ckptbpf-limits-{}", std::process::id()));
        let (speed, _) = write(&path, CHUNK as u64 + 1).unwrap();
        assert!(speed > 0 && !path.exists());
    }

    #[test]
    fn a_speed_is_of_a_second() {
        assert_eq!(per_second(1000, Duration::from_millis(500)), 2000);
    }
}
