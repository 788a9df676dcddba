//! Files at restart: those that the job had open for writing are cut back to their size at the checkpoint, and
//! what is cut is kept in `DIR/cut/`.

use super::directory::JobDir;
use super::moved;
use super::options::FilesPolicy;
use super::others;
use crate::memory::runs::PageSet;
use crate::memory::shared;
use crate::memory::vma::MappedFile;
use crate::object::file::{self, FileRecord};
use crate::object::{Object, ends};
use crate::rebuild::taken;
use crate::record::Image;
use crate::sys::ids::FsIds;
use crate::sys::pidfd;
use anyhow::{Context, bail};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::time::{Duration, UNIX_EPOCH};

/// The directory in the job's own for what is cut off.
const CUT: &str = "cut";

/// What has to be cut before the program runs.
#[derive(Debug, Default)]
pub struct Rollback {
    cuts: Vec<FileRecord>,
    /// All that it writes but what is a standard stream of the restarter.
    written: Vec<FileRecord>,
    streams: Vec<Stream>,
    /// Those whose content is known to be what it was, up to the size that they had: by device and inode.
    pub sound: HashSet<Identity>,
}

/// A standard stream of the restarter that is a regular file.
#[derive(Debug)]
struct Stream {
    stream: u32,
    /// The very file of the checkpoint, which goes on at its position then; another one starts at its own end.
    same: bool,
    position: u64,
}

impl Stream {
    fn of(stream: u32, record: &FileRecord, position: u64) -> Option<Self> {
        let metadata =
            pidfd::duplicate_standard(stream as i32).map(File::from).and_then(|f| f.metadata()).ok()?;
        metadata.is_file().then(|| Self { stream, same: record.is_same_inode(&metadata), position })
    }

    fn position(&self) -> std::io::Result<()> {
        let mut file = File::from(pidfd::duplicate_standard(self.stream as i32)?);
        let to = if self.same { SeekFrom::Start(self.position) } else { SeekFrom::End(0) };
        file.seek(to).map(drop)
    }
}

/// Removes what rollbacks have cut off, and nothing else that is there: a complete checkpoint of the run goes on without it.
pub fn forget_cuts(dir: &JobDir) {
    let below = dir.proc_path().join(CUT);
    let removed = dir.assume().map_err(anyhow::Error::from).and_then(|_as| {
        if !std::fs::symlink_metadata(&below).is_ok_and(|found| found.is_dir()) {
            return Ok(());
        }
        for entry in std::fs::read_dir(&below)? {
            let entry = entry?;
            if entry.file_type()?.is_file() && entry.file_name().to_str().is_some_and(is_cut) {
                std::fs::remove_file(entry.path())?;
            }
        }
        match std::fs::remove_dir(&below) {
            Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => Err(error.into()),
            _ => Ok(()),
        }
    });
    if let Err(error) = removed {
        log::warn!("{}: cannot remove what was cut off: {error:#}", dir.path().join(CUT).display());
    }
}

/// The name of what was cut off a file.
fn name_of_cut(record: &FileRecord) -> String {
    format!("{:x}-{:x}-{}", record.device, record.inode, record.size)
}

/// Whether it is one, with or without the number by which there are several.
fn is_cut(name: &str) -> bool {
    let (name, number) = name.split_once('.').unwrap_or((name, "1"));
    let parts: Vec<&str> = name.split('-').collect();
    let is_number = |text: &&str, radix| u64::from_str_radix(text, radix).is_ok();
    parts.len() == 3
        && parts[..2].iter().all(|part| is_number(part, 16))
        && [parts[2], number].iter().all(|part| is_number(part, 10))
}

