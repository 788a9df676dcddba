//! Closes at once what may take as long to be closed as somebody likes.
//!
//! Whoever closes a socket that lingers (SO_LINGER) waits, also where that is in the queue of the socket that is closed. Whoever *ends*
//! does not (`inet_release` of net/ipv4/af_inet.c). So what is closed here goes to a thread with a table of descriptors of its own,
//! which ends. Close-on-exec and fork(2) would do the same, with the descriptors of all others in the copy, some of which may have to
//! be flushed.
//!
//! ```text
//!  caller ── number ──▶ a thread that has a table of its own from the beginning, and fetches what is to be closed (pidfd_getfd(2))
//!         ◀── last ────   └─ a thread with a copy of that table, which ends once all others have closed theirs
//! ```

use super::{check, pidfd};
use nix::sys::signal::SigSet;
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{self, Sender, SyncSender};
use std::thread::Builder;

/// Bytes of a thread's stack: it does next to nothing.
const STACK: usize = 64 << 10;

/// A descriptor by its number in the table of this process's first thread, and where to tell who has the last one.
#[derive(Debug)]
struct Order {
    number: RawFd,
    done: SyncSender<Last>,
}

/// Whoever has the last descriptor ends when this is dropped.
type Last = Sender<()>;

/// The thread that fetches what is to be closed; it ends with this.
#[derive(Debug)]
pub struct Closer(Sender<Order>);

impl Closer {
    /// Begins while nobody else has sent this process a descriptor.
    ///
    /// # Errors
    /// There is no thread for it, or no table.
    pub fn start() -> io::Result<Self> {
        let (orders, taken) = mpsc::channel::<Order>();
        let (ready, begun) = mpsc::sync_channel(1);
        let fetch = move || {
            let process = match own_table() {
                Ok(process) => process,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            for Order { number, done } in taken {
                // Where it cannot be, nothing is told.
                if let Ok(last) = fetched(&process, number) {
                    let _ = done.send(last);
                }
            }
        };
        Builder::new().name("closer".into()).stack_size(STACK).spawn(fetch)?;
        begun.recv().map_err(io::Error::other)??;
        Ok(Self(orders))
    }

    /// Closes it, in the time that it takes to start a thread. From a thread with the table of this process's first.
    ///
    /// # Errors
    /// It cannot be done so: here it is.
    pub fn close(&self, fd: OwnedFd) -> Result<(), OwnedFd> {
        let (done, heard) = mpsc::sync_channel(1);
        let order = Order { number: fd.as_raw_fd(), done };
        let last = self.0.send(order).ok().and_then(|()| heard.recv().ok());
        let Some(last) = last else { return Err(fd) };
        // In this order.
        drop(fd);
        drop(last);
        Ok(())
    }
}

/// Gives this thread a table of its own, with nothing in it but the standard streams, and a pidfd of this process. It takes no signals:
/// a handler would write to what has its number here, and whoever waits for that would never hear of it.
fn own_table() -> io::Result<OwnedFd> {
    SigSet::all().thread_block()?;
    // SAFETY: integers only. What has these numbers in the table that this thread leaves stays open there, and it uses none of them.
    check(i64::from(unsafe { libc::unshare(libc::CLONE_FILES) }))?;
    // SAFETY: as above; the table is this thread's alone.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) })?;
    pidfd::open(Pid::this())
}

/// A thread that has a copy of a descriptor of `process`, and nobody else in this table.
fn fetched(process: &OwnedFd, number: RawFd) -> io::Result<Last> {
    let copy = pidfd::get_fd(process.as_fd(), number)?;
    let (last, waits) = mpsc::channel();
    let (ready, begun) = mpsc::sync_channel(1);
    let keep = move || {
        // SAFETY: one integer. This thread owns no descriptor, and what is in the copy of the table goes with it.
        let _ = ready.send(check(i64::from(unsafe { libc::unshare(libc::CLONE_FILES) })));
        let _: Result<(), _> = waits.recv();
    };
    Builder::new().name("closer".into()).stack_size(STACK).spawn(keep)?;
    begun.recv().map_err(io::Error::other)??;
    drop(copy);
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::packet;
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, setsockopt, socketpair, sockopt};
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    /// A connection that has more to send than its other end takes, and lingers for an hour; and that other end.
    fn lingering() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        one.set_nonblocking(true).unwrap();
        let full = loop {
            if let Err(error) = one.write(&[7; 65536]) {
                break error.kind();
            }
        };
        assert_eq!(full, ErrorKind::WouldBlock);
        one.set_nonblocking(false).unwrap();
        setsockopt(&one, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 3600 }).unwrap();
        (one, other)
    }

    #[test]
    fn what_lingers_in_a_queue_is_closed_at_once() {
        let (one, mut other) = lingering();
        let kind = (AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = socketpair(kind.0, kind.1, None, kind.2).unwrap();
        packet::send(theirs.as_fd(), b"x", &[one.as_fd()], MsgFlags::empty()).unwrap();
        drop(one);
        let (done, heard) = mpsc::channel();
        std::thread::spawn(move || done.send(Closer::start().unwrap().close(ours).is_ok()));
        assert_eq!(heard.recv_timeout(Duration::from_secs(60)), Ok(true));
        // Nobody has it any more.
        let mut rest = Vec::new();
        other.read_to_end(&mut rest).unwrap();
        assert!(rest.iter().all(|byte| *byte == 7) && !rest.is_empty());
    }

    #[test]
    fn others_descriptors_stay_as_they_are() {
        let closer = Closer::start().unwrap();
        let (from, to) = nix::unistd::pipe().unwrap();
        for _ in 0..20 {
            closer.close(to.try_clone().unwrap()).unwrap();
        }
        nix::unistd::write(&to, b"x").unwrap();
        let mut byte = [0; 1];
        assert_eq!(nix::unistd::read(&from, &mut byte), Ok(1));
        closer.close(to).unwrap();
        assert_eq!(nix::unistd::read(&from, &mut byte), Ok(0));
    }

    #[test]
    fn signals_are_for_others() {
        let closer = Closer::start().unwrap();
        let (_from, to) = nix::unistd::pipe().unwrap();
        closer.close(to).unwrap();
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path());
        let of = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
        let closers = tasks.filter(|task| of(&format!("{}/comm", task.display())).trim() == "closer");
        let blocked = |task: std::path::PathBuf| {
            let status = of(&format!("{}/status", task.display()));
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?.trim().to_owned();
            u64::from_str_radix(&mask, 16).ok()
        };
        let masks: Vec<u64> = closers.filter_map(blocked).collect();
        let wanted = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD];
        let all = |mask: &u64| wanted.iter().all(|signal| mask >> (signal - 1) & 1 == 1);
        assert!(!masks.is_empty() && masks.iter().all(all), "{masks:x?}");
    }
}
