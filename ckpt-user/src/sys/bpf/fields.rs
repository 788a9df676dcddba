//! Every field that a program or a decoder reads: its name, its path in the kernel's structures, who needs it.
use std::collections::BTreeMap;

use crate::planted;
use ckpt_common::ABSENT;

use super::{
    BtfError,
    Program::{
        self, Descriptors, OnFork, OnGroupExit, Pids, Processes, SignalActions, Tasks, Timers, Vmas, Waits,
    },
    btf::Layout,
    cache,
};

/// What the number of a field means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Bytes,
    Bits,
    SizeOf,
}
use Unit::{Bits, Bytes, SizeOf};

/// One field. The first of `paths` that this kernel has counts: kernels move and rename.
pub(super) struct Field {
    /// The global in the object (`ckpt-ebpf/src/offsets.rs`), or the decoder's name for it.
    pub name: &'static str,
    unit: Unit,
    paths: &'static [&'static str],
    /// Programs that cannot be loaded without it; none: it is optional.
    pub needed_by: &'static [Program],
    /// Whether it is a global of the object.
    pub global: bool,
}

impl Field {
    /// All that its value depends on, apart from the kernel.
    pub(super) fn identity(&self) -> String {
        format!("{} {:?} {:?}\n", self.name, self.unit, self.paths)
    }
}

const TASK: &[Program] = &[Tasks];
const EVERY: &[Program] = &[OnFork, Pids, Tasks, Processes, SignalActions, Waits, Vmas, Descriptors, Timers];
/// Those that may tell of a task for another process's eyes.
const TOLD: &[Program] = &[Tasks, Processes, SignalActions, Waits, Vmas, Descriptors, Timers];
const NUMBERS: &[Program] = &[OnFork, Pids, Tasks];
const IDS: &[Program] = &[Pids, Tasks];
const PROCESS: &[Program] = &[Processes];
const TIMER: &[Program] = &[Timers];
const WAIT: &[Program] = &[Waits];
const FILE: &[Program] = &[Descriptors];
const VMA: &[Program] = &[Vmas];
const INODE: &[Program] = &[Vmas, Descriptors];
const OPTIONAL: &[Program] = &[];

