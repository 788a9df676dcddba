//! Where users' groups can be, by the daemon's own and by what of it is delegated.

use super::Share;
use super::names::Names;
use super::top::{CORE, Limit, Top, at, has_others};
use crate::daemon::groups::Group;
use std::fs;
use std::io;
use std::path::Path;

/// Whose group is made to try it out: root has no workers.
const NOBODY: u32 = 0;

/// Where this share can be given, all of it.
///
/// # Errors
/// It cannot, and why.
pub fn found(share: Share, names: &Names) -> io::Result<Vec<Top>> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let groups = Group::all(&own, &mounts);
    let mut tops = Vec::new();
    let mut of_second = Vec::new();
    let memory = share.memory.map(|bytes| ("memory", bytes.to_string()));
    let tasks = share.tasks.map(|tasks| ("pids", tasks.to_string()));
    for (controller, value) in memory.into_iter().chain(tasks) {
        match groups.iter().find(|group| group.controls(controller)) {
            Some(group) => {
                // With swap. The kernel may have no file for it.
                let (file, swap) = match controller {
                    "memory" => {
                        ("memory.limit_in_bytes", Some(("memory.memsw.limit_in_bytes", value.clone())))
                    }
                    _ => ("pids.max", None),
                };
                let folder = group.at(group.name).ok_or_else(|| is_hidden(group.name))?;
                let limits = vec![Limit { controller, file, value, swap }];
                tops.push(Top { folder, limits, is_left: false });
            }
            None => {
                let (file, swap) = match controller {
                    "memory" => ("memory.max", Some(("memory.swap.max", "0".to_owned()))),
                    _ => ("pids.max", None),
                };
                of_second.push(Limit { controller, file, value, swap });
            }
        }
    }
    if let Some(first) = of_second.first() {
        let group = groups.iter().find(|group| group.is_second());
        let group = group.ok_or_else(|| is_missing(first.controller, Path::new("/sys/fs/cgroup")))?;
        let folder = group.at(group.name).ok_or_else(|| is_hidden(group.name))?;
        tops.push(second(&folder, of_second)?);
    }
    match tops.iter().try_for_each(|top| top.try_out(&names.of_user(NOBODY))) {
        Ok(()) => Ok(tops),
        Err(error) => {
            tops.iter().for_each(Top::leave);
            Err(error)
        }
    }
}

/// Has the group of the daemon, or that above where the daemon is in a [`CORE`], hand on controllers.
fn second(own: &Path, limits: Vec<Limit>) -> io::Result<Top> {
    let above = own.parent().filter(|_| own.file_name().is_some_and(|name| name == CORE));
    let is_inside = above.is_none();
    let folder = above.unwrap_or(own).to_owned();
    let mut top = Top { folder, limits, is_left: false };
    let words = |file: &str| -> io::Result<Vec<String>> {
        let path = top.folder.join(file);
        let text = fs::read_to_string(&path).map_err(|error| at(&path, &error))?;
        Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
    };
    let (offered, handed_on) = (words("cgroup.controllers")?, words("cgroup.subtree_control")?);
    let is_in = |list: &[String], limit: &Limit| list.iter().any(|one| one == limit.controller);
    if let Some(missing) = top.limits.iter().find(|limit| !is_in(&offered, limit)) {
        return Err(is_missing(missing.controller, &top.folder));
    }
    if top.limits.iter().all(|limit| is_in(&handed_on, limit)) {
        return Ok(top);
    }
    // The first group of all has no type, and may have processes.
    if is_inside && top.folder.join("cgroup.type").exists() {
        if has_others(&top.folder) {
            let why = format!("{} has processes that are not the daemon's", top.folder.display());
            return Err(io::Error::other(why));
        }
        top.move_to_core()?;
    }
    top.hand_on('+').inspect_err(|_| top.leave())?;
    Ok(top)
}

fn is_hidden(group: &str) -> io::Error {
    io::Error::other(format!("the daemon's control group {group} is not to be seen from here"))
}

fn is_missing(controller: &str, group: &Path) -> io::Error {
    io::Error::other(format!("the controller {controller} is not delegated to {}", group.display()))
}
