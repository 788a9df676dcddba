//! The machine's pool of huge pages (hugetlb), which is one for everybody: whoever sets it is alone.

use std::fs::{File, read_to_string, write};
use std::io;

/// The pool as it was, once this is dropped.
pub struct HugePages {
    pool: String,
    before: String,
    /// Held over processes too: the file is locked.
    _alone: File,
}

impl HugePages {
    /// Waits until nobody else uses the pool, and has it hold `count` pages of `kb` KiB.
    ///
    /// # Errors
    /// Why the machine does not have them.
    pub fn take(kb: u64, count: u64) -> Result<Self, String> {
        let pool = format!("/sys/kernel/mm/hugepages/hugepages-{kb}kB/nr_hugepages");
        let alone = || -> io::Result<(File, String)> {
            let file = File::open("/proc/sys/vm/nr_hugepages")?;
            file.lock()?;
            let before = read_to_string(&pool)?;
            Ok((file, before))
        };
        let (file, before) = alone().map_err(|e| format!("no huge pages of {kb} kB: {e}"))?;
        let pages = Self { pool, before, _alone: file };
        let got = pages.set(count)?;
        if got < count {
            return Err(format!("{got} huge pages of {kb} kB could be had, not {count}"));
        }
        Ok(pages)
    }

    /// How many there are after so many were asked for.
    ///
    /// # Errors
    /// When nobody may ask.
    pub fn set(&self, count: u64) -> Result<u64, String> {
        let set = || -> io::Result<u64> {
            write(&self.pool, count.to_string())?;
            read_to_string(&self.pool)?.trim().parse().map_err(io::Error::other)
        };
        set().map_err(|e| format!("{}: {e}", self.pool))
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // Of a pool that cannot be made smaller somebody still has the pages; nothing else can be done here.
        let _ = write(&self.pool, &self.before);
    }
}
