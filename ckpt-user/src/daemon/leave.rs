//! Out of the control groups of a Slurm job: what is in them ends with the job, and counts as its memory.
//!
//! A prolog runs in slurmd's groups, or in those of the job (`PrologFlags=RunInJob`). Groups of others are left alone.
//!
//! ```text
//! v1  /slurm_n1/uid_1000/job_41/step_extern             ─▶ /                        what is above Slurm's own
//! v2  /system.slice/slurmstepd.scope/job_41/step_extern ─▶ /system.slice/ckptbpf/core    made there: there are no processes in inner groups
//!     /system.slice/slurmd.service                      ─▶ the same, where users' workers are to have groups: slurmd is in there
//! ```
//! In the second version each goes into a [`CORE`] at once, so that daemons that begin together do not keep one another from having groups
//! of their workers' beside it.

use super::groups::Group;
use super::subgroups::{CORE, has_others};
use std::fs;
use std::io;
use std::path::PathBuf;

/// The group of daemons where one has to be made.
const NAME: &str = "ckptbpf";

/// Where to go.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    group: PathBuf,
    /// It may have to be made.
    is_new: bool,
}

/// Leaves them; `has_share`: users' workers are to have groups below its own. Where that cannot be, it is said.
pub fn leave(has_share: bool) {
    let (Ok(own), Ok(mounts)) =
        (fs::read_to_string("/proc/self/cgroup"), fs::read_to_string("/proc/self/mountinfo"))
    else {
        return;
    };
    let is_among_others = || {
        let group = Group::all(&own, &mounts).into_iter().find(Group::is_second);
        group.and_then(|group| group.at(group.name)).is_some_and(|folder| has_others(&folder))
    };
    for target in targets(&own, &mounts, has_share && is_among_others()) {
        match enter(&target) {
            Ok(()) => log::info!("it has left Slurm's control group for {}", target.group.display()),
            Err(error) => log::warn!(
                "it stays in Slurm's control group, and where that is a job's ends with it: {}: {error}",
                target.group.display()
            ),
        }
    }
}

fn enter(target: &Target) -> io::Result<()> {
    if target.is_new {
        fs::create_dir_all(&target.group)?;
    }
    fs::write(target.group.join("cgroup.procs"), std::process::id().to_string())
}

/// By /proc/PID/cgroup and mountinfo: for each hierarchy in which the process is in a job's group, and which is mounted. In the second
/// version also where it is in slurmd's, if `needs_own`: a group of its own, for what the first version does not control.
fn targets(own: &str, mounts: &str, needs_own: bool) -> Vec<Target> {
    let groups = Group::all(own, mounts);
    let is_in_first = |controller: &str| groups.iter().any(|group| group.controls(controller));
    let needs_own = needs_own && !(is_in_first("memory") && is_in_first("pids"));
    let of_group = |group: &Group<'_>| {
        let is_new = group.is_second();
        let above = group.at(above_slurm(group.name, !(is_new && needs_own))?)?;
        Some(Target { group: if is_new { above.join(NAME).join(CORE) } else { above }, is_new })
    };
    groups.iter().filter_map(of_group).collect()
}

/// Of a group of Slurm's what is above those; none of another group, nor, with `of_jobs`, of one that is no job's.
fn above_slurm(path: &str, of_jobs: bool) -> Option<&str> {
    let mut at = 0;
    let mut above = None;
    let mut is_of_job = false;
    for name in path.split('/') {
        if above.is_none() && name.contains("slurm") {
            above = path.get(..at);
        } else if above.is_some() {
            is_of_job |= name.starts_with("job_") || name.starts_with("step_");
        }
        at += name.len() + 1;
    }
    let above = above.filter(|_| is_of_job || !of_jobs)?;
    Some(if above.len() > 1 { above.trim_end_matches('/') } else { "/" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIRST: &str = "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
    const SECOND: &str = "31 30 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    fn groups(own: &str, mounts: &str) -> Vec<(String, bool)> {
        left(own, mounts, false)
    }

    fn left(own: &str, mounts: &str, needs_own: bool) -> Vec<(String, bool)> {
        let shown = |target: Target| (target.group.display().to_string(), target.is_new);
        targets(own, mounts, needs_own).into_iter().map(shown).collect()
    }

    #[test]
    fn a_job_s_groups_are_left_in_each_hierarchy_and_no_others() {
        let own = "9:name=systemd:/system.slice/slurmd.service\n5:cpuacct,cpu:/slurm_n1/uid_0/job_41/step_extern\n\
            4:memory:/slurm_n1/uid_0/job_41\n3:freezer:/slurm_n1/uid_0/job_41/step_0\n0::/\n";
        let left = [("/sys/fs/cgroup/cpu,cpuacct/", false), ("/sys/fs/cgroup/memory/", false)];
        assert_eq!(groups(own, FIRST), left.map(|(group, is_new)| (group.to_owned(), is_new)));
        let own = "0::/system.slice/n1_slurmstepd.scope/job_41/step_extern/slurm\n";
        assert_eq!(groups(own, SECOND), [("/sys/fs/cgroup/system.slice/ckptbpf/core".to_owned(), true)]);
        assert_eq!(groups("0::/slurm/job_1\n", SECOND), [("/sys/fs/cgroup/ckptbpf/core".to_owned(), true)]);
    }

    #[test]
    fn where_slurm_has_put_it_in_no_job_s_it_stays() {
        for own in [
            "0::/system.slice/slurmd.service\n",
            "0::/user.slice/user-0.slice/session-3.scope\n",
            "0::/job_41/step_0\n",
            "4:memory:/slurm_n1/system\n",
            "0::/job_7/slurm\n",
        ] {
            assert!(groups(own, &format!("{FIRST}{SECOND}")).is_empty(), "{own}");
        }
    }

    #[test]
    fn slurmd_s_group_is_left_where_workers_need_groups_of_the_second_version() {
        let own = "0::/system.slice/slurmd.service\n";
        let made = [("/sys/fs/cgroup/system.slice/ckptbpf/core".to_owned(), true)];
        assert_eq!(left(own, SECOND, true), made);
        let job = "0::/system.slice/n1_slurmstepd.scope/job_41/step_extern/slurm\n";
        assert_eq!(left(job, SECOND, true), made);
        assert!(left("0::/user.slice/user-0.slice/session-3.scope\n", SECOND, true).is_empty());
        // What the first version controls needs no group of the second.
        let pids = "34 30 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let both = "4:memory:/\n3:pids:/\n0::/system.slice/slurmd.service\n";
        assert!(left(both, &format!("{FIRST}{pids}{SECOND}"), true).is_empty());
    }

    #[test]
    fn a_part_of_a_hierarchy_that_is_mounted_elsewhere_is_known() {
        let mounts = "31 30 0:27 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let own = "4:memory:/docker/ab/slurm_n1/uid_0/job_41\n";
        assert_eq!(groups(own, mounts), [("/sys/fs/cgroup/memory/".to_owned(), false)]);
        assert!(groups("4:memory:/slurm_n1/uid_0/job_41\n", mounts).is_empty());
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(own in "[0-9a-z_:/,= \n]{0,60}", mounts in "[0-9a-z_:/,= \n-]{0,90}") {
            let _ = targets(&own, &mounts, true);
        }
    }
}