/// Compares every written file with the checkpoint; changes nothing.
///
/// # Errors
/// Named: a file that is gone, is another one, is shorter than at the checkpoint, (with `check`) has grown, or that the
/// program reads and was overwritten since.
pub fn compare(image: &Image, policy: FilesPolicy, owner: &FsIds) -> anyhow::Result<Rollback> {
    let _as_owner = owner.assume()?;
    let mut written: Vec<(FileRecord, u64)> = Vec::new();
    let mut streams: Vec<Stream> = Vec::new();
    let mut own: HashSet<Identity> = HashSet::new();
    for (index, description) in image.descriptions.iter().enumerate() {
        let writable = description.flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
        let Some(Object::File(file)) = &description.object else { continue };
        if description.standard.is_some() {
            let all: Vec<Stream> = streams_of(image, index)
                .into_iter()
                .filter_map(|stream| Stream::of(stream, file, description.position))
                .filter(|stream| stream.same || writable)
                .collect();
            let same = all.iter().any(|s| s.same);
            streams.extend(all);
            // It is the restarter's own now. A different one is no file of this run.
            if !same {
                continue;
            }
            own.insert((file.device, file.inode));
        }
        if !writable || file.directory || written.iter().any(|(other, _)| other == file) {
            continue;
        }
        written.extend(compared(image, file, policy)?);
    }
    // Files that are mapped for writing need no descriptor.
    for file in image.objects.iter().filter_map(|o| o.file.as_ref()) {
        let known = written.iter().any(|(other, _)| (other.device, other.inode) == (file.device, file.inode));
        if !known {
            let (path, size) = (file.path.clone(), file.size);
            let (device, inode) = (file.device, file.inode);
            let file =
                FileRecord { path, device, inode, size, modified_ns: file.modified_ns, ..Default::default() };
            written.extend(compared(image, &file, policy)?);
        }
    }
    let has_grown = |(file, now): &&(FileRecord, u64)| *now > file.size && policy == FilesPolicy::Rollback;
    let cuts = written.iter().filter(has_grown).map(|(file, _)| file.clone()).collect();
    let sound = written.iter().filter(|(file, _)| file.ends.is_some() || is_memory(image, file));
    let sound = sound.map(|(file, _)| (file.device, file.inode)).collect();
    // Of one that nothing is cut off, and that the program only adds to, nothing is lost to others who do; nor of one that was
    // empty and has not been touched, such as a lock file.
    let is_mapped = |file: &FileRecord| {
        let is_it = |other: &MappedFile| (other.device, other.inode) == (file.device, file.inode);
        image.objects.iter().filter_map(|object| object.file.as_ref()).any(is_it)
    };
    let is_untouched =
        |file: &FileRecord| std::fs::metadata(file.path()).is_ok_and(|now| file.is_as_old(&now));
    let is_at_risk = |file: &FileRecord, now: u64| {
        let is_added_to = ends::is_only_appended_to(&image.descriptions, file);
        let stays = now == file.size && (is_added_to || (now == 0 && is_untouched(file)));
        !own.contains(&(file.device, file.inode)) && (!stays || is_mapped(file))
    };
    let written =
        written.into_iter().filter(|(file, now)| is_at_risk(file, *now)).map(|(file, _)| file).collect();
    Ok(Rollback { cuts, written, streams, sound })
}

/// A file with its size now, if it is one to go on with.
fn compared(
    image: &Image,
    file: &FileRecord,
    policy: FilesPolicy,
) -> anyhow::Result<Option<(FileRecord, u64)>> {
    let path = file.path().display();
    match difference(image, file) {
        Ok(grown) if policy == FilesPolicy::Check && grown > file.size => {
            bail!("{path}: it has grown from {} to {grown} bytes since the checkpoint", file.size)
        }
        Ok(now) => Ok(Some((file.clone(), now))),
        Err(Difference::Error(error)) => Err(error.context(format!(
            "{path}: the program had it open for writing; another checkpoint may \
                 not need it (ckptbpf list, restart --at ID)"
        ))),
        Err(different) => differs(file, &different, policy).map(|()| None),
    }
}

/// An error, or a warning where files are kept as they are.
fn differs(file: &FileRecord, how: &dyn std::fmt::Display, policy: FilesPolicy) -> anyhow::Result<()> {
    let path = file.path().display();
    if policy != FilesPolicy::Keep {
        bail!("{path}: {how} (--files keep goes on with it as it is)");
    }
    log::warn!("{path}: {how}");
    Ok(())
}

