//! Which pages are dirty, and memory that arrives after the program has started.
use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    ops::Range,
};

use nix::unistd::getpid;

use super::{Feature, Status};
use crate::sys::{
    pagemap::{Filter, Pagemap, WRITTEN},
    probe::{self, PAGE, Pages},
    uffd::{
        FEATURE_EVENT_FORK, FEATURE_EVENT_REMAP, FEATURE_EVENT_REMOVE, FEATURE_EVENT_UNMAP, FEATURE_WP_ASYNC,
        FEATURE_WP_UNPOPULATED, MODE_WP, TRACKING, USER_MODE_ONLY, Uffd,
    },
};

const NEWER: &str = "Linux 6.7 or newer has it";
const SYSCTL: &str = "as root: sysctl vm.unprivileged_userfaultfd=1, or run it as root";
const PRIVILEGE: &str = "run it as root, or with CAP_SYS_PTRACE";
const FULL: &str = "without soft-dirty every checkpoint is a full one";

/// `UFFD_FEATURE_MOVE`.
const FEATURE_MOVE: u64 = 1 << 16;

/// Feature, name, use, what is done without.
const FEATURES: &[(u64, &str, &str, &str)] = &[
    (FEATURE_WP_ASYNC, "userfaultfd WP_ASYNC", "dirty memory", "soft-dirty is used"),
    (
        FEATURE_WP_UNPOPULATED,
        "userfaultfd WP_UNPOPULATED",
        "dirty memory that is not there yet",
        "soft-dirty is used",
    ),
    (FEATURE_EVENT_FORK, "userfaultfd EVENT_FORK", "fork during a lazy restart", "restarts are not lazy"),
    (FEATURE_EVENT_REMAP, "userfaultfd EVENT_REMAP", "mremap during a lazy restart", "restarts are not lazy"),
    (
        FEATURE_EVENT_REMOVE,
        "userfaultfd EVENT_REMOVE",
        "MADV_DONTNEED during a lazy restart",
        "restarts are not lazy",
    ),
    (FEATURE_EVENT_UNMAP, "userfaultfd EVENT_UNMAP", "munmap during a lazy restart", "restarts are not lazy"),
    (FEATURE_MOVE, "userfaultfd MOVE", "faster filling", "pages are copied"),
];

pub(super) fn probe() -> Vec<Feature> {
    let mut features = vec![
        Feature::new("userfaultfd", "lazy restart, dirty memory").prefers(
            Uffd::of_self(0),
            "restarts are not lazy unless /dev/userfaultfd may be opened",
            SYSCTL,
        ),
        Feature::new("userfaultfd USER_MODE_ONLY", "dirty memory of a program without privileges").prefers(
            Uffd::of_self(USER_MODE_ONLY),
            "soft-dirty is used",
            "Linux 5.11 or newer has it, with CONFIG_USERFAULTFD",
        ),
        Feature::new("/dev/userfaultfd", "lazy restart without CAP_SYS_PTRACE").prefers(
            probe::userfaultfd_device(),
            "the system call is used",
            "",
        ),
    ];
    for &(feature, name, used_for, instead) in FEATURES {
        let probed = uffd_with(feature);
        let refused = matches!(&probed, Err(e) if e.kind() == io::ErrorKind::PermissionDenied);
        let action = if refused { PRIVILEGE } else { NEWER };
        features.push(Feature::new(name, used_for).prefers(probed, instead, action));
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

/// A userfaultfd of our own with these features: of the kind that every user may have, else of the other.
fn uffd_with(features: u64) -> io::Result<Uffd> {
    Uffd::handshake(Uffd::of_self(USER_MODE_ONLY).or_else(|_| Uffd::of_self(0))?, features)
}

/// Protects four pages, writes to one, and looks which has been written to.
fn pagemap_scan() -> io::Result<()> {
    let pages = Pages::new(4)?;
    let uffd = uffd_with(TRACKING)?;
    uffd.register(pages.address(), pages.bytes(), MODE_WP)?;
    let mut pagemap = Pagemap::open(getpid())?;
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
fn soft_dirty() -> io::Result<()> {
    const MARK: u64 = 1 << 55;
    let pages = Pages::new(2)?;
    let pagemap = Pagemap::open(getpid())?;
    let marks = || -> io::Result<Vec<bool>> {
        let entries = pagemap.entries(pages.address() / PAGE as u64, 2)?;
        Ok(entries.iter().map(|entry| entry & MARK != 0).collect())
    };
    OpenOptions::new().write(true).open("/proc/self/clear_refs")?.write_all(b"4")?;
    let before = marks()?;
    pages.write(1);
    if before == [false, false] && marks()? == [false, true] {
        Ok(())
    } else {
        Err(io::Error::other("a page that was written to is not marked"))
    }
}
