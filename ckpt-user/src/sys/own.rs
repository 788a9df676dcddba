//! Files of /proc about this very process. A worker's belong to root, once it is closed to others (PR_SET_DUMPABLE), so it opens
//! them before that; each checks at its opening who it is that looks (proc(5)).

use super::caps;
use std::fs::File;
use std::io::{self, Write};
use std::sync::OnceLock;

static NOTED: OnceLock<(File, File)> = OnceLock::new();

/// Opens them. Of this process, not of those that it forks. Without CAP_SYS_ADMIN, so that no frame's number is told to whoever
/// may have them later.
pub fn note() -> io::Result<()> {
    let _without = caps::Without::of(&[caps::SYS_ADMIN])?;
    let files =
        (File::open("/proc/self/pagemap")?, File::options().write(true).open("/proc/self/clear_refs")?);
    NOTED.get_or_init(|| files);
    Ok(())
}

/// The page map.
pub fn pagemap() -> io::Result<File> {
    NOTED.get().map_or_else(|| File::open("/proc/self/pagemap"), |(pagemap, _)| pagemap.try_clone())
}

/// Clears the soft-dirty bits of all pages.
pub fn clear_soft_dirty() -> io::Result<()> {
    let write = |mut to: &File| to.write_all(b"4");
    let open = || File::options().write(true).open("/proc/self/clear_refs");
    NOTED.get().map_or_else(|| open().and_then(|file| write(&file)), |(_, clear)| write(clear))
}