/// The restarter's standard streams that take the place of description `index`.
fn streams_of(image: &Image, index: usize) -> Vec<u32> {
    let all = image.processes.iter().flat_map(|p| &p.descriptors);
    let mut streams: Vec<u32> =
        all.filter(|d| d.description as usize == index).filter_map(|d| d.standard).collect();
    streams.sort_unstable();
    streams.dedup();
    streams
}

/// Why a file cannot be made what it was.
#[derive(Debug, thiserror::Error)]
enum Difference {
    #[error("{0}")]
    Error(anyhow::Error),
    #[error("it is another file than at the checkpoint")]
    Replaced,
    #[error(
        "it is on another mount, or another machine, than at the checkpoint, and nothing tells that it is the same file"
    )]
    Untold,
    #[error("it has {now} bytes, fewer than the {then} at the checkpoint")]
    Shorter { now: u64, then: u64 },
    #[error(
        "bytes that it held at the checkpoint have been overwritten since: files are cut back, not rewritten, and the \
         program, which also reads this one, may take it for what it was and damage it"
    )]
    Overwritten,
}

/// The file's size now.
fn difference(image: &Image, file: &FileRecord) -> Result<u64, Difference> {
    let failed = |error: std::io::Error| Difference::Error(error.into());
    let now = std::fs::metadata(file.path()).map_err(failed)?;
    if !file.is_same_inode(&now) {
        return Err(if moved::is_untold(file) { Difference::Untold } else { Difference::Replaced });
    }
    if now.len() < file.size {
        return Err(Difference::Shorter { now: now.len(), then: file.size });
    }
    let appended = ends::is_appended_to(&image.descriptions, file);
    if !is_memory(image, file) && ends::is_overwritten(file, &now, appended).map_err(failed)? {
        return Err(Difference::Overwritten);
    }
    Ok(now.len())
}

/// Whether all of the file is mapped, so that its bytes are in the image and come back.
pub fn is_memory(image: &Image, file: &FileRecord) -> bool {
    let is_it = |other: &MappedFile| (other.device, other.inode) == (file.device, file.inode);
    let index = image.objects.iter().position(|o| o.file.as_ref().is_some_and(is_it));
    let all: PageSet = std::iter::once(0..file.size.div_ceil(4096)).collect();
    index.is_some_and(|index| all.difference(&shared::pages(image, index as u32)).runs().is_empty())
}

/// By device and inode.
type Identity = (u64, u64);

/// What is to be cut is kept, and nothing has been cut.
#[derive(Debug)]
pub struct Kept<'p> {
    /// Without a file: it is cut through the descriptor by which its lease was taken, which opening it would break.
    cuts: Vec<(Option<File>, &'p FileRecord)>,
    streams: &'p [Stream],
}

impl Rollback {
    /// Whether nobody else writes to those files.
    ///
    /// # Errors
    /// Names who does.
    pub fn require_alone(&self, policy: FilesPolicy, owner: &FsIds) -> anyhow::Result<()> {
        let others = others::writing(&self.written, owner, taken::WAIT)?;
        let lost = "what it writes there would be cut off or written over";
        others.iter().try_for_each(|(file, other)| differs(file, &format!("{other}: {lost}"), policy))
    }

    /// Keeps what is cut in `DIR/cut/`. The files on which there are to be leases are closed again.
    pub fn keep(&self, dir: &JobDir, owner: &FsIds, leased: &HashSet<Identity>) -> anyhow::Result<Kept<'_>> {
        let _as_owner = owner.assume()?;
        let mut cuts = Vec::new();
        for record in &self.cuts {
            let path = record.path();
            let mut file = file::open(path, libc::O_RDWR as u32).context("a file cannot be cut back")?;
            file.seek(SeekFrom::Start(record.size))?;
            let mut copy = dir.create_below(CUT, &name_of_cut(record))?;
            std::io::copy(&mut file, &mut copy)
                .with_context(|| format!("{}: cannot keep what is cut", path.display()))?;
            copy.sync_data()?;
            let is_leased = leased.contains(&(record.device, record.inode));
            cuts.push(((!is_leased).then_some(file), record));
        }
        Ok(Kept { cuts, streams: &self.streams })
    }
}

