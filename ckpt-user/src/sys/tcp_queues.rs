//! What a TCP connection holds in its two queues, with TCP_REPAIR (net/ipv4/tcp.c), which alone shows what waits to be sent.
//!
//! A socket under repair sends nothing, so it must not be left so. The few calls are made by a short-lived process that
//! shares memory and descriptors with ckptbpf (as vfork(2) does) and has another name: whoever kills ckptbpf in the middle
//! leaves it to put the sockets right.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
/// Values of TCP_REPAIR. Off, and nothing is sent because of it.
const ON: i32 = 1;
const OFF: i32 = -1;
/// Values of TCP_REPAIR_QUEUE.
const NEITHER: i32 = 0;
const RECEIVED: i32 = 1;
const SENT: i32 = 2;
/// How often it is looked whether the two ends are at rest.
const TRIES: usize = 100;

/// One direction of a connection: what to look at, and what was found.
#[derive(Debug)]
pub struct Stream<'a> {
    pub receiver: BorrowedFd<'a>,
    pub sender: BorrowedFd<'a>,
    /// What waits at the receiver; as long as it was, it is the room for that.
    pub arrived: Vec<u8>,
    /// What the sender keeps until it is acknowledged; room as above.
    pub kept: Vec<u8>,
    /// How far the sender has written beyond what the receiver has.
    pub ahead: u32,
}

/// What the process works on: no allocation, no lock.
struct Work {
    receiver: RawFd,
    sender: RawFd,
    arrived: (*mut u8, usize),
    kept: (*mut u8, usize),
    ahead: u32,
    /// errno, or 0.
    error: i32,
}

/// What it is given.
struct List {
    work: *mut Work,
    count: usize,
    /// Whose death leaves nothing to be done.
    parent: u32,
}

/// Looks into the queues of sockets whose programs are stopped; leaves all as it was.
///
/// # Errors
/// CAP_NET_ADMIN is missing; EAGAIN: a connection does not come to rest.
pub fn look(streams: &mut [Stream<'_>]) -> io::Result<()> {
    const STACK: usize = 64 << 10;
    let mut work: Vec<Work> = streams
        .iter_mut()
        .map(|stream| Work {
            receiver: stream.receiver.as_raw_fd(),
            sender: stream.sender.as_raw_fd(),
            arrived: (stream.arrived.as_mut_ptr(), stream.arrived.len()),
            kept: (stream.kept.as_mut_ptr(), stream.kept.len()),
            ahead: 0,
            error: libc::ECHILD,
        })
        .collect();
    let mut stack = vec![0u128; STACK / size_of::<u128>()];
    let mut list = List { work: work.as_mut_ptr(), count: work.len(), parent: std::process::id() };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES;
    let (all, mut before) = (u64::MAX, 0u64);
    // SAFETY: the kernel reads and writes 8 bytes each; both live across the calls. The child has a stack of its own, and
    // this thread stands still until it has ended (CLONE_VFORK), so that what `list` points to is the child's alone. It
    // inherits a mask that blocks everything: no handler of ours runs in it.
    let child = unsafe {
        let how = libc::SIG_SETMASK;
        libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const all, &raw mut before, 8);
        let top = stack.as_mut_ptr().add(stack.len());
        let child = super::check(libc::clone(run, top.cast(), flags, (&raw mut list).cast()).into());
        libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const before, std::ptr::null_mut::<u64>(), 8);
        child?
    };
    // SAFETY: waits for that child alone, and takes no status.
    super::check(unsafe { libc::waitpid(child as i32, std::ptr::null_mut(), libc::__WALL) }.into())?;
    for (stream, done) in streams.iter_mut().zip(work) {
        if done.error != 0 {
            return Err(io::Error::from_raw_os_error(done.error));
        }
        stream.arrived.truncate(done.arrived.1);
        stream.kept.truncate(done.kept.1);
        stream.ahead = done.ahead;
    }
    Ok(())
}

extern "C" fn run(list: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `look` stands still and has handed over the list and what it points to.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"queue-look".as_ptr());
        let List { work, count, parent } = *list.cast::<List>();
        for work in std::slice::from_raw_parts_mut(work, count) {
            // The program may run again by now.
            if std::os::unix::process::parent_id() != parent {
                break;
            }
            work.error = match work.sender().and_then(|end| work.receiver(end)) {
                Ok(()) => 0,
                Err(errno) => errno,
            };
        }
        libc::_exit(0)
    }
}

/// The result of a system call, or errno.
type Called<T> = Result<T, i32>;

fn called(result: isize) -> Called<usize> {
    // SAFETY: errno is this thread's; the thread that shares it stands still.
    usize::try_from(result).map_err(|_| unsafe { *libc::__errno_location() })
}

fn set(fd: RawFd, level: i32, name: i32, value: i32) -> Called<()> {
    // SAFETY: the kernel reads one int, which lives across the call.
    called(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), 4) } as isize).map(drop)
}

fn get(fd: RawFd, level: i32, name: i32) -> Called<i32> {
    let (mut value, mut length) = (0i32, 4 as libc::socklen_t);
    // SAFETY: the kernel writes one int and its length; both live across the call.
    called(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut length) } as isize)?;
    Ok(value)
}

/// A socket under repair, until it is let go.
struct Repair {
    fd: RawFd,
    /// Repair takes it away.
    reuses: i32,
    /// SO_PEEK_OFF, where this kernel has it for TCP.
    peeks_at: i32,
}

