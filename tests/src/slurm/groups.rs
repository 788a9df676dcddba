//! The control groups of the nodes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sandbox::until;

/// How long the last processes may take to be gone.
const GRACE: Duration = Duration::from_secs(5);

/// Removes those of the nodes; what cannot be removed, as there is a process in it, is told.
pub fn remove(nodes: &[String]) -> Vec<String> {
    // That of the jobs' daemons, in the second version: it is made anew by the next one that needs it.
    for place in places().iter().filter(|place| place.ends_with("ckptbpf")) {
        remove_all(place);
    }
    let all = of(nodes);
    until(GRACE, || None, || all.iter().filter(|group| group.exists()).all(|group| remove_all(group)));
    all.iter().filter(|group| group.exists()).flat_map(|group| busy(group)).collect()
}

/// Whether a job has any.
pub fn has_job(node: &str, job: &str) -> bool {
    let job = format!("job_{job}");
    of(&[node.to_owned()]).iter().any(|group| below(group).iter().any(|one| one.ends_with(&job)))
}

/// Bytes that a job has had at most, and how often a process of it was killed for want of memory; none where the kernel does not tell
/// (the second version, before Linux 5.19), or it is over.
pub fn memory(node: &str, job: &str) -> Option<(u64, u64)> {
    let job = format!("job_{job}");
    let mut all = of(&[node.to_owned()]).into_iter().flat_map(|group| below(&group));
    all.find_map(|group| if group.ends_with(&job) { memory_of(&group) } else { None })
}

/// Of a group of either version.
fn memory_of(group: &Path) -> Option<(u64, u64)> {
    let text = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let peak = text("memory.max_usage_in_bytes").or_else(|| text("memory.peak"))?.trim().parse().ok()?;
    let events = text("memory.oom_control").or_else(|| text("memory.events"))?;
    let killed = events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())?;
    Some((peak, killed))
}

/// In each hierarchy.
fn of(nodes: &[String]) -> Vec<PathBuf> {
    let is_theirs = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        nodes.iter().any(|node| name.contains(node.as_str()))
    };
    places().into_iter().filter(is_theirs).collect()
}

/// Where groups of Slurm's are. Of the second version there is one hierarchy, and they are in it or in a group of systemd's.
fn places() -> Vec<PathBuf> {
    let hierarchies = folders(Path::new("/sys/fs/cgroup"));
    hierarchies.iter().flat_map(|one| folders(one)).chain(hierarchies.clone()).collect()
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).collect()
}

/// A group and all that are in it, the innermost first.
fn below(group: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = folders(group).iter().flat_map(|one| below(one)).collect();
    all.push(group.to_owned());
    all
}

fn remove_all(group: &Path) -> bool {
    below(group).iter().filter(|one| std::fs::remove_dir(one).is_err()).count() == 0
}

fn busy(group: &Path) -> Vec<String> {
    let processes = |one: &PathBuf| std::fs::read_to_string(one.join("cgroup.procs")).unwrap_or_default();
    let shown = |one: PathBuf| format!("{} with {:?}", one.display(), processes(&one));
    below(group).into_iter().map(shown).collect()
}
