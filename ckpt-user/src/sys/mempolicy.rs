//! The memory policy of the calling thread: get_mempolicy(2), set_mempolicy(2).

use std::io;

/// A set of nodes, a bit each: more than any kernel has.
pub type Nodes = [u64; 16];

/// One bit less of it counts than the kernel is told.
const BITS: usize = size_of::<Nodes>() * 8 + 1;

/// MPOL_* with its flags, and its nodes.
///
/// # Errors
/// ENOSYS where the kernel knows of no nodes.
pub fn get() -> io::Result<(u32, Nodes)> {
    let (mut mode, mut nodes) = (0i32, Nodes::default());
    // SAFETY: the kernel writes one int, and no more than `BITS` of a set that is as large; an address is not asked about.
    let got = unsafe {
        libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, nodes.as_mut_ptr(), BITS - 1, 0usize, 0usize)
    };
    super::check(got)?;
    Ok((mode as u32, nodes))
}

/// MPOL_F_MEMS_ALLOWED: what is asked for is which nodes a policy may have.
pub const MEMS_ALLOWED: u64 = 4;

/// The nodes that this thread may use (cpuset(7)).
///
/// # Errors
/// ENOSYS where the kernel knows of no nodes.
pub fn allowed() -> io::Result<Nodes> {
    let mut nodes = Nodes::default();
    // SAFETY: the kernel writes no more than `BITS` of a set that is as large; neither a mode nor an address is asked about.
    let got = unsafe {
        libc::syscall(libc::SYS_get_mempolicy, 0usize, nodes.as_mut_ptr(), BITS - 1, 0usize, MEMS_ALLOWED)
    };
    super::check(got)?;
    Ok(nodes)
}

/// # Errors
/// EINVAL for one that this machine cannot have, ENOSYS where the kernel knows of no nodes.
pub fn set(mode: u32, nodes: &Nodes) -> io::Result<()> {
    // SAFETY: the kernel reads no more than `BITS` of a set that is as large and lives across the call.
    let set = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode as i32, nodes.as_ptr(), BITS) };
    super::check(set).map(drop)
}
