//! The mappings of a stopped process, with what stands behind each.

use super::behind::{self, Behind};
use super::hugetlb;
use super::posix;
use super::sysv;
use super::through::Nameless;
use super::vdso;
use super::vma::{self, Kind, MappedFile, Raw, Vma};
use crate::object::deleted::{self, DeletedRecord};
use crate::object::handle::FileHandle;
use crate::object::memfd;
use crate::object::reach::leads_to;
use crate::record::SharedObject;
use crate::refusal::{Reading, Refusal};
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Shared objects of one image, by identity; spaces are given by the caller's counter.
#[derive(Default)]
pub struct Objects {
    pub found: Vec<SharedObject>,
    /// Files without a name that are mapped or executed.
    pub deleted: Vec<DeletedRecord>,
    /// The pager of a lazy restart serves missing pages: that a mapping is watched for them means nothing.
    pub lazy: bool,
    /// Of those found: what can be read through its mappings alone, and how large it is not known yet.
    pub unopened: BTreeSet<u32>,
}

impl Objects {
    /// The record of a file that is mapped or executed.
    ///
    /// # Errors
    /// The reason why a restart could not map or execute it again.
    pub fn file(&mut self, behind: &Behind) -> Result<MappedFile, String> {
        let Behind { pid, link, target, metadata, .. } = behind;
        let path = match deleted::former(target) {
            Some(former) if metadata.nlink() == 0 => {
                if !deleted::is_on_a_mount(former, metadata) {
                    return Err("its file has been deleted; it cannot be saved yet".to_owned());
                }
                return self.without_a_name(behind, former);
            }
            None if deleted::is_hidden(target, link) => return self.without_a_name(behind, target),
            Some(former) if !leads_to(target, metadata, *pid)? => {
                deleted::other_name(former, metadata, *pid)?
            }
            _ => target.clone(),
        };
        Ok(file_of(path, metadata))
    }

    fn without_a_name(&mut self, behind: &Behind, former: &Path) -> Result<MappedFile, String> {
        let Behind { link, target, metadata, .. } = behind;
        if self.deleted.iter().all(|d| d.identity() != (metadata.dev(), metadata.ino())) {
            self.deleted.push(deleted::of(link, former, metadata)?);
        }
        Ok(MappedFile { deleted: true, ..file_of(target.clone(), metadata) })
    }

    /// The index of an object; one that is met for the first time is told about by `describe`.
    pub fn index(
        &mut self,
        metadata: &Metadata,
        describe: impl FnOnce(&mut SharedObject) -> io::Result<()>,
    ) -> io::Result<u32> {
        self.index_of((metadata.dev(), metadata.ino()), metadata.size(), |object| {
            object.huge_page = hugetlb::page_size(metadata).unwrap_or(0);
            describe(object)
        })
    }

    /// The same, by its identity in this image and its size in bytes.
    pub fn index_of(
        &mut self,
        (device, inode): (u64, u64),
        size: u64,
        describe: impl FnOnce(&mut SharedObject) -> io::Result<()>,
    ) -> io::Result<u32> {
        let known = self.found.iter().position(|o| o.device == device && o.inode == inode);
        if let Some(known) = known {
            return Ok(known as u32);
        }
        let mut object = SharedObject { size, device, inode, ..SharedObject::default() };
        describe(&mut object)?;
        self.found.push(object);
        Ok(self.found.len() as u32 - 1)
    }
}

/// `known` are the mappings as smaps shows them; where they are not known, it is read, which takes time for every
/// page.
///
/// # Errors
/// Names the first mapping that a restart could not rebuild.
pub fn capture(pid: Pid, known: Option<&[Raw]>, objects: &mut Objects) -> Result<Vec<Vma>, Refusal> {
    let read = || vma::parse(&ProcDir::process(pid).text("smaps")?);
    let raws = known.map_or_else(|| read().map(Cow::Owned), |known| Ok(Cow::Borrowed(known)));
    let raws = raws.reading(pid, "smaps")?;
    raws.iter().filter(|r| r.name != "[vsyscall]").map(|raw| describe(pid, raw, objects)).collect()
}

