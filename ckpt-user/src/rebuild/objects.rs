//! What several processes share is made in ckptbpf before the skeletons are forked: open file descriptions,
//! files behind mappings, shared memory. The skeletons inherit the descriptors, all at numbers above any that
//! the program uses.

use super::late::Door;
use super::nursery::Nursery;
use super::{RebuildError, Rebuilding};
use crate::daemon::lender::Lender;
use crate::image::Chain;
use crate::memory::shared::Restored;
use crate::memory::sysv;
use crate::memory::vma::{Kind, MappedFile};
use crate::object::{self, Stage};
use crate::record::Image;
use crate::sys::ids::FsIds;
use crate::sys::pidfd;
use crate::sys::remote::Remote;
use crate::task::limits;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::Pid;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{AsRawFd, OwnedFd};

/// Descriptors that the skeletons inherit.
pub struct Objects {
    /// By index of the image's descriptions.
    pub descriptions: Vec<OwnedFd>,
    /// The restarter's own standard streams, as far as the image refers to them.
    pub streams: [Option<OwnedFd>; 3],
    /// Files behind mappings and executables.
    pub files: HashMap<MappedFile, OwnedFd>,
    /// By index of the image's shared objects.
    pub shared: Vec<OwnedFd>,
    /// Those of them that have mappings which can never be written.
    pub read_only: HashMap<u32, OwnedFd>,
    pub restored: Vec<Restored>,
    /// For descriptions that are made when the processes are there.
    pub door: Door,
    /// Sockets that are not filled yet.
    pub sockets: object::socket::Sockets,
    /// Where it takes that to serve page faults.
    pub loan: Option<Loan>,
}

/// What a daemon lends for a lazy restart.
pub struct Loan {
    pub lender: &'static Lender,
    /// /dev/userfaultfd.
    pub device: OwnedFd,
}

/// Opens and makes everything, with the file-system ids of the image's owner. `sound` are files, by device and inode, whose
/// content up to their former size is what it was; they may have grown.
pub fn make(
    image: &Image,
    chain: &Chain,
    owner: &FsIds,
    sound: &HashSet<(u64, u64)>,
    lender: Option<&'static Lender>,
    nursery: &Nursery,
) -> Result<Objects, RebuildError> {
    let segments = sysv::make(image, owner)?;
    let _as_owner = owner.assume().rebuilding(0, "the owner's rights")?;
    let root = image.processes.first().map_or(0, |p| p.pid);
    let base = above_all(image);
    limits::raise_own();
    let lift = |fd: OwnedFd, what: &str| lift(&fd, base).rebuilding(root, what);
    let (mut shared, mut read_only, mut restored) = (Vec::new(), HashMap::new(), Vec::new());
    let mut deleted = object::deleted::Files::new(chain);
    for (index, segment) in (0..).zip(segments) {
        let object = crate::memory::shared::rebuild(image, index, chain, segment, nursery.is_ours())?;
        let fd = object.descriptor().rebuilding(root, "shared memory")?;
        shared.push(lift(fd, "shared memory")?);
        let mut mappings = image.processes.iter().flat_map(|p| &p.mappings);
        if mappings.any(|v| v.object == Some(index) && v.kind() == Kind::File) {
            let fd = object.read_only().rebuilding(root, "shared memory")?;
            read_only.insert(index, lift(fd, "shared memory")?);
        }
        if let Some((identity, file)) = object.deleted().rebuilding(root, "a deleted file")? {
            deleted.adopt(identity, file);
        }
        restored.push(object);
    }
    let terminal = |flags: i32| nursery.open_terminal(flags);
    let mut context = object::Rebuilding {
        pipes: object::pipe::Pipes::default(),
        deleted,
        sockets: object::socket::Sockets::default(),
        is_roots: owner.uid == 0,
        shared: &shared,
        terminal: &terminal,
    };
    let door = Door::open().rebuilding(root, "a way for descriptors")?;
    let mut descriptions = Vec::with_capacity(image.descriptions.len());
    for description in &image.descriptions {
        let fd = match description.standard {
            Some(stream) => standard(stream).rebuilding(root, "a standard stream")?,
            None if description.stage() != Stage::First => {
                door.placeholder().rebuilding(root, "a descriptor")?
            }
            None => description.rebuild(&mut context).rebuilding(root, "a descriptor")?,
        };
        descriptions.push(lift(fd, "a descriptor")?);
    }
    let mut streams = [None, None, None];
    let used = image.processes.iter().flat_map(|p| &p.descriptors).filter_map(|d| d.standard);
    for stream in used {
        if let Some(slot @ None) = streams.get_mut(stream as usize) {
            let own = standard(stream).rebuilding(root, "a standard stream")?;
            *slot = Some(lift(own, "a standard stream")?);
        }
    }
    let mut files = HashMap::new();
    for process in &image.processes {
        let executable = process.layout.iter().filter_map(|l| l.executable.as_ref());
        for file in process.mappings.iter().filter_map(|v| v.file.as_ref()).chain(executable) {
            if !files.contains_key(file) {
                let fd = match image.deleted((file.device, file.inode)) {
                    Some(record) if file.deleted => {
                        context.deleted.rebuild(record, 0, 0).rebuilding(process.pid, "a mapped file")?
                    }
                    _ => open_mapped(file, sound)?,
                };
                files.insert(file.clone(), lift(fd, "a mapped file")?);
            }
        }
    }
    context.deleted.finish().rebuilding(root, "a deleted file")?;
    let object::Rebuilding { sockets, .. } = context;
    let loan =
        lender.map(|lender| Ok(Loan { lender, device: pidfd::duplicate_above(lender.device(), base)? }));
    let loan = loan.transpose().rebuilding(root, "its userfaultfd")?;
    Ok(Objects { descriptions, streams, files, shared, read_only, restored, door, sockets, loan })
}

