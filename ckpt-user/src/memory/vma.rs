//! One mapping: its record, read from /proc/PID/smaps, and the mmap call that makes it again.

use super::hugetlb;
use super::policy::Seen;
use crate::sys::inject::Call;
use crate::task::policy::Policy;
use std::io;
use std::ops::Range;

/// One virtual memory area. Addresses are bytes, page-aligned.
#[derive(Clone, PartialEq, prost::Message, serde::Serialize)]
pub struct Vma {
    #[prost(uint64, tag = "1")]
    pub start: u64,
    #[prost(uint64, tag = "2")]
    pub end: u64,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    #[prost(uint32, tag = "3")]
    pub protection: u32,
    #[prost(bool, tag = "4")]
    pub shared: bool,
    #[prost(enumeration = "Kind", tag = "5")]
    pub kind: i32,
    /// Byte offset into the file or shared object.
    #[prost(uint64, tag = "6")]
    pub offset: u64,
    /// Two-letter flags of smaps' VmFlags that a restart sets again (`gd`, `nr`, `lo`, `lf`, `sl`, `dc`, …).
    #[prost(string, repeated, tag = "7")]
    pub flags: Vec<String>,
    #[prost(message, optional, tag = "8")]
    pub file: Option<MappedFile>,
    /// Which shared object this maps (index into the image's). A shared mapping of one with [`Kind::File`] is one that
    /// cannot be made writable.
    #[prost(uint32, optional, tag = "9")]
    pub object: Option<u32>,
    /// From which nodes its memory comes (mbind(2)); none: as the thread has it.
    #[prost(message, optional, tag = "10")]
    pub policy: Option<Policy>,
    /// What PR_SET_VMA_ANON_NAME called it; empty: nothing.
    #[prost(bytes = "vec", tag = "11")]
    pub name: Vec<u8>,
    /// Bytes of each of its pages, where they are huge ones of hugetlb; else 0.
    #[prost(uint64, tag = "12")]
    pub huge_page: u64,
    /// Its protection key (pkeys(7)); 0 is that of all memory.
    #[prost(uint32, tag = "13")]
    pub protection_key: u32,
}

/// PROT_EXEC alone.
pub const EXECUTE_ONLY: u32 = libc::PROT_EXEC as u32;

/// A range of pages: addresses in bytes.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Pages {
    #[prost(uint64, tag = "1")]
    pub start: u64,
    #[prost(uint64, tag = "2")]
    pub end: u64,
}

impl Pages {
    /// Of page numbers.
    pub fn of(pages: &Range<u64>) -> Self {
        Self { start: pages.start * 4096, end: pages.end * 4096 }
    }

    /// Page numbers.
    pub fn numbers(&self) -> Range<u64> {
        self.start / 4096..self.end / 4096
    }
}

/// What stands behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
pub enum Kind {
    Anonymous = 0,
    /// Pages of a file or shared object, private or never to be written.
    File = 1,
    /// Shared memory: anonymous, or of a file and writable.
    SharedObject = 2,
    Vdso = 3,
    /// The kernel's data pages beside the vdso (`[vvar]`, `[vvar_vclock]`).
    Vvar = 4,
}

/// The file behind a mapping, as it was.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message, serde::Serialize)]
pub struct MappedFile {
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub device: u64,
    #[prost(uint64, tag = "3")]
    pub inode: u64,
    #[prost(uint64, tag = "4")]
    pub size: u64,
    #[prost(int64, tag = "5")]
    pub modified_ns: i64,
    /// It has no name: one of the image's deleted files, by device and inode.
    #[prost(bool, tag = "6")]
    pub deleted: bool,
}

impl MappedFile {
    pub fn path(&self) -> &std::path::Path {
        use std::os::unix::ffi::OsStrExt;
        std::path::Path::new(std::ffi::OsStr::from_bytes(&self.path))
    }
}

impl Vma {
    pub fn pages(&self) -> Range<u64> {
        self.start / 4096..self.end / 4096
    }

    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }

    /// What it is made with: memory that may only be executed gets that protection last, as it may take a protection key.
    pub fn protection_at_first(&self) -> u32 {
        if self.protection == EXECUTE_ONLY { EXECUTE_ONLY | libc::PROT_READ as u32 } else { self.protection }
    }

    /// Whether pages of this mapping belong to the process alone and are saved with it.
    pub fn is_private_memory(&self) -> bool {
        !self.shared && matches!(self.kind(), Kind::Anonymous | Kind::File)
    }
}

