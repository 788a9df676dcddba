//! The metadata of one checkpoint: everything but the pages. Each part's record stands in the room of its
//! kernel object; this file only puts them together.

mod check;

pub use check::BadImage;

use crate::memory::layout::Layout;
use crate::memory::vma::{MappedFile, Vma};
use crate::object::{
    Description, Object, deleted::DeletedRecord, file::FileRecord, handle::FileHandle, memfd::Memfd,
    table::Descriptor, terminal::Modes,
};
use crate::rebuild::plan::{self, Node};
use crate::task::credentials::Credentials;
use crate::task::limits::Limit;
use crate::task::registers::Registers;
use crate::task::scheduling::Scheduling;
use crate::task::signals::{Action, ThreadSignals};
use crate::task::surroundings::Surroundings;
use crate::task::xstate::Component;
use crate::task::zombie::Zombie;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::time::Duration;

/// A whole tree at one instant.
#[derive(Clone, PartialEq, prost::Message, serde::Serialize)]
pub struct Image {
    #[prost(message, optional, tag = "1")]
    pub machine: Option<Machine>,
    #[prost(message, optional, tag = "2")]
    pub clocks: Option<Clocks>,
    /// Parents before children; the first is the program itself.
    #[prost(message, repeated, tag = "3")]
    pub processes: Vec<Process>,
    #[prost(message, repeated, tag = "4")]
    pub descriptions: Vec<Description>,
    #[prost(message, repeated, tag = "5")]
    pub objects: Vec<SharedObject>,
    #[prost(message, repeated, tag = "6")]
    pub zombies: Vec<Zombie>,
    /// The process group of the tree that had the terminal, 0 for none.
    #[prost(int32, tag = "7")]
    pub foreground: i32,
    /// How the program's first process ended, as wait(2) gives it, where others have outlived it: ckptbpf's own status.
    #[prost(int32, optional, tag = "8")]
    pub ended: Option<i32>,
    /// Modes of the terminal, where the program had it.
    #[prost(message, optional, tag = "9")]
    pub terminal: Option<Modes>,
    /// Files without a name that are mapped or executed; they may be open, too.
    #[prost(message, repeated, tag = "10")]
    pub deleted: Vec<DeletedRecord>,
    /// Seccomp filters, each once.
    #[prost(message, repeated, tag = "20")]
    pub filters: Vec<crate::task::filters::Filter>,
    /// CPU time that its processes had had at the last restart, nanoseconds.
    #[prost(uint64, tag = "21")]
    pub cpu_time_before: u64,
    /// Processors that a program begins with: those of whoever has started this one, a mask as that of a thread. Empty: not known.
    #[prost(bytes = "vec", tag = "22")]
    pub first_cpus: Vec<u8>,
}

/// Where the image was made.
#[derive(Clone, PartialEq, prost::Message, serde::Serialize)]
pub struct Machine {
    #[prost(string, tag = "1")]
    pub host: String,
    #[prost(string, tag = "2")]
    pub kernel: String,
    /// CPU features that programs could see (/proc/cpuinfo flags).
    #[prost(string, repeated, tag = "3")]
    pub cpu_features: Vec<String>,
    /// Fingerprint of the vdso.
    #[prost(fixed64, tag = "4")]
    pub vdso: u64,
    /// /proc/sys/kernel/random/boot_id: files of memory are gone with it.
    #[prost(string, tag = "5")]
    pub boot_id: String,
    /// The vdso: an ELF file.
    #[prost(bytes = "vec", tag = "6")]
    #[serde(skip)]
    pub vdso_image: Vec<u8>,
    /// Where the processor saves which registers.
    #[prost(message, repeated, tag = "7")]
    pub xsave: Vec<Component>,
    /// `--cpu-baseline`, empty for none.
    #[prost(string, tag = "8")]
    pub cpu_baseline: String,
    /// /etc/machine-id; empty where there is none.
    #[prost(string, tag = "9")]
    pub machine_id: String,
}

