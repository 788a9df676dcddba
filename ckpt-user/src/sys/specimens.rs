//! Mappings of our own, one of each kind that programs commonly have: what this kernel's smaps and its `vm_flags` say
//! of them teaches which bit has which name ([`crate::memory::flags`]).
//!
//! Each lies between two pages that nobody may touch, so none merges with a neighbour, and nobody else knows them: they
//! stay as they are until they are dropped. A kind that this kernel or our limits refuse stays a plain page.

use super::check;
use super::probe::PAGE;
use super::uffd::{FEATURE_WP_ASYNC, FEATURE_WP_UNPOPULATED, MODE_MISSING, MODE_WP, USER_MODE_ONLY, Uffd};
use std::io;
use std::ops::Range;
use std::ptr;

const PLAIN: i32 = libc::MAP_PRIVATE;
const WRITABLE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ALL: i32 = WRITABLE | libc::PROT_EXEC;

/// Protection, flags of mmap(2) besides MAP_ANONYMOUS, advice of madvise(2).
const KINDS: [(i32, i32, Option<i32>); 14] = [
    (WRITABLE, PLAIN, None),
    (ALL, PLAIN, None),
    (WRITABLE, libc::MAP_SHARED, None),
    (WRITABLE, PLAIN | libc::MAP_NORESERVE, None),
    (WRITABLE, PLAIN | libc::MAP_GROWSDOWN, None),
    (WRITABLE, PLAIN | libc::MAP_LOCKED, None),
    (WRITABLE, PLAIN, Some(libc::MADV_DONTFORK)),
    (WRITABLE, PLAIN, Some(libc::MADV_DONTDUMP)),
    (WRITABLE, PLAIN, Some(libc::MADV_WIPEONFORK)),
    (WRITABLE, PLAIN, Some(libc::MADV_HUGEPAGE)),
    (WRITABLE, PLAIN, Some(libc::MADV_NOHUGEPAGE)),
    (WRITABLE, PLAIN, Some(libc::MADV_MERGEABLE)),
    (WRITABLE, PLAIN, Some(libc::MADV_SEQUENTIAL)),
    (WRITABLE, PLAIN, Some(libc::MADV_RANDOM)),
];

/// Modes that two more pages are watched in.
const WATCHED: [u64; 2] = [MODE_WP, MODE_MISSING];

const PAGES: usize = 2 * (KINDS.len() + WATCHED.len()) + 1;

/// The mappings, until they are dropped.
pub struct Specimens {
    start: *mut u8,
    _uffd: Option<Uffd>,
}

impl Specimens {
    /// # Errors
    /// mmap(2) failed.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a new mapping where the kernel likes; it replaces nothing.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), PAGES * PAGE, libc::PROT_NONE, PLAIN | libc::MAP_ANONYMOUS, -1, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut specimens = Self { start: start.cast(), _uffd: None };
        for (index, (protection, flags, advice)) in KINDS.into_iter().enumerate() {
            specimens.place(index, protection, flags, advice);
        }
        specimens._uffd = specimens.watch().ok();
        Ok(specimens)
    }

    /// Where they lie.
    pub fn range(&self) -> Range<u64> {
        self.start as u64..self.start as u64 + (PAGES * PAGE) as u64
    }

    /// The page of specimen `index`.
    fn page(&self, index: usize) -> *mut libc::c_void {
        debug_assert!(2 * index + 1 < PAGES);
        self.start.wrapping_add((2 * index + 1) * PAGE).cast()
    }

    fn place(&self, index: usize, protection: i32, flags: i32, advice: Option<i32>) {
        let flags = flags | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: replaces, or advises on, one page of the reservation that `new` made, to which no reference exists.
        // What is refused stays as it was.
        unsafe {
            libc::mmap(self.page(index), PAGE, protection, flags, -1, 0);
            advice.map(|advice| libc::madvise(self.page(index), PAGE, advice));
        }
    }

    fn watch(&self) -> io::Result<Uffd> {
        let fd = Uffd::of_self(USER_MODE_ONLY).or_else(|_| Uffd::of_self(0))?;
        let uffd = Uffd::handshake(fd, FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED)?;
        for (index, mode) in (KINDS.len()..).zip(WATCHED) {
            self.place(index, WRITABLE, PLAIN, None);
            uffd.register(self.page(index) as u64, PAGE as u64, mode)?;
        }
        Ok(uffd)
    }
}

impl Drop for Specimens {
    fn drop(&mut self) {
        // SAFETY: the reservation that `new` made, and what lies in it; nothing borrows from it.
        let _ = check(i64::from(unsafe { libc::munmap(self.start.cast(), PAGES * PAGE) }));
    }
}