/// A mapping as smaps shows it, before anything is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    pub start: u64,
    pub end: u64,
    pub permissions: [u8; 4],
    pub offset: u64,
    pub device: u64,
    pub inode: u64,
    pub name: String,
    /// Empty when read from `maps`, which has none.
    pub flags: Vec<String>,
    /// Its protection key (pkeys(7)), as smaps shows it; 0 is that of all mappings.
    pub key: u32,
    /// What BPF tells of its memory policy.
    pub policy: Option<Seen>,
}

/// Parses /proc/PID/maps or /proc/PID/smaps.
///
/// # Errors
/// InvalidData when a line is not what proc_pid_maps(5) says.
pub fn parse(text: &str) -> io::Result<Vec<Raw>> {
    let mut all: Vec<Raw> = Vec::new();
    for line in text.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(last) = all.last_mut() {
                last.flags = flags.split_ascii_whitespace().map(str::to_owned).collect();
            }
        } else if let Some(key) = line.strip_prefix("ProtectionKey:") {
            if let (Some(last), Ok(key)) = (all.last_mut(), key.trim().parse()) {
                last.key = key;
            }
        } else if first.contains('-') && !first.ends_with(':') {
            all.push(parse_line(line).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("cannot understand the mapping `{line}`"))
            })?);
        }
    }
    Ok(all)
}

/// Bytes in swap of what is mapped at these addresses, by /proc/PID/smaps; none where that cannot be understood.
pub fn in_swap(smaps: &str, addresses: &Range<u64>) -> Option<u64> {
    let (mut sum, mut is_it) = (0u64, false);
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some(swapped) = line.strip_prefix("Swap:").filter(|_| is_it) {
            let kilobytes: u64 = swapped.trim().strip_suffix(" kB")?.parse().ok()?;
            sum = sum.checked_add(kilobytes.checked_mul(1024)?)?;
        } else if let Some((start, end)) = first.split_once('-').filter(|_| !first.ends_with(':')) {
            let number = |hex| u64::from_str_radix(hex, 16).ok();
            is_it = number(start)? < addresses.end && addresses.start < number(end)?;
        }
    }
    Some(sum)
}

fn parse_line(line: &str) -> Option<Raw> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let permissions: [u8; 4] = words.next()?.as_bytes().try_into().ok()?;
    let offset = u64::from_str_radix(words.next()?, 16).ok()?;
    let (major, minor) = words.next()?.split_once(':')?;
    let device = libc::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = words.next()?.parse().ok()?;
    Some(Raw {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        permissions,
        offset,
        device,
        inode,
        name: words.next().unwrap_or_default().trim_start().to_owned(),
        flags: Vec::new(),
        key: 0,
        policy: None,
    })
}

impl Raw {
    pub fn protection(&self) -> u32 {
        u32::from(self.permissions[0] == b'r')
            | u32::from(self.permissions[1] == b'w') << 1
            | u32::from(self.permissions[2] == b'x') << 2
    }

    /// As far as dirty tracking needs to know a private mapping.
    pub fn to_private(&self) -> Vma {
        let kind = if self.is_file() { Kind::File } else { Kind::Anonymous };
        Vma { start: self.start, end: self.end, kind: kind as i32, ..Vma::default() }
    }

    pub fn is_shared(&self) -> bool {
        self.permissions[3] == b's'
    }

    /// What PR_SET_VMA_ANON_NAME called it.
    pub fn given_name(&self) -> Option<&str> {
        let named = |kind: &str| self.name.strip_prefix(kind)?.strip_suffix(']');
        named("[anon:").or_else(|| named("[anon_shmem:"))
    }

    /// Mapped from a file of a file system, shared anonymous memory included.
    pub fn is_file(&self) -> bool {
        self.inode != 0
    }
}

