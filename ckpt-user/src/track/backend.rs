//! How dirty pages are found: chosen by trying, never by the kernel's version.

use crate::sys::own;
use crate::sys::pagemap::{Filter, Pagemap, WRITTEN};
use crate::sys::probe::{PAGE, Pages};
use crate::sys::uffd::{MODE_WP, TRACKING, USER_MODE_ONLY, Uffd};
use std::io;
use std::ops::Range;
use std::sync::OnceLock;

/// A way of finding dirty pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The PAGEMAP_SCAN ioctl with asynchronous write protection (Linux 6.7).
    PagemapScan,
    /// The soft-dirty bit of /proc/PID/pagemap.
    SoftDirty,
    /// None: each checkpoint is a full one.
    Full,
}

/// Whether this kernel write-protects memory without somebody who serves the faults (Linux 6.7). Asked once.
pub fn protects() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    let ask = || {
        let ours = Uffd::of_self(USER_MODE_ONLY).or_else(|_| Uffd::of_self(0));
        ours.and_then(|fd| Uffd::handshake(fd, TRACKING)).is_ok()
    };
    *KNOWN.get_or_init(ask)
}

/// The `wanted` way or the best one, down to full checkpoints; one warning says what is done without.
pub fn choose(wanted: Option<Backend>) -> Backend {
    if wanted == Some(Backend::Full) {
        return Backend::Full;
    }
    let scan = if wanted == Some(Backend::SoftDirty) { None } else { Some(pagemap_scan()) };
    if matches!(scan, Some(Ok(()))) {
        return Backend::PagemapScan;
    }
    let soft = soft_dirty();
    let why = |result: Option<io::Result<()>>| result.and_then(Result::err).map(|e| e.to_string());
    match &soft {
        Ok(()) if wanted == Some(Backend::SoftDirty) => {}
        Ok(()) => log::warn!(
            "dirty pages are found by soft-dirty bits ({}): each look stops the program shortly",
            why(scan).unwrap_or_default()
        ),
        Err(error) => log::warn!(
            "every checkpoint is a full one: this kernel cannot tell which pages were written \
             (soft-dirty: {error}{}); Linux 6.7 or newer can",
            why(scan).map(|e| format!("; PAGEMAP_SCAN: {e}")).unwrap_or_default()
        ),
    }
    if soft.is_ok() { Backend::SoftDirty } else { Backend::Full }
}

/// Asks both ways, for a process that is forked of this one and may not look at itself any more.
pub fn note() {
    protects();
    KNOWN.get_or_init(|| {
        let number = |result: io::Result<()>| result.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO));
        (number(pagemap_scan()), number(soft_dirty()))
    });
}

/// What [`note`] has found, as error numbers.
static KNOWN: OnceLock<(Result<(), i32>, Result<(), i32>)> = OnceLock::new();

fn known(which: impl Fn(&(Result<(), i32>, Result<(), i32>)) -> Result<(), i32>) -> Option<io::Result<()>> {
    KNOWN.get().map(|both| which(both).map_err(io::Error::from_raw_os_error))
}

/// Protects four pages, writes to one, and looks which has been written to.
///
/// # Errors
/// What this kernel lacks.
pub fn pagemap_scan() -> io::Result<()> {
    if let Some(known) = known(|both| both.0) {
        return known;
    }
    let pages = Pages::new(4)?;
    let uffd = Uffd::handshake(Uffd::of_self(USER_MODE_ONLY).or_else(|_| Uffd::of_self(0))?, TRACKING)?;
    uffd.register(pages.address(), pages.bytes(), MODE_WP)?;
    let mut pagemap = Pagemap::from(own::pagemap()?);
    written(&mut pagemap, &pages)?;
    let before = written(&mut pagemap, &pages)?;
    pages.write(1);
    let after = written(&mut pagemap, &pages)?;
    let second = pages.address() + PAGE as u64;
    match (before.as_slice(), after.as_slice()) {
        ([], [one]) if *one == (second..second + PAGE as u64) => Ok(()),
        _ => Err(io::Error::other(format!(
            "one page was written to, the kernel says {after:x?}, before {before:x?}"
        ))),
    }
}

/// Addresses that were written to since the last call.
fn written(pagemap: &mut Pagemap, pages: &Pages) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let filter = Filter { all: WRITTEN, ..Filter::default() };
    let end = pages.address() + pages.bytes();
    pagemap.scan(pages.address(), end, filter, true, |region| found.push(region.start..region.end))?;
    Ok(found)
}

/// Clears the marks, writes to the second page, and looks at both.
///
/// # Errors
/// What this kernel lacks.
pub fn soft_dirty() -> io::Result<()> {
    const MARK: u64 = 1 << 55;
    if let Some(known) = known(|both| both.1) {
        return known;
    }
    let pages = Pages::new(2)?;
    let pagemap = Pagemap::from(own::pagemap()?);
    let marks = || -> io::Result<Vec<bool>> {
        let entries = pagemap.entries(pages.address() / PAGE as u64, 2)?;
        Ok(entries.iter().map(|entry| entry & MARK != 0).collect())
    };
    own::clear_soft_dirty()?;
    let before = marks()?;
    pages.write(1);
    if before == [false, false] && marks()? == [false, true] {
        Ok(())
    } else {
        Err(io::Error::other("a page that was written to is not marked"))
    }
}
