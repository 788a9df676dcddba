//! The control groups of a process, as the file system shows them (cgroups(7)).

use std::path::{Component, Path, PathBuf};

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group<'a> {
    /// What is controlled in its hierarchy, as /proc/PID/cgroup lists it; nothing of the second version, where each group tells.
    pub controllers: &'a str,
    /// From the root of the hierarchy.
    pub name: &'a str,
    mount: Mount<'a>,
}

impl<'a> Group<'a> {
    /// Where a group of this hierarchy is, by its name; none of one outside of what is mounted.
    pub fn at(&self, name: &str) -> Option<PathBuf> {
        let below = Path::new(name).strip_prefix(self.mount.root).ok()?;
        // `/../a` is above the control group namespace, and `..` of a directory another thing.
        let is_outside = below.components().any(|part| part == Component::ParentDir);
        (!is_outside).then(|| Path::new(self.mount.path).join(below))
    }

    /// Whether this controller is in its hierarchy, of the first version.
    pub fn controls(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|one| one == controller)
    }

    /// Whether it is of the second version.
    pub fn is_second(&self) -> bool {
        self.controllers.is_empty()
    }

    /// By /proc/PID/cgroup and mountinfo: those whose hierarchy is mounted.
    pub fn all(own: &'a str, mounts: &'a str) -> Vec<Self> {
        let mounts: Vec<Mount<'a>> = mounts.lines().filter_map(Mount::of).collect();
        let of_line = |line: &'a str| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, name) = (fields.next()?, fields.next()?);
            let mount = *mounts.iter().find(|mount| mount.has(controllers))?;
            Some(Self { controllers, name, mount })
        };
        own.lines().filter_map(of_line).collect()
    }
}

/// A line of mountinfo of a hierarchy of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mount<'a> {
    root: &'a str,
    path: &'a str,
    /// What is in it: names of controllers; none in the second version.
    options: Option<&'a str>,
}

impl<'a> Mount<'a> {
    /// `36 35 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory`. Paths with blanks, which are escaped, are not found.
    fn of(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, path) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let options = match after.next()? {
            "cgroup" => Some(after.nth(1)?),
            "cgroup2" => None,
            _ => return None,
        };
        Some(Self { root, path, options })
    }

    /// Whether it is the hierarchy of these, as /proc/PID/cgroup lists them.
    fn has(&self, controllers: &str) -> bool {
        match self.options {
            Some(options) => {
                let has = |wanted: &str| options.split(',').any(|one| one == wanted);
                !controllers.is_empty() && controllers.split(',').all(has)
            }
            None => controllers.is_empty(),
        }
    }
}
