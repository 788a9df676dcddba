//! What every step after this one relies on: an image is untrusted, whoever owns its file.
//!
//! [`Image::read`] bounds what decoding takes; [`Image::check`] comes before anything is made of it. Both are pure.

use super::{Image, Process, SharedObject, Thread};
use crate::memory::vma::{Kind, Pages, Vma};
use crate::memory::{hugetlb, protection_keys};
use crate::object::connection::ConnectionRecord;
use crate::object::ends::Ends;
use crate::object::{Description, Object, deleted, epoll, inotify, lock, option, owner, socket, table};
use crate::task::{barriers, filters, limits, posix_timers, signals, timers, zombie};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};
use std::collections::{BTreeMap, BTreeSet};

/// Metadata that nothing is made of.
#[derive(Debug, thiserror::Error)]
pub enum BadImage {
    #[error(
        "the metadata of this checkpoint cannot be read; was it written by a newer ckptbpf? (ckptbpf --version)"
    )]
    Unreadable(#[from] prost::DecodeError),
    #[error(
        "the metadata of this checkpoint would take {0} MiB of memory, more than any checkpoint of its size does"
    )]
    Inflated(u64),
    #[error("the metadata of this checkpoint is of no program: {0}")]
    Wrong(String),
}

/// Pages and times beyond are no program's: five levels of page tables, and a quarter of what an i64 of nanoseconds holds.
const ADDRESSES: u64 = 1 << 56;
const TIMES: i64 = i64::MAX / 4;
/// `PID_MAX_LIMIT`, and the most that `fs.nr_open` can be.
const IDS: i32 = 1 << 22;
const DESCRIPTORS: u32 = 1 << 30;

impl Image {
    /// Decodes a generation's metadata, with memory in proportion to it.
    ///
    /// # Errors
    /// It is none, or its records would take far more room than they have.
    pub fn read(metadata: &[u8]) -> Result<Self, BadImage> {
        /// Of real checkpoints, those of many descriptors take most: some 12 bytes a byte.
        const A_BYTE: u64 = 16;
        const AT_FIRST: u64 = 4 << 20;
        let room = room(metadata, IMAGE);
        if room > AT_FIRST + A_BYTE * metadata.len() as u64 {
            return Err(BadImage::Inflated(room >> 20));
        }
        Ok(Self::decode(metadata)?)
    }

