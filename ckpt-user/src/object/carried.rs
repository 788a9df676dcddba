//! Descriptors on their way in messages of Unix sockets (SCM_RIGHTS): what waits is looked at before all else, because
//! what comes with it may be open nowhere else.

use super::Seen;
use super::socket::{self, Message};
use crate::refusal::{Reading, Refusal};
use crate::sys::pidfd;
use nix::unistd::Pid;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};

/// What waits in each socket, by the index of its description; or why it cannot be saved.
pub type Waiting = HashMap<usize, Result<Vec<Message>, String>>;

/// Looks into the sockets among `ends`, and into those found there. What is open nowhere else is added to `ends`.
///
/// # Errors
/// A descriptor that cannot be read.
pub fn look(
    ends: &mut Vec<(OwnedFd, Seen)>,
    is_standard: impl Fn(usize, &Seen) -> bool,
) -> Result<Waiting, Refusal> {
    let mut waiting = Waiting::new();
    let mut index = 0;
    while index < ends.len() {
        let (fd, seen) = &ends[index];
        if seen.target.as_os_str().as_encoded_bytes().starts_with(b"socket:") && !is_standard(index, seen) {
            let carrier = seen.carried.unwrap_or((seen.pid, seen.number));
            let found = match socket::waiting(fd) {
                Ok(Some(found)) => found,
                Ok(None) => {
                    index += 1;
                    continue;
                }
                Err(reason) => {
                    waiting.insert(index, Err(reason));
                    index += 1;
                    continue;
                }
            };
            let mut messages = Vec::with_capacity(found.len());
            for (mut message, descriptors) in found {
                for descriptor in descriptors {
                    message.descriptions.push(number_of(descriptor, carrier, ends)?);
                }
                messages.push(message);
            }
            waiting.insert(index, Ok(messages));
        }
        index += 1;
    }
    Ok(waiting)
}

/// The index of the description of `fd`, a duplicate of ours.
fn number_of(fd: OwnedFd, carrier: (Pid, i32), ends: &mut Vec<(OwnedFd, Seen)>) -> Result<u32, Refusal> {
    let own = Pid::this();
    let (mut seen, _) = Seen::look(own, fd.as_raw_fd())?;
    seen.carried = Some(carrier);
    for (index, (_, other)) in ends.iter().enumerate().filter(|(_, (_, other))| other.target == seen.target) {
        let order = pidfd::compare(own, other.pid, pidfd::Kind::File, seen.number, other.number);
        if order.reading(other.pid, "kcmp")? == Ordering::Equal {
            return Ok(index as u32);
        }
    }
    ends.push((fd, seen));
    Ok(ends.len() as u32 - 1)
}
