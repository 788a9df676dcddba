//! Shared memory without a name that nobody opens for us: it is read through its mappings.
//!
//! Its links in /proc/PID/map_files are root's to follow. But who traces a process may read what that has mapped. Which pages hold
//! something, and whether all of it is mapped, the processes are asked (`capture/unopened.rs`). What else there is to know of it (modes,
//! owners, seals, the bytes of its last page that count) a program without a descriptor of it cannot find out either.

use super::behind;
use super::pages;
use super::runs::PageSet;
use super::tmpfs::{self, Found};
use super::vma::Raw;
use crate::object::memfd;
use crate::sys::mem::Forced;
use nix::unistd::Pid;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// How maps shows what takes the place of anonymous memory after a restart without rights ([`super::shared`]).
const STAND_IN: &str = "/memfd:dev/zero (deleted)";

/// Shared memory that has no name.
#[derive(Debug, PartialEq, Eq)]
pub enum Nameless {
    /// Of mmap(2) with MAP_ANONYMOUS.
    Anonymous,
    /// Of memfd_create(2), which was given this name.
    Memfd(Vec<u8>),
    /// A file of a tmpfs that had this path.
    Deleted(PathBuf),
}

impl Nameless {
    /// What maps shows as `raw`, if it is such memory. A restart without rights could not give anonymous memory another name
    /// (PR_SET_VMA_ANON_NAME).
    pub fn of(raw: &Raw) -> Option<Self> {
        if !raw.is_shared() || raw.name.contains('\\') {
            return None;
        }
        if memfd::internal_device() != Some(raw.device) {
            let Some(Found::Nameless(former)) = tmpfs::look(raw) else { return None };
            return Some(Self::Deleted(former));
        }
        if [behind::ANONYMOUS, STAND_IN].contains(&raw.name.as_str()) {
            return Some(Self::Anonymous);
        }
        let name = raw.name.strip_prefix(behind::MEMFD)?.strip_suffix(" (deleted)")?;
        Some(Self::Memfd(name.as_bytes().to_vec()))
    }
}

/// A mapping of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Whose it is, of the stopped processes.
    pub process: usize,
    /// By which the memory of that one is reached.
    pub pid: Pid,
    /// Where it begins.
    pub address: u64,
    /// Its first page, by its number in the object.
    pub first: u64,
    /// How many pages it has.
    pub count: u64,
}

impl Piece {
    /// The page behind it, by its number in the object.
    pub fn end(&self) -> u64 {
        self.first + self.count
    }

    /// Page numbers in the object.
    pub fn pages(&self) -> Range<u64> {
        self.first..self.end()
    }

    /// Addresses in bytes.
    pub fn addresses(&self) -> Range<u64> {
        self.address..self.address + self.count * 4096
    }
}

/// Few of the mappings that show all of an object of `size` pages, in order.
///
/// # Errors
/// The first page that none of them shows.
pub fn cover(mut all: Vec<Piece>, size: u64) -> Result<Vec<Piece>, u64> {
    all.sort_by_key(|piece| piece.first);
    let mut rest = all.into_iter().peekable();
    let (mut chosen, mut covered) = (Vec::new(), 0);
    while covered < size {
        let mut best: Option<Piece> = None;
        while let Some(piece) = rest.next_if(|piece| piece.first <= covered) {
            if best.is_none_or(|best| best.end() < piece.end()) {
                best = Some(piece);
            }
        }
        let best = best.filter(|best| best.end() > covered).ok_or(covered)?;
        covered = best.end();
        chosen.push(best);
    }
    Ok(chosen)
}

/// What the mappings show of an object.
#[derive(Debug, PartialEq, Eq)]
pub struct Through {
    /// All of it, some of it maybe twice.
    pub pieces: Vec<Piece>,
    /// Pages that may hold something, by their numbers in the object. To read any other would fill it.
    pub data: PageSet,
}

