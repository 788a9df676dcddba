//! PAGEMAP_SCAN (Linux 6.7): which pages of an address space were written, and write-protecting them again,
//! in one walk (Documentation/admin-guide/mm/pagemap.rst).

use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Categories of a region (PAGE_IS_* of linux/fs.h).
pub const WP_ALLOWED: u64 = 1;
pub const WRITTEN: u64 = 1 << 1;
pub const FILE: u64 = 1 << 2;
pub const PRESENT: u64 = 1 << 3;
pub const SWAPPED: u64 = 1 << 4;
pub const PFN_ZERO: u64 = 1 << 5;
/// Linux 6.15; never reported before.
pub const GUARD: u64 = 1 << 8;

const FLAG_WP_MATCHING: u64 = 1;
const IOCTL: u64 = 3 << 30 | 96 << 16 | (b'f' as u64) << 8 | 16;

/// Pages with the same of the categories WP_ALLOWED, WRITTEN and GUARD: [start, end) in bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    pub categories: u64,
}

/// Which pages a scan reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter {
    /// All of these.
    pub all: u64,
    /// At least one of these (0: no condition).
    pub any: u64,
    /// Categories of `all` and `any` that are meant the other way round.
    pub inverted: u64,
}

/// struct pm_scan_arg: 96 bytes.
#[repr(C)]
struct ScanArgs {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The page map of one process.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    buffer: Vec<Region>,
    /// Categories that are told of each region.
    told: u64,
}

impl From<File> for Pagemap {
    fn from(file: File) -> Self {
        Self { file, buffer: vec![Region::default(); 16 << 10], told: WP_ALLOWED | WRITTEN | GUARD }
    }
}

impl Pagemap {
    /// # Errors
    /// ENOENT when the process is gone, EACCES without the right to trace it.
    pub fn open(pid: Pid) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/pagemap")).map(Self::from)
    }

    /// Calls `each` for every region in [start, end) that `filter` matches, in order of address. With
    /// `protect`, the reported pages of registered mappings are write-protected (clean) from then on.
    ///
    /// # Errors
    /// ENOTTY where the kernel has no such call; ESRCH of an address space that is gone, where it does not just find nothing
    /// ([`Self::is_of_memory`]).
    pub fn scan(
        &mut self,
        start: u64,
        end: u64,
        filter: Filter,
        protect: bool,
        mut each: impl FnMut(Region),
    ) -> io::Result<()> {
        let mut at = start;
        while at < end {
            let mut args = ScanArgs {
                size: size_of::<ScanArgs>() as u64,
                flags: if protect { FLAG_WP_MATCHING } else { 0 },
                start: at,
                end,
                walk_end: 0,
                vec: self.buffer.as_mut_ptr() as u64,
                vec_len: self.buffer.len() as u64,
                max_pages: 0,
                category_inverted: filter.inverted,
                category_mask: filter.all,
                category_anyof_mask: filter.any,
                return_mask: self.told,
            };
            // SAFETY: `args` is the structure that the number names; `vec` covers `vec_len` regions of a
            // buffer that we own and borrow mutably; the kernel writes nothing else.
            let got = unsafe { libc::ioctl(self.file.as_raw_fd(), IOCTL, &raw mut args) };
            let got = match super::check(i64::from(got)) {
                // A kernel that does not know all of them.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && self.told & GUARD != 0 => {
                    self.told &= !GUARD;
                    continue;
                }
                got => got? as usize,
            };
            self.buffer[..got].iter().copied().for_each(&mut each);
            if args.walk_end <= at {
                return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
            }
            at = args.walk_end;
        }
        Ok(())
    }

    /// Calls `each` for the parts of [start, end) in mappings that no userfaultfd protects asynchronously, in order.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn unprotected(&mut self, start: u64, end: u64, each: impl FnMut(Region)) -> io::Result<()> {
        let told = std::mem::replace(&mut self.told, WP_ALLOWED);
        let filter = Filter { all: WP_ALLOWED, any: 0, inverted: WP_ALLOWED };
        let scanned = self.scan(start, end, filter, false, each);
        self.told = told;
        scanned
    }

    /// Whether the address space is there: kernels differ in whether a scan of one that is gone is an error, or finds nothing
    /// (`do_pagemap_scan` of fs/proc/task_mmu.c).
    pub fn is_of_memory(&self) -> bool {
        self.entries(0, 1).is_ok_and(|entries| !entries.is_empty())
    }

    /// The raw 64-bit entries of `count` pages from page number `first` (bit 63 present, 62 swapped,
    /// 61 file or shared, 56 exclusive, 55 soft-dirty); none of an address space that is gone.
    pub fn entries(&self, first: u64, count: usize) -> io::Result<Vec<u64>> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; count * 8];
        let got = self.file.read_at(&mut bytes, first * 8)?;
        Ok(bytes[..got]
            .chunks_exact(8)
            .map(|c| c.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b)))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_and_number_are_the_kernels() {
        assert_eq!(size_of::<ScanArgs>(), 96);
        assert_eq!(size_of::<Region>(), 24);
        assert_eq!(IOCTL, 0xc060_6610);
    }
}
