//! Shared memory: an object of its own, saved once through the object, never from page tables.
//!
//! Anonymous objects are made again and filled. A file that the program has mapped shared and writable *is* memory
//! of the program: what it has mapped is saved, and written back where the file differs, as the last act before the
//! program runs.

use super::hugetlb;
use super::sysv;
use super::vma::{Kind, MappedFile};
use crate::image::{Chain, Run, Source, SpaceId};
use crate::memory::runs::PageSet;
use crate::object::deleted::{self, DeletedRecord};
use crate::object::file;
use crate::object::memfd::{self, Memfd};
use crate::rebuild::{RebuildError, Rebuilding};
use crate::record::{Image, SharedObject};
use crate::sys::mem::Forced;
use crate::sys::remote::Remote;
use crate::sys::shared;
use crate::task::limits::own_hard;
use crate::track::objects::{self, Hashes};
use nix::sys::resource::Resource;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Pages read at a time.
const BATCH: u64 = 256;

/// An object that is there again.
#[derive(Debug)]
pub struct Restored {
    file: File,
    backing: Option<MappedFile>,
    memfd: Option<Memfd>,
    segment: Option<sysv::Made>,
    deleted: Option<DeletedRecord>,
    /// In pages of hugetlb, which no write(2) reaches.
    is_huge: bool,
    pub space: SpaceId,
    /// Pages of the object that belong to the program.
    pages: PageSet,
    /// Of what the object holds now.
    pub hashes: Hashes,
    /// It is still to be filled.
    is_empty: bool,
    /// Bytes.
    size: u64,
}

/// The pages of object `index` that the program has: all of anonymous memory, what is mapped of a file.
pub fn pages(image: &Image, index: u32) -> PageSet {
    let Some(object) = image.objects.get(index as usize) else { return PageSet::new() };
    let all: PageSet = std::iter::once(0..object.size.div_ceil(4096)).collect();
    if object.file.is_none() {
        return all;
    }
    let mapped = image
        .processes
        .iter()
        .flat_map(|p| &p.mappings)
        .filter(|v| v.kind() == Kind::SharedObject && v.object == Some(index))
        .map(|v| v.offset / 4096..(v.offset + (v.end - v.start)) / 4096);
    mapped.collect::<PageSet>().intersection(&all)
}

/// Makes the object again; mapping it MAP_SHARED gives what the program had. Files are only opened.
/// `segment` is there already where the object is one of System V.
///
/// It is filled, unless it is memory that somebody else is to pay for ([`Restored::fill_through`]).
pub fn rebuild(
    image: &Image,
    index: u32,
    chain: &Chain,
    segment: Option<sysv::Made>,
    is_ours: bool,
) -> Result<Restored, RebuildError> {
    let record = image.objects.get(index as usize);
    let record = record.ok_or_else(|| RebuildError::Refused("it lacks an object of shared memory".into()))?;
    let deleted = image.deleted((record.device, record.inode)).filter(|_| record.deleted);
    let file = match (&record.file, &record.memfd) {
        _ if let Some(segment) = &segment => segment.open().rebuilding(0, "a System V segment")?,
        _ if let Some(deleted) = deleted => deleted::create(deleted).rebuilding(0, "a deleted file")?,
        (Some(backing), _) => open(backing)?,
        (None, Some(memfd)) => memfd::create(memfd, record.huge_page)
            .and_then(|file| file.set_len(record.size).map(|()| file))
            .rebuilding(0, "memory of memfd_create(2)")?,
        (None, None) => {
            let promised = if is_counted(image, index) { 0 } else { libc::MAP_NORESERVE };
            anonymous(record, promised).rebuilding(0, "shared memory")?
        }
    };
    let mut restored = Restored {
        file,
        backing: record.file.clone(),
        memfd: record.memfd.clone(),
        segment,
        deleted: deleted.cloned(),
        is_huge: record.huge_page != 0,
        space: SpaceId(record.space),
        pages: pages(image, index),
        hashes: Hashes::new(),
        is_empty: false,
        size: record.size,
    };
    let is_made = restored.backing.is_none() && restored.segment.is_none();
    restored.is_empty = is_made && restored.deleted.is_none() && !is_ours;
    if is_made && !restored.is_empty {
        let target = Target::of(&restored.file, restored.is_huge).rebuilding(0, "shared memory")?;
        restored.fill(chain, &target)?;
    }
    Ok(restored)
}

