//! The memory policy of a thread (set_mempolicy(2)): from which NUMA nodes its memory comes.

use crate::record::Image;
use crate::sys::mempolicy::{self, MEMS_ALLOWED, Nodes};
use crate::sys::remote::Remote;
use std::io;
use std::marker::PhantomData;

/// Bytes of a set of nodes: more than any kernel has.
pub const NODES: usize = 128;
/// What get_mempolicy(2) and set_mempolicy(2) want as its length, bits.
pub const NODE_BITS: u64 = NODES as u64 * 8;

/// As get_mempolicy(2) gives it.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Policy {
    /// MPOL_* with its flags.
    #[prost(uint32, tag = "1")]
    pub mode: u32,
    /// Nodes, little-endian bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub nodes: Vec<u8>,
    /// The node of a range that is tried first (set_mempolicy_home_node(2)); only BPF shows it.
    #[prost(uint32, optional, tag = "3")]
    pub home: Option<u32>,
}

impl Policy {
    /// From what get_mempolicy(2) has written: the mode, then the nodes; none for the default.
    pub fn read(mode: u32, nodes: &[u8]) -> Option<Self> {
        (mode != 0).then(|| Self { mode, nodes: nodes.to_vec(), home: None })
    }
}

/// Gives the calling skeleton thread the recorded policy, or the default one.
pub fn rebuild(wanted: Option<&Policy>, remote: &mut Remote) -> io::Result<()> {
    let default = Policy::default();
    let wanted = wanted.unwrap_or(&default);
    let set = |remote: &mut Remote, nodes: &[u8]| {
        let (at, bits) = match nodes.len() {
            0 => (0, 0),
            // The kernel takes one bit less than it is told.
            len => (remote.data(nodes)?, 8 * len as u64 + 1),
        };
        remote.call(libc::SYS_set_mempolicy, &[u64::from(wanted.mode), at, bits]).map(drop)
    };
    match of_nodes_here(remote, &wanted.nodes, set, allowed) {
        // A kernel without NUMA has the default alone.
        Err(e) if wanted.mode == 0 && e.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        Err(e) => Err(io::Error::new(e.kind(), format!("the memory policy (set_mempolicy(2)): {e}"))),
        Ok(true) => {
            say_other();
            Ok(())
        }
        Ok(false) => Ok(()),
    }
}

/// Has `set` give a policy of `nodes`. Those of them that may not be used `here` (cpuset(7)) the kernel leaves out. Where none is left it
/// refuses the policy, and it becomes one of all nodes that may be, as `allowed` tells; whether it has.
///
/// # Errors
/// What `set` says of the nodes that are wanted.
pub fn of_nodes_here<H>(
    here: &mut H,
    nodes: &[u8],
    set: impl Fn(&mut H, &[u8]) -> io::Result<()>,
    allowed: impl FnOnce(&mut H) -> io::Result<Vec<u8>>,
) -> io::Result<bool> {
    match set(here, nodes) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && nodes.iter().any(|byte| *byte != 0) => {
            let others = allowed(here)?;
            set(here, &others).map(|()| true).map_err(|_| error)
        }
        done => done.map(|()| false),
    }
}

/// The nodes that the skeleton may use.
///
/// # Errors
/// The kernel does not tell.
pub fn allowed(remote: &mut Remote) -> io::Result<Vec<u8>> {
    let mut nodes = vec![0; NODES];
    let at = remote.data(&nodes)?;
    remote.call(libc::SYS_get_mempolicy, &[0, at, NODE_BITS, 0, MEMS_ALLOWED])?;
    remote.read(at, &mut nodes)?;
    Ok(nodes)
}

/// For a person, once.
pub fn say_other() {
    log::warn!(
        "the program has bound memory to NUMA nodes of which none may be used here: it comes from all that may be \
         (set_mempolicy(2), mbind(2), cpuset.mems)"
    );
}

/// Gives the thread its own policy back when dropped. Bound to its thread.
#[derive(Debug)]
pub struct Assumed {
    own: (u32, Nodes),
    thread: PhantomData<*const ()>,
}

impl Drop for Assumed {
    fn drop(&mut self) {
        // It was had before.
        let _ = mempolicy::set(self.own.0, &self.own.1);
    }
}

/// Has this thread, and those that it starts, the policy that all processes of the program had, if it was one: pages that it
/// brings them come from the nodes that their own would have come from. None where there is none, or it cannot be had here:
/// who is to have it says so.
pub fn assume_common(image: &Image) -> Option<Assumed> {
    let mut all = image.processes.iter().map(|process| process.threads.first()?.policy.as_ref());
    let first = all.next()??;
    if all.all(|other| other == Some(first)) { assume(first).ok() } else { None }
}

fn assume(policy: &Policy) -> io::Result<Assumed> {
    let back = Assumed { own: mempolicy::get()?, thread: PhantomData };
    let set = |_: &mut (), nodes: &[u8]| mempolicy::set(policy.mode, &of_bytes(nodes));
    let allowed = |_: &mut ()| -> io::Result<Vec<u8>> {
        Ok(mempolicy::allowed()?.iter().flat_map(|word| word.to_le_bytes()).collect())
    };
    of_nodes_here(&mut (), &policy.nodes, set, allowed)?;
    Ok(back)
}

fn of_bytes(bytes: &[u8]) -> Nodes {
    let mut nodes = Nodes::default();
    for (word, bytes) in nodes.iter_mut().zip(bytes.chunks(8)) {
        *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Process, Thread};

    const INTERLEAVE: u32 = 3;

    fn image(policies: &[Option<Policy>]) -> Image {
        let process = |policy: &Option<Policy>| Process {
            threads: vec![Thread { policy: policy.clone(), ..Thread::default() }],
            ..Process::default()
        };
        Image { processes: policies.iter().map(process).collect(), ..Image::default() }
    }

    #[test]
    fn the_program_s_policy_is_had_for_a_while_and_by_threads_too() {
        let Ok(own) = mempolicy::get() else {
            return crate::skipped::because("this kernel has no memory policies");
        };
        let first = Some(Policy { mode: INTERLEAVE, nodes: vec![1], home: None });
        {
            let _assumed = assume_common(&image(&[first.clone(), first.clone()])).unwrap();
            let now = mempolicy::get().unwrap();
            assert_eq!((now.0, now.1[0]), (INTERLEAVE, 1));
            assert_eq!(std::thread::spawn(mempolicy::get).join().unwrap().unwrap(), now);
        }
        assert_eq!(mempolicy::get().unwrap(), own);
        // No machine has that one.
        let far = Some(Policy { mode: INTERLEAVE, nodes: [vec![0; 127], vec![0x80]].concat(), home: None });
        {
            let _assumed = assume_common(&image(&[far])).unwrap();
            assert_eq!(mempolicy::get().unwrap(), (INTERLEAVE, mempolicy::allowed().unwrap()));
        }
        let other = Some(Policy { mode: INTERLEAVE, nodes: vec![3], home: None });
        for differ in [&[first.clone(), None][..], &[None, first.clone()], &[None], &[], &[first, other]] {
            assert!(assume_common(&image(differ)).is_none());
            assert_eq!(mempolicy::get().unwrap(), own);
        }
    }
}