/// The program's own clocks at the checkpoint, nanoseconds.
#[derive(Clone, Copy, PartialEq, prost::Message, serde::Serialize)]
pub struct Clocks {
    #[prost(int64, tag = "1")]
    pub realtime: i64,
    #[prost(int64, tag = "2")]
    pub monotonic: i64,
    #[prost(int64, tag = "3")]
    pub boottime: i64,
}

#[derive(Clone, PartialEq, prost::Message, serde::Serialize)]
pub struct Process {
    /// Ids are those that the program sees; 0 stands for one outside the tree. A group or session that is not 0
    /// may be without its leader.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    #[prost(int32, tag = "2")]
    pub parent: i32,
    #[prost(int32, tag = "3")]
    pub process_group: i32,
    #[prost(int32, tag = "4")]
    pub session: i32,
    /// The first one comes first, also if it has ended.
    #[prost(message, repeated, tag = "5")]
    pub threads: Vec<Thread>,
    /// The space its private pages are stored under.
    #[prost(uint32, tag = "6")]
    pub space: u32,
    #[prost(message, repeated, tag = "7")]
    pub mappings: Vec<Vma>,
    #[prost(message, optional, tag = "8")]
    pub layout: Option<Layout>,
    #[prost(message, repeated, tag = "9")]
    pub descriptors: Vec<Descriptor>,
    #[prost(message, repeated, tag = "10")]
    pub actions: Vec<Action>,
    #[prost(bytes = "vec", repeated, tag = "11")]
    pub pending: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "12")]
    pub limits: Vec<Limit>,
    #[prost(message, optional, tag = "13")]
    pub surroundings: Option<Surroundings>,
    /// Stopped by this job-control signal, 0 if not.
    #[prost(int32, tag = "14")]
    pub job_stop: i32,
    #[prost(message, optional, tag = "15")]
    pub settings: Option<crate::task::settings::Settings>,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF; empty when none is set.
    #[prost(message, repeated, tag = "20")]
    pub timers: Vec<crate::task::timers::Timer>,
    /// Those of timer_create(2), ascending by id.
    #[prost(message, repeated, tag = "21")]
    pub posix_timers: Vec<crate::task::posix_timers::PosixTimer>,
    /// Kinds of memory that are denied to it.
    #[prost(message, optional, tag = "22")]
    pub denied: Option<crate::task::denials::Memory>,
    /// Slots of its futex hash where it has chosen their number (PR_FUTEX_HASH).
    #[prost(uint32, optional, tag = "30")]
    pub futex_slots: Option<u32>,
    /// Guard pages of private mappings.
    #[prost(message, repeated, tag = "40")]
    pub guards: Vec<crate::memory::vma::Pages>,
    /// How mappings to come are locked: MCL_FUTURE of mlockall(2), with MCL_ONFAULT or without; 0: they are not.
    #[prost(uint32, tag = "41")]
    pub locks_to_come: u32,
    /// Where it has allocated any.
    #[prost(message, optional, tag = "42")]
    pub protection_keys: Option<crate::memory::protection_keys::Keys>,
    /// CLOCK_PROCESS_CPUTIME_ID, nanoseconds. Only told: no call sets it.
    #[prost(uint64, tag = "43")]
    pub cpu_time: u64,
    /// Commands of membarrier(2) that it has registered for, a bit each.
    #[prost(uint32, tag = "44")]
    pub barriers: u32,
    /// What its end tells its parent, where that is not SIGCHLD; 0 nothing (clone(2)).
    #[prost(int32, optional, tag = "45")]
    pub exit_signal: Option<i32>,
    /// It has asked for tile registers (AMX).
    #[prost(bool, tag = "46")]
    pub tiles: bool,
    /// Which process it was, for whoever asks whether that still runs.
    #[prost(message, optional, tag = "47")]
    pub instance: Option<Instance>,
}

