//! What is done to a process right before one of its calls, and before which calls.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Random;
use crate::calls::Deed;

const SOON: Duration = Duration::from_secs(30);

/// The numbers of calls to strike before, of `all`, in the order of time.
pub fn strikes(name: &str, all: u64) -> Vec<u64> {
    assert!(all > 100, "{name}: {all} calls are not those of a checkpoint or restart");
    let wanted = std::env::var("CKPTBPF_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_u64).min(all);
    let mut random = Random::for_test(name);
    println!("{name}: {wanted} strikes at {all} calls");
    (0..wanted).map(|i| all * i / wanted + random.below(all / wanted) + 1).collect()
}

/// Nothing.
pub fn never(_: i32) -> Deed {
    Box::new(|| ())
}

/// kill -9 of process `pid` itself.
pub fn itself(pid: i32) -> Deed {
    Box::new(move || kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_default())
}

/// kill -9 of the children that it has at that moment, which are dead then.
pub fn children(pid: i32) -> Deed {
    Box::new(move || {
        let all = children_of(pid);
        all.iter().for_each(|&child| itself(child)());
        let is_dead = |pid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
        };
        let patience = Instant::now() + SOON;
        while !all.iter().all(is_dead) && Instant::now() < patience {
            std::thread::yield_now();
        }
    })
}

/// kill -9 of its children's children.
pub fn grandchildren(pid: i32) -> Deed {
    Box::new(move || children_of(pid).into_iter().for_each(|child| children(child)()))
}

/// kill -9 of its guardian, which is nobody's child.
pub fn guardian(pid: i32) -> Deed {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let is_one = move |other: &String| {
        std::fs::read_to_string(format!("/proc/{other}/comm")).is_ok_and(|name| name == "page-guardian\n")
            && namespace(other) == namespace(&pid.to_string())
    };
    Box::new(move || {
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let names = all.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(is_one).filter_map(|name| name.parse().ok()).for_each(|guardian| itself(guardian)());
    })
}

/// The children of all of its threads.
pub fn children_of(pid: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let listed = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    listed
        .flat_map(|ids| ids.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect()
}
