//! The soft-dirty bit of /proc/PID/pagemap (kernels before 6.7, with CONFIG_MEM_SOFT_DIRTY; Documentation/
//! admin-guide/mm/soft-dirty.rst).
//!
//! Reading and clearing are two steps: a write between them would be lost. So every round is a short stop.
//!
//! ```text
//!  stop ─▶ read the bits ─▶ clear them ─▶ thaw ─▶ copy beside the program ─▶ … ─▶ freeze
//! ```

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

/// Clears the bits of all pages.
pub fn clear(pid: Pid) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "4")
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
