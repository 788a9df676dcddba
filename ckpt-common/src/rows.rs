//! What the iterator programs write, one row per kernel object.
//!
//! A kernel pointer in a row is an *opaque key*: two rows with the same key share the object; it is never
//! dereferenced. 0 stands for "none".
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::PID_LEVELS;

/// Signals on x86-64: 1 to 64.
pub const SIGNALS: usize = 64;

/// A task's number in one pid namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PidAtLevel {
    /// Inode of the namespace, as `stat /proc/PID/ns/pid` shows it.
    pub namespace: u32,
    /// The task's number there.
    pub number: u32,
}

/// Who a thread is (`struct task_struct`, `struct pid`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TaskIds {
    /// Host thread id.
    pub pid: u32,
    /// Host process id.
    pub tgid: u32,
    /// Nanoseconds on `CLOCK_BOOTTIME` of the host when it started; with the id it names the task for ever.
    pub start_boottime: u64,
    /// `EXIT_ZOMBIE`, `EXIT_DEAD`, or 0 while it lives.
    pub exit_state: u32,
    /// `PF_*`.
    pub flags: u32,
    /// How many pid namespaces it has a number in; more than [`PID_LEVELS`] means that `levels` is cut short.
    pub level_count: u32,
    /// The signal it gets when its parent dies, 0 for none (`PR_SET_PDEATHSIG`).
    pub pdeath_signal: u32,
    /// Its numbers, outermost namespace first.
    pub levels: [PidAtLevel; PID_LEVELS],
}

/// Opaque keys of what a thread may share with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SharedObjects {
    /// Address space (`CLONE_VM`); 0 for a kernel thread or an exited one.
    pub mm: u64,
    /// Descriptor table (`CLONE_FILES`).
    pub files: u64,
    /// Working directory, root and umask (`CLONE_FS`).
    pub fs: u64,
    /// Signal actions (`CLONE_SIGHAND`).
    pub sighand: u64,
    /// Thread group (`CLONE_THREAD`).
    pub signal: u64,
}

/// A thread's own signal state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TaskSignals {
    /// Blocked signals, bit n-1 for signal n.
    pub blocked: u64,
    /// The mask that comes back after `sigsuspend` and the like (`saved_sigmask`).
    pub saved: u64,
    /// Alternate stack: address, bytes, flags (`sigaltstack`).
    pub stack_base: u64,
    /// Bytes.
    pub stack_size: u64,
    /// `SS_DISABLE`, `SS_AUTODISARM`; the kernel keeps 0 or 2 with size 0 for "none".
    pub stack_flags: u32,
    /// `task_struct.exit_signal`: what the parent gets, -1 for a thread that is not a leader.
    pub exit_signal: i32,
}

/// User addresses the kernel keeps for a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UserPointers {
    /// Cleared and woken when the thread ends (`set_tid_address`).
    pub clear_child_tid: u64,
    /// Written when the thread started (`CLONE_CHILD_SETTID`).
    pub set_child_tid: u64,
    /// Head of the robust futex list; its registered length is always 24.
    pub robust_list: u64,
    /// Restartable-sequences area, 0 for none.
    pub rseq: u64,
    /// Its registered length, bytes.
    pub rseq_len: u32,
    /// Its signature.
    pub rseq_sig: u32,
    /// `PFA_*` bits (`no_new_privs` is bit 0); 0 where this kernel's field is not known.
    pub atomic_flags: u64,
}

/// What a thread was told that /proc does not show, or only by a file more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TaskSettings {
    /// `thread_info.flags`: `TIF_*` of this kernel.
    pub thread_flags: u64,
    /// Key of the memory policy, 0 for the default (`set_mempolicy`).
    pub memory_policy: u64,
    /// Key of the newest seccomp filter, 0 for none.
    pub filter: u64,
    /// Key of the first adjustment at its exit (semop(2), `SEM_UNDO`), 0 for none.
    pub semaphores: u64,
    /// Key of its bitmap of I/O ports (ioperm(2)), 0 for none.
    pub ports: u64,
    /// Key of an io_uring of its own, 0 for none: also one that is closed, until the last of its requests is over.
    pub ring: u64,
    /// What security modules keep with its credentials, the first words.
    pub security: [u64; SECURITY],
    /// `SECBIT_*` (capabilities(7)).
    pub securebits: u32,
    /// I/O privilege level (iopl(2)).
    pub port_level: u32,
}

