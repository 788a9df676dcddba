//! Which pages are dirty, and memory that arrives after the program has started.
use std::io;

use super::{Feature, Status};
use crate::sys::{
    probe,
    uffd::{
        FEATURE_EVENT_FORK, FEATURE_EVENT_REMAP, FEATURE_EVENT_REMOVE, FEATURE_EVENT_UNMAP, FEATURE_WP_ASYNC,
        FEATURE_WP_UNPOPULATED, USER_MODE_ONLY, Uffd,
    },
};
use crate::track::backend;

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
    let scan = backend::pagemap_scan();
    let soft = backend::soft_dirty();
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