/// A process of one boot of one machine.
#[derive(Clone, Copy, PartialEq, prost::Message, serde::Serialize)]
pub struct Instance {
    /// Its id where ckptbpf was started, which may be another one than for the program.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks since boot.
    #[prost(uint64, tag = "2")]
    pub start_time: u64,
}

impl Process {
    /// How many of its threads there are.
    pub fn tasks(&self) -> u32 {
        self.threads.iter().filter(|thread| thread.ended.is_none()).count() as u32
    }

    /// A thread that has not ended: /proc and system calls reach memory and descriptors by its id, while it is there.
    pub fn reached_by(&self) -> Pid {
        let lives = self.threads.iter().find(|thread| thread.ended.is_none());
        Pid::from_raw(lives.map_or(self.pid, |thread| thread.tid))
    }
}

impl Image {
    /// Files that have other numbers by now, by device and inode, wherever they are spoken of: all at once, as what one has now may
    /// be what another one had. What told them apart is not to be asked for again.
    pub fn renumber(&mut self, now: &HashMap<(u64, u64), (u64, u64)>) {
        let renumber = |device: &mut u64, inode: &mut u64| {
            let Some(is) = now.get(&(*device, *inode)) else { return false };
            (*device, *inode) = *is;
            true
        };
        let of_file = |file: &mut FileRecord| {
            if renumber(&mut file.device, &mut file.inode) {
                file.handle = None;
            }
        };
        for description in &mut self.descriptions {
            match &mut description.object {
                Some(Object::File(file)) => of_file(file),
                Some(Object::Inotify(inotify)) => {
                    inotify.watches.iter_mut().filter_map(|watch| watch.file.as_mut()).for_each(of_file);
                }
                _ => {}
            }
        }
        for object in &mut self.objects {
            if let Some(file) = &mut object.file {
                renumber(&mut file.device, &mut file.inode);
                if renumber(&mut object.device, &mut object.inode) {
                    object.handle = None;
                }
            }
        }
        for process in &mut self.processes {
            let executable = process.layout.iter_mut().filter_map(|layout| layout.executable.as_mut());
            for file in process.mappings.iter_mut().filter_map(|vma| vma.file.as_mut()).chain(executable) {
                renumber(&mut file.device, &mut file.inode);
            }
        }
    }

    /// The deleted file with this device and inode.
    pub fn deleted(&self, identity: (u64, u64)) -> Option<&DeletedRecord> {
        self.deleted.iter().find(|file| file.identity() == identity)
    }

    /// CPU time that its processes have had, also before restarts.
    pub fn cpu_time(&self) -> Duration {
        let since = self.processes.iter().map(|process| process.cpu_time);
        Duration::from_nanos(since.fold(self.cpu_time_before, u64::saturating_add))
    }

    /// The tree as [`crate::rebuild::plan`] needs it: processes, zombies, and leaders that are gone.
    pub fn nodes(&self) -> Vec<Node> {
        let living = self.processes.iter().map(|p| Node {
            pid: p.pid,
            parent: p.parent,
            group: p.process_group,
            session: p.session,
            exit_signal: p.exit_signal.unwrap_or(libc::SIGCHLD),
        });
        let ended = self.zombies.iter().map(|z| Node {
            pid: z.pid,
            parent: z.parent,
            group: z.process_group,
            session: z.session,
            exit_signal: z.exit_signal.unwrap_or(libc::SIGCHLD),
        });
        let mut nodes: Vec<Node> = living.chain(ended).collect();
        nodes.extend(plan::leaders(&nodes));
        nodes
    }
}