/// The mmap(2) call that makes `vma` again; `fd` is the opened file, or u64::MAX (-1).
pub fn mmap_call(vma: &Vma, fd: u64) -> Call {
    /// linux/mman.h, Linux 6.11.
    const MAP_DROPPABLE: i32 = 8;
    let kind = match vma.shared {
        true => libc::MAP_SHARED,
        false if vma.has("dp") => MAP_DROPPABLE,
        false => libc::MAP_PRIVATE,
    };
    let mut flags = libc::MAP_FIXED_NOREPLACE | kind;
    if vma.kind() == Kind::Anonymous || (vma.kind() == Kind::SharedObject && fd == u64::MAX) {
        flags |= libc::MAP_ANONYMOUS | hugetlb::flags(vma.huge_page, libc::MAP_HUGETLB as u32) as i32;
    }
    for (name, flag) in [("gd", libc::MAP_GROWSDOWN), ("nr", libc::MAP_NORESERVE)] {
        if vma.has(name) {
            flags |= flag;
        }
    }
    let len = vma.end - vma.start;
    Call::new(libc::SYS_mmap, &[vma.start, len, u64::from(vma.protection), flags as u64, fd, vma.offset])
}

/// The madvise(2) advice that sets a VmFlags name again, where there is one.
pub fn advice(flag: &str) -> Option<i32> {
    Some(match flag {
        "dc" => libc::MADV_DONTFORK,
        "dd" => libc::MADV_DONTDUMP,
        "hg" => libc::MADV_HUGEPAGE,
        "nh" => libc::MADV_NOHUGEPAGE,
        "mg" => libc::MADV_MERGEABLE,
        "wf" => libc::MADV_WIPEONFORK,
        "sr" => libc::MADV_SEQUENTIAL,
        "rr" => libc::MADV_RANDOM,
        _ => return None,
    })
}

/// VmFlags that mean something a restart cannot rebuild yet, with the words for it.
pub fn refused(flag: &str) -> Option<&'static str> {
    Some(match flag {
        "io" | "pf" => "maps device memory",
        "ui" | "um" => "is watched by the program's own userfaultfd",
        "ss" => "is a shadow stack",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_were_given_and_protection_keys_are_read() {
        let text = "1000-2000 rw-p 00000000 00:00 0                          [anon:a name: (1)]\nProtectionKey:         3\n\
                    2000-3000 rw-s 00000000 00:01 42                         [anon_shmem:queue]\nProtectionKey:         0\n\
                    3000-4000 rw-p 00000000 00:00 0                          [heap]\n\
                    4000-5000 r--p 00000000 fe:01 42                         /tmp/[anon:x]\n";
        let all = parse(text).unwrap();
        let names: Vec<_> = all.iter().map(Raw::given_name).collect();
        assert_eq!(names, [Some("a name: (1)"), Some("queue"), None, None]);
        assert_eq!(all.iter().map(|raw| raw.key).collect::<Vec<_>>(), [3, 0, 0, 0]);
    }

    #[test]
    fn what_is_in_swap_is_counted_where_it_is_mapped() {
        let smaps = "1000-3000 rw-s 00000000 00:01 7 /dev/zero (deleted)\nSize: 8 kB\nSwap:                  4 kB\n\
                     SwapPss: 4 kB\nVmFlags: rd wr sh mr mw me ms sd\n\
                     3000-4000 rw-p 00000000 00:00 0\nSwap:                 12 kB\n\
                     7fff00-7fff80 rw-s 00000000 00:01 7 /dev/zero (deleted)\nSwap:                  8 kB\n";
        assert_eq!(in_swap(smaps, &(0x1000..0x3000)), Some(4096));
        assert_eq!(in_swap(smaps, &(0x2000..0x4000)), Some(4 * 4096));
        assert_eq!(in_swap(smaps, &(0x5000..0x6000)), Some(0));
        assert_eq!(in_swap("1000-3000 rw-s 0 0 0\nSwap: much\n", &(0x1000..0x3000)), None);
    }

    #[test]
    fn a_name_with_spaces_and_flags_are_kept() {
        let text = "7f00-8f00 rw-p 00001000 fe:01 42                         /a b (deleted)\nSize: 4 kB\nVmFlags: rd wr mr nr \n";
        let all = parse(text).unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].name, "/a b (deleted)");
        assert_eq!((all[0].start, all[0].offset, all[0].inode), (0x7f00, 0x1000, 42));
        assert_eq!(all[0].protection(), 3);
        assert!(all[0].flags.contains(&"nr".to_owned()));
    }
}