/// Memory of mmap(2) with MAP_ANONYMOUS and `promised` (0 or MAP_NORESERVE). Where only root gets a descriptor of that, memory
/// of memfd_create(2) takes its place, which is the same but for what maps calls it.
fn anonymous(record: &SharedObject, promised: i32) -> io::Result<File> {
    let huge = hugetlb::flags(record.huge_page, libc::MAP_HUGETLB as u32) as i32;
    match shared::create(record.size, huge | promised) {
        // EPERM; and EACCES for a worker of a daemon, which nobody may write to, not by /proc/self/mem either.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let stand_in = |seals, mode| {
                let name = b"dev/zero".to_vec();
                Memfd { name, seals, mode, ..Memfd::default() }
            };
            // Some machines have no memory that could be executed as a program is (sysctl vm.memfd_noexec).
            let file = memfd::create(&stand_in(0, 0o777), record.huge_page)
                .or_else(|_| memfd::create(&stand_in(memfd::SEAL_EXEC, 0o666), record.huge_page))?;
            file.set_len(record.size)?;
            Ok(file)
        }
        made => made.map(File::from),
    }
}

/// Whether object `index` counts as a whole as memory that is committed: not what was mapped with MAP_NORESERVE, which may be larger
/// than the machine's memory.
fn is_counted(image: &Image, index: u32) -> bool {
    let mut mappings = image.processes.iter().flat_map(|p| &p.mappings);
    !mappings.any(|v| v.object == Some(index) && v.has("nr"))
}

fn open(record: &MappedFile) -> Result<File, RebuildError> {
    let path = record.path();
    let refused = |why: String| RebuildError::Refused(format!("{}: {why}", path.display()));
    let file = file::open(path, libc::O_RDWR as u32)
        .map_err(|e| RebuildError::Refused(format!("the program has it mapped for writing: {e}")))?;
    let now = file.metadata().map_err(|e| refused(e.to_string()))?;
    if !now.is_file() || (now.dev() == record.device && now.ino() != record.inode) {
        return Err(refused(
            "the program has it mapped, and it is another file than at the checkpoint".into(),
        ));
    }
    Ok(file)
}

impl Restored {
    /// The file, where it is a deleted one: its identity at the origin.
    pub fn deleted(&self) -> io::Result<Option<((u64, u64), File)>> {
        self.deleted.as_ref().map(|d| Ok((d.identity(), self.file.try_clone()?))).transpose()
    }