#[derive(Clone, PartialEq, prost::Message, serde::Serialize)]
pub struct Thread {
    #[prost(int32, tag = "1")]
    pub tid: i32,
    #[prost(bytes = "vec", tag = "2")]
    pub name: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    pub registers: Option<Registers>,
    #[prost(message, optional, tag = "4")]
    pub signals: Option<ThreadSignals>,
    #[prost(message, optional, tag = "5")]
    pub credentials: Option<Credentials>,
    #[prost(message, optional, tag = "6")]
    pub scheduling: Option<Scheduling>,
    #[prost(uint64, tag = "7")]
    pub clear_child_tid: u64,
    #[prost(uint64, tag = "8")]
    pub robust_list: u64,
    /// The sleep that the checkpoint interrupted.
    #[prost(message, optional, tag = "9")]
    pub sleep: Option<crate::task::sleep::Sleep>,
    /// What prctl(2) has set for it.
    #[prost(message, optional, tag = "10")]
    pub control: Option<crate::task::control::Control>,
    /// From which nodes its memory comes; none: the default.
    #[prost(message, optional, tag = "11")]
    pub policy: Option<crate::task::policy::Policy>,
    /// Instructions that are denied to it.
    #[prost(message, optional, tag = "12")]
    pub denied: Option<crate::task::denials::Instructions>,
    /// The session keyring that it has joined, where that is not the one of whoever started ckptbpf.
    #[prost(message, optional, tag = "13")]
    pub keyring: Option<crate::task::keyring::Keyring>,
    /// personality(2) bits.
    #[prost(uint32, tag = "14")]
    pub personality: u32,
    #[prost(message, optional, tag = "15")]
    pub seccomp: Option<crate::task::filters::Seccomp>,
    /// How it has ended, as wait(2) gives it: only a first thread, of a process that goes on without.
    #[prost(int32, optional, tag = "17")]
    pub ended: Option<i32>,
    /// System calls that are handed back to it.
    #[prost(message, optional, tag = "16")]
    pub dispatch: Option<crate::task::dispatch::Dispatch>,
}

/// Memory that several mappings share: saved once, under a space of its own.
#[derive(Clone, PartialEq, prost::Message, serde::Serialize)]
pub struct SharedObject {
    #[prost(uint32, tag = "1")]
    pub space: u32,
    /// Bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// Device and inode at the origin: the identity within this image.
    #[prost(uint64, tag = "3")]
    pub device: u64,
    #[prost(uint64, tag = "4")]
    pub inode: u64,
    /// The file that is mapped; none behind anonymous memory.
    #[prost(message, optional, tag = "5")]
    pub file: Option<MappedFile>,
    #[prost(message, optional, tag = "6")]
    pub memfd: Option<Memfd>,
    /// Of System V.
    #[prost(message, optional, tag = "7")]
    pub segment: Option<crate::memory::sysv::Segment>,
    /// A file without a name: one of the image's deleted files, by device and inode.
    #[prost(bool, tag = "8")]
    pub deleted: bool,
    /// Bytes of each of its pages, where they are huge ones of hugetlb; else 0.
    #[prost(uint64, tag = "9")]
    pub huge_page: u64,
    /// What else it takes to make the file again: of one of tmpfs, which is gone with the machine.
    #[prost(message, optional, tag = "10")]
    pub tmpfs: Option<DeletedRecord>,
    /// Of a mapped file whose device has a number of a mount.
    #[prost(message, optional, tag = "11")]
    pub handle: Option<FileHandle>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_is_now_may_be_what_another_one_was() {
        let file = |inode| MappedFile { device: 1, inode, ..MappedFile::default() };
        let object = |inode| SharedObject {
            device: 1,
            inode,
            file: Some(file(inode)),
            handle: Some(FileHandle::default()),
            ..SharedObject::default()
        };
        let mut image = Image { objects: vec![object(2), object(3), object(4)], ..Image::default() };
        image.renumber(&HashMap::from([((1, 2), (1, 3)), ((1, 3), (1, 2))]));
        let inodes: Vec<_> =
            image.objects.iter().map(|o| (o.inode, o.file.as_ref().unwrap().inode)).collect();
        assert_eq!(inodes, [(3, 3), (2, 2), (4, 4)]);
        let told: Vec<bool> = image.objects.iter().map(|object| object.handle.is_some()).collect();
        assert_eq!(told, [false, false, true]);
    }
}
