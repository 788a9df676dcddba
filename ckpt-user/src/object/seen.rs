//! What /proc and fcntl(2) show of one descriptor of a stopped process.

use crate::refusal::{Reading, Refusal};
use crate::sys::pidfd;
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::cmp::Ordering;
use std::io;
use std::path::PathBuf;

/// The first descriptor by which a description was found.
#[derive(Debug)]
pub struct Seen {
    /// [`Member::thread`](crate::freeze::Member::thread) of the process.
    pub pid: Pid,
    pub number: i32,
    /// /proc/PID/fd/N: a path, or a name such as `pipe:[17]`.
    pub target: PathBuf,
    pub position: u64,
    /// O_*, without O_CLOEXEC.
    pub flags: u32,
    /// /proc/PID/fdinfo/N.
    pub info: String,
    /// What an eventfd was made with (EFD_*), where an iterator has read it.
    pub eventfd: Option<u32>,
    /// It was found in a message that waits in this descriptor of a process: `pid` and `number` are a duplicate of ours.
    pub carried: Option<(Pid, i32)>,
}

impl Seen {
    /// Looks at a descriptor; also whether it is close-on-exec.
    pub fn look(pid: Pid, number: i32) -> Result<(Self, bool), Refusal> {
        let dir = ProcDir::process(pid);
        let target = dir.link(&format!("fd/{number}")).reading(pid, "fd")?;
        let info = dir.text(&format!("fdinfo/{number}")).reading(pid, "fdinfo")?;
        Ok(Self::of(pid, number, target, info))
    }

    /// From what its link and its fdinfo say.
    pub(crate) fn of(pid: Pid, number: i32, target: PathBuf, info: String) -> (Self, bool) {
        let field = |name: &str| info.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        let position = field("pos:").and_then(|v| v.parse().ok()).unwrap_or(0);
        let flags = field("flags:").and_then(|v| u32::from_str_radix(v, 8).ok()).unwrap_or(0);
        let cloexec = libc::O_CLOEXEC as u32;
        let seen = Self {
            pid,
            number,
            target,
            position,
            flags: flags & !cloexec,
            info,
            eventfd: None,
            carried: None,
        };
        (seen, flags & cloexec != 0)
    }

    /// fdinfo as it is now.
    pub fn fresh_info(&self) -> io::Result<String> {
        ProcDir::process(self.pid).text(&format!("fdinfo/{}", self.number))
    }

    pub fn is_path_only(&self) -> bool {
        self.flags & libc::O_PATH as u32 != 0
    }

    /// The refusal of a checkpoint because of this descriptor.
    pub fn refuse(&self, reason: &str) -> Refusal {
        if let Some((pid, number)) = self.carried {
            let what =
                format!("has descriptor {number}, in which {} waits in a message", self.target.display());
            return Refusal::unsupported(pid, what, reason);
        }
        let what = format!("has descriptor {} ({})", self.number, self.target.display());
        Refusal::unsupported(self.pid, what, format!("{reason}{}", self.inherited()))
    }

    /// Whether ckptbpf has it too: it came from whoever started ckptbpf. What ckptbpf has itself is close-on-exec: a copy that
    /// this checkpoint has taken may have the number that the program has.
    pub fn is_inherited(&self) -> bool {
        if self.carried.is_some() {
            return false;
        }
        let is_close_on_exec = || {
            let info = ProcDir::process(Pid::this()).text(&format!("fdinfo/{}", self.number)).ok()?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
            u32::from_str_radix(flags.trim(), 8).ok().map(|flags| flags & libc::O_CLOEXEC as u32 != 0)
        };
        let ours = pidfd::compare(Pid::this(), self.pid, pidfd::Kind::File, self.number, self.number);
        ours.is_ok_and(|order| order == Ordering::Equal) && is_close_on_exec() == Some(false)
    }

    /// /proc/PID/fd/N: opening it opens the same file.
    pub fn link(&self) -> PathBuf {
        ProcDir::process(self.pid).path(format!("fd/{}", self.number))
    }

    /// What to do about a descriptor that was inherited.
    fn inherited(&self) -> String {
        let number = self.number;
        if !self.is_inherited() {
            return String::new();
        }
        format!(
            "; it was inherited from whoever started ckptbpf (a build tool, an editor, a script): start ckptbpf \
             with {number}>&- behind the command, which closes it"
        )
    }

    /// What cannot be saved, in words that name it.
    pub fn unknown(&self) -> String {
        let target = self.target.display().to_string();
        // `socket:[17]`, `anon_inode:[pidfd]`, `anon_inode:inotify`.
        let kind = match target.split_once(':') {
            Some(("anon_inode", kind)) => kind,
            Some((kind, number)) if number.starts_with('[') => kind,
            _ => "",
        };
        match kind.trim_matches(['[', ']']) {
            "" => "this kind of descriptor cannot be saved yet".to_owned(),
            "socket" => "sockets cannot be saved yet".to_owned(),
            kind => format!("descriptors of the kind {kind} cannot be saved yet"),
        }
    }
}