const fn global(name: &'static str, needed_by: &'static [Program], paths: &'static [&'static str]) -> Field {
    Field { name, unit: Bytes, paths, needed_by, global: true }
}
const fn local(name: &'static str, paths: &'static [&'static str]) -> Field {
    Field { name, unit: Bytes, paths, needed_by: OPTIONAL, global: false }
}

/// The table.
#[rustfmt::skip]
pub(super) const FIELDS: &[Field] = &[
    global("TASK_PID", EVERY, &["task_struct.pid"]),
    global("TASK_TGID", EVERY, &["task_struct.tgid"]),
    global("TASK_GROUP_LEADER", &[Processes, SignalActions, Timers], &["task_struct.group_leader"]),
    global("TASK_THREAD_PID", NUMBERS, &["task_struct.thread_pid"]),
    global("TASK_START_BOOTTIME", IDS, &["task_struct.start_boottime", "task_struct.real_start_time"]),
    global("TASK_EXIT_STATE", IDS, &["task_struct.exit_state"]),
    global("TASK_FLAGS", IDS, &["task_struct.flags"]),
    global("TASK_PDEATH_SIGNAL", IDS, &["task_struct.pdeath_signal"]),
    global("TASK_EXIT_SIGNAL", TASK, &["task_struct.exit_signal"]),
    global("TASK_ATOMIC_FLAGS", TASK, &["task_struct.atomic_flags"]),
    global("TASK_MM", TOLD, &["task_struct.mm"]),
    global("TASK_FILES", TOLD, &["task_struct.files"]),
    global("TASK_FS", TASK, &["task_struct.fs"]),
    global("TASK_SIGHAND", TOLD, &["task_struct.sighand"]),
    global("TASK_SIGNAL", &[OnGroupExit, Tasks, Processes, Timers], &["task_struct.signal"]),
    global("TASK_BLOCKED", TASK, &["task_struct.blocked"]),
    global("TASK_SAVED_SIGMASK", TASK, &["task_struct.saved_sigmask"]),
    global("TASK_SAS_SS_SP", TASK, &["task_struct.sas_ss_sp"]),
    global("TASK_SAS_SS_SIZE", TASK, &["task_struct.sas_ss_size"]),
    global("TASK_SAS_SS_FLAGS", TASK, &["task_struct.sas_ss_flags"]),
    global("TASK_CLEAR_CHILD_TID", TASK, &["task_struct.clear_child_tid"]),
    global("TASK_SET_CHILD_TID", TASK, &["task_struct.set_child_tid"]),
    global("TASK_ROBUST_LIST", OPTIONAL, &["task_struct.robust_list", "task_struct.futex.robust_list"]),
    // A structure of its own in newer kernels; the old names first, since `rseq` is a pointer there.
    global("TASK_RSEQ", OPTIONAL, &["task_struct.rseq.usrptr", "task_struct.rseq"]),
    global("TASK_RSEQ_LEN", OPTIONAL, &["task_struct.rseq.len", "task_struct.rseq_len"]),
    global("TASK_RSEQ_SIG", OPTIONAL, &["task_struct.rseq.sig", "task_struct.rseq_sig"]),
    global("TASK_RESTART_FN", TASK, &["task_struct.restart_block.fn"]),
    global("TASK_RESTART_DATA", TASK, &["task_struct.restart_block.futex"]),
    global("TASK_THREAD_FLAGS", TASK, &["task_struct.thread_info.flags"]),
    global("TASK_MEMPOLICY", OPTIONAL, &["task_struct.mempolicy"]),
    global("TASK_CRED", TASK, &["task_struct.cred"]),
    global("CRED_SECUREBITS", TASK, &["cred.securebits"]),
    global("TASK_SECCOMP", OPTIONAL, &["task_struct.seccomp.filter"]),
    global("TASK_SEMAPHORES", OPTIONAL, &["task_struct.sysvsem.undo_list"]),
    global("UNDO_ENTRIES", OPTIONAL, &["sem_undo_list.list_proc.next"]),
    global("TASK_PORTS", OPTIONAL, &["task_struct.thread.io_bitmap"]),
    global("TASK_PORT_LEVEL", OPTIONAL, &["task_struct.thread.iopl_emul"]),
    global("TASK_RINGS", OPTIONAL, &["task_struct.io_uring"]),
    global("RINGS_FIRST", OPTIONAL, &["io_uring_task.xa.xa_head"]),
    global("CRED_SECURITY", OPTIONAL, &["cred.security"]),
    global("CRED_THREAD_KEYRING", OPTIONAL, &["cred.thread_keyring"]),
    global("CRED_PROCESS_KEYRING", OPTIONAL, &["cred.process_keyring"]),
    global("CRED_SESSION_KEYRING", OPTIONAL, &["cred.session_keyring"]),
    global("CRED_DESTINATION", OPTIONAL, &["cred.jit_keyring"]),
    global("KEY_SERIAL", OPTIONAL, &["key.serial"]),
    global("KEY_PERMISSIONS", OPTIONAL, &["key.perm"]),
    global("KEY_KEYS", OPTIONAL, &["key.keys.nr_leaves_on_tree"]),
    global("KEY_NAME", OPTIONAL, &["key.description"]),
    global("TASK_PTRACE", TOLD, &["task_struct.ptrace"]),
    global("TASK_PARENT", TOLD, &["task_struct.parent"]),
    global("TASK_TRACER_CRED", TOLD, &["task_struct.ptracer_cred"]),
    global("TASK_EXECS", TOLD, &["task_struct.self_exec_id"]),
    global("TASK_STATE", WAIT, &["task_struct.__state", "task_struct.state"]),
    global("TASK_STACK", WAIT, &["task_struct.stack"]),
    global("TASK_NVCSW", WAIT, &["task_struct.nvcsw"]),
    global("PID_LEVEL", NUMBERS, &["pid.level"]),
    global("PID_NUMBERS", NUMBERS, &["pid.numbers"]),
    Field { name: "UPID_SIZE", unit: SizeOf, paths: &["upid"], needed_by: NUMBERS, global: true },
    global("UPID_NR", NUMBERS, &["upid.nr"]),
    global("UPID_NS", NUMBERS, &["upid.ns"]),
    global("PIDNS_INUM", NUMBERS, &["pid_namespace.ns.inum"]),
    global("SIGNAL_LIVE", &[OnGroupExit], &["signal_struct.live"]),
    global("SIGNAL_REAL_INTERVAL", PROCESS, &["signal_struct.it_real_incr"]),
    global("SIGNAL_REAL_EXPIRES", PROCESS, &["signal_struct.real_timer.node.expires"]),
    global("SIGNAL_REAL_STATE", PROCESS, &["signal_struct.real_timer.state", "signal_struct.real_timer.is_queued"]),
    global("SIGNAL_CPU_TIMERS", PROCESS, &["signal_struct.it"]),
    global("SIGNAL_TIMERS", TIMER, &["signal_struct.posix_timers"]),
    global("TIMER_NODE", TIMER, &["k_itimer.list"]),
    global("TIMER_ID", TIMER, &["k_itimer.it_id"]),
    global("TIMER_OVERRUN", TIMER, &["k_itimer.it_overrun"]),
    global("TIMER_OVERRUN_LAST", TIMER, &["k_itimer.it_overrun_last"]),
    global("TIMER_SEQUENCE", OPTIONAL, &["k_itimer.it_signal_seq"]),
    global("TIMER_SENT", OPTIONAL, &["k_itimer.it_sigqueue_seq"]),
    global("SIGNAL_GROUP_STOP_COUNT", PROCESS, &["signal_struct.group_stop_count"]),
    global("SIGNAL_FLAGS", PROCESS, &["signal_struct.flags"]),
    Field { name: "SIGNAL_SUBREAPER_BIT", unit: Bits, paths: &["signal_struct.is_child_subreaper"], needed_by: PROCESS, global: true },
    global("SIGHAND_ACTION", &[SignalActions], &["sighand_struct.action"]),
    global("MM_START_CODE", PROCESS, &["mm_struct.start_code"]),
    global("MM_END_CODE", PROCESS, &["mm_struct.end_code"]),
    global("MM_START_DATA", PROCESS, &["mm_struct.start_data"]),
    global("MM_END_DATA", PROCESS, &["mm_struct.end_data"]),
    global("MM_START_BRK", PROCESS, &["mm_struct.start_brk"]),
    global("MM_BRK", PROCESS, &["mm_struct.brk"]),
    global("MM_START_STACK", PROCESS, &["mm_struct.start_stack"]),
    global("MM_ARG_START", PROCESS, &["mm_struct.arg_start"]),
    global("MM_ARG_END", PROCESS, &["mm_struct.arg_end"]),
    global("MM_ENV_START", PROCESS, &["mm_struct.env_start"]),
    global("MM_ENV_END", PROCESS, &["mm_struct.env_end"]),
    global("MM_FLAGS", PROCESS, &["mm_struct.flags"]),
    global("MM_DEF_FLAGS", PROCESS, &["mm_struct.def_flags"]),
    global("MM_KEY_MAP", OPTIONAL, &["mm_struct.context.pkey_allocation_map"]),
    global("MM_EXECUTE_ONLY_KEY", OPTIONAL, &["mm_struct.context.execute_only_pkey"]),
    global("MM_SEGMENTS", OPTIONAL, &["mm_struct.context.ldt"]),
    global("MM_BARRIERS", OPTIONAL, &["mm_struct.membarrier_state"]),
    global("MM_FUTEX", OPTIONAL, &["mm_struct.futex_phash", "mm_struct.futex.phash.hash"]),
    global("FUTEX_MASK", OPTIONAL, &["futex_private_hash.hash_mask"]),
    global("FUTEX_CHOSEN", OPTIONAL, &["futex_private_hash.custom"]),
    global("VMA_MM", VMA, &["vm_area_struct.vm_mm"]),
    global("VMA_START", VMA, &["vm_area_struct.vm_start"]),
    global("VMA_END", VMA, &["vm_area_struct.vm_end"]),
    global("VMA_FLAGS", VMA, &["vm_area_struct.vm_flags"]),
    global("VMA_PGOFF", VMA, &["vm_area_struct.vm_pgoff"]),
    global("VMA_FILE", VMA, &["vm_area_struct.vm_file"]),
    // Kernels without NUMA have no policies.
    global("VMA_POLICY", OPTIONAL, &["vm_area_struct.vm_policy"]),
    global("POLICY_HOME_NODE", OPTIONAL, &["mempolicy.home_node"]),
    global("SHMEM_INODE", OPTIONAL, &["shmem_inode_info.vfs_inode"]),
    global("SHMEM_POLICIES", OPTIONAL, &["shmem_inode_info.policy.root.rb_node"]),
    global("FILE_INODE", INODE, &["file.f_inode"]),
    global("FILE_FLAGS", FILE, &["file.f_flags"]),
    global("FILE_POS", FILE, &["file.f_pos"]),
    global("FILE_PRIVATE", OPTIONAL, &["file.private_data"]),
    global("EVENTFD_FLAGS", OPTIONAL, &["eventfd_ctx.flags"]),
    global("INODE_INO", INODE, &["inode.i_ino"]),
    global("INODE_MODE", FILE, &["inode.i_mode"]),
    global("INODE_SB", INODE, &["inode.i_sb"]),
    global("SB_DEV", INODE, &["super_block.s_dev"]),
    global("SB_MAGIC", OPTIONAL, &["super_block.s_magic"]),
    global("FILES_FDT", FILE, &["files_struct.fdt"]),
    global("FDT_CLOSE_ON_EXEC", FILE, &["fdtable.close_on_exec"]),
    global("FDT_MAX_FDS", FILE, &["fdtable.max_fds"]),
    // The word above as a bitmap, which newer kernels may make longer.
    Field { name: "vma.flags", unit: SizeOf, paths: &["vm_area_struct.flags"], needed_by: OPTIONAL, global: false },
    // The timer on the stack of a thread that waits, for `waits.rs`.
    local("sleeper.expires", &["hrtimer_sleeper.timer._softexpires"]),
    local("sleeper.function", &["hrtimer_sleeper.timer.function"]),
    local("sleeper.state", &["hrtimer_sleeper.timer.state", "hrtimer_sleeper.timer.is_queued"]),
    local("sleeper.task", &["hrtimer_sleeper.task"]),
    Field { name: "sleeper", unit: SizeOf, paths: &["hrtimer_sleeper"], needed_by: OPTIONAL, global: false },
    // The union of struct restart_block, for `restart.rs`.
    local("futex", &["restart_block.futex"]),
    local("futex.uaddr", &["restart_block.futex.uaddr"]),
    local("futex.val", &["restart_block.futex.val"]),
    local("futex.flags", &["restart_block.futex.flags"]),
    local("futex.bitset", &["restart_block.futex.bitset"]),
    local("futex.time", &["restart_block.futex.time"]),
    local("nanosleep.clockid", &["restart_block.nanosleep.clockid"]),
    local("nanosleep.rmtp", &["restart_block.nanosleep.rmtp"]),
    local("nanosleep.expires", &["restart_block.nanosleep.expires"]),
    local("poll.ufds", &["restart_block.poll.ufds"]),
    local("poll.nfds", &["restart_block.poll.nfds"]),
    local("poll.has_timeout", &["restart_block.poll.has_timeout"]),
    local("poll.seconds", &["restart_block.poll.end_time.tv_sec", "restart_block.poll.tv_sec"]),
    local("poll.nanoseconds", &["restart_block.poll.end_time.tv_nsec", "restart_block.poll.tv_nsec"]),
];

/// The fields' places in this kernel, by name; [`ABSENT`] for those it does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offsets(pub(super) BTreeMap<String, u32>);

impl Offsets {
    /// Of the running kernel: from the cache if there is a valid one, else from its BTF, and then kept.
    ///
    /// # Errors
    /// The kernel has no readable BTF.
    pub fn of_kernel() -> Result<Self, BtfError> {
        let mut found = match cache::read() {
            Some(known) => known,
            None => {
                let found = Self::resolve(&Layout::of_kernel()?);
                cache::write(&found);
                found
            }
        };
        if planted::is("wrong-offset") {
            // That of the next signal.
            found.0.entry("SIGHAND_ACTION".into()).and_modify(|place| *place += 32);
        }
        Ok(found)
    }

    /// From parsed BTF. A field that is not there is [`ABSENT`].
    #[must_use]
    pub fn resolve(layout: &Layout) -> Self {
        let resolve = |field: &Field| {
            let one = |path: &&str| match field.unit {
                Bytes => layout.offset(path),
                Bits => layout.bit_offset(path),
                SizeOf => layout.size(path),
            };
            field.paths.iter().find_map(|path| one(path).ok()).unwrap_or(ABSENT)
        };
        Self(FIELDS.iter().map(|field| (field.name.to_owned(), resolve(field))).collect())
    }

    /// A field's place, `None` if this kernel does not have it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u32> {
        self.0.get(name).copied().filter(|&value| value != ABSENT)
    }

    /// The field for want of which a program cannot be loaded, by its path.
    #[must_use]
    pub fn missing_for(&self, program: Program) -> Option<&'static str> {
        FIELDS
            .iter()
            .find(|field| field.needed_by.contains(&program) && self.get(field.name).is_none())
            .and_then(|field| field.paths.first().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_field_disables_the_programs_that_need_it_and_no_other() {
        let mut all: BTreeMap<String, u32> = FIELDS.iter().map(|f| (f.name.to_owned(), 0)).collect();
        for name in ["VMA_PGOFF", "TASK_RSEQ"] {
            all.insert(name.to_owned(), ABSENT);
        }
        let offsets = Offsets(all);
        let disabled: Vec<_> =
            Program::ALL.iter().filter_map(|&p| Some((p, offsets.missing_for(p)?))).collect();
        assert_eq!(disabled, [(Vmas, "vm_area_struct.vm_pgoff")]);
        assert_eq!(offsets.get("TASK_RSEQ"), None);
    }
}
