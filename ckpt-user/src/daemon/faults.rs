//! Page faults of programs, for those who restart them lazily without rights: a userfaultfd that serves the kernel's own faults,
//! too, and tells of forks.
//!
//! The device gives what chmod(1) of it would give (Documentation/admin-guide/mm/userfaultfd.rst). To be told of forks takes
//! CAP_SYS_PTRACE of whoever agrees on it (`userfaultfd_api` of fs/userfaultfd.c), as the reader gets descriptors: so that ioctl,
//! on what is a userfaultfd for certain, is the core's.

use super::wire::{Features, Message, Outcome};
use crate::sys::uffd::{self, EVENTS, TRACKING, Uffd};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

/// The device, or why there is none.
pub fn device() -> (Message, Option<OwnedFd>) {
    let opened = File::options().read(true).write(true).open("/dev/userfaultfd");
    (Message::Device(Outcome::of(opened.as_ref().map(|_| ()))), opened.ok().map(Into::into))
}

/// The answer to a request of a client's that has its device.
pub fn answer(request: &Message, with: Vec<OwnedFd>) -> Option<Message> {
    let Message::Features(Features { features }) = request else { return None };
    let [fd] = <[OwnedFd; 1]>::try_from(with).ok()?;
    Some(Message::Done(Outcome::of(agree(fd, *features).as_ref().map(|_| ()))))
}

fn agree(fd: OwnedFd, features: u64) -> io::Result<Uffd> {
    if !uffd::is_one(&fd)? || ![EVENTS, EVENTS | TRACKING].contains(&features) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Uffd::handshake(fd, features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_userfaultfd_is_left_alone() {
        let ask = |features| Message::Features(Features { features });
        let file = || vec![OwnedFd::from(File::open("/dev/null").unwrap())];
        let refused = Some(Message::Done(Outcome { error: libc::EINVAL as u32, reserved: 0 }));
        assert_eq!(answer(&ask(EVENTS), file()), refused);
        let own = || vec![Uffd::of_self(uffd::USER_MODE_ONLY).unwrap()];
        assert_eq!(answer(&ask(1 << 9), own()), refused);
        assert_eq!(answer(&ask(EVENTS), Vec::new()), None);
        assert_eq!(answer(&Message::Done(Outcome { error: 0, reserved: 0 }), own()), None);
        if !crate::skipped::without_root() {
            assert_eq!(answer(&ask(EVENTS), own()), Some(Message::Done(Outcome { error: 0, reserved: 0 })));
        }
    }
}
