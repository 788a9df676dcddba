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
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

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
        let kept = dir.proc_path().join("cut");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&kept)?;
        let mut opened = Vec::new();
        for (record, _) in &self.cuts {
            let path = record.path();
            let file = OpenOptions::new().read(true).write(true).open(path);
            let mut file = file.with_context(|| format!("{}: cannot be cut back", path.display()))?;
            file.seek(SeekFrom::Start(record.size))?;
            let name = format!("{:x}-{:x}-{}", record.device, record.inode, record.size);
            let mut copy = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(kept.join(name))?;
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