    /// Whether a restart may go by it: ids, numbers, addresses and times are such as a program can have, and what refers
    /// to something finds it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), BadImage> {
        let all = [ids(self), self.spaces(), self.memory(), self.descriptors()];
        all.into_iter().collect::<Result<(), String>>().map_err(BadImage::Wrong)
    }

    fn spaces(&self) -> Result<(), String> {
        let clocks = self.clocks.unwrap_or_default();
        for time in [clocks.realtime, clocks.monotonic, clocks.boottime] {
            ensure((0..TIMES).contains(&time), || format!("a clock stood at {time} ns"))?;
        }
        let deleted = self.descriptions.iter().filter_map(|d| match &d.object {
            Some(Object::Deleted(file)) => Some((file.space, file.size)),
            _ => None,
        });
        for object in &self.objects {
            ensure(hugetlb::is_size(object.huge_page), || format!("pages of {} bytes", object.huge_page))?;
        }
        let objects = self.objects.iter().map(|o| (o.space, o.size));
        let processes = self.processes.iter().map(|p| (p.space, 0));
        for (space, size) in deleted.chain(objects).chain(processes) {
            ensure(space < u32::MAX && i64::try_from(size).is_ok(), || {
                format!("space {space} of {size} bytes")
            })?;
        }
        Ok(())
    }

    fn memory(&self) -> Result<(), String> {
        for process in &self.processes {
            let pid = process.pid;
            let named = |vma: &Vma| format!("process {pid} has the mapping {:x}-{:x}", vma.start, vma.end);
            for vma in &process.mappings {
                ensure(is_memory(vma.start, vma.end) && vma.start < vma.end, || named(vma))?;
                ensure(
                    vma.offset.checked_add(vma.end - vma.start).is_some_and(|end| end >> 63 == 0),
                    || format!("{} at offset {:x}", named(vma), vma.offset),
                )?;
                ensure(Kind::try_from(vma.kind).is_ok(), || format!("{} of kind {}", named(vma), vma.kind))?;
                let whole = |address: u64| vma.huge_page == 0 || address.is_multiple_of(vma.huge_page);
                ensure(hugetlb::is_size(vma.huge_page) && whole(vma.start) && whole(vma.end), || {
                    format!("{} in pages of {} bytes", named(vma), vma.huge_page)
                })?;
                ensure(vma.protection_key < protection_keys::COUNT, || {
                    format!("{} with protection key {}", named(vma), vma.protection_key)
                })?;
                ensure(vma.object.is_none_or(|o| (o as usize) < self.objects.len()), || {
                    format!("{} of an object that is not there", named(vma))
                })?;
            }
            let guards = process.guards.iter().all(|g| is_memory(g.start, g.end) && g.start < g.end);
            ensure(guards, || format!("process {pid} has guard pages where there is no memory"))?;
            let are_some = process.protection_keys.is_none_or(|keys| keys.are_some());
            ensure(are_some, || format!("process {pid} has protection keys that are none"))?;
        }
        Ok(())
    }

    fn descriptors(&self) -> Result<(), String> {
        let known = |index: u32| (index as usize) < self.descriptions.len();
        for process in &self.processes {
            for fd in &process.descriptors {
                let fits = fd.number < DESCRIPTORS && known(fd.description) && is_stream(fd.standard);
                ensure(fits, || format!("process {} has descriptor {} of nothing", process.pid, fd.number))?;
            }
        }
        let groups = self.processes.iter().map(|p| p.process_group);
        let threads = self.processes.iter().flat_map(|p| &p.threads).map(|t| t.tid);
        let own: BTreeSet<i32> = groups.chain(threads).collect();
        let connections: BTreeMap<u64, &ConnectionRecord> =
            self.descriptions.iter().filter_map(connection).map(|own| (own.socket, own)).collect();
        for description in &self.descriptions {
            ensure(is_stream(description.standard), || "there are three standard streams".to_owned())?;
            match &description.object {
                Some(Object::Epoll(epoll)) => {
                    let fits = |e: &epoll::Entry| e.number < DESCRIPTORS && known(e.description);
                    ensure(epoll.entries.iter().all(fits), || "an epoll watches nothing".to_owned())?;
                }
                Some(Object::Socket(socket)) => {
                    let mut carried = socket.waiting.iter().flat_map(|message| &message.descriptions);
                    let fits = carried.all(|index| known(*index));
                    ensure(fits, || "a message carries a descriptor of nothing".to_owned())?;
                    ensure(socket.is_sound(), || "a connection has a name that none can have".to_owned())?;
                }
                Some(Object::Connection(own)) => {
                    ensure(own.is_sound(), || "a TCP connection that none can be".to_owned())?;
                    let met = connections.get(&own.peer).is_some_and(|other| own.is_met_by(other));
                    ensure(own.peer == 0 || met, || "a TCP connection to nowhere".to_owned())?;
                    let alone = connections.get(&own.socket).is_some_and(|same| std::ptr::eq(*same, own));
                    ensure(alone, || "a TCP connection that is there twice".to_owned())?;
                }
                Some(Object::Endpoint(endpoint)) => {
                    ensure(endpoint.is_sound(), || "a socket of no kind, or with no address".to_owned())?;
                }
                Some(Object::Shared(shared)) => {
                    let has = (shared.object as usize) < self.objects.len();
                    ensure(has, || "a descriptor of memory that is not there".to_owned())?;
                }
                Some(Object::File(file)) => {
                    let sound = file.ends.as_ref().is_none_or(Ends::is_sound);
                    ensure(sound, || "the ends of a file are too long".to_owned())?;
                }
                _ => {}
            }
            // Who sets it is root, and so would be who signals.
            let id = description.signalled.map_or(0, |s| s.id);
            ensure(id == 0 || own.contains(&id), || {
                format!("a descriptor signals {id}, which is no process or group of the program")
            })?;
        }
        Ok(())
    }
}

fn connection(description: &Description) -> Option<&ConnectionRecord> {
    match &description.object {
        Some(Object::Connection(record)) => Some(record),
        _ => None,
    }
}

