//! Which descriptions are the standard streams that the program was started with: a restart has the restarter's own in their
//! place. One whose other end the program has itself leads nowhere else, and is none: after an `attach` the streams are
//! those of the program's first process, which may have made them (`exec > >(tee log)`).

use super::Seen;
use crate::sys::{diag, pidfd};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::Pid;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub struct Streams {
    /// Whose descriptors 0, 1 and 2 they are.
    of: Pid,
    /// By index of the description: which of them it is, on a terminal often all three.
    numbers: Vec<Vec<u32>>,
}

impl Streams {
    /// Looks at `all` that the program has open.
    pub fn look(all: &[(OwnedFd, Seen)], of: Pid) -> Self {
        let mut streams: Vec<Vec<u32>> = all.iter().map(|(_, seen)| numbers(seen, of)).collect();
        let is_within = |(_, (fd, seen)): &(usize, &(OwnedFd, Seen))| leads_inside(fd, seen, all);
        let ends = all.iter().enumerate().filter(|(index, _)| !streams[*index].is_empty());
        // Pipes and sockets with both ends inside, by their names in /proc.
        let within: HashSet<&Path> = ends.filter(is_within).map(|(_, (_, seen))| &*seen.target).collect();
        let ends = all.iter().zip(&mut streams).filter(|((_, seen), _)| within.contains(&*seen.target));
        ends.for_each(|(_, streams)| streams.clear());
        // Their pipe, opened once more by /dev/stdout or the like for both ways: what it is given goes where theirs goes.
        let again = |seen: &Seen| {
            let is_it = |(index, (_, other)): &(usize, &(OwnedFd, Seen))| {
                !streams[*index].is_empty() && other.target == seen.target
            };
            all.iter().enumerate().find(is_it).map(|(index, _)| streams[index].clone())
        };
        let both_ways = |(index, (_, seen)): (usize, &(OwnedFd, Seen))| {
            let is_one = streams[index].is_empty() && access(seen) == libc::O_RDWR && has_no_name(seen);
            Some((index, again(seen).filter(|_| is_one)?))
        };
        let more: Vec<_> = all.iter().enumerate().filter_map(both_ways).collect();
        more.into_iter().for_each(|(index, numbers)| streams[index] = numbers);
        Self { of, numbers: streams }
    }

    /// Whether the description `index` is one.
    pub fn contains(&self, index: usize, seen: &Seen) -> bool {
        self.numbers.get(index).map_or_else(|| !numbers(seen, self.of).is_empty(), |found| !found.is_empty())
    }

    /// Which of them each description is, also of those that were found since.
    pub fn of(mut self, all: &[(OwnedFd, Seen)]) -> Vec<Vec<u32>> {
        self.numbers.extend(all.iter().skip(self.numbers.len()).map(|(_, seen)| numbers(seen, self.of)));
        self.numbers
    }
}

fn numbers(seen: &Seen, of: Pid) -> Vec<u32> {
    let is_same = |&stream: &i32| {
        let order = pidfd::compare(of, seen.pid, pidfd::Kind::File, stream, seen.number);
        order.is_ok_and(|order| order == Ordering::Equal)
    };
    (0..3).filter(is_same).map(|stream| stream as u32).collect()
}

/// Whether another description of the program is the other end. What it was started with by mistake is not counted: whoever
/// did so has it, too.
fn leads_inside(fd: &OwnedFd, seen: &Seen, all: &[(OwnedFd, Seen)]) -> bool {
    let Ok(found) = fstat(fd) else { return false };
    let has = |is_other_end: &dyn Fn(&Seen) -> bool| {
        let mut others = all.iter().map(|(_, other)| other).filter(|other| is_other_end(other));
        others.any(|other| !other.is_inherited())
    };
    let opposite = if access(seen) == libc::O_RDONLY { libc::O_WRONLY } else { libc::O_RDONLY };
    match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
        // One that is both ends (`0<> fifo`) needs no other.
        SFlag::S_IFIFO if access(seen) == libc::O_RDWR => false,
        // Nor is that of a pipe its own end, opened once more for both (/dev/stdout).
        SFlag::S_IFIFO => has(&|other| {
            let is_other =
                if has_no_name(seen) { access(other) == opposite } else { access(other) != access(seen) };
            other.target == seen.target && is_other
        }),
        SFlag::S_IFSOCK => match diag::diagnose(found.st_ino as u32).map(|found| found.peer) {
            Ok(Some(peer)) if peer != 0 => {
                let name = format!("socket:[{peer}]");
                has(&|other| other.target.to_str() == Some(&name))
            }
            _ => false,
        },
        _ => false,
    }
}

/// A pipe, and no FIFO, which leads to whoever opens it by its name.
fn has_no_name(seen: &Seen) -> bool {
    seen.target.as_os_str().as_bytes().starts_with(b"pipe:[")
}

fn access(seen: &Seen) -> i32 {
    seen.flags as i32 & libc::O_ACCMODE
}