impl Objects {
    /// All that a skeleton is to have of this process, under the numbers that it has here.
    fn inherited(&self) -> impl Iterator<Item = &OwnedFd> {
        let streams = self.streams.iter().flatten();
        let mapped = self.files.values().chain(&self.shared).chain(self.read_only.values());
        self.descriptions.iter().chain(streams).chain(mapped).chain(self.loan.iter().map(|loan| &loan.device))
    }

    /// Fills shared memory that the program's own processes are to pay for, through one of them.
    ///
    /// # Errors
    /// Damage of the image, or there is no memory for it.
    pub fn fill_shared(&mut self, chain: &Chain, remote: &mut Remote) -> Result<(), RebuildError> {
        let mut numbered = self.restored.iter_mut().zip(&self.shared);
        numbered.try_for_each(|(object, fd)| object.fill_through(chain, fd.as_raw_fd(), remote))
    }

    /// A number that none of them has.
    pub fn door_number(&self) -> i32 {
        self.inherited().map(AsRawFd::as_raw_fd).max().unwrap_or(0) + 1
    }

    /// Gives them to a process that has nothing but the door. `executes`: it is to have them when it has executed something, too.
    pub fn hand_over(&self, remote: &mut Remote, executes: bool) -> std::io::Result<()> {
        let door = self.door_number() as u64;
        let flags = if executes { 0 } else { libc::O_CLOEXEC as u64 };
        for fd in self.inherited() {
            let number = fd.as_raw_fd() as u64;
            self.door.pass_through(door, fd, remote, number, flags)?;
        }
        Ok(())
    }
}

/// A number above any descriptor that the program uses or has an epoll watch.
pub(crate) fn above_all(image: &Image) -> i32 {
    let watched = image.descriptions.iter().flat_map(|d| match &d.object {
        Some(object::Object::Epoll(epoll)) => epoll.entries.as_slice(),
        _ => &[],
    });
    let used = image.processes.iter().flat_map(|p| &p.descriptors).map(|d| d.number);
    let highest = used.chain(watched.map(|entry| entry.number)).max().unwrap_or(0);
    i32::try_from(highest).unwrap_or(i32::MAX - 1) + 1
}

