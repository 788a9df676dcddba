//! Forks, execs, group exits and write faults of tracked processes, and nothing of others.
use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use crate::{
    support::{Victim, events_until, is, state, wait_until},
    sys,
};
use ckptbpf::sys::bpf::{Kernel, LifecycleKind, Options};
use nix::sys::wait::{WaitStatus, waitpid};

#[test]
fn a_child_is_seen_to_be_forked_to_exec_and_to_exit() {
    let mut bpf = Kernel::load().unwrap();
    let attached = bpf.attach_lifecycle().unwrap();
    assert_eq!(attached.count(), 3);
    let me = std::process::id();
    bpf.track(me).unwrap();
    let mut child = Command::new("true").spawn().unwrap();
    let pid = child.id();
    let events = events_until(&mut bpf, "the child exits", |e| is(e, LifecycleKind::GroupExit, pid));
    child.wait().unwrap();
    let own: Vec<_> = events.iter().filter(|e| e.child_tgid == pid || e.tgid == pid).collect();
    let kinds: Vec<_> = own.iter().map(|e| e.what().unwrap()).collect();
    assert_eq!(kinds, [LifecycleKind::Fork, LifecycleKind::Exec, LifecycleKind::GroupExit]);
    assert_eq!((own[0].tgid, own[0].own_tgid, own[0].own_child_tgid), (me, me, pid));
    assert!(own.is_sorted_by_key(|e| e.time));
    assert!(bpf.tracked().iter().any(|t| t.0 == me) && bpf.tracked().iter().all(|t| t.0 != pid));
    drop(attached);
    bpf.lifecycle();
    Command::new("true").status().unwrap();
    assert_eq!(bpf.lifecycle(), [], "nothing is attached any more");
}

#[test]
fn who_is_not_tracked_is_not_reported() {
    let mut bpf = Kernel::load().unwrap();
    let _attached = bpf.attach_lifecycle().unwrap();
    let tracked = Victim::sleeper();
    bpf.track(tracked.id()).unwrap();
    bpf.untrack(tracked.id()).unwrap();
    bpf.untrack(tracked.id()).unwrap();
    Command::new("true").status().unwrap();
    drop(tracked);
    assert_eq!(bpf.lifecycle(), []);
}

#[test]
fn a_thread_that_exits_is_no_group_exit() {
    let mut bpf = Kernel::load().unwrap();
    let _attached = bpf.attach_lifecycle().unwrap();
    let me = std::process::id();
    bpf.track(me).unwrap();
    std::thread::spawn(|| ()).join().unwrap();
    let mut later = Command::new("true").spawn().unwrap();
    let pid = later.id();
    let events = events_until(&mut bpf, "what came later", |e| is(e, LifecycleKind::GroupExit, pid));
    later.wait().unwrap();
    assert!(!events.iter().any(|e| is(e, LifecycleKind::GroupExit, me)));
}

#[test]
fn a_leader_that_exits_alone_is_no_group_exit_and_its_process_is_still_read() {
    let mut bpf = Kernel::load().unwrap();
    let _attached = bpf.attach_lifecycle().unwrap();
    bpf.track(std::process::id()).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let child = sys::leaderless(reader.into());
    let pid = u32::try_from(child.as_raw()).unwrap();
    wait_until("the leader is a zombie", || state(pid) == 'Z');
    // Until it reads, the other one still maps memory.
    wait_until("the other thread reads", || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let mut calls = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("syscall")).ok());
        calls.any(|call| call.starts_with(&format!("{} ", libc::SYS_read)))
    });
    bpf.untrack(std::process::id()).unwrap();

    let events = bpf.lifecycle();
    assert!(!events.iter().any(|e| is(e, LifecycleKind::GroupExit, pid)), "{events:?}");
    let tasks: Vec<_> = bpf.tasks().unwrap().into_iter().filter(|t| t.ids.tgid == pid).collect();
    assert_eq!(tasks.len(), 2);
    let process = *bpf.processes().unwrap().iter().find(|p| p.tgid == pid).unwrap();
    assert!(process.mm != 0 && process.tid != pid && process.memory.start_stack != 0);
    assert!(bpf.signal_actions().unwrap().iter().any(|s| s.tgid == pid));
    let vmas = bpf.vmas().unwrap().iter().filter(|v| v.tgid == pid).count();
    let task = tasks.iter().find(|t| t.ids.pid != pid).unwrap().ids.pid;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/maps")).unwrap();
    assert_eq!(vmas, maps.lines().filter(|line| !line.contains("[vsyscall]")).count());

    // This process's forked copy of the pipe's other end is in the child, too, so a byte is sent.
    (&writer).write_all(b"x").unwrap();
    events_until(&mut bpf, "the last thread exits", |e| is(e, LifecycleKind::GroupExit, pid));
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 7));
}

#[test]
fn a_tiny_ring_loses_events_and_counts_them() {
    const CHILDREN: u64 = 100;
    let mut bpf = Kernel::load_with(Options { lifecycle_ring: 4096, ..Options::default() }).unwrap();
    let _attached = bpf.attach_lifecycle().unwrap();
    let script = format!("read go; i=0; while [ $i -lt {CHILDREN} ]; do /bin/true; i=$((i+1)); done; exit 3");
    let mut shell = Victim(Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap());
    bpf.track(shell.id()).unwrap();
    shell.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(shell.0.wait().unwrap().code(), Some(3));
    let (seen, lost) = (bpf.lifecycle().len() as u64, bpf.lost());
    assert!(seen > 0 && lost.lifecycle > 0, "{seen} {lost:?}");
    // Each child: fork, exec, exit; and the shell's own exec (if it was tracked before it) and exit.
    let total = seen + lost.lifecycle;
    assert!((3 * CHILDREN + 1..=3 * CHILDREN + 2).contains(&total), "{total}");
    assert_eq!((lost.children, lost.reads, lost.total()), (0, 0, lost.lifecycle));
    assert_eq!(bpf.tracked(), [], "lost events or not, the map is right");
}

#[test]
fn more_children_than_the_map_holds_are_counted() {
    let mut bpf = Kernel::load_with(Options { tracked: 1, ..Options::default() }).unwrap();
    let _attached = bpf.attach_lifecycle().unwrap();
    bpf.track(std::process::id()).unwrap();
    assert!(bpf.track(1).is_err());
    Command::new("true").status().unwrap();
    assert!(bpf.lost().children > 0);
}

#[test]
fn a_first_write_to_a_page_is_a_write_fault() {
    // More than malloc ever takes from memory that was used before (DEFAULT_MMAP_THRESHOLD_MAX).
    const SIZE: usize = 64 << 20;
    let mut bpf = Kernel::load().unwrap();
    let _attached = bpf.attach_faults().unwrap();
    bpf.track(std::process::id()).unwrap();
    let mut memory = vec![0u8; SIZE];
    for at in (0..SIZE).step_by(1 << 20) {
        // Not where the compiler would have it, which is after the look at the faults.
        std::hint::black_box(&mut memory)[at] = 1;
    }
    let range = memory.as_ptr() as u64..memory.as_ptr() as u64 + SIZE as u64;
    let faults = bpf.write_faults();
    let me = std::process::id();
    let ours = faults.iter().filter(|f| f.tgid == me && range.contains(&f.page));
    assert!(ours.clone().count() > 0 && ours.clone().all(|f| f.page % 4096 == 0));
}
