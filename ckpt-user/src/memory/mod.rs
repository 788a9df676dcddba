//! Address spaces: mappings, layout, pages, vdso. Page sets and the plan are pure.

pub mod behind;
pub mod capture;
pub mod flags;
pub mod hugetlb;
pub mod layout;
pub mod map_count;
pub mod pages;
pub mod policy;
pub mod posix;
pub mod protection_keys;
pub mod runs;
pub mod shared;
pub mod sysv;
pub mod through;
pub mod tmpfs;
pub mod vdso;
pub mod vma;