/// A duplicate at `base` or above, close-on-exec; the original is closed by its owner.
fn lift(fd: &OwnedFd, base: i32) -> std::io::Result<OwnedFd> {
    crate::sys::pidfd::duplicate_above(fd, base)
}

fn standard(stream: u32) -> std::io::Result<OwnedFd> {
    crate::sys::pidfd::duplicate_standard(stream as i32).map_err(|e| {
        std::io::Error::new(e.kind(), format!("standard stream {stream} of this restart is closed: {e}"))
    })
}

/// The restarter's standard streams do not wait (O_NONBLOCK) where those at the checkpoint did not: a program that asks again
/// and again would stand still. Others stay as they are, also where one description is several of them by now, of which
/// one waited. The last act before the program runs, as whoever started ckptbpf has them, too; those that were changed.
pub fn set_streams(image: &Image) -> Result<Vec<OwnedFd>, RebuildError> {
    let streams = |waits: bool| {
        let all = image.processes.iter().flat_map(|p| &p.descriptors);
        let does = move |index: u32| {
            let description = image.descriptions.get(index as usize);
            description.is_some_and(|d| (d.flags & libc::O_NONBLOCK as u32 == 0) == waits)
        };
        all.filter(move |d| does(d.description)).filter_map(|d| d.standard).collect::<BTreeSet<u32>>()
    };
    let own = Pid::this();
    let is_one = |a: u32, b: u32| {
        pidfd::compare(own, own, pidfd::Kind::File, a as i32, b as i32).is_ok_and(Ordering::is_eq)
    };
    let (waiting, mut changed) = (streams(true), Vec::new());
    for stream in streams(false) {
        if let Some(other) = waiting.iter().find(|&&other| other != stream && is_one(stream, other)) {
            log::warn!(
                "standard stream {stream} of the program did not wait (O_NONBLOCK), and is one with {other} now, which did"
            );
            continue;
        }
        match standard(stream).and_then(|fd| Ok(set_waiting(&fd, false)?.then_some(fd))) {
            Ok(fd) => changed.extend(fd),
            Err(error) => {
                undo_streams(&changed);
                return Err(error).rebuilding(0, "a standard stream");
            }
        }
    }
    Ok(changed)
}

/// Has them wait again: nothing runs.
pub fn undo_streams(changed: &[OwnedFd]) {
    changed.iter().for_each(|stream| drop(set_waiting(stream, true)));
}

/// Whether that was to be changed.
fn set_waiting(fd: &OwnedFd, waits: bool) -> std::io::Result<bool> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_NONBLOCK) != waits {
        return Ok(false);
    }
    fcntl(fd, FcntlArg::F_SETFL(flags ^ OFlag::O_NONBLOCK))?;
    Ok(true)
}

/// Opens the file and checks that it is still the one that was mapped.
fn open_mapped(record: &MappedFile, sound: &HashSet<(u64, u64)>) -> Result<OwnedFd, RebuildError> {
    use std::os::unix::fs::MetadataExt;
    let path = record.path();
    let refused = |why: String| RebuildError::Refused(format!("{}: {why}", path.display()));
    let file = object::file::open(path, libc::O_RDONLY as u32)
        .map_err(|e| RebuildError::Refused(format!("cannot open what the program has mapped: {e}")))?;
    let metadata = file.metadata().map_err(|e| refused(e.to_string()))?;
    let modified = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
    let is_as_it_was = metadata.size() == record.size && modified == record.modified_ns;
    let identity = (metadata.dev(), metadata.ino());
    let is_sound = identity == (record.device, record.inode) && sound.contains(&identity);
    let has_grown = is_sound && metadata.size() >= record.size;
    if !metadata.is_file() || !(is_as_it_was || has_grown) {
        return Err(refused("the program has it mapped, and it has changed since the checkpoint".to_owned()));
    }
    Ok(file.into())
}