/// Words of [`TaskSettings::security`].
pub const SECURITY: usize = 8;

/// Bytes of [`Keyrings::name`]; a longer one is cut short.
pub const KEYRING_NAME: usize = 128;

/// The keyrings of a thread (keyrings(7)): serial numbers, 0 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Keyrings {
    /// Its own.
    pub thread: i32,
    /// Its process's.
    pub process: i32,
    /// Its session's.
    pub session: i32,
    /// `KEY_POS_*`, `KEY_USR_*`, … of the session's.
    pub permissions: u32,
    /// Keys in the session's.
    pub keys: u64,
    /// Where requested keys go (`KEY_REQKEY_DEFL_*`).
    pub destination: u64,
    /// Name of the session's, ended by a zero.
    pub name: [u8; KEYRING_NAME],
}

/// What `restart_syscall(2)` would go on with; user space names the function and decodes the union.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RestartBlock {
    /// Kernel address of the function; `/proc/kallsyms` has its name.
    pub function: u64,
    /// The union, raw.
    pub data: [u8; 40],
}

/// A thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TaskRow {
    /// Who it is.
    pub ids: TaskIds,
    /// What it shares.
    pub objects: SharedObjects,
    /// Its signal state.
    pub signals: TaskSignals,
    /// Addresses in user space.
    pub user: UserPointers,
    /// What it was told.
    pub settings: TaskSettings,
    /// Its keyrings.
    pub keyrings: Keyrings,
    /// An interrupted system call.
    pub restart: RestartBlock,
}

/// Where the parts of an address space begin and end (`struct mm_struct`, `PR_SET_MM_MAP`); addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct MemoryLayout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// An interval timer (`setitimer`), nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IntervalTimer {
    /// Real timer: host `CLOCK_MONOTONIC`; virtual and profiling: CPU time of the process. 0: not armed (but see
    /// [`ProcessRow::real_armed`] for the real timer).
    pub expires: u64,
    /// 0: fires once.
    pub interval: u64,
}

/// A process: its address space and what belongs to the thread group (`struct signal_struct`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ProcessRow {
    /// Host process id.
    pub tgid: u32,
    /// Host id of the thread this was read from: the leader, or another when the leader has exited.
    pub tid: u32,
    /// Key of the address space, 0 if it has gone.
    pub mm: u64,
    /// Its layout.
    pub memory: MemoryLayout,
    /// `ITIMER_REAL`.
    pub real: IntervalTimer,
    /// `ITIMER_PROF`.
    pub prof: IntervalTimer,
    /// `ITIMER_VIRTUAL`.
    pub virt: IntervalTimer,
    /// 1 when `ITIMER_REAL` is armed.
    pub real_armed: u32,
    /// `signal_struct.group_stop_count`: threads still to stop in a group stop.
    pub group_stop_count: u32,
    /// `SIGNAL_*` (`SIGNAL_STOP_STOPPED` is bit 0).
    pub flags: u32,
    /// 1 for `PR_SET_CHILD_SUBREAPER`.
    pub child_subreaper: u32,
    /// `mm_struct.flags`: `MMF_*` of this kernel, the lowest 64.
    pub memory_flags: u64,
    /// `mm_struct.def_flags`: `VM_*` of this kernel that each new mapping gets (`mlockall`).
    pub default_flags: u64,
    /// Key of the local descriptor table (modify_ldt(2)), 0 for none.
    pub segments: u64,
    /// Slots of its own futex hash, minus 1.
    pub futex_mask: u32,
    /// 1 if it has chosen their number itself (`PR_FUTEX_HASH`).
    pub futex_chosen: u32,
    /// Bit n for protection key n that is allocated, the first one always; 0 on a processor without keys.
    pub key_map: u32,
    /// Which of them the kernel has taken for memory that may only be executed; -1 for none.
    pub execute_only_key: i32,
    /// `mm_struct.membarrier_state`: `MEMBARRIER_STATE_*`.
    pub barriers: u32,
    /// Nothing yet.
    pub unused: u32,
}

