//! `ckpt_<program>_<id>.dmtcp`: a small file in the place of DMTCP's image, which says where a job's checkpoints are.
//!
//! ```text
//! ckpt_count_0123456789abcdef.dmtcp      what scripts look for, move, remove, and give to dmtcp_restart
//! .ckpt_count_0123456789abcdef/          the job's directory beside it, which a script's *.dmtcp does not match
//!     pointer                            the same file by another name (link(2))
//! dmtcp_restart_script.sh                starts dmtcp_restart of it
//! ```
//! It is there once the job has a checkpoint, and is as old as the newest one ([`keep`]). Who removes it has removed the
//! checkpoints ([`removed`]); one that was only moved is known by its other name. [`find`] goes the way back.

pub mod find;
pub mod keep;
pub mod removed;
pub mod script;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A file larger than this, in bytes, is none of ours.
pub const LIMIT: u64 = 4096;

/// The name in the job's directory by which it is known whether there is another one.
const OWN: &str = "pointer";

const FIRST: &str = "ckptbpf pointer 1";
/// Digits of the number by which several jobs of a program differ.
const ID_DIGITS: usize = 16;
/// Bytes of a program's name: with what is put around it, a file's name has 255 (NAME_MAX).
const LONGEST_NAME: usize = 200;
/// Bytes of a path that is written; without it the directory is found beside the file alone.
const LONGEST_PATH: usize = 2048;

/// What a job's files are called: `ckpt_<program>_<id>`, with something before or after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(String);

impl Names {
    /// For a new job of `program`; `id` is [`new_id`]'s.
    pub fn new(program: &OsStr, id: &str) -> Self {
        let name = Path::new(program).file_name().unwrap_or(OsStr::new("program")).to_string_lossy();
        let mut short = String::new();
        for c in name.chars().filter(|c| !c.is_control() && *c != '/') {
            if short.len() + c.len_utf8() > LONGEST_NAME {
                break;
            }
            short.push(c);
        }
        Self(format!("ckpt_{short}_{id}"))
    }

    /// Of a job's directory; none if that is not called so.
    pub fn of_dir(dir: &Path) -> Option<Self> {
        let name = dir.file_name()?.to_str()?.strip_prefix('.')?;
        let is_one = name.starts_with("ckpt_") && !name.chars().any(char::is_control);
        is_one.then(|| Self(name.to_owned()))
    }

    /// The directory's.
    pub fn dir(&self) -> String {
        format!(".{}", self.0)
    }

    /// The file's.
    pub fn pointer(&self) -> String {
        format!("{}.dmtcp", self.0)
    }

    /// The file's until it has its own.
    fn temporary(&self) -> String {
        format!(".{}.dmtcp.tmp", self.0)
    }

    /// The script's, beside the one that is called the same for all jobs.
    fn script(&self) -> String {
        let id = self.0.rsplit('_').next().unwrap_or_default();
        format!("dmtcp_restart_script_{id}.sh")
    }
}

/// A number that no other job has: hexadecimal digits.
///
/// # Errors
/// The kernel gives none (/proc/sys/kernel/random/uuid).
pub fn new_id() -> io::Result<String> {
    let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(random.chars().filter(char::is_ascii_hexdigit).take(ID_DIGITS).collect())
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    /// The job's identity (job.json).
    pub job: String,
    /// Where its checkpoints were when it was written, from the root; none where a line cannot say it.
    pub dir: Option<PathBuf>,
    /// For people.
    pub program: String,
    /// For people: where it was written first.
    pub host: String,
}

/// Why a file is no pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPointer {
    /// It begins as DMTCP's own images do, compressed or not.
    #[error(
        "this is an image of DMTCP itself, which only DMTCP's own dmtcp_restart can restart; launch the program anew with \
         dmtcp_launch of ckptbpf"
    )]
    OfDmtcp,
    /// Anything else.
    #[error("this is no checkpoint of ckptbpf, or it is damaged")]
    Other,
}

impl Pointer {
    /// As it is in the file.
    pub fn text(&self) -> String {
        let Self { job, dir, program, host } = self;
        let is_line = |dir: &&str| dir.len() <= LONGEST_PATH && !dir.chars().any(char::is_control);
        let dir = dir.as_deref().and_then(Path::to_str).filter(is_line).unwrap_or_default();
        let (program, host) = (line(program, 200), line(host, 64));
        format!("{FIRST}\njob={job}\ndir={dir}\nprogram={program}\nhost={host}\n")
    }

    /// Of a file's bytes.
    ///
    /// # Errors
    /// It is none, or not all of one.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoPointer> {
        if bytes.starts_with(b"DMTCP_CHECKPOINT_IMAGE") || bytes.starts_with(&[0x1f, 0x8b]) {
            return Err(NoPointer::OfDmtcp);
        }
        if bytes.len() as u64 > LIMIT {
            return Err(NoPointer::Other);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| NoPointer::Other)?;
        // What has lost its end has lost that of a line.
        let mut lines = text.strip_suffix('\n').ok_or(NoPointer::Other)?.split('\n');
        let mut next = |name: &str| {
            let value = lines.next().and_then(|line| line.strip_prefix(name));
            value.ok_or(NoPointer::Other)
        };
        if !next(FIRST)?.is_empty() {
            return Err(NoPointer::Other);
        }
        let (job, dir) = (next("job=")?, Path::new(next("dir=")?));
        let (program, host) = (next("program=")?.to_owned(), next("host=")?.to_owned());
        let is_identity = |c: char| c.is_ascii_hexdigit() || c == '-';
        if job.is_empty() || job.len() > 64 || !job.chars().all(is_identity) {
            return Err(NoPointer::Other);
        }
        Ok(Self { job: job.to_owned(), dir: dir.is_absolute().then(|| dir.to_owned()), program, host })
    }

    /// Where the checkpoints may be, first to last: beside the file, with which they may have been moved, also if it is called
    /// otherwise by now, and where they were.
    pub fn places(&self, file: &Path) -> Vec<PathBuf> {
        let above = file.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut places = Vec::new();
        if let Some(stem) = file.file_stem() {
            let hidden = [b".".as_slice(), stem.as_bytes()].concat();
            places.push(above.join(OsStr::from_bytes(&hidden)));
        }
        if let Some(dir) = &self.dir {
            places.extend(dir.file_name().map(|name| above.join(name)));
            places.push(dir.clone());
        }
        places.dedup();
        places
    }
}

/// As much of it as fits a line.
fn line(text: &str, longest: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(longest).collect()
}

#[cfg(test)]
mod tests;