    /// A descriptor to map.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(Into::into)
    }

    /// The same to be mapped so that it can never be written.
    pub fn read_only(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        File::open(path).map(Into::into)
    }

    /// The last act before the program runs: seals, times.
    pub fn finish(&self) -> Result<(), RebuildError> {
        if let Some(segment) = &self.segment {
            segment.finish().rebuilding(0, "a System V segment")?;
        }
        if let Some(deleted) = &self.deleted {
            deleted::finish(deleted, &self.file).rebuilding(0, "a deleted file")?;
        }
        let Some(memfd) = &self.memfd else { return Ok(()) };
        memfd::finish(memfd, &self.file).rebuilding(0, "seals of memory of memfd_create(2)")
    }

    /// What tracking knows the object by.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        match &self.segment {
            Some(segment) => Ok(segment.identity()),
            None => self.file.metadata().map(|m| (m.dev(), m.ino())),
        }
    }

    /// Whether it is a mapped file.
    pub fn is_file(&self) -> bool {
        self.backing.is_some()
    }

    /// Reads all that [`Self::write_back`] will write: damage is to be met before anything is changed.
    pub fn verify(&mut self, chain: &Chain) -> Result<(), RebuildError> {
        if self.backing.is_none() && self.segment.is_none() {
            return Ok(());
        }
        self.each_stored(chain, |_, _, _| Ok(())).map(drop).rebuilding(0, "shared memory")
    }

    /// Makes a mapped file, or a segment, what the program's memory was; with `only_compare` a difference in a file is
    /// an error.
    pub fn write_back(&mut self, chain: &Chain, only_compare: bool) -> Result<(), RebuildError> {
        let (size, name) = match (&self.backing, &self.segment) {
            (Some(backing), _) => (backing.size, backing.path().display().to_string()),
            (None, Some(segment)) => (segment.size, "System V memory".to_owned()),
            (None, None) => return Ok(()),
        };
        let only_compare = only_compare && self.backing.is_some();
        // The program has written it by its mapping: there is no limit of that.
        let is_large = size > own_hard(Resource::RLIMIT_FSIZE);
        let target = Target::of(&self.file, self.is_huge || is_large).rebuilding(0, "shared memory")?;
        let stored = self.each_stored(chain, |file, first, bytes| {
            let mut there = vec![0; bytes.len()];
            read_to_end(file, first * 4096, &mut there)?;
            let pages = bytes.chunks_exact(4096).zip(there.chunks_exact(4096));
            for (page, (wanted, found)) in (first..).zip(pages).filter(|(_, (w, f))| w != f) {
                put(&target, page, wanted, found, size, only_compare)?;
            }
            Ok(())
        });
        let zero = stored.and_then(|stored| self.zero(&stored, &target, size, only_compare));
        zero.map_err(|e| RebuildError::Refused(format!("{name}: {e}")))
    }

    /// Pages that hold nothing in the image hold nothing in the file.
    fn zero(&self, stored: &PageSet, target: &Target, size: u64, only_compare: bool) -> io::Result<()> {
        let mut found = [0; 4096];
        for page in self.pages.difference(stored).runs().iter().cloned().flatten() {
            read_to_end(&self.file, page * 4096, &mut found)?;
            if found.iter().any(|&b| b != 0) {
                put(target, page, &[0; 4096], &found, size, only_compare)?;
            }
        }
        Ok(())
    }

    /// Fills what is still empty through a process of the program's, which has it as descriptor `number`: memory of this kind is
    /// charged to the control group of who touches it first.
    pub fn fill_through(
        &mut self,
        chain: &Chain,
        number: i32,
        remote: &mut Remote,
    ) -> Result<(), RebuildError> {
        if !std::mem::take(&mut self.is_empty) || self.size == 0 {
            return Ok(());
        }
        let pid = remote.pid().as_raw();
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_SHARED | libc::MAP_NORESERVE) as u64;
        let map = [0, self.size, protection, flags, number as u64, 0];
        let start = remote.call(libc::SYS_mmap, &map).rebuilding(pid, "shared memory")?;
        let memory = Forced::open(remote.pid()).rebuilding(pid, "shared memory")?;
        self.fill(chain, &Target::There { memory, start })?;
        remote.call(libc::SYS_munmap, &[start, self.size]).map(drop).rebuilding(pid, "shared memory")
    }

    fn fill(&mut self, chain: &Chain, target: &Target) -> Result<(), RebuildError> {
        let size = self.size;
        let filled = self.each_stored(chain, |_, first, bytes| {
            let at = first * 4096;
            let there = size.saturating_sub(at).min(bytes.len() as u64) as usize;
            target.write(&bytes[..there], at)
        });
        filled.map(drop).rebuilding(0, "shared memory")
    }

    /// Hands on the pages that the chain holds, hashes them, and returns which they are.
    fn each_stored(
        &mut self,
        chain: &Chain,
        mut each: impl FnMut(&File, u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<PageSet> {
        let mut reader = chain.reader();
        let mut buffer = vec![0; BATCH as usize * 4096];
        let map = chain.pages(self.space);
        let mut stored = PageSet::new();
        for range in self.pages.runs() {
            let runs = map.iter_range(range.start, range.end - range.start);
            for run in runs.filter(|r| matches!(r.source, Source::Stored { .. })) {
                for part in parts(run) {
                    let bytes = &mut buffer[..part.count as usize * 4096];
                    reader.read_run(&part, bytes).map_err(io::Error::other)?;
                    each(&self.file, part.first_page, bytes)?;
                    for (page, bytes) in part.pages().zip(bytes.chunks_exact(4096)) {
                        self.hashes.extend(objects::hash(bytes).map(|hash| (page, hash)));
                    }
                    stored.insert(part.pages());
                }
            }
        }
        Ok(stored)
    }
}

/// Where the bytes of an object go.
enum Target {
    File(File),
    /// The object, mapped.
    Mapped(shared::Mapped),
    /// The same in a process of the program's, at this address.
    There {
        memory: Forced,
        start: u64,
    },
}

impl Target {
    fn of(file: &File, is_mapped: bool) -> io::Result<Self> {
        if is_mapped { shared::Mapped::of(file).map(Self::Mapped) } else { file.try_clone().map(Self::File) }
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all_at(bytes, at),
            Self::Mapped(mapped) => mapped.write(bytes, at),
            Self::There { memory, start } => memory.write(start + at, bytes),
        }
    }
}

/// A run in parts of at most [`BATCH`] pages.
fn parts(run: Run) -> impl Iterator<Item = Run> {
    let pages = run.pages();
    pages.clone().step_by(BATCH as usize).filter_map(move |at| run.clip(&(at..(at + BATCH).min(pages.end))))
}

/// Bytes behind the end of the file read as zero, as in its mapping.
fn read_to_end(file: &File, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], at + done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    bytes[done..].fill(0);
    Ok(())
}

/// Writes one page, as far as the file goes.
fn put(
    target: &Target,
    page: u64,
    wanted: &[u8],
    found: &[u8],
    size: u64,
    only_compare: bool,
) -> io::Result<()> {
    let at = page * 4096;
    let len = size.saturating_sub(at).min(4096) as usize;
    if wanted[..len] == found[..len] {
        return Ok(());
    }
    if only_compare {
        return Err(io::Error::other("what the program has mapped of it has changed since the checkpoint"));
    }
    target.write(&wanted[..len], at)
}
