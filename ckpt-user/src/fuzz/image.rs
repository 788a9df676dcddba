//! Images: files and their parts, and the metadata with every step that a restart takes before it makes anything.

use crate::image::fuzz::{self, section};
use crate::job::identity::{self, Caller};
use crate::job::{describe, restart};
use crate::memory::{shared, vma};
use crate::object::epoll::{Entry, EpollRecord};
use crate::object::{
    Description, Object, deleted, endpoint, eventfd, file, lock, memfd, option, owner, pidfd, pipe,
    proc_file, signalfd, socket, socket_file, table, terminal, timerfd,
};
use crate::rebuild::{mappings, objects, plan, taken};
use crate::record::{Clocks, Image, Machine, Process, SharedObject, Thread};
use crate::sys::ids::FsIds;
use crate::task::clock::Shift;
use crate::task::credentials::Credentials;
use crate::task::proc::ProcDir;
use crate::task::{filters, limits, posix_timers, registers, signals, zombie};
use nix::unistd::Pid;
use prost::Message;

/// A part of each file that the writer makes, by its place in the footer.
fn sections(number: usize) -> Vec<Vec<u8>> {
    fuzz::files(&metadata::whole().encode_to_vec()).iter().map(|file| section(file, number)).collect()
}

pub mod header {
    pub(crate) use crate::image::fuzz::header as run;

    pub fn seeds() -> Vec<Vec<u8>> {
        super::sections(0)
    }
}

pub mod footer {
    pub(crate) use crate::image::fuzz::footer as run;

    pub fn seeds() -> Vec<Vec<u8>> {
        let files = crate::image::fuzz::files(b"");
        files.iter().map(|file| file[file.len().saturating_sub(128)..].to_vec()).collect()
    }
}

pub mod block {
    pub(crate) use crate::image::fuzz::block as run;

    pub fn seeds() -> Vec<Vec<u8>> {
        // 16 pages of one byte as LZ4 has it, and one page as it is.
        let lz4: Vec<u8> = [&[15, 1, 0x1f, 7, 1, 0][..], &[255; 256], &[236, 0x50, 7, 7, 7, 7, 7]].concat();
        vec![lz4, [&[0, 0][..], &[7; 4096]].concat()]
    }
}

pub mod index {
    pub(crate) use crate::image::fuzz::index as run;

    pub fn seeds() -> Vec<Vec<u8>> {
        super::sections(1)
    }
}

pub mod summary {
    pub(crate) use crate::image::fuzz::summary as run;

    pub fn seeds() -> Vec<Vec<u8>> {
        super::sections(3)
    }
}

pub mod generation {
    pub(crate) use crate::image::fuzz::generation as run;

    pub fn seeds() -> Vec<Vec<u8>> {
        crate::image::fuzz::files(b"metadata")
    }
}

pub mod chain {
    pub(crate) use crate::image::fuzz::chain as run;

    pub fn seeds() -> Vec<Vec<u8>> {
        let files = crate::image::fuzz::files(b"metadata");
        vec![crate::image::fuzz::framed(&files), crate::image::fuzz::framed(&files[2..])]
    }
}

pub mod metadata {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let described = describe::describe(bytes).is_ok();
        let image = Image::read(bytes);
        assert_eq!(image.is_ok(), described);
        let Ok(image) = image else { return };
        // Whoever crafts an image has its order and its numbers as he likes; who is asked is its owner, not root.
        let user = FsIds { uid: 7, gid: 7, groups: vec![7] };
        let caller = Caller { ids: user.clone(), root: true };
        if image.check().is_err() {
            return;
        }
        for thread in image.processes.iter().flat_map(|p| &p.threads) {
            let Some(credentials) = &thread.credentials else { panic!("a thread of nobody") };
            let claimed = restart::claimed(credentials);
            if identity::permitted(&user, &caller, &claimed).is_ok() {
                assert!(!credentials.uids.contains(&0) && credentials.permitted == 0);
            }
            let _ = thread.registers.as_ref().map(registers::Registers::regs);
        }
        let nodes = image.nodes();
        assert!(taken::ids(&image).iter().all(|id| *id > 0));
        if nodes.len() < 64 {
            let _ = plan::plan(&nodes);
        }
        assert!(objects::above_all(&image) > 0);
        for process in &image.processes {
            let _ = process.mappings.windows(2).filter(|pair| mappings::were_one(&pair[0], &pair[1])).count();
            for vma in &process.mappings {
                let _ = (vma::mmap_call(vma, 3), vma.pages());
            }
            for timer in &process.posix_timers {
                let _ = posix_timers::first_ring(timer, Shift::default());
            }
        }
        for index in 0..image.objects.len().min(8) as u32 {
            let _ = shared::pages(&image, index).len();
        }
        for description in &image.descriptions {
            if let Some(Object::Timer(record)) = &description.object {
                let _ = timerfd::first(record, 1 << 60);
            }
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let whole = whole();
        let small = Image { descriptions: Vec::new(), objects: Vec::new(), ..whole.clone() };
        vec![whole.encode_to_vec(), small.encode_to_vec()]
    }

