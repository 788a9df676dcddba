//! Where code, data, heap, stack, arguments and environment of an address space begin and end: what
//! PR_SET_MM_MAP sets (prctl(2)) and /proc/PID/{stat,cmdline,environ,auxv,exe} show.

use super::vma::MappedFile;
use crate::refusal::{Reading, Refusal};
use crate::sys::remote::Remote;
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::io;

/// The layout fields of `struct prctl_mm_map` (addresses) with the auxiliary vector and the executable.
#[derive(Clone, PartialEq, prost::Message, serde::Serialize)]
pub struct Layout {
    #[prost(uint64, tag = "1")]
    pub start_code: u64,
    #[prost(uint64, tag = "2")]
    pub end_code: u64,
    #[prost(uint64, tag = "3")]
    pub start_data: u64,
    #[prost(uint64, tag = "4")]
    pub end_data: u64,
    #[prost(uint64, tag = "5")]
    pub start_brk: u64,
    #[prost(uint64, tag = "6")]
    pub brk: u64,
    #[prost(uint64, tag = "7")]
    pub start_stack: u64,
    #[prost(uint64, tag = "8")]
    pub arg_start: u64,
    #[prost(uint64, tag = "9")]
    pub arg_end: u64,
    #[prost(uint64, tag = "10")]
    pub env_start: u64,
    #[prost(uint64, tag = "11")]
    pub env_end: u64,
    #[prost(bytes = "vec", tag = "12")]
    pub auxv: Vec<u8>,
    #[prost(message, optional, tag = "13")]
    pub executable: Option<MappedFile>,
}

/// Reads the layout; `brk` comes from where /proc does not show it.
pub fn capture(pid: Pid, brk: u64, executable: MappedFile) -> Result<Layout, Refusal> {
    let dir = ProcDir::process(pid);
    let stat = dir.stat().reading(pid, "stat")?;
    let field = |n: usize| stat.number(n) as u64;
    Ok(Layout {
        start_code: field(26),
        end_code: field(27),
        start_stack: field(28),
        start_data: field(45),
        end_data: field(46),
        start_brk: field(47),
        brk,
        arg_start: field(48),
        arg_end: field(49),
        env_start: field(50),
        env_end: field(51),
        auxv: dir.bytes("auxv").reading(pid, "auxv")?,
        executable: Some(executable),
    })
}

/// Sets the layout of the calling skeleton; `executable` is the number of its executable, opened in the skeleton, unless it has
/// executed that.
///
/// # Errors
/// EBUSY while the old executable is still mapped, EINVAL when the addresses do not fit the mappings.
pub fn rebuild(layout: &Layout, remote: &mut Remote, executable: Option<i32>) -> io::Result<()> {
    const PR_SET_MM: u64 = 35;
    const PR_SET_MM_MAP: u64 = 14;
    let auxv = remote.data(&layout.auxv)?;
    let mut map = Vec::with_capacity(104);
    for word in [
        layout.start_code,
        layout.end_code,
        layout.start_data,
        layout.end_data,
        layout.start_brk,
        layout.brk,
        layout.start_stack,
        layout.arg_start,
        layout.arg_end,
        layout.env_start,
        layout.env_end,
        auxv,
    ] {
        map.extend(word.to_le_bytes());
    }
    map.extend((layout.auxv.len() as u32).to_le_bytes());
    map.extend(executable.unwrap_or(-1).to_le_bytes());
    let address = remote.data(&map)?;
    remote.call(libc::SYS_prctl, &[PR_SET_MM, PR_SET_MM_MAP, address, map.len() as u64, 0]).map(drop)
}
