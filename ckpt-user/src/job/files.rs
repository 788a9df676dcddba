//! Files at restart: those that the job had open for writing are cut back to their size at the checkpoint, and
//! what is cut is kept in `DIR/cut/`.

use super::directory::JobDir;
use super::options::FilesPolicy;
use crate::object::Object;
use crate::object::file::FileRecord;
use crate::record::Image;
use crate::sys::ids::FsIds;
use crate::sys::pidfd;
use anyhow::{Context, bail};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};

/// What has to be cut before the program runs.
#[derive(Debug)]
pub struct Rollback {
    cuts: Vec<(FileRecord, u64)>,
    streams: Vec<Stream>,
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

/// Compares every written file with the checkpoint; changes nothing.
///
/// # Errors
/// Named: a file that is gone, is another one, is shorter than at the checkpoint, or (with `check`) has grown.
pub fn compare(image: &Image, policy: FilesPolicy, owner: &FsIds) -> anyhow::Result<Rollback> {
    let _as_owner = owner.assume()?;
    let mut cuts: Vec<(FileRecord, u64)> = Vec::new();
    let mut streams: Vec<Stream> = Vec::new();
    for (index, description) in image.descriptions.iter().enumerate() {
        let writable = description.flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
        let Some(Object::File(file)) = &description.object else { continue };
        if description.standard.is_some() {
            let own: Vec<Stream> = streams_of(image, index)
                .into_iter()
                .filter_map(|stream| Stream::of(stream, file, description.position))
                .filter(|stream| stream.same || writable)
                .collect();
            let same = own.iter().any(|s| s.same);
            streams.extend(own);
            // It is the restarter's own now. A different one is no file of this run.
            if !same {
                continue;
            }
        }
        if !writable || file.directory || cuts.iter().any(|(other, _)| other == file) {
            continue;
        }
        cuts.extend(to_cut(file, policy)?);
    }
    // Files that are mapped for writing need no descriptor.
    for file in image.objects.iter().filter_map(|o| o.file.as_ref()) {
        let known = cuts.iter().any(|(other, _)| (other.device, other.inode) == (file.device, file.inode));
        if !known {
            let (path, size) = (file.path.clone(), file.size);
            let (device, inode) = (file.device, file.inode);
            cuts.extend(to_cut(&FileRecord { path, device, inode, size, ..Default::default() }, policy)?);
        }
    }
    Ok(Rollback { cuts, streams })
}

/// The cut that a file needs, if any, with its size now.
fn to_cut(file: &FileRecord, policy: FilesPolicy) -> anyhow::Result<Option<(FileRecord, u64)>> {
    match difference(file) {
        Ok(grown) if policy == FilesPolicy::Check && grown > file.size => {
            bail!(
                "{}: it has grown from {} to {grown} bytes since the checkpoint",
                file.path().display(),
                file.size
            )
        }
        Ok(grown) if policy == FilesPolicy::Rollback && grown > file.size => Ok(Some((file.clone(), grown))),
        Ok(_) => Ok(None),
        Err(error) if policy == FilesPolicy::Keep => {
            log::warn!("{error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
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

/// The file's size now.
fn difference(file: &FileRecord) -> anyhow::Result<u64> {
    let path = file.path();
    let metadata = std::fs::metadata(path).with_context(|| {
        format!("{}: the program had it open for writing (--files keep goes on without it)", path.display())
    })?;
    if !file.is_same_inode(&metadata) {
        bail!("{}: it is another file than at the checkpoint (--files keep takes it)", path.display());
    }
    if metadata.len() < file.size {
        bail!(
            "{}: it has {} bytes, fewer than the {} at the checkpoint (--files keep goes on)",
            path.display(),
            metadata.len(),
            file.size
        );
    }
    Ok(metadata.len())
}

impl Rollback {
    /// Keeps what is cut in `DIR/cut/`, then cuts.
    pub fn carry_out(&self, dir: &JobDir, owner: &FsIds) -> anyhow::Result<()> {
        if self.cuts.is_empty() {
            return self.position_streams();
        }
        let _as_owner = owner.assume()?;
        let mut opened = Vec::new();
        for (record, _) in &self.cuts {
            let path = record.path();
            let file = OpenOptions::new().read(true).write(true).open(path);
            let mut file = file.with_context(|| format!("{}: cannot be cut back", path.display()))?;
            file.seek(SeekFrom::Start(record.size))?;
            let name = format!("{:x}-{:x}-{}", record.device, record.inode, record.size);
            let mut copy = dir.create_below("cut", &name)?;
            std::io::copy(&mut file, &mut copy)
                .with_context(|| format!("{}: cannot keep what is cut", path.display()))?;
            copy.sync_data()?;
            opened.push((file, record));
        }
        for (file, record) in opened {
            cut(&file, record)?;
        }
        self.position_streams()
    }

    fn position_streams(&self) -> anyhow::Result<()> {
        self.streams.iter().try_for_each(Stream::position).context("cannot position a standard stream")
    }
}

fn cut(file: &File, record: &FileRecord) -> anyhow::Result<()> {
    file.set_len(record.size).with_context(|| format!("{}: cannot be cut back", record.path().display()))
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
        let plan = || Rollback { cuts: vec![(record.clone(), 12)], streams: Vec::new() };
        let cut = dir.path().join("cut");
        // The directory is a link, then the file is one.
        symlink(&elsewhere, &cut).unwrap();
        plan().carry_out(&dir, &ids).unwrap_err();
        std::fs::remove_file(&cut).unwrap();
        std::fs::create_dir(&cut).unwrap();
        let name = format!("{:x}-{:x}-{}", record.device, record.inode, record.size);
        let precious = elsewhere.join("precious");
        std::fs::write(&precious, "whole").unwrap();
        symlink(&precious, cut.join(&name)).unwrap();
        plan().carry_out(&dir, &ids).unwrap_err();
        assert_eq!(std::fs::read(&precious).unwrap(), b"whole");
        assert_eq!(std::fs::read(record.path()).unwrap(), b"kept and cut", "nothing is cut that is not kept");
        std::fs::remove_file(cut.join(&name)).unwrap();
        plan().carry_out(&dir, &ids).unwrap();
        assert_eq!(std::fs::read(cut.join(&name)).unwrap(), b" and cut");
        assert_eq!(std::fs::metadata(cut.join(&name)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 1);
        assert_eq!(std::fs::metadata(record.path()).unwrap().size(), 4);
    }

    #[test]
    fn no_record_gives_a_name_that_leads_elsewhere() {
        let base = tempfile::tempdir().unwrap();
        let ids = FsIds::current();
        let dir = JobDir::create(&base.path().join("job"), &ids).unwrap();
        for path in ["../../a", "/a\0b", "", "/proc/self/fd/999999", "job/../a"] {
            let path = path.as_bytes().to_vec();
            let record = FileRecord { path, device: u64::MAX, inode: u64::MAX, ..FileRecord::default() };
            Rollback { cuts: vec![(record, 1)], streams: Vec::new() }.carry_out(&dir, &ids).unwrap_err();
        }
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