impl Kept<'_> {
    /// Cuts; `leased` are those that are open already.
    pub fn cut(&self, leased: &HashMap<Identity, File>, owner: &FsIds) -> anyhow::Result<()> {
        let _as_owner = owner.assume()?;
        for (file, record) in &self.cuts {
            let file = file.as_ref().or_else(|| leased.get(&(record.device, record.inode)));
            let file = file.with_context(|| format!("{}: cannot be cut back", record.path().display()))?;
            cut(file, record)?;
        }
        self.streams.iter().try_for_each(Stream::position).context("cannot position a standard stream")
    }
}

fn cut(file: &File, record: &FileRecord) -> anyhow::Result<()> {
    let cut = file.set_len(record.size);
    cut.with_context(|| format!("{}: cannot be cut back", record.path().display()))?;
    // The next restart from there is to find it as this one left it. Only its owner can say so.
    let _ = file.set_modified(UNIX_EPOCH + Duration::from_nanos(record.modified_ns.max(0) as u64));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// A file that has grown, and its record.
    fn grown(at: &std::path::Path) -> FileRecord {
        std::fs::write(at, "kept and cut").unwrap();
        FileRecord { size: 4, ..FileRecord::of(at, &at.metadata().unwrap()) }
    }

    #[test]
    fn what_is_cut_stays_in_the_directory_whatever_is_there() {
        let base = tempfile::tempdir().unwrap();
        let ids = FsIds::current();
        let dir = JobDir::create(&base.path().join("job"), &ids).unwrap();
        let elsewhere = base.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let record = grown(&base.path().join("a"));
        let carry_out = || {
            let plan = Rollback { cuts: vec![record.clone()], ..Rollback::default() };
            plan.keep(&dir, &ids, &HashSet::new()).and_then(|kept| kept.cut(&HashMap::new(), &ids))
        };
        let cut = dir.path().join("cut");
        // The directory is a link, then the file is one.
        symlink(&elsewhere, &cut).unwrap();
        carry_out().unwrap_err();
        std::fs::remove_file(&cut).unwrap();
        std::fs::create_dir(&cut).unwrap();
        let name = format!("{:x}-{:x}-{}", record.device, record.inode, record.size);
        let precious = elsewhere.join("precious");
        std::fs::write(&precious, "whole").unwrap();
        symlink(&precious, cut.join(&name)).unwrap();
        carry_out().unwrap_err();
        assert_eq!(std::fs::read(&precious).unwrap(), b"whole");
        assert_eq!(std::fs::read(record.path()).unwrap(), b"kept and cut", "nothing is cut that is not kept");
        std::fs::remove_file(cut.join(&name)).unwrap();
        carry_out().unwrap();
        assert_eq!(std::fs::read(cut.join(&name)).unwrap(), b" and cut");
        assert_eq!(std::fs::metadata(cut.join(&name)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 1);
        assert_eq!(std::fs::metadata(record.path()).unwrap().size(), 4);
        // Once more from the same checkpoint.
        std::fs::write(record.path(), "kept, and this").unwrap();
        carry_out().unwrap();
        assert_eq!(std::fs::read(cut.join(&name)).unwrap(), b" and cut");
        assert_eq!(std::fs::read(cut.join(format!("{name}.1"))).unwrap(), b", and this");
        // What is somebody's own there stays.
        std::fs::write(cut.join("my own"), "").unwrap();
        forget_cuts(&dir);
        assert_eq!(std::fs::read_dir(&cut).unwrap().count(), 1);
        std::fs::remove_file(cut.join("my own")).unwrap();
        forget_cuts(&dir);
        assert!(!cut.exists());
    }

    #[test]
    fn no_record_gives_a_name_that_leads_elsewhere() {
        let base = tempfile::tempdir().unwrap();
        let ids = FsIds::current();
        let dir = JobDir::create(&base.path().join("job"), &ids).unwrap();
        for path in ["../../a", "/a\0b", "", "/proc/self/fd/999999", "job/../a"] {
            let path = path.as_bytes().to_vec();
            let record = FileRecord { path, device: u64::MAX, inode: u64::MAX, ..FileRecord::default() };
            let plan = Rollback { cuts: vec![record], ..Rollback::default() };
            plan.keep(&dir, &ids, &HashSet::new()).unwrap_err();
        }
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