impl Repair {
    fn begin(fd: RawFd) -> Called<Self> {
        let reuses = get(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        let peeks_at = get(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
        set(fd, libc::SOL_TCP, libc::TCP_REPAIR, ON)?;
        if peeks_at >= 0 {
            // What fails here shows as bytes that are missing, by count.
            let _ = set(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1);
        }
        Ok(Self { fd, reuses, peeks_at })
    }

    fn position(&self) -> Called<u32> {
        get(self.fd, libc::SOL_TCP, TCP_QUEUE_SEQ).map(i32::cast_unsigned)
    }

    fn choose(&self, queue: i32) -> Called<()> {
        set(self.fd, libc::SOL_TCP, TCP_REPAIR_QUEUE, queue)
    }

    /// # Safety
    /// `to` is memory of this length that is the caller's alone.
    unsafe fn peek(&self, (to, room): (*mut u8, usize)) -> Called<usize> {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: as the caller says.
        match called(unsafe { libc::recv(self.fd, to.cast(), room, flags) }) {
            Err(libc::EAGAIN) => Ok(0),
            got => got,
        }
    }
}

impl Drop for Repair {
    fn drop(&mut self) {
        let _ = set(self.fd, libc::SOL_TCP, libc::TCP_REPAIR, OFF);
        let _ = set(self.fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, self.reuses);
        if self.peeks_at >= 0 {
            let _ = set(self.fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, self.peeks_at);
        }
    }
}

impl Work {
    /// Where the sender has written to. Acknowledgements may shorten what it keeps, from the front.
    fn sender(&mut self) -> Called<u32> {
        let repair = Repair::begin(self.sender)?;
        repair.choose(SENT)?;
        let position = repair.position();
        // SAFETY: `look` has handed the buffer over.
        let got = unsafe { repair.peek(self.kept) };
        repair.choose(NEITHER)?;
        self.kept.1 = got?;
        position
    }

    fn receiver(&mut self, end: u32) -> Called<()> {
        let repair = Repair::begin(self.receiver)?;
        repair.choose(RECEIVED)?;
        for _ in 0..TRIES {
            let before = repair.position()?;
            // SAFETY: `look` has handed the buffer over.
            let got = unsafe { repair.peek(self.arrived) }?;
            if repair.position()? == before {
                self.arrived.1 = got;
                self.ahead = end.wrapping_sub(before);
                return Ok(());
            }
        }
        Err(libc::EAGAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    /// Two ends: one that sends and one that receives.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (sender, listener.accept().unwrap().0)
    }

    fn stream<'a>(receiver: &'a TcpStream, sender: &'a TcpStream, room: usize) -> Stream<'a> {
        let (receiver, sender) = (receiver.as_fd(), sender.as_fd());
        Stream { receiver, sender, arrived: vec![0; room], kept: vec![0; room], ahead: 0 }
    }

    /// Killed at any moment of it, and the sockets are put right all the same.
    #[test]
    fn whoever_looks_may_be_killed() {
        if crate::skipped::without_root() {
            return;
        }
        let (mut sender, mut receiver) = pair();
        sender.write_all(&[1; 5000]).unwrap();
        let is_under_repair =
            |socket: &TcpStream| get(socket.as_raw_fd(), libc::SOL_TCP, libc::TCP_REPAIR).unwrap() != 0;
        let mut seen = 0;
        for round in 0..300 {
            // SAFETY: the child calls `look`, whose allocations are safe after fork(2) in glibc, until it is killed.
            let child = unsafe { libc::fork() };
            assert!(child >= 0);
            if child == 0 {
                loop {
                    let _ = look(&mut [stream(&receiver, &sender, 5001)]);
                }
            }
            // The moment is where it happens to be after so many looks from here, the first at work.
            while !is_under_repair(&sender) {}
            for _ in 0..round {
                seen += u32::from(is_under_repair(&sender));
            }
            // SAFETY: our own child, which nobody has waited for.
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, std::ptr::null_mut(), 0);
            }
            let begun = std::time::Instant::now();
            while is_under_repair(&sender) || is_under_repair(&receiver) {
                assert!(begun.elapsed().as_secs() < 20, "round {round}: it is left under repair");
                std::thread::yield_now();
            }
        }
        assert!(seen > 0, "no round has met it at work");
        // One that has only just begun is still at work.
        let begun = std::time::Instant::now();
        let mut left = 5000;
        while left > 0 {
            match receiver.read(&mut vec![0; left]) {
                Ok(count) => left -= count,
                Err(error) => {
                    assert!(error.raw_os_error() == Some(libc::EPERM) && begun.elapsed().as_secs() < 20);
                }
            }
        }
        sender.write_all(b"more").unwrap();
        receiver.read_exact(&mut [0; 4]).unwrap();
    }

    #[test]
    fn both_queues_together_are_what_was_sent_and_all_is_as_it_was() {
        if crate::skipped::without_root() {
            return;
        }
        let (mut sender, mut receiver) = pair();
        sender.set_nonblocking(true).unwrap();
        let mut sent: Vec<u8> = Vec::new();
        while let Ok(count) = sender.write(&[sent.len() as u8; 1009]) {
            let value = sent.len() as u8;
            sent.extend(vec![value; count]);
        }
        receiver.read_exact(&mut [0; 5]).unwrap();
        let reuses = |socket: &TcpStream| get(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR);
        set(receiver.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
        for _ in 0..3 {
            let mut streams = [stream(&receiver, &sender, sent.len() + 1)];
            look(&mut streams).unwrap();
            let [Stream { arrived, kept, ahead, .. }] = streams;
            assert!(ahead > 0 && !arrived.is_empty(), "{ahead}");
            let rest = &kept[kept.len() - ahead as usize..];
            assert!([&arrived, rest].concat() == sent[5..]);
            assert_eq!((reuses(&receiver), reuses(&sender)), (Ok(1), Ok(0)));
        }
        let mut got = vec![0; sent.len() - 5];
        receiver.read_exact(&mut got).unwrap();
        assert!(got == sent[5..]);
        assert!(sender.write(b"more").is_ok());
    }
}
