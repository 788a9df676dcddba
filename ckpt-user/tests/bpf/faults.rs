//! Write faults of protected pages, as a checkpoint's rounds leave them: by stores and by system calls.
use std::{collections::BTreeSet, fs::File, os::unix::fs::FileExt as _};

use crate::sys;
use ckptbpf::sys::{
    bpf::{Attached, Bpf, Kernel, Program},
    pagemap::{Filter, Pagemap, WRITTEN},
    probe::Pages,
    uffd::{MODE_WP, TRACKING, USER_MODE_ONLY, Uffd},
};
use nix::unistd::Pid;

const PAGES: usize = 64;

/// Pages of ours that were written to, protected, and whose faults are logged.
struct Protected {
    bpf: Bpf,
    pages: Pages,
    pagemap: Pagemap,
    _uffd: Uffd,
    _attached: Attached,
}

impl Protected {
    fn new() -> Self {
        let pages = Pages::new(PAGES).unwrap();
        let uffd = Uffd::handshake(Uffd::of_self(USER_MODE_ONLY).unwrap(), TRACKING).unwrap();
        uffd.register(pages.address(), pages.bytes(), MODE_WP).unwrap();
        let mut bpf = Kernel::load().unwrap();
        bpf.track(std::process::id()).unwrap();
        let attached = bpf.attach_faults().unwrap();
        let pagemap = Pagemap::open(Pid::this()).unwrap();
        let mut new = Self { bpf, pages, pagemap, _uffd: uffd, _attached: attached };
        new.scan();
        new.logged();
        new
    }

    /// What was written since the last call, and is protected again.
    fn scan(&mut self) -> BTreeSet<u64> {
        let (start, end) = (self.pages.address(), self.pages.address() + self.pages.bytes());
        let filter = Filter { all: WRITTEN, ..Filter::default() };
        let mut found = BTreeSet::new();
        let each = |region: ckptbpf::sys::pagemap::Region| {
            found.extend((region.start - start) / 4096..(region.end - start) / 4096);
        };
        self.pagemap.scan(start, end, filter, true, each).unwrap();
        found
    }

    fn logged(&mut self) -> BTreeSet<u64> {
        let (start, end) = (self.pages.address(), self.pages.address() + self.pages.bytes());
        let ours = self.bpf.write_faults().into_iter().filter(|f| f.own_tgid == std::process::id());
        ours.filter(|f| (start..end).contains(&f.page)).map(|f| (f.page - start) / 4096).collect()
    }
}

#[test]
fn a_store_to_a_protected_page_is_logged_once_and_again_after_each_scan() {
    let mut protected = Protected::new();
    for _ in 0..3 {
        let written: BTreeSet<u64> = (0..PAGES as u64).step_by(3).collect();
        for _ in 0..2 {
            written.iter().for_each(|&page| protected.pages.write(page as usize));
        }
        assert_eq!(protected.logged(), written);
        assert_eq!(protected.scan(), written);
        assert_eq!(protected.logged(), BTreeSet::new());
    }
}

#[test]
fn what_read_2_writes_is_logged_too() {
    let mut protected = Protected::new();
    assert!(protected.bpf.has(Program::OnKernelWriteFault), "{:?}", protected.bpf.fallbacks());
    sys::read_to(&File::open("/dev/zero").unwrap(), &protected.pages, 8..16);
    assert_eq!(protected.scan(), (8..16).collect());
    assert_eq!(protected.logged(), (8..16).collect());
}

#[test]
fn what_a_peer_writes_through_get_user_pages_is_in_the_scan_alone() {
    let mut protected = Protected::new();
    let own = File::options().write(true).open("/proc/self/mem").unwrap();
    own.write_all_at(&[1; 4096], protected.pages.address()).unwrap();
    assert_eq!(protected.scan(), BTreeSet::from([0]));
    assert_eq!(protected.logged(), BTreeSet::new());
}