/// Ids are a program's and nobody has another's; each thread says who it is and where it stands.
fn ids(image: &Image) -> Result<(), String> {
    let mut taken = BTreeSet::new();
    let mut take =
        |id: i32| ensure((1..=IDS).contains(&id) && taken.insert(id), || format!("process id {id}"));
    for process in &image.processes {
        let pid = process.pid;
        let first = process.threads.first().map(|t| t.tid);
        ensure(first == Some(pid), || format!("process {pid} has the first thread {first:?}"))?;
        process.threads.iter().try_for_each(|t| take(t.tid))?;
        let lives = process.threads.iter().position(|t| t.ended.is_none());
        let others = process.threads.iter().skip(1).all(|t| t.ended.is_none());
        ensure(lives.is_some() && others, || format!("process {pid} has no thread, or one that is over"))?;
        let who = |t: &&Thread| t.credentials.as_ref().and_then(|c| c.ids().ok()).is_none();
        // Without one it would be root's.
        if let Some(thread) = process.threads.iter().find(who) {
            return Err(format!("thread {} says of no user that it is hers", thread.tid));
        }
    }
    image.zombies.iter().try_for_each(|z| take(z.pid))?;
    if let Some(process) = image.processes.iter().find(|p| !barriers::are_known(p.barriers)) {
        return Err(format!("process {} has registered for barriers {:#x}", process.pid, process.barriers));
    }
    let signals =
        image.processes.iter().map(|p| p.exit_signal).chain(image.zombies.iter().map(|z| z.exit_signal));
    if let Some(signal) = signals.flatten().find(|signal| !(0..=64).contains(signal)) {
        return Err(format!("signal {signal} tells of an end"));
    }
    let living = image.processes.iter().map(|p| [p.parent, p.process_group, p.session]);
    let ended = image.zombies.iter().map(|z| [z.parent, z.process_group, z.session]);
    let bad = living.chain(ended).flatten().chain([image.foreground]).find(|id| !(0..=IDS).contains(id));
    bad.map_or(Ok(()), |id| Err(format!("process id {id}")))
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

fn is_memory(start: u64, end: u64) -> bool {
    start <= end && end <= ADDRESSES && (start | end).is_multiple_of(4096)
}

fn is_stream(standard: Option<u32>) -> bool {
    standard.is_none_or(|stream| stream < 3)
}

/// A repeated field: its number, what an element takes in memory, and those inside it.
struct Repeated(u32, usize, &'static [Repeated]);

/// A message that is there once: it has its room already.
const fn once(tag: u32, inside: &'static [Repeated]) -> Repeated {
    Repeated(tag, 0, inside)
}

const BYTES: usize = size_of::<Vec<u8>>();

const IMAGE: &[Repeated] = &[
    once(1, &[Repeated(3, BYTES, &[])]),
    Repeated(3, size_of::<Process>(), PROCESS),
    Repeated(4, size_of::<Description>(), DESCRIPTION),
    Repeated(5, size_of::<SharedObject>(), &[]),
    Repeated(6, size_of::<zombie::Zombie>(), &[]),
    Repeated(10, size_of::<deleted::DeletedRecord>(), &[]),
    Repeated(20, size_of::<filters::Filter>(), &[]),
];

const PROCESS: &[Repeated] = &[
    Repeated(5, size_of::<Thread>(), &[once(4, &[Repeated(5, BYTES, &[])])]),
    Repeated(7, size_of::<Vma>(), &[Repeated(7, BYTES, &[])]),
    Repeated(9, size_of::<table::Descriptor>(), LOCKS),
    Repeated(10, size_of::<signals::Action>(), &[]),
    Repeated(11, BYTES, &[]),
    Repeated(12, size_of::<limits::Limit>(), &[]),
    Repeated(20, size_of::<timers::Timer>(), &[]),
    Repeated(21, size_of::<posix_timers::PosixTimer>(), &[]),
    Repeated(40, size_of::<Pages>(), &[]),
];

const LOCKS: &[Repeated] = &[Repeated(5, size_of::<lock::Lock>(), &[])];

const DESCRIPTION: &[Repeated] = &[
    Repeated(4, size_of::<lock::Lock>(), &[]),
    Repeated(5, size_of::<owner::Signalled>(), &[]),
    once(15, &[Repeated(1, size_of::<epoll::Entry>(), &[])]),
    once(23, &[Repeated(1, size_of::<inotify::Watch>(), &[])]),
    once(
        20,
        &[
            Repeated(4, size_of::<socket::Message>(), &[]),
            Repeated(6, size_of::<option::SocketOption>(), &[]),
        ],
    ),
    once(24, &[Repeated(6, size_of::<option::SocketOption>(), &[])]),
];

/// What the elements of `fields` in the message `bytes` take in memory, bytes; as far as it is one, for the decoder says
/// what is wrong with it.
fn room(mut bytes: &[u8], fields: &[Repeated]) -> u64 {
    let mut sum = 0;
    while let Ok((tag, wire)) = decode_key(&mut bytes) {
        let length = match wire {
            WireType::Varint => match decode_varint(&mut bytes) {
                Ok(_) => 0,
                Err(_) => break,
            },
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => match decode_varint(&mut bytes) {
                Ok(length) => length,
                Err(_) => break,
            },
            WireType::StartGroup | WireType::EndGroup => continue,
        };
        let Some((field, rest)) =
            usize::try_from(length).ok().and_then(|length| bytes.split_at_checked(length))
        else {
            break;
        };
        bytes = rest;
        if let Some(Repeated(_, size, inside)) = fields.iter().find(|f| f.0 == tag) {
            sum += *size as u64 + room(field, inside);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::protection_keys::Keys;
    use crate::task::credentials::Credentials;

    fn image() -> Image {
        let credentials = Credentials { uids: vec![7; 4], gids: vec![7; 4], ..Credentials::default() };
        let thread = |tid| Thread { tid, credentials: Some(credentials.clone()), ..Thread::default() };
        let vma = Vma { start: 0x1000, end: 0x3000, ..Vma::default() };
        let (threads, mappings) = (vec![thread(7), thread(8)], vec![vma]);
        Image {
            processes: vec![Process { pid: 7, threads, mappings, ..Process::default() }],
            ..Image::default()
        }
    }

    fn refused(change: impl FnOnce(&mut Image)) -> String {
        let mut image = image();
        image.check().unwrap();
        change(&mut image);
        image.check().unwrap_err().to_string()
    }

    #[test]
    fn a_thread_that_names_no_user_is_not_restarted_as_root() {
        assert!(refused(|i| i.processes[0].threads[1].credentials = None).contains("thread 8"));
        let empty = Some(Credentials::default());
        assert!(refused(|i| i.processes[0].threads[0].credentials = empty).contains("thread 7"));
    }

    #[test]
    fn nobody_outside_of_the_program_is_signalled() {
        let signalled = Some(owner::Signalled { kind: 1, id: 1, signal: 9, outer_group: false });
        let description = Description { signalled, ..Description::default() };
        assert!(refused(|i| i.descriptions.push(description)).contains("signals 1"));
    }

    #[test]
    fn ids_are_those_of_one_program() {
        assert!(refused(|i| i.processes[0].threads[1].tid = 7).contains("process id 7"));
        assert!(refused(|i| i.processes[0].threads[1].ended = Some(0)).contains("one that is over"));
        let none = |i: &mut Image| i.processes[0].threads.iter_mut().for_each(|t| t.ended = Some(0));
        assert!(refused(none).contains("no thread"));
        assert!(refused(|i| i.processes[0].pid = 9).contains("first thread"));
        assert!(refused(|i| i.processes[0].session = -1).contains("process id -1"));
        assert!(refused(|i| i.zombies.push(zombie::Zombie::default())).contains("process id 0"));
    }

    #[test]
    fn memory_is_where_memory_can_be() {
        let set = |start, end| {
            move |i: &mut Image| i.processes[0].mappings[0] = Vma { start, end, ..Vma::default() }
        };
        for (start, end) in [(0x3000, 0x1000), (0x1000, 0x1000), (1, 0x1000), (0, 1 << 57)] {
            assert!(refused(set(start, end)).contains("the mapping"), "{start:x}-{end:x}");
        }
        assert!(refused(|i| i.processes[0].mappings[0].offset = u64::MAX).contains("offset"));
        assert!(refused(|i| i.processes[0].mappings[0].kind = 99).contains("kind 99"));
        assert!(refused(|i| i.processes[0].mappings[0].object = Some(0)).contains("object"));
        assert!(refused(|i| i.processes[0].mappings[0].protection_key = 16).contains("protection key 16"));
        let keys = |allocated, execute_only| Some(Keys { allocated, execute_only });
        for wrong in [keys(1 << 16, 0), keys(1, 0), keys(0, 16), keys(0b110, 2)] {
            assert!(refused(|i| i.processes[0].protection_keys = wrong).contains("keys that are none"));
        }
        assert!(refused(|i| i.processes[0].guards.push(Pages { start: 4096, end: 0 })).contains("guard"));
        assert!(refused(|i| i.processes[0].space = u32::MAX).contains("space"));
    }

    #[test]
    fn what_refers_to_something_finds_it() {
        let descriptor = table::Descriptor { number: 1, ..table::Descriptor::default() };
        assert!(refused(|i| i.processes[0].descriptors.push(descriptor)).contains("descriptor 1"));
        let entry = epoll::Entry { description: 9, ..epoll::Entry::default() };
        let object = Some(Object::Epoll(epoll::EpollRecord { entries: vec![entry] }));
        assert!(
            refused(|i| i.descriptions.push(Description { object, ..Description::default() }))
                .contains("epoll")
        );
    }

    #[test]
    fn records_that_take_far_more_room_than_bytes_are_not_decoded() {
        // A process of no bytes, again and again.
        let bytes = [0x1a, 0].repeat(1 << 16);
        assert!(matches!(Image::read(&bytes), Err(BadImage::Inflated(_))));
        assert_eq!(Image::read(&image().encode_to_vec()).unwrap(), image());
    }
}