    /// A program of one living process with two threads and an ended child, and one of each kind of object.
    pub(super) fn whole() -> Image {
        let own = ProcDir::process(Pid::this());
        let maps = own.text("maps").and_then(|text| vma::parse(&text)).unwrap_or_default();
        let mut mappings: Vec<vma::Vma> = maps.iter().take(12).map(vma::Raw::to_private).collect();
        mappings.push(vma::Vma {
            start: 0x7000_0000,
            end: 0x7000_4000,
            protection: 3,
            shared: true,
            kind: vma::Kind::SharedObject as i32,
            flags: vec!["rd".into(), "lo".into()],
            object: Some(0),
            ..vma::Vma::default()
        });
        let credentials =
            Credentials { uids: vec![7; 4], gids: vec![7; 4], groups: vec![7], ..Default::default() };
        let registers = registers::Registers { words: vec![5; 27], xstate: vec![1; 64], rseq: None };
        let pending = vec![vec![9; 128]];
        let signals = signals::ThreadSignals { mask: 5, pending: pending.clone(), ..Default::default() };
        let thread = |tid: i32| Thread {
            tid,
            name: b"count".to_vec(),
            registers: Some(registers.clone()),
            signals: Some(signals.clone()),
            credentials: Some(credentials.clone()),
            ..Thread::default()
        };
        let signalled = Some(owner::Signalled { kind: 1, id: 70, signal: 10, outer_group: false });
        let descriptions: Vec<Description> = kinds()
            .into_iter()
            .map(|object| Description {
                flags: 2,
                position: 9,
                signalled,
                object: Some(object),
                ..Description::default()
            })
            .collect();
        let descriptor = |number: u32| table::Descriptor {
            number,
            description: number,
            locks: vec![lock::Lock { exclusive: true, start: 3, ..lock::Lock::default() }],
            ..table::Descriptor::default()
        };
        let process = Process {
            pid: 70,
            process_group: 70,
            session: 60,
            threads: vec![thread(70), thread(71)],
            space: 1,
            mappings,
            descriptors: (0..descriptions.len() as u32).map(descriptor).collect(),
            actions: vec![signals::Action { signal: 2, handler: 0x1000, ..Default::default() }],
            pending,
            limits: own.text("limits").and_then(|text| limits::parse(&text)).unwrap_or_default(),
            posix_timers: vec![posix_timers::PosixTimer {
                id: 3,
                left: 5,
                interval: 6,
                due: true,
                ..Default::default()
            }],
            guards: vec![vma::Pages { start: 0x7000_0000, end: 0x7000_1000 }],
            ..Process::default()
        };
        let zombie =
            zombie::Zombie { pid: 72, parent: 70, process_group: 70, session: 60, ..Default::default() };
        let machine = Machine { host: "a".into(), cpu_features: vec!["avx".into()], ..Machine::default() };
        Image {
            machine: Some(machine),
            clocks: Some(Clocks { realtime: 1 << 60, monotonic: 1 << 40, boottime: 1 << 41 }),
            processes: vec![process],
            descriptions,
            objects: vec![SharedObject { space: 2, size: 0x4000, ..SharedObject::default() }],
            zombies: vec![zombie],
            foreground: 70,
            terminal: Some(terminal::Modes { characters: vec![3; 32], ..terminal::Modes::default() }),
            filters: vec![filters::Filter { code: vec![6, 0, 0, 0, 0, 0, 0xff, 0x7f], ..Default::default() }],
            ..Image::default()
        }
    }

    fn kinds() -> Vec<Object> {
        let path = || b"/tmp/../tmp/out".to_vec();
        let entry = Entry { number: 3, description: 1, events: 1, data: 5 };
        let message = socket::Message { bytes: vec![1; 3], descriptions: vec![1], sender: None };
        let option = |level, name| option::SocketOption { name, value: vec![0; 4], level };
        let name = |name: &[u8]| [&[1, 0], name, &[0]].concat();
        let listener = endpoint::EndpointRecord {
            family: 1,
            kind: 1,
            address: name(b"run/socket"),
            backlog: Some(5),
            options: vec![option(1, 7)],
            file: Some(socket_file::SocketFile { directory: b"/tmp".to_vec(), ..Default::default() }),
            ..Default::default()
        };
        let server = endpoint::EndpointRecord {
            family: 2,
            kind: 1,
            protocol: 6,
            address: [&[2, 0, 0x1f, 0x90, 127, 0, 0, 1][..], &[0; 8]].concat(),
            backlog: Some(5),
            options: vec![option(6, 1)],
            ..Default::default()
        };
        vec![
            Object::File(file::FileRecord { path: path(), size: 9, ..Default::default() }),
            Object::Device(file::DeviceRecord { path: b"/dev/null".to_vec(), number: 0x103 }),
            Object::Pipe(pipe::PipeRecord { content: vec![1; 9], packets: vec![4, 5], ..Default::default() }),
            Object::Outside(crate::object::Outside { name: "pipe:[7]".into() }),
            Object::Event(eventfd::EventRecord { count: 3, semaphore: true }),
            Object::Epoll(EpollRecord { entries: vec![entry] }),
            Object::Timer(timerfd::TimerRecord {
                clock: 1,
                left: 5,
                interval: 7,
                ticks: 2,
                ..Default::default()
            }),
            Object::Terminal(terminal::TerminalRecord { name: "/dev/tty".into() }),
            Object::Deleted(deleted::DeletedRecord {
                directory: path(),
                size: 9,
                space: 3,
                ..Default::default()
            }),
            Object::Signal(signalfd::SignalRecord { mask: 2 }),
            Object::Socket(socket::SocketRecord {
                waiting: vec![message],
                options: vec![option(1, 7)],
                kind: 1,
                name: name(b"run/socket"),
                ..Default::default()
            }),
            Object::Endpoint(listener),
            Object::Endpoint(server),
            Object::Shared(memfd::SharedRecord { object: 0 }),
            Object::Pid(pidfd::PidRecord::default()),
            Object::Proc(proc_file::ProcRecord { path: b"/proc/self/stat".to_vec() }),
        ]
    }
}
