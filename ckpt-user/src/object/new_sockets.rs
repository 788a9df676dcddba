//! What new sockets are like: what a program has set is what differs.

use super::option::{Kind, LONGEST};
use crate::sys::socket;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// What new sockets are like on this machine. Asked once for each kind of a checkpoint: the program stands still meanwhile.
#[derive(Debug, Default)]
pub struct NewSockets {
    options: RefCell<HashMap<Kind, Rc<Options>>>,
    network: OnceCell<Option<Vec<u8>>>,
}

/// Values by level and name.
pub type Options = HashMap<(i32, i32), Vec<u8>>;

impl NewSockets {
    pub fn options(&self, kind: Kind) -> io::Result<Rc<Options>> {
        if let Some(known) = self.options.borrow().get(&kind) {
            return Ok(known.clone());
        }
        let found = Rc::new(options(kind)?);
        self.options.borrow_mut().insert(kind, found.clone());
        Ok(found)
    }

    /// Whether `fd` is of the network namespace that ckptbpf is in.
    pub fn are_of_the_network_of(&self, fd: &OwnedFd) -> bool {
        /// SO_NETNS_COOKIE (asm-generic/socket.h, Linux 5.14).
        const NETNS_COOKIE: i32 = 71;
        let cookie = |fd: &OwnedFd| socket::option_at(fd, libc::SOL_SOCKET, NETNS_COOKIE, 8).ok();
        let own = || cookie(&socket::create(libc::AF_UNIX, libc::SOCK_DGRAM, 0).ok()?);
        *self.network.get_or_init(own) == cookie(fd)
    }
}

/// What a new socket of the kind has.
pub fn options(kind: Kind) -> io::Result<Options> {
    let new = socket::create(kind.family, kind.kind, kind.protocol)?;
    let value = |(level, name)| Some(((level, name), socket::option_at(&new, level, name, LONGEST).ok()?));
    Ok(kind.known().filter_map(value).collect())
}
