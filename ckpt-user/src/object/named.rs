//! Connected Unix sockets that have names, as connect(2) and accept(2) make them: a name of the file system is needed while
//! they are made, not after. So they are made where no file is anybody's, and nobody else sees the name.

use super::apart::apart;
use crate::sys::{diag, socket};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// In struct sockaddr_un: where the path begins.
const PATH: usize = 2;

/// Two ends of a connection: `own` and `peer` are their addresses, as getsockname(2) gives them, or empty.
pub fn pair(kind: i32, own: &[u8], peer: &[u8]) -> io::Result<(OwnedFd, OwnedFd)> {
    let make = || {
        if [own, peer].iter().any(|name| path(name).is_some()) {
            private_root()?;
        }
        // Who has no name has connected.
        if own.is_empty() {
            connected(kind, peer, own).map(|(server, client)| (client, server))
        } else {
            connected(kind, own, peer)
        }
    };
    apart(make, "connecting two sockets failed")
}

/// The address, without the length that every kind has.
pub fn name_of(address: io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
    address.map(|name| if name.len() > PATH { name } else { Vec::new() })
}

/// Whether a program can have such an address, or none.
pub fn is_sound(address: &[u8]) -> bool {
    let family = address.first_chunk().map(|b| u16::from_ne_bytes(*b));
    address.is_empty() || (family == Some(libc::AF_UNIX as u16) && (3..=PATH + 108).contains(&address.len()))
}

/// The path in it, if it is one.
fn path(address: &[u8]) -> Option<&Path> {
    let name = address.get(PATH..)?.split(|byte| *byte == 0).next()?;
    (!name.is_empty()).then(|| super::path_of(name))
}

/// An empty file system that goes with this thread and the sockets that are made in it.
fn private_root() -> io::Result<()> {
    let none = None::<&str>;
    // Any directory serves: nobody else sees what is mounted there.
    let at = "/proc";
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NODEV | MsFlags::MS_NOSUID, none)?;
    nix::unistd::chroot(at)?;
    nix::unistd::chdir("/")?;
    Ok(())
}

fn bound(kind: i32, name: &[u8]) -> io::Result<OwnedFd> {
    let fd = socket::create(libc::AF_UNIX, kind, 0)?;
    if name.is_empty() {
        return Ok(fd);
    }
    if let Some(path) = path(name) {
        let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
        above.reverse();
        // What is there already, and `..` of it, is enough; what is missing then is an error of bind(2).
        above.iter().for_each(|directory| drop(std::fs::create_dir(directory)));
    }
    let named = |e: io::Error| {
        let shown = String::from_utf8_lossy(&name[PATH..]).replace('\0', "@");
        io::Error::new(e.kind(), format!("{shown}: the program had a connection of that name: {e}"))
    };
    socket::bind(&fd, name).map_err(named)?;
    Ok(fd)
}

/// The one that was accepted by `server`, and the one that has connected to it. Everybody can connect to an abstract name:
/// who else does is sent away.
fn connected(kind: i32, server: &[u8], client: &[u8]) -> io::Result<(OwnedFd, OwnedFd)> {
    /// Strangers that wait, and that are sent away.
    const WAITING: i32 = 128;
    const SENT_AWAY: usize = 10_000;
    let listener = bound(kind, server)?;
    let client = bound(kind, client)?;
    let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).map(|found| found.st_ino as u32);
    socket::listen(&listener, WAITING)?;
    // Where they leave no room, an error and no wait without end. struct timeval.
    let [soon, never] = [5i64, 0].map(|seconds| [seconds.to_ne_bytes(), [0; 8]].concat());
    socket::set_option(&client, libc::SO_SNDTIMEO, &soon)?;
    socket::connect(&client, server)?;
    socket::set_option(&client, libc::SO_SNDTIMEO, &never)?;
    for _ in 0..SENT_AWAY {
        let accepted = socket::accept(&listener)?;
        if diag::diagnose(inode(&accepted)?)?.peer == Some(inode(&client)?) {
            return Ok((accepted, client));
        }
    }
    Err(io::Error::other("others connect to it all the time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Vec<u8> {
        let end: &[u8] = if text.starts_with('\0') || text.is_empty() { &[] } else { &[0] };
        if text.is_empty() { Vec::new() } else { [&[1, 0], text.as_bytes(), end].concat() }
    }

    #[test]
    fn a_stranger_is_never_taken_for_the_other_end() {
        if crate::skipped::without_root() {
            return;
        }
        let server = name("\0ckptbpf's test of strangers");
        let over = std::sync::atomic::AtomicBool::new(false);
        let is_over = || over.load(std::sync::atomic::Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut let_in = Vec::new();
                while !is_over() {
                    let stranger = socket::create(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
                    let_in.extend(socket::connect(&stranger, &server).is_ok().then_some(stranger));
                    let_in.truncate(8);
                }
            });
            for _ in 0..200 {
                let (own, peer) = pair(libc::SOCK_STREAM, &server, &[]).unwrap();
                nix::unistd::write(&peer, b"word").unwrap();
                assert_eq!(nix::unistd::read(&own, &mut [0; 9]).unwrap(), 4);
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn both_ends_have_their_names_and_no_file_is_made() {
        if crate::skipped::without_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below/socket");
        let path = path.to_str().unwrap();
        let names =
            [("a/../b/./relative", ""), ("", path), (path, "\0abstract"), ("\0one", "\0two"), ("\0one", "")];
        for (own, peer) in names {
            for kind in [libc::SOCK_STREAM, libc::SOCK_SEQPACKET] {
                let (a, b) = pair(kind, &name(own), &name(peer)).unwrap();
                for (end, own, peer) in [(&a, own, peer), (&b, peer, own)] {
                    assert_eq!(name_of(socket::address(end)).unwrap(), name(own));
                    assert_eq!(name_of(socket::peer_address(end)).unwrap(), name(peer));
                }
                nix::unistd::write(&a, b"word").unwrap();
                assert_eq!(nix::unistd::read(&b, &mut [0; 9]).unwrap(), 4);
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
