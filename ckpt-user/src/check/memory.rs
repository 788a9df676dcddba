//! Which pages are dirty, and memory that arrives after the program has started.
use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
};

use super::{Feature, Status};
use crate::sys::probe::{self, PAGE, Pages, UFFD_USER_MODE_ONLY};

const NEWER: &str = "Linux 6.7 or newer has it";
const SYSCTL: &str = "as root: sysctl vm.unprivileged_userfaultfd=1, or run it as root";
const FULL: &str = "without soft-dirty every checkpoint is a full one";

/// `UFFD_FEATURE_*` (include/uapi/linux/userfaultfd.h): bit, name, use, what is done without.
const FEATURES: &[(u32, &str, &str, &str)] = &[
    (15, "userfaultfd WP_ASYNC", "dirty memory", "soft-dirty is used"),
    (13, "userfaultfd WP_UNPOPULATED", "dirty memory that is not there yet", "such memory counts as dirty"),
    (
        1,
        "userfaultfd EVENT_FORK",
        "programs that fork while a lazy restart fills them",
        "restarts are not lazy",
    ),
    (2, "userfaultfd EVENT_REMAP", "mremap during a lazy restart", "restarts are not lazy"),
    (3, "userfaultfd EVENT_REMOVE", "MADV_DONTNEED during a lazy restart", "restarts are not lazy"),
    (6, "userfaultfd EVENT_UNMAP", "munmap during a lazy restart", "restarts are not lazy"),
    (16, "userfaultfd MOVE", "faster filling", "pages are copied"),
];

pub(super) fn probe() -> Vec<Feature> {
    let mut features = vec![
        Feature::new("userfaultfd", "lazy restart, dirty memory").prefers(
            probe::userfaultfd(0),
            "restarts are not lazy unless /dev/userfaultfd may be opened",
            SYSCTL,
        ),
        Feature::new("userfaultfd USER_MODE_ONLY", "dirty memory of a program without privileges").prefers(
            probe::userfaultfd(UFFD_USER_MODE_ONLY),
            "soft-dirty is used",
            "Linux 5.11 or newer has it, with CONFIG_USERFAULTFD",
        ),
        Feature::new("/dev/userfaultfd", "lazy restart without CAP_SYS_PTRACE").prefers(
            probe::userfaultfd_device(),
            "the system call is used",
            "",
        ),
    ];
    let known = known_features();
    for &(bit, name, used_for, instead) in FEATURES {
        let has = known.as_ref().map_err(|e| io::Error::from(e.kind())).and_then(|set| {
            if set >> bit & 1 == 1 { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
        });
        features.push(Feature::new(name, used_for).prefers(has, instead, NEWER));
    }
    let scan = pagemap_scan();
    let soft = soft_dirty();
    let scan =
        Feature::new("PAGEMAP_SCAN", "which pages have changed").prefers(scan, "soft-dirty is used", NEWER);
    let mut soft = Feature::new("soft-dirty", "which pages have changed, on older kernels").prefers(
        soft,
        FULL,
        "use a kernel with CONFIG_MEM_SOFT_DIRTY, or Linux 6.7 or newer",
    );
    if scan.status == Status::Ok && soft.status != Status::Ok {
        soft =
            Feature::new(soft.name, soft.used_for).fallback("not in this kernel; PAGEMAP_SCAN is used", "");
    }
    features.extend([scan, soft]);
    features
}

fn known_features() -> io::Result<u64> {
    probe::userfaultfd_features(
        &probe::userfaultfd(UFFD_USER_MODE_ONLY).or_else(|_| probe::userfaultfd(0))?,
        0,
    )
}

/// Protects four pages, writes to one, and looks which has been written to.
fn pagemap_scan() -> io::Result<()> {
    const WP_ASYNC: u64 = 1 << 15;
    const WP_UNPOPULATED: u64 = 1 << 13;
    let pages = Pages::new(4)?;
    let fd = probe::userfaultfd(UFFD_USER_MODE_ONLY)?;
    probe::userfaultfd_features(&fd, WP_ASYNC | WP_UNPOPULATED)?;
    probe::register_write_protect(&fd, &pages)?;
    probe::written_pages(&pages)?;
    let before = probe::written_pages(&pages)?;
    pages.write(1);
    let after = probe::written_pages(&pages)?;
    // One range, not the range's members.
    if before.is_empty() && after.len() == 1 && after[0] == (1..2) {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "page 1 was written to, the kernel says {after:?} (before: {before:?})"
        )))
    }
}

/// Clears the marks, writes to a page, and looks at its mark.
fn soft_dirty() -> io::Result<()> {
    const MARK: u64 = 1 << 55;
    let pages = Pages::new(2)?;
    let pagemap = File::open("/proc/self/pagemap")?;
    let marked = |page: u64| -> io::Result<bool> {
        let mut entry = [0u8; 8];
        pagemap.read_exact_at(&mut entry, (pages.address() / PAGE as u64 + page) * 8)?;
        Ok(u64::from_le_bytes(entry) & MARK != 0)
    };
    OpenOptions::new().write(true).open("/proc/self/clear_refs")?.write_all(b"4")?;
    let before = marked(1)?;
    pages.write(1);
    if !before && marked(1)? && !marked(0)? {
        Ok(())
    } else {
        Err(io::Error::other("a page that was written to is not marked"))
    }
}
