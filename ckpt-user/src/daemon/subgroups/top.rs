//! A group below which those of users are made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The core's own group, where it may not be in the one that hands on controllers (cgroups(7), "no internal processes").
pub const CORE: &str = "core";

/// How often a group is made anew that somebody has taken away meanwhile.
const TRIES: u32 = 3;

/// How far below its limit a group of the first version may have been when the kernel had nothing left for it, in bytes: what processors
/// have in stock, and what is asked for at once.
const NEAR: u64 = 1 << 20;

/// One of the second version has all limits, one of the first those of its hierarchy.
#[derive(Debug)]
pub struct Top {
    pub(super) folder: PathBuf,
    pub(super) limits: Vec<Limit>,
    /// The core has gone from here into [`CORE`].
    pub(super) is_left: bool,
}

/// What is written into a group that is made.
#[derive(Debug)]
pub struct Limit {
    pub controller: &'static str,
    pub file: &'static str,
    pub value: String,
    /// The same for what is swapped out, where the kernel has such a file.
    pub swap: Option<(&'static str, String)>,
}

/// The same error with what it is about.
pub fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Limit {
    fn set(&self, folder: &Path) -> io::Result<()> {
        fs::write(folder.join(self.file), &self.value)?;
        match &self.swap {
            Some((file, value)) if folder.join(file).exists() => fs::write(folder.join(file), value),
            _ => Ok(()),
        }
    }

    /// Whether a group of the second version has none.
    fn is_missing(&self, folder: &Path) -> bool {
        fs::read_to_string(folder.join(self.file)).is_ok_and(|now| now.trim() == "max")
    }
}

impl Top {
    /// The core goes below, so that this group may hand on controllers, and with it whoever waits for its word.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn move_to_core(&mut self) -> io::Result<()> {
        let core = self.folder.join(CORE);
        let moved = make(&core).and_then(|_| move_all(&self.folder, &core));
        moved.inspect_err(|_| drop(fs::remove_dir(&core))).map_err(|error| at(&core, &error))?;
        self.is_left = true;
        Ok(())
    }

    /// Begins to (`+`), or ends it (`-`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn hand_on(&self, sign: char) -> io::Result<()> {
        let words: Vec<String> =
            self.limits.iter().map(|limit| format!("{sign}{}", limit.controller)).collect();
        let path = self.folder.join("cgroup.subtree_control");
        fs::write(&path, words.join(" ")).map_err(|error| at(&path, &error))
    }

    /// Whether groups can be made here, and have such limits.
    ///
    /// # Errors
    /// They cannot.
    pub fn try_out(&self, name: &str) -> io::Result<()> {
        let folder = self.folder.join(name);
        let mut tries = 0..TRIES;
        loop {
            let made = make(&folder).and_then(|_| require_domain(&folder)).and_then(|()| self.limit(&folder));
            let _ = fs::remove_dir(&folder);
            match made {
                Err(error) if is_gone(&error) && tries.next().is_some() => {}
                made => return made.map_err(|error| at(&folder, &error)),
            }
        }
    }

    fn limit(&self, folder: &Path) -> io::Result<()> {
        self.limits.iter().try_for_each(|limit| limit.set(folder))
    }

    /// Gives the group of this name what it has lost. In the second version limits go with their controllers, and systemd takes those
    /// from below a service that it begins, whoever is still there.
    pub fn limit_again(&self, name: &str) {
        let folder = self.folder.join(name);
        for limit in self.limits.iter().filter(|limit| limit.is_missing(&folder)) {
            let set = limit.set(&folder);
            set.unwrap_or_else(|error| log::warn!("{} has no limit: {error}", folder.display()));
        }
    }

    /// Takes a process into the group of this name, which is made if it is not there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn enter(&self, name: &str, process: u32) -> io::Result<()> {
        let folder = self.folder.join(name);
        let mut tries = 0..TRIES;
        loop {
            match self.entered(&folder, process) {
                Err(error) if is_gone(&error) && tries.next().is_some() => {}
                done => return done.map_err(|error| at(&folder, &error)),
            }
        }
    }

    fn entered(&self, folder: &Path, process: u32) -> io::Result<()> {
        if make(folder)? {
            self.limit(folder).inspect_err(|_| drop(fs::remove_dir(folder)))?;
        }
        move_to(folder, &process.to_string())
    }

    /// Takes the group away, if nobody is in it. Whether it is gone.
    pub fn remove(&self, name: &str) -> bool {
        fs::remove_dir(self.folder.join(name)).map_or_else(|error| is_gone(&error), |()| true)
    }

    /// How many processes in the group of this name the kernel has killed for its own limit of memory. Those that went for the sake of the
    /// daemon's or the machine's are none of these.
    pub fn killed(&self, name: &str) -> u64 {
        let folder = self.folder.join(name);
        let text = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        let events = text("memory.events");
        if let Some(killed) = count(&events, "oom_kill") {
            // `oom` is of the group whose limit it was, and counts each of its times; `oom_kill` is of the one that was killed.
            return killed.min(count(&events, "oom").unwrap_or_default());
        }
        let number = |file: &str| text(file).trim().parse::<u64>().ok();
        let peak = number("memory.max_usage_in_bytes").max(number("memory.memsw.max_usage_in_bytes"));
        let reached = number("memory.limit_in_bytes").zip(peak).filter(|(limit, peak)| peak + NEAR >= *limit);
        reached.and_then(|_| count(&text("memory.oom_control"), "oom_kill")).unwrap_or_default()
    }

    /// Groups that there are.
    pub fn names(&self) -> Vec<String> {
        let found = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let folders = found.filter(|one| one.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.filter_map(|one| one.file_name().into_string().ok()).collect()
    }

    /// As it was before the daemon, if the daemon has changed it and nobody else is below.
    pub fn leave(&self) {
        let core = self.folder.join(CORE);
        if self.is_left && !has_others(&core) && self.names() == [CORE] {
            // It cannot be in a group that hands on controllers; one that does not is not told to end it.
            let _ = self.hand_on('-');
            let _ = move_all(&core, &self.folder).and_then(|()| fs::remove_dir(core));
        }
    }
}

