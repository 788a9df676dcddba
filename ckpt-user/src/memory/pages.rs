//! Which pages of an address space are saved, and copying them out.

use super::runs::PageSet;
use super::vma::Vma;
use crate::sys::mem::{self, Forced, Remote};
use crate::sys::pagemap::{FILE, Filter, PFN_ZERO, PRESENT, Pagemap, SWAPPED, WP_ALLOWED, WRITTEN};
use nix::unistd::Pid;
use std::io;

/// Bytes copied at a time: the batch is in cache when it is compressed.
pub const BATCH: usize = 1 << 20;

/// What one walk over an address space found; page numbers are address / 4096.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Pages that hold something of the process's own: present or swapped, and not the file's.
    pub populated: PageSet,
    /// Of these, the ones written since they were last protected, or never protected.
    pub written: PageSet,
}

/// Walks the private mappings. With `protect`, what was reported is protected (clean) from then on.
///
/// # Errors
/// ENOMEM when the process has executed another program meanwhile.
pub fn scan(pagemap: &mut Pagemap, mappings: &[Vma], protect: bool) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let filter = Filter { any: PRESENT | SWAPPED, ..Filter::default() };
    // Neighbours are walked together: one call for thousands of mappings.
    let mut populated = Vec::new();
    let mut written = Vec::new();
    let mut i = 0;
    let private: Vec<&Vma> = mappings.iter().filter(|v| v.is_private_memory()).collect();
    while i < private.len() {
        let start = private[i].start;
        let mut end = private[i].end;
        while private.get(i + 1).is_some_and(|next| next.start == end) {
            i += 1;
            end = private[i].end;
        }
        i += 1;
        pagemap.scan(start, end, filter, protect, |region| {
            let is_own = region.categories & FILE == 0 && region.categories & PFN_ZERO == 0;
            if !is_own {
                return;
            }
            let pages = region.start / 4096..region.end / 4096;
            populated.push(pages.clone());
            if region.categories & WRITTEN != 0 || region.categories & WP_ALLOWED == 0 {
                written.push(pages);
            }
        })?;
    }
    scan.populated = populated.into_iter().collect();
    scan.written = written.into_iter().collect();
    Ok(scan)
}

/// Copies the pages of `set` out of a process and hands them on in batches: first page number and bytes.
/// PROT_NONE pages are read through /proc/PID/mem. Pages that vanish while the program runs are left out:
/// their next scan tells.
pub fn copy(
    pid: Pid,
    forced: &Forced,
    set: &PageSet,
    buffer: &mut Vec<u8>,
    each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    buffer.resize(BATCH, 0);
    let mut pending: Vec<Remote> = Vec::new();
    let mut bytes = 0;
    let flush =
        |pending: &mut Vec<Remote>, buffer: &mut [u8], each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>| {
            copy_batch(pid, forced, pending, buffer, each)?;
            pending.clear();
            io::Result::Ok(())
        };
    for run in set.runs() {
        let mut at = run.start * 4096;
        let end = run.end * 4096;
        while at < end {
            let len = ((end - at) as usize).min(BATCH - bytes);
            pending.push(Remote { address: at, len });
            bytes += len;
            at += len as u64;
            if bytes == BATCH || pending.len() == mem::MAX_IOVECS {
                flush(&mut pending, buffer, each)?;
                bytes = 0;
            }
        }
    }
    flush(&mut pending, buffer, each)
}

fn copy_batch(
    pid: Pid,
    forced: &Forced,
    ranges: &[Remote],
    buffer: &mut [u8],
    each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    if ranges.is_empty() {
        return Ok(());
    }
    let total: usize = ranges.iter().map(|r| r.len).sum();
    let complete = match mem::read_ranges(pid, ranges, &mut buffer[..total]) {
        Ok(got) => got == total,
        Err(e) if e.raw_os_error() == Some(libc::EFAULT) => false,
        Err(e) => return Err(e),
    };
    let mut at = 0;
    for range in ranges {
        let bytes = &mut buffer[at..at + range.len];
        at += range.len;
        if complete {
            each(range.address / 4096, bytes)?;
            continue;
        }
        for (i, page) in bytes.chunks_exact_mut(4096).enumerate() {
            let address = range.address + i as u64 * 4096;
            if mem::read(pid, address, page).is_ok() || forced.read(address, page).is_ok() {
                each(address / 4096, page)?;
            }
        }
    }
    Ok(())
}
