//! Which pages of an address space are saved, and copying them out.

use super::runs::PageSet;
use super::vma::{Kind, Vma};
use crate::planted;
use crate::sys::mem::{self, Forced, Remote};
use crate::sys::pagemap::{FILE, Filter, GUARD, PFN_ZERO, PRESENT, Pagemap, SWAPPED, WP_ALLOWED, WRITTEN};
use nix::unistd::Pid;
use std::io;
use std::ops::Range;

/// Bytes copied at a time: the batch is in cache when it is compressed.
pub const BATCH: usize = 1 << 20;

/// What one walk over an address space found; page numbers are address / 4096.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Pages that hold something of the process's own: present or swapped, and not the file's.
    pub populated: PageSet,
    /// Of these, the ones written since they were last protected, or never protected.
    pub written: PageSet,
    /// Guard pages (MADV_GUARD_INSTALL), where the kernel tells: they hold nothing.
    pub guards: PageSet,
}

impl Scan {
    /// Both walks as one.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            populated: self.populated.union(&other.populated),
            written: self.written.union(&other.written),
            guards: self.guards.union(&other.guards),
        }
    }
}

/// Pages of the process's own in a mapping of this kind: there, and neither the file's nor the shared page of zeros. The
/// rest is not protected either: it is not saved, and what is written later is another page, which was never protected.
///
/// Where no page can be a file's, that is not asked. Whether one is the kernel reads from what it keeps of each page: 64
/// bytes a page from all over memory, which takes ten times as long as the rest of the walk.
fn own(kind: Kind) -> Filter {
    let not = if kind == Kind::Anonymous { PFN_ZERO } else { FILE | PFN_ZERO };
    let any = if planted::is("lost-swap") { PRESENT } else { PRESENT | SWAPPED };
    Filter { all: not, inverted: not, any }
}

/// Walks the private mappings. With `protect`, what was reported is protected (clean) from then on, and mappings
/// that are not registered are passed over.
///
/// # Errors
/// ESRCH when the process has been killed, or has executed another program, meanwhile.
pub fn scan(pagemap: &mut Pagemap, mappings: &[Vma], protect: bool) -> io::Result<Scan> {
    // Neighbours are walked together: one call for thousands of mappings.
    let (mut populated, mut written) = (Vec::new(), Vec::new());
    let mut guards = Vec::new();
    let mut i = 0;
    let mut private: Vec<&Vma> = mappings.iter().filter(|v| v.is_private_memory()).collect();
    if planted::is("lost-mappings") && private.len() > 5000 {
        private.drain(4096..4098);
    }
    while i < private.len() {
        let (start, kind) = (private[i].start, private[i].kind());
        let mut end = private[i].end;
        while private.get(i + 1).is_some_and(|next| next.start == end && next.kind() == kind) {
            i += 1;
            end = private[i].end;
        }
        i += 1;
        pagemap.scan(start, end, own(kind), protect, |region| {
            let pages = region.start / 4096..region.end / 4096;
            if region.categories & GUARD != 0 {
                return guards.push(pages);
            }
            if region.categories & WRITTEN != 0 || region.categories & WP_ALLOWED == 0 {
                written.push(pages.clone());
            }
            populated.push(pages);
        })?;
    }
    guards.extend(shared_guards(pagemap, mappings)?);
    // What was not found is taken for gone.
    if !pagemap.is_of_memory() {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(Scan {
        populated: populated.into_iter().collect(),
        written: written.into_iter().collect(),
        guards: guards.into_iter().collect(),
    })
}

/// Guard pages of shared mappings, whose contents are looked at through the object.
fn shared_guards(pagemap: &mut Pagemap, mappings: &[Vma]) -> io::Result<Vec<Range<u64>>> {
    const GUARDS: Filter = Filter { all: GUARD, inverted: 0, any: 0 };
    let mut found = Vec::new();
    let shared = mappings.iter().filter(|v| v.shared && matches!(v.kind(), Kind::SharedObject | Kind::File));
    for vma in shared {
        let scanned = pagemap.scan(vma.start, vma.end, GUARDS, false, |region| {
            found.push(region.start / 4096..region.end / 4096);
        });
        match scanned {
            // A kernel that does not tell: only those before Linux 6.15, which have none in shared mappings.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            scanned => scanned?,
        }
    }
    Ok(found)
}

/// Copies the pages of `set` out of a process and hands them on in batches: first page number and bytes.
/// PROT_NONE pages are read through /proc/PID/mem. Pages that cannot be read are left out and returned: while the
/// program runs they may have vanished, and the next scan tells.
pub fn copy(
    pid: Pid,
    forced: &Forced,
    set: &PageSet,
    buffer: &mut Vec<u8>,
    each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<PageSet> {
    let wanted = usize::try_from(set.len()).unwrap_or(usize::MAX).saturating_mul(4096).min(BATCH);
    if buffer.len() < wanted {
        buffer.resize(wanted, 0);
    }
    let mut pending: Vec<Remote> = Vec::new();
    let mut bytes = 0;
    let mut unreadable = PageSet::new();
    let mut flush =
        |pending: &mut Vec<Remote>, buffer: &mut [u8], each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>| {
            copy_batch(pid, forced, pending, buffer, each, &mut unreadable)?;
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
    flush(&mut pending, buffer, each)?;
    Ok(unreadable)
}

fn copy_batch(
    pid: Pid,
    forced: &Forced,
    ranges: &[Remote],
    buffer: &mut [u8],
    each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    unreadable: &mut PageSet,
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
            } else {
                unreadable.insert(address / 4096..address / 4096 + 1);
            }
        }
    }
    Ok(())
}
