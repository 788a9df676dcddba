//! The soft-dirty bit of /proc/PID/pagemap (kernels before 6.7, with CONFIG_MEM_SOFT_DIRTY; Documentation/
//! admin-guide/mm/soft-dirty.rst).
//!
//! Reading and clearing are two steps: a write between them would be lost. So every round is a short stop.
//!
//! ```text
//!  stop ─▶ read the bits ─▶ clear them ─▶ thaw ─▶ copy beside the program ─▶ … ─▶ freeze
//! ```
//!
//! **A page on its way to another frame** (compaction, NUMA balancing, move_pages(2)) has an entry in the page table that remembers
//! whether it may be written. `clear_soft_dirty` (fs/proc/task_mmu.c) takes the bit off such an entry and leaves it that right, with
//! which `remove_migration_pte` (mm/migrate.c) puts the page back: a write to it then meets no fault, and sets no bit. So it was
//! before Linux 6.1, where a page that is dirty comes back with its bit (2e3468778dbe). The entry keeps the bit of a write that
//! comes between clearing and the way, so only the moment of clearing counts: bits are cleared twice, and again while pages
//! are being moved. A page escapes only if it is on its way each time.

use super::space::Space;
use crate::freeze;
use crate::memory::pages::Scan;
use crate::memory::runs::PageSet;
use crate::memory::vma::Vma;
use crate::refusal::{Reading, Refusal};
use crate::sys::pagemap::Pagemap;
use crate::task::iterators::Kernel;
use nix::unistd::Pid;
use std::io;
use std::time::{Duration, Instant};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// Of a file, or shared.
const FILE: u64 = 1 << 61;
/// Mapped by this process alone.
const EXCLUSIVE: u64 = 1 << 56;
const SOFT_DIRTY: u64 = 1 << 55;

/// Entries read at a time: 512 KiB of them cover 256 MiB.
const CHUNK: u64 = 64 << 10;

/// Walks the private mappings of a process; unless `marked`, the bits mean nothing and all counts as written.
///
/// # Errors
/// ESRCH when the process has been killed, or has executed another program, meanwhile.
pub fn scan(pagemap: &Pagemap, mappings: &[Vma], marked: bool) -> io::Result<Scan> {
    let (mut populated, mut written) = (Vec::new(), Vec::new());
    for pages in mappings.iter().filter(|v| v.is_private_memory()).map(Vma::pages) {
        let mut at = pages.start;
        while at < pages.end {
            let entries = pagemap.entries(at, (pages.end - at).min(CHUNK) as usize)?;
            if entries.is_empty() {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            for (page, &entry) in (at..).zip(&entries) {
                if let Some(is_written) = classify(entry) {
                    populated.push(page..page + 1);
                    written.extend((is_written || !marked).then_some(page..page + 1));
                }
            }
            at += entries.len() as u64;
        }
    }
    Ok(Scan {
        populated: populated.into_iter().collect(),
        written: written.into_iter().collect(),
        ..Scan::default()
    })
}

/// Whether a page of the process's own has been written; `None` for what is absent or the file's.
///
/// A page that is dropped and then read becomes the shared zero page without any mark. It shows as present and
/// not exclusive, as does what a fork still shares: both count as written.
fn classify(entry: u64) -> Option<bool> {
    if entry & (PRESENT | SWAPPED) == 0 || entry & FILE != 0 {
        return None;
    }
    let may_be_zero_page = entry & PRESENT != 0 && entry & EXCLUSIVE == 0;
    Some(entry & SOFT_DIRTY != 0 || may_be_zero_page)
}

/// How long the bits are cleared again and again, at most, on a machine that never ceases to move pages.
const PATIENCE: Duration = Duration::from_millis(5);

/// Clears the bits of all pages of a process that stands still.
///
/// # Errors
/// EINVAL where the kernel has no such bits.
pub fn clear(pid: Pid) -> io::Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    clear_at_rest(|| std::fs::write(&path, "4"), moves, PATIENCE)
}

/// Clears twice, and again until no page was moved from before one time to after the next.
fn clear_at_rest(
    mut clear: impl FnMut() -> io::Result<()>,
    mut moves: impl FnMut() -> Option<u64>,
    patience: Duration,
) -> io::Result<()> {
    let begun = Instant::now();
    let mut before = moves();
    clear()?;
    loop {
        clear()?;
        let now = moves();
        if now == before || begun.elapsed() >= patience {
            return Ok(());
        }
        before = now;
    }
}

