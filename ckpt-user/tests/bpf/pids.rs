//! In a container eBPF shows the host's process ids: they are translated.
use std::process::{Command, id};

use crate::support::{events_until, is};
use ckptbpf::sys::bpf::{INITIAL_PID_NAMESPACE, Kernel, LifecycleKind, own_pid_namespace};

/// Set in the copy of this test that runs in a namespace.
const INSIDE: &str = "CKPTBPF_TEST_INSIDE";

#[test]
fn ids_are_translated_in_a_pid_namespace() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "pids::ids_are_translated_in_a_pid_namespace", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

fn inside() {
    assert_ne!(own_pid_namespace().unwrap(), INITIAL_PID_NAMESPACE);
    let mut bpf = Kernel::load().unwrap();
    let pids = bpf.pids().unwrap();
    let host = pids.host(id()).unwrap();
    assert_ne!(host, id());
    assert_eq!(pids.own(host), Some(id()));

    let _attached = bpf.attach_lifecycle().unwrap();
    assert_eq!(bpf.track_own(id()).unwrap(), host);
    assert_eq!(bpf.tracked(), [(host, id())]);
    let mut child = Command::new("true").spawn().unwrap();
    let events = events_until(&mut bpf, "the child exits", |e| {
        e.what() == Some(LifecycleKind::GroupExit) && e.own_tgid == child.id()
    });
    child.wait().unwrap();
    let fork = events.iter().find(|e| is(e, LifecycleKind::Fork, host)).unwrap();
    assert_eq!((fork.own_tgid, fork.own_child_tgid), (id(), child.id()));
    assert_ne!(fork.child_tgid, child.id());

    let tasks = bpf.tasks().unwrap();
    assert!(tasks.iter().all(|task| task.ids.tgid == host && task.ids.level_count >= 2));
    assert!(!bpf.vmas().unwrap().is_empty() && !bpf.files().unwrap().is_empty());
    bpf.untrack(host).unwrap();
    bpf.track(host).unwrap();
    assert_eq!(bpf.tracked(), [(host, id())]);
    assert!(bpf.track(u32::MAX).is_err());
}