impl Through {
    /// Hands on those of the `wanted` pages that may hold something: number of the first, and bytes of whole pages.
    ///
    /// # Errors
    /// Of `each`; a page cannot be read.
    pub fn each(
        &self,
        wanted: &PageSet,
        each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut left, mut buffer) = (self.data.intersection(wanted), Vec::new());
        for piece in &self.pieces {
            let here = left.intersection(&std::iter::once(piece.pages()).collect());
            if here.is_empty() {
                continue;
            }
            left = left.difference(&here);
            let at = piece.address / 4096;
            let there = |page: u64| page - piece.first + at;
            let mapped: PageSet = here.runs().iter().map(|run| there(run.start)..there(run.end)).collect();
            let mut hand_on = |page: u64, bytes: &[u8]| each(page - at + piece.first, bytes);
            let memory = Forced::open(piece.pid)?;
            let unreadable = pages::copy(piece.pid, &memory, &mapped, &mut buffer, &mut hand_on)?;
            if let Some(run) = unreadable.runs().first() {
                let what = format!("its page at {:x} cannot be read", run.start * 4096);
                return Err(io::Error::other(what));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::shared::Mapped;
    use nix::sys::memfd::MFdFlags;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn piece(process: usize, pages: Range<u64>) -> Piece {
        let address = 0x10_0000 * (process as u64 + 1);
        Piece { process, pid: Pid::this(), address, first: pages.start, count: pages.end - pages.start }
    }

    #[test]
    fn such_memory_is_told_by_its_name_and_its_file_system() {
        let device = memfd::internal_device().unwrap();
        let minor = libc::minor(device);
        let of = |permissions: &str, minor: u32, name: &str| {
            let device = format!("{:02x}:{minor:02x}", libc::major(device));
            let line = format!("1000-2000 {permissions} 00000000 {device} 7 {name}\n");
            Nameless::of(&super::super::vma::parse(&line).unwrap()[0])
        };
        assert_eq!(of("rw-s", minor, "/dev/zero (deleted)"), Some(Nameless::Anonymous));
        assert_eq!(of("r--s", minor, "/memfd:dev/zero (deleted)"), Some(Nameless::Anonymous));
        assert_eq!(of("rw-s", minor, "/memfd:a b (deleted)"), Some(Nameless::Memfd(b"a b".to_vec())));
        assert_eq!(of("rw-p", minor, "/dev/zero (deleted)"), None);
        assert_eq!(of("rw-s", 0xf_ffff, "/dev/zero (deleted)"), None);
        assert_eq!(of("rw-s", minor, "/SYSV00000000 (deleted)"), None);
        assert_eq!(of("rw-s", minor, "[anon_shmem:name]"), None);
        assert_eq!(of("rw-s", minor, "/memfd:a\\012b (deleted)"), None);
    }

    #[test]
    fn one_mapping_of_all_is_enough_and_a_page_of_none_is_named() {
        let (all, part) = (piece(0, 0..8), piece(1, 0..4));
        assert_eq!(cover(vec![part, all], 8), Ok(vec![all]));
        assert_eq!(cover(vec![piece(0, 2..8), part], 8), Ok(vec![part, piece(0, 2..8)]));
        assert_eq!(cover(vec![piece(0, 5..8), part], 8), Err(4));
        assert_eq!(cover(vec![piece(0, 5..8), part], 4), Ok(vec![part]));
        assert_eq!(cover(vec![piece(0, 1..8)], 8), Err(0));
        assert_eq!(cover(vec![part, piece(0, 7..9)], 8), Err(4));
        assert_eq!(cover(Vec::new(), 0), Ok(Vec::new()));
    }

    #[test]
    fn each_page_is_handed_on_once_from_where_it_is_mapped() {
        let file = memfd::own(c"ckptbpf", MFdFlags::empty()).unwrap();
        file.set_len(4 * 4096).unwrap();
        let mapped = Mapped::of(&file).unwrap();
        for (page, word) in [(0, b"one"), (2, b"two"), (3, b"not")] {
            mapped.write(word, page * 4096).unwrap();
        }
        let whole = Piece { process: 0, pid: Pid::this(), address: mapped.address(), first: 0, count: 4 };
        let part = Piece { address: whole.address + 4096, first: 1, count: 3, ..whole };
        let through = Through { pieces: vec![part, whole], data: [0..1, 2..4].into_iter().collect() };
        let (wanted, mut seen) = (std::iter::once(0..3).collect(), Vec::new());
        let mut see = |page: u64, bytes: &[u8]| {
            seen.push((page, bytes.len(), bytes[..3].to_vec()));
            Ok(())
        };
        through.each(&wanted, &mut see).unwrap();
        assert_eq!(seen, [(2, 4096, b"two".to_vec()), (0, 4096, b"one".to_vec())]);
    }

    proptest! {
        #[test]
        fn what_is_chosen_shows_what_all_show(
            all in prop::collection::vec((0u64..30, 1u64..9), 0..12), size in 0u64..30
        ) {
            let pieces: Vec<Piece> = all.iter().enumerate().map(|(i, &(at, n))| piece(i, at..at + n)).collect();
            let shown = |pieces: &[Piece]| pieces.iter().flat_map(Piece::pages).collect::<BTreeSet<u64>>();
            let pages = shown(&pieces);
            let missing = (0..size).find(|page| !pages.contains(page));
            match cover(pieces, size) {
                Ok(chosen) => {
                    prop_assert_eq!(missing, None);
                    prop_assert!((0..size).all(|page| shown(&chosen).contains(&page)));
                    prop_assert!(chosen.windows(2).all(|two| two[0].end() < two[1].end()));
                }
                Err(page) => prop_assert_eq!(missing, Some(page)),
            }
        }
    }
}
