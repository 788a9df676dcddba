//! What /proc/PID shows of a process, parsed into plain data (proc(5)).

use nix::unistd::Pid;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Most files are shorter.
const FIRST_READ: usize = 8 << 10;

/// /proc/PID or /proc/PID/task/TID.
#[derive(Debug, Clone)]
pub struct ProcDir(PathBuf);

impl ProcDir {
    pub fn process(pid: Pid) -> Self {
        Self(PathBuf::from(format!("/proc/{pid}")))
    }

    pub fn thread(pid: Pid, tid: Pid) -> Self {
        Self(PathBuf::from(format!("/proc/{pid}/task/{tid}")))
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    pub fn text(&self, name: &str) -> io::Result<String> {
        let bytes = self.bytes(name)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// Files here have no size: [`fs::read`] would begin with 32 bytes and make ten calls where three will do.
    pub fn bytes(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(self.path(name))?;
        let mut bytes = vec![0; FIRST_READ];
        let mut filled = 0;
        loop {
            match file.read(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            if filled == bytes.len() {
                bytes.resize(2 * filled, 0);
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    pub fn link(&self, name: &str) -> io::Result<PathBuf> {
        fs::read_link(self.path(name))
    }

    pub fn status(&self) -> io::Result<Status> {
        self.text("status").map(Status::of)
    }

    pub fn stat(&self) -> io::Result<Stat> {
        Stat::parse(&self.text("stat")?)
    }

    /// Ids of the numeric entries of a directory below (`task`, `fd`, `map_files` are such), ascending; those that there were of a
    /// process that ends meanwhile.
    pub fn numbers(&self, name: &str) -> io::Result<Vec<i32>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(self.path(name))? {
            match entry {
                Ok(entry) => {
                    numbers.extend(entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
                }
                Err(error) if is_gone(&error) => break,
                Err(error) => return Err(error),
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The children of this thread.
    pub fn children(&self) -> io::Result<Vec<Pid>> {
        let text = self.text("children")?;
        Ok(text.split_ascii_whitespace().filter_map(|w| w.parse().ok().map(Pid::from_raw)).collect())
    }
}

/// Whether that is what /proc says of a process or thread that has ended.
pub fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Whether a process has not ended; where its first thread has, whether another one is neither on its way out nor killed, which
/// may take a while with much memory. `list` lists a directory of /proc, `read` reads a file of it.
pub fn is_alive(
    pid: i32,
    stat: &Stat,
    list: impl Fn(&str) -> io::Result<Vec<i32>>,
    read: impl Fn(&str) -> io::Result<String>,
) -> bool {
    if !stat.has_lost_its_first_thread() {
        return stat.is_there();
    }
    let mut others = list(&format!("{pid}/task")).unwrap_or_default().into_iter().filter(|&tid| tid != pid);
    others.any(|tid| goes_on(tid, &read))
}

/// Whether a thread is neither on its way out nor killed.
fn goes_on(tid: i32, read: impl Fn(&str) -> io::Result<String>) -> bool {
    const PF_EXITING: i64 = 4;
    const KILLED: u64 = 1 << (libc::SIGKILL - 1);
    let stat = read(&format!("{tid}/stat")).and_then(|text| Stat::parse(&text));
    let pending = read(&format!("{tid}/status")).map(Status::of).and_then(|status| status.hex("SigPnd"));
    let is_there = |stat: Stat| !matches!(stat.state(), 'Z' | 'X') && stat.number(9) & PF_EXITING == 0;
    stat.is_ok_and(is_there) && pending.is_ok_and(|set| set & KILLED == 0)
}

fn list_here(name: &str) -> io::Result<Vec<i32>> {
    ProcDir(PathBuf::from("/proc")).numbers(name)
}

fn read_here(name: &str) -> io::Result<String> {
    ProcDir(PathBuf::from("/proc")).text(name)
}

/// [`is_alive`], by /proc as it is here.
pub fn is_alive_here(pid: Pid, stat: &Stat) -> bool {
    is_alive(pid.as_raw(), stat, list_here, read_here)
}

/// Whether a process or thread has ended, or is about to; `list` and `read` as for [`is_alive`].
pub fn is_dying(
    id: i32,
    stat: &Stat,
    list: impl Fn(&str) -> io::Result<Vec<i32>>,
    read: impl Fn(&str) -> io::Result<String>,
) -> bool {
    if stat.has_lost_its_first_thread() { !is_alive(id, stat, list, read) } else { !goes_on(id, read) }
}

/// [`is_dying`], by /proc as it is here.
pub fn is_dying_here(id: Pid, stat: &Stat) -> bool {
    is_dying(id.as_raw(), stat, list_here, read_here)
}

/// The id by which /proc and system calls reach the memory and the descriptors of a process: its own, or that of another of its
/// threads where the first one has ended.
pub fn reached_by(pid: Pid) -> Pid {
    let dir = ProcDir::process(pid);
    if !dir.stat().is_ok_and(|stat| stat.has_lost_its_first_thread()) {
        return pid;
    }
    let mut threads = dir.numbers("task").unwrap_or_default().into_iter().map(Pid::from_raw);
    let lives = |tid: &Pid| ProcDir::thread(pid, *tid).stat().is_ok_and(|s| !matches!(s.state(), 'Z' | 'X'));
    threads.find(lives).unwrap_or(pid)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("cannot understand /proc/PID/{what}"))
}

/// /proc/PID/status.
#[derive(Debug)]
pub struct Status(String);

impl Status {
    /// Of the file's text.
    pub(crate) fn of(text: String) -> Self {
        Self(text)
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    fn radix<const R: u32>(&self, name: &str) -> io::Result<u64> {
        self.field(name).and_then(|v| u64::from_str_radix(v, R).ok()).ok_or_else(|| invalid(name))
    }

    pub fn hex(&self, name: &str) -> io::Result<u64> {
        self.radix::<16>(name)
    }

    pub fn octal(&self, name: &str) -> io::Result<u64> {
        self.radix::<8>(name)
    }

    pub fn decimal(&self, name: &str) -> io::Result<u64> {
        self.radix::<10>(name)
    }

    /// A line of numbers, such as `Uid` (real, effective, saved, file system) or `Groups`.
    pub fn numbers(&self, name: &str) -> io::Result<Vec<u32>> {
        let field = self.field(name).ok_or_else(|| invalid(name))?;
        field.split_ascii_whitespace().map(|w| w.parse().map_err(|_| invalid(name))).collect()
    }
}

/// /proc/PID/stat; field numbers as in proc_pid_stat(5).
#[derive(Debug, Clone)]
pub struct Stat {
    pub comm: String,
    fields: Vec<String>,
}

impl Stat {
    /// # Errors
    /// InvalidData when it is not as proc_pid_stat(5) has it.
    pub fn parse(text: &str) -> io::Result<Self> {
        Self::split(text).ok_or_else(|| invalid("stat"))
    }

    fn split(text: &str) -> Option<Self> {
        let open = text.find('(')?;
        let close = text.rfind(')')?;
        let fields = text.get(close + 2..)?.split_ascii_whitespace().map(str::to_owned).collect();
        Some(Self { comm: text.get(open + 1..close)?.to_owned(), fields })
    }

    /// State letter: R, S, D, T, t, Z, X, I.
    pub fn state(&self) -> char {
        self.fields.first().and_then(|f| f.chars().next()).unwrap_or('?')
    }

    /// Field `number` (3 = state) as a signed number; 0 where the kernel hides it.
    pub fn number(&self, number: usize) -> i64 {
        let field = number.checked_sub(3).and_then(|i| self.fields.get(i));
        field
            .and_then(|f| f.parse::<i64>().ok().or_else(|| f.parse::<u64>().ok().map(|v| v as i64)))
            .unwrap_or(0)
    }

    /// Of a process's own: whether any of its threads is left, though the first one may have ended. The others may be on their
    /// way out, too ([`is_alive`]).
    pub fn is_there(&self) -> bool {
        !matches!(self.state(), 'Z' | 'X') || self.has_lost_its_first_thread()
    }

    /// Of a process's own: whether it shows as ended, and others of its threads are left.
    pub fn has_lost_its_first_thread(&self) -> bool {
        self.state() == 'Z' && self.number(20) > 1
    }

    pub fn parent(&self) -> Pid {
        Pid::from_raw(self.number(4) as i32)
    }

    pub fn process_group(&self) -> Pid {
        Pid::from_raw(self.number(5) as i32)
    }

    pub fn session(&self) -> Pid {
        Pid::from_raw(self.number(6) as i32)
    }

    /// What its end tells its parent, where that is not SIGCHLD; 0 nothing.
    pub fn exit_signal(&self) -> Option<i32> {
        Some(self.number(38) as i32).filter(|&signal| signal != libc::SIGCHLD)
    }

    /// Device number of the controlling terminal, 0 for none.
    pub fn terminal(&self) -> u64 {
        // The kernel's new_encode_dev: 12 bits of major between the low 8 and the high 12 of minor.
        let encoded = self.number(7) as u32;
        match encoded {
            0 => 0,
            _ => libc::makedev(encoded >> 8 & 0xfff, encoded & 0xff | encoded >> 12 & 0xfff00),
        }
    }

    /// Foreground process group of the controlling terminal, -1 for none.
    pub fn foreground(&self) -> Pid {
        Pid::from_raw(self.number(8) as i32)
    }

    /// Where its program lies: code, data, the beginning of the heap and of the stack. Another one once another program is
    /// executed, whoever still has the memory of the one before.
    pub fn program(&self) -> [i64; 6] {
        [26, 27, 28, 45, 46, 47].map(|number| self.number(number))
    }

    /// Clock ticks since boot.
    pub fn start_time(&self) -> u64 {
        self.number(22) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = Stat::parse("7 (a) b (c)) S 1 2 3 0").unwrap();
        assert_eq!(stat.comm, "a) b (c)");
        assert_eq!(stat.state(), 'S');
        assert_eq!(stat.parent(), Pid::from_raw(1));
        assert_eq!(stat.session(), Pid::from_raw(3));
    }
}
