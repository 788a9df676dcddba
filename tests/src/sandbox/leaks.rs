//! What a box may leave behind, and how it is found.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{process, wait};

/// Kinds of things left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leak {
    /// The box itself did not end as it should: its time was over, or its init died.
    Box,
    Process,
    Mount,
    SharedMemory,
    /// A file in /run/ckptbpf: a control socket that nobody removed.
    Run,
    Cgroup,
    PinnedBpf,
}

const RUN: &str = "/run/ckptbpf";

/// What is kept between runs on purpose: it holds for the kernel, whoever found it out.
fn is_cache(path: &Path) -> bool {
    path.parent() == Some(Path::new(RUN))
        && path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"offsets-"))
}

/// The machine's own copies of what is kept: without them every box would find it out anew, in seconds.
pub fn cached() -> Vec<(PathBuf, Vec<u8>)> {
    let files = files_under(Path::new(RUN)).into_iter().filter(|path| is_cache(path));
    files.filter_map(|path| Some((path.clone(), std::fs::read(path).ok()?))).collect()
}

/// Puts the copies into the box.
pub fn show_cached(cached: Vec<(PathBuf, Vec<u8>)>) -> std::io::Result<()> {
    for (path, text) in cached {
        std::fs::create_dir_all(RUN)?;
        std::fs::write(path, text)?;
    }
    Ok(())
}

/// The mounts of this process's namespace, one line each.
pub fn mounts() -> BTreeSet<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Looks from inside the box, as its init.
pub fn inside(mounts_before: &BTreeSet<String>) -> Vec<(Leak, String)> {
    let processes = process::list(Path::new("/proc")).into_iter().map(|process| {
        let held = held_bpf(process.pid);
        let bpf = if held.is_empty() { String::new() } else { format!(", holds {}", held.join(" ")) };
        (Leak::Process, format!("{process}{bpf}"))
    });
    let mounted = mounts();
    let mounted = mounted.difference(mounts_before).map(|line| (Leak::Mount, line.clone()));
    let files = |kind, folder: &str| files_under(Path::new(folder)).into_iter().map(move |path| (kind, path));
    let shm = files(Leak::SharedMemory, "/dev/shm");
    let run = files(Leak::Run, RUN).filter(|(_, path)| !is_cache(path));
    let paths = shm.chain(run).map(|(kind, path)| (kind, path.display().to_string()));
    processes.chain(mounted).chain(paths).collect()
}

/// The BPF objects and events that a process holds open.
fn held_bpf(pid: i32) -> Vec<String> {
    let Ok(folder) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let target =
        |entry: std::fs::DirEntry| Some(std::fs::read_link(entry.path()).ok()?.display().to_string());
    let ours = |name: &String| name.contains("bpf") || name.contains("perf_event");
    folder.flatten().filter_map(target).filter(ours).collect()
}

/// Everything below a folder that is not a folder.
fn files_under(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let is_folder = |path: &PathBuf| path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    entries
        .flatten()
        .map(|entry| entry.path())
        .flat_map(|path| if is_folder(&path) { files_under(&path) } else { vec![path] })
        .collect()
}

/// What is shared with the rest of the machine, as it was before the box.
pub struct Before {
    cgroups: BTreeSet<PathBuf>,
    pinned: BTreeSet<PathBuf>,
}

impl Before {
    pub fn now() -> Self {
        Self { cgroups: our_empty_cgroups(), pinned: pinned() }
    }

    /// What is there now and was not before. A parallel box may hold such things for a moment: only what stays
    /// counts.
    pub fn compare(&self, grace: Duration) -> Vec<(Leak, String)> {
        let mut found = Vec::new();
        wait::until(
            grace,
            || None,
            || {
                let now = Self::now();
                let cgroups = now.cgroups.difference(&self.cgroups).map(|path| (Leak::Cgroup, path));
                let pinned = now.pinned.difference(&self.pinned).map(|path| (Leak::PinnedBpf, path));
                found =
                    cgroups.chain(pinned).map(|(kind, path)| (kind, path.display().to_string())).collect();
                found.is_empty()
            },
        );
        found
    }
}

/// Whether a cgroup's name says that another test process has made it, on purpose: `ckptbpf-of-PID`.
fn is_of_another(name: &str) -> bool {
    name.rsplit_once("-of-").is_some_and(|(_, pid)| pid != std::process::id().to_string())
}

/// Cgroups with our name and no process in them or below them: the one of a job that runs is in use.
fn our_empty_cgroups() -> BTreeSet<PathBuf> {
    /// Whether there is a process below.
    fn walk(folder: &Path, found: &mut BTreeSet<PathBuf>) -> bool {
        let Ok(entries) = std::fs::read_dir(folder) else { return false };
        let mut has_any = false;
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let path = entry.path();
            let procs = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_used = walk(&path, found) || !procs.is_empty();
            if name.contains("ckptbpf") && !is_used && !is_of_another(&name) {
                found.insert(path);
            }
            has_any |= is_used;
        }
        has_any
    }
    let mut found = BTreeSet::new();
    walk(Path::new("/sys/fs/cgroup"), &mut found);
    found
}

/// BPF objects pinned on the machine's bpffs: only a pin outlives the process that loaded a program.
fn pinned() -> BTreeSet<PathBuf> {
    files_under(Path::new("/sys/fs/bpf")).into_iter().collect()
}