/// Whether processes are in this group that are not the daemon's, or nobody can tell.
pub fn has_others(folder: &Path) -> bool {
    !processes(folder).is_ok_and(|all| all.iter().all(|pid| is_ours(pid)))
}

/// Whether it is the daemon, or the ckptbpf that it was started by, which waits for its word (`--pidfile`).
fn is_ours(pid: &str) -> bool {
    let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let waits = || {
        pid == nix::unistd::getppid().to_string()
            && program(pid).is_some_and(|its| Some(its) == program("self"))
    };
    pid == std::process::id().to_string() || waits()
}

fn processes(folder: &Path) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(folder.join("cgroup.procs"))?;
    Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
}

fn move_all(from: &Path, to: &Path) -> io::Result<()> {
    processes(from)?.iter().try_for_each(|pid| move_to(to, pid))
}

/// Where threads are in groups of their own (cgroups(7), "thread mode"), groups can be made that take no process in.
fn require_domain(folder: &Path) -> io::Result<()> {
    match fs::read_to_string(folder.join("cgroup.type")) {
        Ok(kind) if kind.trim() != "domain" => {
            Err(io::Error::other(format!("a group here is one of the type {}", kind.trim())))
        }
        // The first version has no types.
        _ => Ok(()),
    }
}

/// Whether it was not there before.
fn make(folder: &Path) -> io::Result<bool> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|()| true),
    }
}

fn move_to(folder: &Path, process: &str) -> io::Result<()> {
    fs::write(folder.join("cgroup.procs"), process)
}

/// What the line `NAME NUMBER` tells.
fn count(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top(folder: &Path) -> Top {
        let swap = Some(("memory.swap.max", "0".to_owned()));
        let memory = Limit { controller: "memory", file: "memory.max", value: "96".into(), swap };
        let tasks = Limit { controller: "pids", file: "pids.max", value: "9".into(), swap: None };
        Top { folder: folder.to_owned(), limits: vec![memory, tasks], is_left: false }
    }

    /// A folder with the group `g`, which has these files.
    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("g")).unwrap();
        files.iter().for_each(|(name, text)| fs::write(base.path().join("g").join(name), text).unwrap());
        base
    }

    #[test]
    fn a_kill_for_the_sake_of_the_machine_is_not_the_user_s() {
        let killed = |files: &[(&str, &str)]| top(group(files).path()).killed("g");
        let second = |oom: u32| {
            let events = format!("low 0\nhigh 0\nmax 7\noom {oom}\noom_kill 2\noom_group_kill 0\n");
            killed(&[("memory.events", &events)])
        };
        assert_eq!([second(0), second(1), second(9)], [0, 1, 2]);
        let first = |peak: &str, with_swap: &str| {
            killed(&[
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
                ("memory.limit_in_bytes", "100663296\n"),
                ("memory.max_usage_in_bytes", peak),
                ("memory.memsw.max_usage_in_bytes", with_swap),
            ])
        };
        assert_eq!(first("52428800\n", "52428800\n"), 0);
        assert_eq!(first("100655104\n", "100655104\n"), 2);
        assert_eq!(first("52428800\n", "100663296\n"), 2, "what is swapped out counts");
        assert_eq!(killed(&[]), 0, "a hierarchy without memory");
    }

    #[test]
    fn only_limits_that_are_lost_are_given_again() {
        let base = group(&[("memory.max", "max\n"), ("memory.swap.max", "max\n"), ("pids.max", "5\n")]);
        top(base.path()).limit_again("g");
        let now = |file: &str| fs::read_to_string(base.path().join("g").join(file)).unwrap();
        assert_eq!(["memory.max", "memory.swap.max", "pids.max"].map(now), ["96", "0", "5\n"]);
    }

    #[test]
    fn a_group_that_takes_no_process_in_is_not_tried_for_long() {
        let kind = |kind: &str| require_domain(&group(&[("cgroup.type", kind)]).path().join("g"));
        assert!(kind("domain\n").is_ok());
        let refused = kind("domain invalid\n").unwrap_err().to_string();
        assert!(refused.ends_with("one of the type domain invalid"), "{refused}");
        assert!(require_domain(Path::new("/no/such/group")).is_ok());
    }
}