/// The action for one signal, as the kernel keeps it (`struct sigaction` of the kernel, not of libc).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SigAction {
    /// `SIG_DFL` 0, `SIG_IGN` 1, or an address.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Address of the return trampoline.
    pub restorer: u64,
    /// Blocked meanwhile, bit n-1 for signal n.
    pub mask: u64,
}

/// The signal actions of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SigActionsRow {
    /// Host process id.
    pub tgid: u32,
    /// [`SIGNALS`].
    pub count: u32,
    /// Key of the table: processes may share one.
    pub sighand: u64,
    /// Signal n is at n-1.
    pub actions: [SigAction; SIGNALS],
}

/// Numbers of the system calls that wait for a time which the kernel forgets when a stop interrupts them: epoll_wait,
/// epoll_pwait, epoll_pwait2, semtimedop, rt_sigtimedwait, io_getevents.
pub const TIMED_WAITS: [u64; 6] = [232, 281, 441, 220, 128, 208];

/// Bytes of a kernel stack on x86-64.
pub const WAIT_STACK: usize = 16 << 10;

/// A thread that sleeps in one of [`TIMED_WAITS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WaitRow {
    /// Host thread id.
    pub tid: u32,
    /// Host process id.
    pub tgid: u32,
    /// Key of the thread, which its timer points to.
    pub task: u64,
    /// The system call.
    pub number: u64,
    /// How often it has given the processor away: tells this wait from a later one.
    pub switches: u64,
    /// Its kernel stack, lowest address first.
    pub stack: [u8; WAIT_STACK],
}

/// A mapping (`struct vm_area_struct`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmaRow {
    /// Host process id.
    pub tgid: u32,
    /// Host id of the thread it was reached through.
    pub tid: u32,
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `VM_*` of this kernel.
    pub flags: u64,
    /// Offset in the file (in anonymous memory: the address it was made at), 4 KiB pages.
    pub page_offset: u64,
    /// Key of the open file, 0 for anonymous memory.
    pub file: u64,
    /// Inode number, 0 for anonymous memory.
    pub inode: u64,
    /// Device of the inode's super block in the kernel's encoding: major << 20 | minor. Some file systems
    /// (btrfs, overlayfs) show another one in stat(2) and `/proc/PID/maps`.
    pub device: u32,
    /// Of its memory policy (`set_mempolicy_home_node`), -1 for none.
    pub home_node: i32,
    /// Key of its memory policy, 0 for none (`mbind`).
    pub policy: u64,
    /// Of shared memory of tmpfs: key of the policies of its ranges, whoever gave them; 0 for none.
    pub shared_policies: u64,
}

/// An open descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FileRow {
    /// Host process id.
    pub tgid: u32,
    /// Host id of the thread it was reached through.
    pub tid: u32,
    /// Descriptor number.
    pub fd: u32,
    /// `f_flags`: `O_*` of the open file, without `O_CLOEXEC`.
    pub flags: u32,
    /// Key of the descriptor table.
    pub files: u64,
    /// Key of the open file description: equal keys are what kcmp(2) calls equal.
    pub file: u64,
    /// Position, bytes.
    pub position: i64,
    /// Inode number.
    pub inode: u64,
    /// Device as in [`VmaRow::device`].
    pub device: u32,
    /// `st_mode`.
    pub mode: u32,
    /// 1 if `FD_CLOEXEC` is set.
    pub close_on_exec: u32,
    /// What an eventfd was made with (`eventfd_ctx.flags`: `EFD_*`), and [`TOLD`]. Of other files without an inode of their own it is
    /// anything, and of the rest 0.
    pub eventfd: u32,
}

/// In [`FileRow::eventfd`]: it was read. No flag of eventfd(2).
pub const TOLD: u32 = 1 << 31;

/// A POSIX timer: how often it has rung and not been told (timer_getoverrun(2)), and whether it was set anew since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TimerRow {
    /// Host process id.
    pub tgid: u32,
    /// `timer_t` of timer_create(2).
    pub id: u32,
    /// How often it has rung since its signal has begun to wait, as far as the kernel has counted that; at least -1.
    pub waiting: i64,
    /// The same of the signal that was taken last: what timer_getoverrun(2) gives, before it is cut to an int.
    pub taken: i64,
    /// Not 0 if it was set anew since it rang last (`it_signal_seq`, Linux 6.13): a signal of it that waits comes to nothing.
    pub anew: u32,
    /// Nothing yet.
    pub unused: u32,
}
