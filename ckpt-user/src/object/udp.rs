//! What a UDP socket may have that cannot be saved, and that no call simply tells.

use super::ports;
use crate::sys::socket;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// What a UDP socket has of a packet that the program has not completed, no call reads; it counts as what is being sent, which
/// is soon over.
pub fn nothing_unsent(fd: &OwnedFd) -> Result<(), String> {
    const SOON: Duration = Duration::from_millis(5);
    let begun = Instant::now();
    while socket::unacknowledged(fd).map_err(|e| e.to_string())? > 0 {
        if begun.elapsed() > SOON {
            return Err("a packet waits in it that is not complete (MSG_MORE, UDP_CORK), or not sent yet; this cannot be saved"
                .to_owned());
        }
        std::hint::spin_loop();
    }
    Ok(())
}

/// No call lists the groups that a socket has joined: it is asked for each that the machine has.
pub fn no_groups(fd: &OwnedFd, family: i32) -> Result<(), String> {
    /// Level IPPROTO_IP and IPPROTO_IPV6 (linux/in.h).
    const MCAST_MSFILTER: i32 = 48;
    let own = if family == libc::AF_INET { 4 } else { 16 };
    for (interface, group) in ports::groups_now() {
        // struct group_filter: interface, struct sockaddr_storage, mode, how many sources, one of them.
        let mut filter = vec![0; 8 + 128 + 8 + 128];
        filter[..4].copy_from_slice(&interface.to_ne_bytes());
        let (of, at, level) = match group.len() {
            4 => (libc::AF_INET, 12, libc::SOL_IP),
            _ => (libc::AF_INET6, 16, libc::SOL_IPV6),
        };
        filter[8..10].copy_from_slice(&(of as u16).to_ne_bytes());
        filter[at..at + group.len()].copy_from_slice(&group);
        if group.len() <= own && socket::ask(fd, level, MCAST_MSFILTER, &mut filter).is_ok() {
            return Err("it has joined a multicast group, which cannot be saved yet".to_owned());
        }
    }
    Ok(())
}
