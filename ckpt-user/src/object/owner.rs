//! Who is signalled when something happens to a description (F_SETOWN, F_SETSIG, O_ASYNC).

use super::Description;
use super::table::Descriptor;
use crate::record::Process;
use crate::sys::inject::Call;
use crate::sys::pidfd;
use crate::sys::remote::Remote;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Pid, getpgid, getpgrp};
use std::io;
use std::os::fd::OwnedFd;

#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Signalled {
    /// F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP.
    #[prost(int32, tag = "1")]
    pub kind: i32,
    /// 0 for nobody.
    #[prost(int32, tag = "2")]
    pub id: i32,
    /// 0 for SIGIO.
    #[prost(int32, tag = "3")]
    pub signal: i32,
    /// In the place of an id: the process group that ckptbpf was started in.
    #[prost(bool, tag = "4")]
    pub outer_group: bool,
}

const GROUP: i32 = 2;

/// None where nobody is signalled.
///
/// # Errors
/// The reason why it cannot be saved.
pub fn capture(fd: &OwnedFd, flags: u32, processes: &[Pid]) -> Result<Option<Signalled>, String> {
    let (kind, id, signal) = pidfd::signalled(fd).map_err(|e| e.to_string())?;
    if id == 0 && signal == 0 && flags & libc::O_ASYNC as u32 == 0 {
        return Ok(None);
    }
    // Whoever asks for signals of what happens in a directory becomes its owner; nothing else tells.
    if id != 0
        && SFlag::from_bits_truncate(fstat(fd).map_err(|e| e.to_string())?.st_mode) & SFlag::S_IFMT
            == SFlag::S_IFDIR
    {
        return Err("what happens in it may be signalled (F_NOTIFY), which cannot be saved".to_owned());
    }
    let is_inside = id == 0
        || if kind == GROUP {
            processes.iter().any(|&pid| getpgid(Some(pid)).is_ok_and(|group| group.as_raw() == id))
        } else {
            processes.iter().any(|pid| pid.as_raw() == id)
        };
    if is_inside {
        Ok(Some(Signalled { kind, id, signal, outer_group: false }))
    } else {
        Err(format!("it signals {id} (F_SETOWN), which is no process or group of the program"))
    }
}

/// Groups that none of the processes is in, as their records say, are the one around the program.
pub fn settle(descriptions: &mut [Description], processes: &[Process]) {
    let is_outer = |id: i32| processes.iter().all(|process| process.process_group != id);
    for signalled in descriptions.iter_mut().filter_map(|description| description.signalled.as_mut()) {
        if signalled.kind == GROUP && signalled.id != 0 && is_outer(signalled.id) {
            (signalled.id, signalled.outer_group) = (0, true);
        }
    }
}

/// What F_SETFL sets.
const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME | libc::O_ASYNC;

/// Has the process, all of the tree's being there, say so of its descriptor: signals name its number.
///
/// # Errors
/// The group around the program is outside of its pid namespace; or the image is not root's: root says so here, and the signal
/// would be root's, too.
pub fn rebuild(
    descriptor: &Descriptor,
    description: &Description,
    is_roots: bool,
    remote: &mut Remote,
) -> io::Result<()> {
    const F_SETSIG: i32 = 10;
    const F_SETOWN_EX: i32 = 15;
    let Some(wanted) = description.signalled else { return Ok(()) };
    let id = if wanted.outer_group { getpgrp().as_raw() } else { wanted.id };
    if wanted.outer_group && (id == 0 || !is_roots) {
        let why = if is_roots { "outside of this pid namespace" } else { "around the program" };
        return Err(io::Error::other(format!("the process group that it is to signal (F_SETOWN) is {why}")));
    }
    let owner = remote.data(&[wanted.kind.to_ne_bytes(), id.to_ne_bytes()].concat())?;
    let set = |command: i32, value: u64| {
        Call::new(libc::SYS_fcntl, &[u64::from(descriptor.number), command as u64, value])
    };
    let mut calls = vec![set(F_SETSIG, wanted.signal as u64)];
    if id != 0 {
        calls.push(set(F_SETOWN_EX, owner));
    }
    calls.push(set(libc::F_SETFL, (description.flags as i32 & SETTABLE) as u64));
    remote.run_all(&calls)
}