fn describe(pid: Pid, raw: &Raw, objects: &mut Objects) -> Result<Vma, Refusal> {
    let name = || format!("has the mapping {:x}-{:x} {}", raw.start, raw.end, raw.name);
    for flag in &raw.flags {
        // Pages of the vdso and its data are the kernel's own.
        let ours = vdso::kind(&raw.name).is_some() || (objects.lazy && flag == "um");
        if let Some(reason) = vma::refused(flag).filter(|_| !ours) {
            // Our own write-protection shows as `uw`, never as these.
            return Err(Refusal::unsupported(pid, name(), format!("it {reason}, which cannot be saved yet")));
        }
    }
    let mut vma = Vma {
        name: raw.given_name().unwrap_or_default().as_bytes().to_vec(),
        start: raw.start,
        end: raw.end,
        protection: raw.protection(),
        protection_key: raw.key,
        shared: raw.is_shared(),
        offset: raw.offset,
        flags: raw.flags.iter().filter(|f| is_kept(f)).cloned().collect(),
        ..Vma::default()
    };
    if let Some(kind) = vdso::kind(&raw.name) {
        vma.set_kind(kind);
        return Ok(vma);
    }
    if sysv::is_segment(raw) {
        return sysv::describe(pid, raw, vma, objects);
    }
    if !raw.is_file() {
        vma.set_kind(Kind::Anonymous);
        return if raw.is_shared() {
            Err(Refusal::unsupported(pid, name(), "shared memory of an unknown kind"))
        } else {
            Ok(vma)
        };
    }
    let behind = match Behind::of(pid, raw).reading(pid, "map_files")? {
        Ok(behind) => behind,
        Err(reason) => {
            let seen = unopened(raw, vma, objects).reading(pid, "map_files")?;
            return seen.ok_or_else(|| Refusal::unsupported(pid, name(), reason));
        }
    };
    let Behind { link, target, metadata, .. } = &behind;
    if raw.flags.iter().any(|f| f == "ht") {
        vma.huge_page = hugetlb::page_size(metadata).ok_or_else(|| {
            Refusal::unsupported(pid, name(), "it is of a file of hugetlbfs, which cannot be saved yet")
        })?;
    }
    let is_anonymous = vma.huge_page != 0 && target == Path::new(hugetlb::ANONYMOUS);
    if is_anonymous && !raw.is_shared() {
        vma.set_kind(Kind::Anonymous);
        vma.offset = 0;
        return Ok(vma);
    }
    if raw.is_shared() && (is_anonymous || target == Path::new(behind::ANONYMOUS)) {
        vma.set_kind(Kind::SharedObject);
        vma.object = Some(objects.index(metadata, |_| Ok(())).reading(pid, "map_files")?);
        return Ok(vma);
    }
    // A mapping that may be made writable belongs to a descriptor that could write.
    let may_write = raw.is_shared() && raw.flags.iter().any(|f| f == "mw");
    if let Some(name) = memfd::name(target, metadata) {
        let object = objects.index(metadata, |object| {
            object.memfd = Some(memfd::of(link, name, metadata)?);
            Ok(())
        });
        vma.set_kind(if may_write { Kind::SharedObject } else { Kind::File });
        vma.object = Some(object.reading(pid, "memory of memfd_create(2)")?);
        return Ok(vma);
    }
    if let Some(reason) = unnamed(target) {
        return Err(Refusal::unsupported(pid, name(), reason));
    }
    let file = objects.file(&behind);
    let file = file.map_err(|reason| Refusal::unsupported(pid, name(), reason))?;
    if may_write {
        let object = objects.index(metadata, |object| {
            object.deleted = file.deleted;
            object.tmpfs = posix::of(link, &file, metadata);
            if !file.deleted {
                object.handle = FileHandle::of(link, metadata);
                object.file = Some(file);
            }
            Ok(())
        });
        vma.set_kind(Kind::SharedObject);
        vma.object = Some(object.reading(pid, "map_files")?);
    } else {
        vma.set_kind(Kind::File);
        vma.file = Some(file);
    }
    Ok(vma)
}

/// The record of a mapping, which begins as `vma`, of shared memory without a name that this process has not open, and nobody
/// opens for us: another one has it open, or it can be read through its mappings. None of what is something else.
fn unopened(raw: &Raw, mut vma: Vma, objects: &mut Objects) -> io::Result<Option<Vma>> {
    let Some(nameless) = Nameless::of(raw) else { return Ok(None) };
    let identity = (raw.device, raw.inode);
    let known = objects.found.len() as u32;
    let index = objects.index_of(identity, 0, |object| {
        match &nameless {
            Nameless::Anonymous => {}
            Nameless::Memfd(name) => object.memfd = Some(memfd::unseen(name)),
            Nameless::Deleted(_) => object.deleted = true,
        }
        Ok(())
    })?;
    if index == known {
        objects.unopened.insert(index);
        if let Nameless::Deleted(former) = &nameless {
            objects.deleted.push(deleted::unseen(identity, former));
        }
    }
    vma.set_kind(if raw.flags.iter().any(|f| f == "mw") { Kind::SharedObject } else { Kind::File });
    vma.object = Some(index);
    Ok(Some(vma))
}

/// Why what is mapped cannot be opened again by its name.
fn unnamed(target: &Path) -> Option<&'static str> {
    let bytes = target.as_os_str().as_bytes();
    if bytes.starts_with(b"/memfd:") {
        Some("memory of memfd_create(2) of an unknown kind cannot be saved yet")
    } else if !bytes.starts_with(b"/") {
        Some("it is of no file; it cannot be saved yet")
    } else {
        None
    }
}

/// Flags that say something about the mapping itself, not about what the program may do with it; and `uw`, of
/// which the tracker knows whether it is its own.
fn is_kept(flag: &str) -> bool {
    // `ac`: counted as committed, which mprotect(2) decides once and which keeps neighbours apart.
    ["uw", "gd", "nr", "lo", "lf", "dp", "sl", "ac"].contains(&flag) || vma::advice(flag).is_some()
}

fn file_of(path: PathBuf, metadata: &Metadata) -> MappedFile {
    MappedFile {
        path: path.into_os_string().into_vec(),
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified_ns: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
        deleted: false,
    }
}
