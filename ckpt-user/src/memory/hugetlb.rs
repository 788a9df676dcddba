//! Memory in huge pages of a size of its own (hugetlb): MAP_HUGETLB, MFD_HUGETLB, SHM_HUGETLB.
//!
//! It comes from a pool of the machine. Private pages are compared like those of files ([`crate::track::compared`]), shared
//! ones read through their object. A huge page that holds nothing but zeros is not made again: it comes when it is touched.

use super::sysv;
use super::vma::{Kind, Vma};
use crate::image::{Chain, Source, SpaceId};
use crate::memory::runs::PageSet;
use crate::object::memfd;
use crate::record::{Image, SharedObject};
use nix::sys::memfd::MFdFlags;
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

/// What the magic link of anonymous memory in huge pages leads to.
pub const ANONYMOUS: &str = "/anon_hugepage (deleted)";

/// Sizes that a page may have: 64 KiB to 16 GiB.
const SIZES: std::ops::RangeInclusive<u32> = 16..=34;

/// Where the machine tells of its pools.
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// The size of the pages of a file where the kernel keeps such memory without a name; `None` for any other file.
pub fn page_size(metadata: &Metadata) -> Option<u64> {
    static DEVICES: OnceLock<BTreeMap<u64, u64>> = OnceLock::new();
    let devices = DEVICES.get_or_init(|| {
        let device = |&size: &u64| {
            let flags = MFdFlags::from_bits_retain(flags(size, libc::MFD_HUGETLB));
            let specimen = memfd::own(c"ckptbpf", flags).ok()?;
            Some((specimen.metadata().ok()?.dev(), size))
        };
        SIZES
            .map(|log| 1 << log)
            .filter(|size| pool(*size).is_ok())
            .filter_map(|size| device(&size))
            .collect()
    });
    devices.get(&metadata.dev()).copied()
}

/// `flag` (MAP_HUGETLB, MFD_HUGETLB, SHM_HUGETLB) with a page size; nothing for ordinary pages (0).
pub fn flags(size: u64, flag: u32) -> u32 {
    /// MAP_HUGE_SHIFT, and the same of the others.
    const SHIFT: u32 = 26;
    if size == 0 { 0 } else { flag | size.trailing_zeros() << SHIFT }
}

/// Whether a record may say that pages have this size.
pub fn is_size(size: u64) -> bool {
    size == 0 || (size.is_power_of_two() && SIZES.contains(&size.trailing_zeros()))
}

/// Pages of one size that the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pool {
    /// Of the pool itself, by order of the administrator.
    pages: u64,
    /// To be had now, those that the kernel may make beyond its pool among them.
    free: u64,
}

fn pool(size: u64) -> io::Result<Pool> {
    let dir = Path::new(POOLS).join(format!("hugepages-{}kB", size >> 10));
    let read = |name: &str| -> io::Result<u64> {
        std::fs::read_to_string(dir.join(name))?.trim().parse().map_err(io::Error::other)
    };
    let promised = read("free_hugepages")?.saturating_sub(read("resv_hugepages")?);
    let more = read("nr_overcommit_hugepages")?.saturating_sub(read("surplus_hugepages")?);
    Ok(Pool { pages: read("nr_hugepages")?, free: promised + more })
}

/// Before anything is made: whether the machine has the pages that the image needs.
///
/// # Errors
/// Says how many of which size are missing, and how they are to be had.
pub fn check(image: &Image, chain: &Chain) -> Result<(), String> {
    for (size, needed) in needed(image, chain) {
        let kb = size >> 10;
        let pool = pool(size).map_err(|_| {
            format!("this machine has no huge pages of {kb} kB, and the program needs {needed}")
        })?;
        if pool.free < needed {
            let (free, wanted) = (pool.free, pool.pages + needed - pool.free);
            return Err(format!(
                "the program needs {needed} huge pages of {kb} kB, and {free} are free on this machine; to get them: \
                 echo {wanted} > {POOLS}/hugepages-{kb}kB/nr_hugepages (as root; the same as sysctl vm.nr_hugepages for pages \
                 of the default size)"
            ));
        }
    }
    Ok(())
}

/// How many pages of each size: what is set aside for a mapping (without MAP_NORESERVE), and what holds something.
fn needed(image: &Image, chain: &Chain) -> BTreeMap<u64, u64> {
    let mut needed = BTreeMap::new();
    for process in &image.processes {
        for vma in process.mappings.iter().filter(|v| v.huge_page != 0 && !v.shared) {
            let held = holding(chain, process.space, &vma.pages(), vma.huge_page);
            let all = if vma.has("nr") {
                PageSet::new()
            } else {
                std::iter::once(huge(&vma.pages(), vma.huge_page)).collect()
            };
            *needed.entry(vma.huge_page).or_default() += held.union(&all).len();
        }
    }
    for (index, object) in image.objects.iter().enumerate().filter(|(_, o)| o.huge_page != 0 && !is_there(o))
    {
        let all = 0..object.size.div_ceil(4096);
        let mappings = image.processes.iter().flat_map(|p| &p.mappings);
        let maps = |v: &&Vma| v.shared && v.object == Some(index as u32) && v.kind() == Kind::SharedObject;
        let set_aside = mappings.filter(maps).filter(|v| !v.has("nr")).map(|v| {
            let first = v.offset / 4096;
            huge(&(first..first + (v.end - v.start) / 4096), object.huge_page)
        });
        let whole = object.segment.map(|_| huge(&all, object.huge_page));
        let wanted: PageSet = set_aside.chain(whole).collect();
        *needed.entry(object.huge_page).or_default() +=
            wanted.union(&holding(chain, object.space, &all, object.huge_page)).len();
    }
    needed
}

/// A segment that outlived the program has its pages.
fn is_there(object: &SharedObject) -> bool {
    object.segment.is_some_and(|segment| sysv::is_there(&segment))
}

/// Numbers of the huge pages that these small ones are in.
fn huge(pages: &std::ops::Range<u64>, size: u64) -> std::ops::Range<u64> {
    pages.start / (size / 4096)..pages.end.div_ceil(size / 4096)
}

/// Of those, the ones that the chain holds something of.
fn holding(chain: &Chain, space: u32, pages: &std::ops::Range<u64>, size: u64) -> PageSet {
    let map = chain.pages(SpaceId(space));
    let runs = map.iter_range(pages.start, pages.end.saturating_sub(pages.start));
    let stored = runs.filter(|run| matches!(run.source, Source::Stored { .. }));
    stored.map(|run| huge(&run.pages(), size)).fold(PageSet::new(), |mut set, run| {
        set.insert(run);
        set
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_of_mman_h() {
        assert_eq!(flags(2 << 20, libc::MAP_HUGETLB as u32), (libc::MAP_HUGETLB | libc::MAP_HUGE_2MB) as u32);
        assert_eq!(flags(1 << 30, libc::MFD_HUGETLB), libc::MFD_HUGETLB | libc::MFD_HUGE_1GB);
        assert_eq!(flags(0, libc::MFD_HUGETLB), 0);
    }

    #[test]
    fn sizes_are_such_as_a_machine_can_have() {
        assert!([0, 1 << 16, 2 << 20, 1 << 30].into_iter().all(is_size));
        assert!(![4096, 3 << 20, 1 << 40, u64::MAX].into_iter().any(is_size));
    }
}
