//! `DIR/remade.json`: which files of memory are the program's, on each machine that it was on. They are other inodes there.

use super::directory::{DirectoryError, JobDir};
use super::record::RECORD_LIMIT;
use anyhow::Context;
use nix::fcntl::OFlag;
use std::fs::Metadata;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;

const NAME: &str = "remade.json";

/// By device and inode.
pub type Identity = (u64, u64);

/// The program's file of that name on one machine, since that was started.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Known {
    path: String,
    /// /proc/sys/kernel/random/boot_id.
    boot_id: String,
    file: Identity,
}

/// One file for each name and machine; the newest last.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Table(Vec<Known>);

impl Table {
    /// Of a directory whose checkpoints are `owner`'s: nobody else's word counts but root's. Without one, nothing is known.
    pub fn read(dir: &JobDir, owner: u32) -> anyhow::Result<Self> {
        let file = match dir.open_file(NAME, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Err(DirectoryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            opened => opened?,
        };
        let shown = || format!("{}/{NAME}", dir.path().display());
        let found = file.metadata().with_context(shown)?;
        if ![owner, 0].contains(&found.uid()) || found.mode() & 0o022 != 0 {
            log::warn!("{}: not believed: others than the owner of the checkpoints can write it", shown());
            return Ok(Self::default());
        }
        let mut text = Vec::new();
        file.take(2 * RECORD_LIMIT).read_to_end(&mut text).with_context(shown)?;
        serde_json::from_slice(&text).with_context(|| {
            let lost = "shared memory that was made again by a restart is not known without it";
            format!("{}: cannot be understood; remove it to go on ({lost})", shown())
        })
    }

    /// Replaces the table of a directory: a reader finds the old one or the new one, also after a crash. The oldest entries
    /// go when there are too many.
    pub fn write(&mut self, dir: &JobDir) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        while text.len() as u64 > RECORD_LIMIT && !self.0.is_empty() {
            self.0.drain(..self.0.len().div_ceil(2));
            text = serde_json::to_vec_pretty(self)?;
        }
        text.push(b'\n');
        let temporary = format!("{NAME}.tmp");
        let mut file = dir.open_file(&temporary, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC)?;
        let written = file.write_all(&text).and_then(|()| file.sync_all());
        written.with_context(|| format!("{}/{NAME}", dir.path().display()))?;
        Ok(dir.rename(&temporary, NAME)?)
    }

    /// Adds what another one knows.
    pub fn take_in(&mut self, other: Self) {
        other.0.into_iter().for_each(|known| self.note(&known.path, &known.boot_id, known.file));
    }

    /// Whether that file is the program's. Of a machine that does not tell its boot nothing is known.
    pub fn has(&self, path: &str, boot_id: &str, file: Identity) -> bool {
        let is_it = |known: &Known| (known.path.as_str(), known.boot_id.as_str()) == (path, boot_id);
        !boot_id.is_empty() && self.0.iter().any(|known| is_it(known) && known.file == file)
    }

    /// From now on that one is the program's.
    pub fn note(&mut self, path: &str, boot_id: &str, file: Identity) {
        self.0.retain(|known| (known.path.as_str(), known.boot_id.as_str()) != (path, boot_id));
        if !boot_id.is_empty() {
            self.0.push(Known { path: path.to_owned(), boot_id: boot_id.to_owned(), file });
        }
    }

    /// The same, where none is known.
    pub fn note_first(&mut self, path: &str, boot_id: &str, file: Identity) {
        if !self.0.iter().any(|known| (known.path.as_str(), known.boot_id.as_str()) == (path, boot_id)) {
            self.note(path, boot_id, file);
        }
    }
}

pub fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ids::FsIds;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_known_on_its_machine_and_by_its_name() {
        let mut table = Table::default();
        table.note("/a", "one", (1, 2));
        table.note_first("/a", "one", (1, 9));
        table.note_first("/a", "two", (1, 3));
        table.note("/b", "", (1, 4));
        let known = |path, boot_id, inode| table.has(path, boot_id, (1, inode));
        assert!(known("/a", "one", 2) && known("/a", "two", 3));
        assert!(
            !known("/a", "one", 3) && !known("/a", "one", 9) && !known("/b", "one", 2) && !known("/b", "", 4)
        );
        let mut other = Table::default();
        other.note("/a", "one", (1, 5));
        table.take_in(other);
        assert!(table.has("/a", "one", (1, 5)) && !table.has("/a", "one", (1, 2)));
    }

    #[test]
    fn a_table_stays_small_and_is_nobody_else_s() {
        let base = tempfile::tempdir().unwrap();
        let ids = FsIds::current();
        let dir = JobDir::create(&base.path().join("job"), &ids).unwrap();
        assert_eq!(Table::read(&dir, ids.uid).unwrap(), Table::default());
        let mut table = Table::default();
        (0..12_000).for_each(|n| table.note(&format!("/dev/shm/{n:100}"), "here", (1, n)));
        table.write(&dir).unwrap();
        assert_eq!(Table::read(&dir, ids.uid).unwrap(), table);
        assert!(
            table.has(&format!("/dev/shm/{:100}", 11_999), "here", (1, 11_999)) && table.0.len() < 12_000
        );
        let file = dir.path().join(NAME);
        if ids.uid == 0 {
            std::os::unix::fs::chown(&file, Some(7), None).unwrap();
            assert_eq!(Table::read(&dir, ids.uid).unwrap(), Table::default());
            assert_eq!(Table::read(&dir, 7).unwrap(), table);
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o620)).unwrap();
        assert_eq!(Table::read(&dir, 7).unwrap(), Table::default());
    }
}
