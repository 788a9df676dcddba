//! The memory policy of a thread (set_mempolicy(2)): from which NUMA nodes its memory comes.

use crate::sys::remote::Remote;
use std::io;

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
    let (at, bits) = match wanted.nodes.len() {
        0 => (0, 0),
        // The kernel takes one bit less than it is told.
        len => (remote.data(&wanted.nodes)?, 8 * len as u64 + 1),
    };
    let result = remote.call(libc::SYS_set_mempolicy, &[u64::from(wanted.mode), at, bits]);
    match result {
        // A kernel without NUMA has the default alone.
        Err(e) if wanted.mode == 0 && e.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other
            .map(drop)
            .map_err(|e| io::Error::new(e.kind(), format!("the memory policy (set_mempolicy(2)): {e}"))),
    }
}