/// How many pages have been moved on this machine, or could not be; none where the kernel moves none.
fn moves() -> Option<u64> {
    std::fs::read_to_string("/proc/vmstat").ok().and_then(|text| moves_in(&text))
}

fn moves_in(vmstat: &str) -> Option<u64> {
    let count = |name: &str| {
        let number = vmstat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        number.and_then(|number| number.trim().parse::<u64>().ok())
    };
    Some(count("pgmigrate_success")?.wrapping_add(count("pgmigrate_fail")?))
}

/// One round: what each space has to copy, taken while the tree below `root` stands still.
///
/// # Errors
/// When it does not stand still; nothing was changed.
pub fn round(root: Pid, spaces: &mut [Space], kernel: &Kernel) -> Result<Vec<(usize, PageSet)>, Refusal> {
    let tree = freeze::freeze(root, kernel)?;
    let mut found = Vec::new();
    for (index, space) in spaces.iter_mut().enumerate() {
        let is_stopped = tree.processes.iter().any(|p| p.pid == space.pid);
        if space.soft_dirty && is_stopped && space.is_current() {
            let mappings = space.mappings().reading(space.pid, "maps")?;
            found.push((index, space.round(&mappings).reading(space.pid, "the page map")?));
        }
    }
    tree.thaw();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Clears bits while a page is on its way over the first `times` of that; whether the page may be written without
    /// a fault then, and how often they were cleared.
    fn cleared(times: u64, patience: Duration) -> (bool, u64) {
        let (is_writable, landed, count) = (Cell::new(true), Cell::new(0), Cell::new(0));
        let clear = || {
            count.set(count.get() + 1);
            match count.get() <= times {
                true => landed.set(landed.get() + 1),
                false => is_writable.set(false),
            }
            Ok(())
        };
        clear_at_rest(clear, || Some(landed.get()), patience).unwrap();
        (is_writable.get(), count.get())
    }

    #[test]
    fn a_page_on_its_way_while_bits_are_cleared_does_not_escape() {
        let long = Duration::from_secs(60);
        assert_eq!(cleared(0, long), (false, 2));
        for times in 1..20 {
            let (is_writable, count) = cleared(times, long);
            assert!(!is_writable && count > times, "{times}: {count}");
        }
        // On a machine that never ceases the program is not kept for ever.
        assert_eq!(cleared(u64::MAX, Duration::ZERO), (true, 2));
        let mut failing = 0;
        let failed = clear_at_rest(
            || {
                failing += 1;
                Err(io::ErrorKind::InvalidInput.into())
            },
            || None,
            long,
        );
        assert_eq!((failed.unwrap_err().kind(), failing), (io::ErrorKind::InvalidInput, 1));
    }

    #[test]
    fn moves_of_pages_are_counted_where_there_are_any() {
        let text = "nr_free_pages 7\npgmigrate_success 3\npgmigrate_fail 4\npgmigrate_success_more 9\n";
        assert_eq!(moves_in(text), Some(7));
        assert_eq!(moves_in("nr_free_pages 7\n"), None);
    }

    #[test]
    fn the_zero_page_of_a_dropped_page_is_not_clean() {
        assert_eq!(classify(0), None);
        assert_eq!(classify(SOFT_DIRTY), None, "a hole of a new mapping");
        assert_eq!(classify(PRESENT | FILE | SOFT_DIRTY), None);
        assert_eq!(classify(PRESENT | EXCLUSIVE), Some(false));
        assert_eq!(classify(PRESENT | EXCLUSIVE | SOFT_DIRTY), Some(true));
        assert_eq!(classify(PRESENT), Some(true));
        assert_eq!(classify(SWAPPED), Some(false));
        assert_eq!(classify(SWAPPED | SOFT_DIRTY), Some(true));
    }

    #[test]
    fn unmarked_memory_is_populated_and_written() {
        let pages = crate::sys::probe::Pages::new(3).unwrap();
        let vma = Vma { start: pages.address(), end: pages.address() + pages.bytes(), ..Vma::default() };
        let scan = scan(&Pagemap::open(Pid::this()).unwrap(), std::slice::from_ref(&vma), false).unwrap();
        assert_eq!(scan.populated, std::iter::once(vma.pages()).collect());
        assert_eq!(scan.written, scan.populated);
    }
}
