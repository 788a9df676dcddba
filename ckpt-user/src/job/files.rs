//! Files at restart: those that the job had open for writing are cut back to their size at the checkpoint, and
//! what is cut is kept in `DIR/cut/`.

use super::directory::JobDir;
use super::options::FilesPolicy;
use crate::object::Object;
use crate::object::file::FileRecord;
use crate::record::Image;
use crate::sys::ids::FsIds;
use anyhow::{Context, bail};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

/// What has to be cut before the program runs.
#[derive(Debug)]
pub struct Rollback {
    cuts: Vec<(FileRecord, u64)>,
}

/// Compares every written file with the checkpoint; changes nothing.
///
/// # Errors
/// Named: a file that is gone, is another one, is shorter than at the checkpoint, or (with `check`) has grown.
pub fn compare(image: &Image, policy: FilesPolicy, owner: &FsIds) -> anyhow::Result<Rollback> {
    let _as_owner = owner.assume()?;
    let mut cuts: Vec<(FileRecord, u64)> = Vec::new();
    for description in &image.descriptions {
        let writable = description.flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
        let Some(Object::File(file)) = description.object.as_ref().filter(|_| writable) else { continue };
        if file.directory || cuts.iter().any(|(other, _)| other == file) {
            continue;
        }
        let standard = description.standard.is_some();
        match difference(file) {
            Ok(grown) if policy == FilesPolicy::Check && grown > file.size => {
                bail!(
                    "{}: it has grown from {} to {grown} bytes since the checkpoint",
                    file.path().display(),
                    file.size
                )
            }
            Ok(grown) if policy == FilesPolicy::Rollback && grown > file.size => {
                cuts.push((file.clone(), grown))
            }
            Ok(_) => {}
            // A standard stream is replaced by the restarter's own: it need not be there.
            Err(_) if standard => {}
            Err(error) if policy == FilesPolicy::Keep => log::warn!("{error:#}"),
            Err(error) => return Err(error),
        }
    }
    Ok(Rollback { cuts })
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
            return Ok(());
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
        Ok(())
    }
}

fn cut(file: &File, record: &FileRecord) -> anyhow::Result<()> {
    file.set_len(record.size).with_context(|| format!("{}: cannot be cut back", record.path().display()))
}
