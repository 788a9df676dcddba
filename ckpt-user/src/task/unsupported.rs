//! State that a restart could not rebuild yet: each is looked for, and refused by name.

use super::hidden::{ProcessState, ThreadState};
use super::proc::{ProcDir, Status, reached_by};
use crate::freeze::tree;
use crate::refusal::{Reading, Refusal};
use crate::sys::pidfd::{self, Kind};
use crate::sys::sched;
use nix::unistd::Pid;
use std::cmp::Ordering;

/// Those that must be the ones that ckptbpf itself lives in.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
/// Those that a process may have set apart for the children that it is going to have (unshare(2)).
const FOR_CHILDREN: [&str; 2] = ["pid", "time"];
/// What threads share unless one of them has called unshare(2).
const SHARED: [(Kind, &str); 2] = [
    (Kind::Files, "has a thread with a descriptor table of its own"),
    (Kind::Fs, "has a thread with a working directory of its own"),
];

/// `others` are the threads beside the first; `whose_clocks` is the process by which all clocks are told.
///
/// # Errors
/// Names the first thing found that cannot be saved.
pub fn check(
    pid: Pid,
    status: &Status,
    others: impl Iterator<Item = Pid>,
    whose_clocks: Pid,
) -> Result<(), Refusal> {
    let dir = ProcDir::process(pid);
    thread(pid, pid, status)?;
    if status.field("VmPin").is_some_and(|size| !size.starts_with("0 ")) {
        return Err(Refusal::unsupported(
            pid,
            "has memory pinned for a device or an io_uring",
            "what is read into it lands there without a trace",
        ));
    }
    namespaces(pid, &dir)?;
    // Which one that is is ours to choose.
    let clocks = |of: Pid| ProcDir::process(of).link("ns/time").reading(of, "ns");
    if clocks(pid)? != clocks(whose_clocks)? {
        return Err(Refusal::unsupported(
            pid,
            "is in a time namespace of its own",
            "all of a program must have the same clocks",
        ));
    }
    for name in FOR_CHILDREN {
        let own = dir.link(&format!("ns/{name}")).reading(pid, "ns")?;
        // There is none to be seen while its first process is yet to come.
        if dir.link(&format!("ns/{name}_for_children")).ok() != Some(own) {
            return Err(Refusal::unsupported(
                pid,
                format!("has a {name} namespace for its children"),
                "start ckptbpf inside that namespace",
            ));
        }
    }
    for tid in others {
        let dir = ProcDir::thread(pid, tid);
        thread(pid, tid, &dir.status().reading(pid, "a thread's status")?)?;
        namespaces(pid, &dir)?;
        for (kind, what) in SHARED {
            if pidfd::compare(pid, tid, kind, 0, 0).reading(pid, "kcmp")? != Ordering::Equal {
                return Err(Refusal::unsupported(pid, what, "this cannot be saved yet"));
            }
        }
    }
    Ok(())
}

/// Whether the process executes a 32-bit program. What the kernel has told it at its start (auxv) is of its own words: in 64 bits
/// the first key leaves the upper half empty, in 32 bits that is its value.
pub fn is_32_bit(pid: Pid) -> bool {
    let told = ProcDir::process(reached_by(pid)).bytes("auxv");
    told.is_ok_and(|told| told.get(4..8).is_some_and(|half| half != [0; 4]))
}

/// What each thread has for itself.
fn thread(pid: Pid, tid: Pid, status: &Status) -> Result<(), Refusal> {
    let refused = |what: &str, why: &str| Err(Refusal::unsupported(pid, what, why));
    // Kernels and processors that tag no addresses have no such line.
    if status.hex("untag_mask").is_ok_and(|mask| mask != u64::MAX) {
        return refused("has tagged addresses (ARCH_ENABLE_TAGGED_ADDR)", "this cannot be saved yet");
    }
    // Where no security module labels processes, it cannot be read.
    let label = |dir: ProcDir| dir.bytes("attr/current").ok();
    if let Some(theirs) =
        another_label(label(ProcDir::thread(pid, tid)), label(ProcDir::process(tree::keeper())))
    {
        let what = format!(
            "is confined as {theirs:?} by a security module (SELinux, AppArmor), and ckptbpf otherwise"
        );
        return refused(&what, "after a restart it would be as ckptbpf is: run ckptbpf confined like it");
    }
    if sched::core_cookie(tid) != sched::core_cookie(tree::keeper()) {
        return refused(
            "is in a core scheduling group of its own (PR_SCHED_CORE)",
            "this cannot be saved yet",
        );
    }
    Ok(())
}

/// The label of a thread, if that is not ours. A child has that of its parent, until it executes a program to which the policy
/// gives another one.
fn another_label(theirs: Option<Vec<u8>>, ours: Option<Vec<u8>>) -> Option<String> {
    // SELinux ends it with a zero, AppArmor with a new line. Of a profile that allows everything AppArmor tells the name as well.
    let text = |bytes: Option<Vec<u8>>| {
        let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
        let label = text.trim_end_matches(['\0', '\n']);
        if label.ends_with(" (unconfined)") { "unconfined".to_owned() } else { label.to_owned() }
    };
    let (theirs, ours) = (text(theirs), text(ours));
    (theirs != ours).then_some(theirs)
}

/// # Errors
/// What only iterators, or system calls in the program, tell.
pub fn check_hidden(pid: Pid, threads: &[ThreadState], state: &ProcessState) -> Result<(), Refusal> {
    if let Some((what, why)) = threads.iter().find_map(|thread| thread.lost) {
        return Err(Refusal::unsupported(pid, what, why));
    }
    if state.segments {
        let what = "has a local descriptor table (modify_ldt)";
        return Err(Refusal::unsupported(pid, what, "this cannot be saved yet"));
    }
    Ok(())
}

/// personality(2) bits of a thread.
///
/// # Errors
/// Named: another execution domain than Linux.
pub fn personality(pid: Pid, dir: &ProcDir) -> Result<u32, Refusal> {
    const DOMAIN: u32 = 0xff;
    let text = dir.text("personality").reading(pid, "personality")?;
    let bits = u32::from_str_radix(text.trim(), 16).unwrap_or(0);
    if bits & DOMAIN != 0 {
        return Err(Refusal::unsupported(pid, "has another execution domain", "personality(2) is not Linux"));
    }
    Ok(bits)
}

fn namespaces(pid: Pid, dir: &ProcDir) -> Result<(), Refusal> {
    for name in NAMESPACES {
        let theirs = dir.link(&format!("ns/{name}")).reading(pid, "ns")?;
        let ours = std::fs::read_link(format!("/proc/self/ns/{name}")).reading(pid, "ns")?;
        if theirs != ours {
            return Err(Refusal::unsupported(
                pid,
                format!("is in a {name} namespace of its own"),
                "run ckptbpf inside that namespace",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_label_is_told_however_it_ends() {
        let label = |text: &str| Some(text.as_bytes().to_vec());
        let selinux = "unconfined_u:unconfined_r:unconfined_t:s0";
        assert_eq!(another_label(None, None), None);
        assert_eq!(another_label(label("unconfined\n"), label("unconfined\n")), None);
        assert_eq!(another_label(label(selinux), label(&format!("{selinux}\0"))), None);
        assert_eq!(another_label(label("unconfined\n"), label("ckptbpf (unconfined)\n")), None);
        assert_eq!(
            another_label(label("a (enforce)\n"), label("unconfined\n")),
            Some("a (enforce)".to_owned())
        );
    }
}
