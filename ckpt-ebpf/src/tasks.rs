//! Iterators over threads: who they are, what they share, their signals and what they wait for.
use core::ffi::c_void;

use ckpt_common::{
    ABSENT, Keyrings, PID_LEVELS, PidAtLevel, RestartBlock, SharedObjects, TaskIds, TaskSettings, TaskSignals, UserPointers,
};
use zerocopy::{FromBytes, FromZeros};

use crate::{
    filter::{Told, copy, field, read, string},
    iterator::{Rows, task_of},
    offsets::*,
};

/// Every thread of every process, tracked or not: just its numbers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn iter_pids(ctx: *mut c_void) -> i32 {
    // SAFETY: this program's context is that of an iterator over tasks.
    let Some((rows, task)) = (unsafe { task_of(ctx) }) else { return 0 };
    // SAFETY: `task` is a task_struct that the iterator holds.
    unsafe { write_ids(rows, task) };
    0
}

/// Every thread of a tracked process.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn iter_tasks(ctx: *mut c_void) -> i32 {
    // SAFETY: as in `iter_pids`.
    let Some((rows, told)) = (unsafe { tracked_task(ctx) }) else { return 0 };
    // SAFETY: as in `iter_pids`.
    unsafe { write_task(rows, told.task) };
    told.end()
}

/// # Safety
/// `ctx` is the context of an iterator over tasks.
#[inline(always)]
pub unsafe fn tracked_task(ctx: *mut c_void) -> Option<(Rows, Told)> {
    // SAFETY: the caller's promise; `task` is then a task_struct.
    unsafe {
        let (rows, task) = task_of(ctx)?;
        Some((rows, Told::of(task)?))
    }
}

/// The task's number in the pid namespace with that inode, 0 if it has none there.
///
/// # Safety
/// `task` is a task_struct.
#[inline(always)]
pub unsafe fn number_in(task: *const c_void, namespace: u32) -> u32 {
    let mut levels = <[PidAtLevel; PID_LEVELS]>::new_zeroed();
    // SAFETY: the caller's promise.
    if unsafe { self::levels(task, &mut levels) }.is_none() {
        return 0;
    }
    let mut number = 0;
    for level in levels {
        if level.namespace == namespace {
            number = level.number;
        }
    }
    number
}

/// How many pid namespaces know the task; its numbers in the outermost ones go to `out`.
#[inline(always)]
unsafe fn levels(task: *const c_void, out: &mut [PidAtLevel; PID_LEVELS]) -> Option<u32> {
    // SAFETY: `thread_pid` is set while the task is hashed and null afterwards; what it points to is read with
    // checks.
    unsafe {
        let pid: *const c_void = field(task, TASK_THREAD_PID.load());
        if pid.is_null() {
            return Some(0);
        }
        let deepest: u32 = read(pid, PID_LEVEL.load())?;
        for (level, slot) in out.iter_mut().enumerate() {
            if level as u32 > deepest {
                break;
            }
            let number = PID_NUMBERS.load() + level as u32 * UPID_SIZE.load();
            let namespace = read::<u64>(pid, number + UPID_NS.load())? as *const c_void;
            copy(&mut slot.number, pid, number + UPID_NR.load())?;
            copy(&mut slot.namespace, namespace, PIDNS_INUM.load())?;
        }
        Some(deepest + 1)
    }
}

#[inline(always)]
unsafe fn write_ids(rows: Rows, task: *const c_void) -> Option<()> {
    let mut ids = TaskIds::new_zeroed();
    // SAFETY: a task_struct, and offsets of fields of these sizes.
    unsafe {
        ids.pid = field(task, TASK_PID.load());
        ids.tgid = field(task, TASK_TGID.load());
        ids.start_boottime = field(task, TASK_START_BOOTTIME.load());
        ids.exit_state = field(task, TASK_EXIT_STATE.load());
        ids.flags = field(task, TASK_FLAGS.load());
        ids.pdeath_signal = field(task, TASK_PDEATH_SIGNAL.load());
        ids.level_count = levels(task, &mut ids.levels)?;
    }
    rows.write(&ids)
}

/// A `TaskRow`, part by part: the whole would not leave enough of the stack.
#[inline(always)]
unsafe fn write_task(rows: Rows, task: *const c_void) -> Option<()> {
    // SAFETY: as in `write_ids`.
    unsafe {
        write_ids(rows, task)?;
        rows.write(&SharedObjects {
            mm: field(task, TASK_MM.load()),
            files: field(task, TASK_FILES.load()),
            fs: field(task, TASK_FS.load()),
            sighand: field(task, TASK_SIGHAND.load()),
            signal: field(task, TASK_SIGNAL.load()),
        })?;
        write_signals(rows, task)?;
        write_user_pointers(rows, task)?;
        write_settings(rows, task)?;
        write_keyrings(rows, task)?;
        write_restart_block(rows, task)
    }
}

#[inline(always)]
unsafe fn write_signals(rows: Rows, task: *const c_void) -> Option<()> {
    let mut signals = TaskSignals::new_zeroed();
    // SAFETY: as in `write_ids`.
    unsafe {
        copy(&mut signals.blocked, task, TASK_BLOCKED.load())?;
        copy(&mut signals.saved, task, TASK_SAVED_SIGMASK.load())?;
        signals.stack_base = field(task, TASK_SAS_SS_SP.load());
        signals.stack_size = field(task, TASK_SAS_SS_SIZE.load());
        signals.stack_flags = field(task, TASK_SAS_SS_FLAGS.load());
        signals.exit_signal = field(task, TASK_EXIT_SIGNAL.load());
    }
    rows.write(&signals)
}

#[inline(always)]
unsafe fn write_user_pointers(rows: Rows, task: *const c_void) -> Option<()> {
    let mut user = UserPointers::new_zeroed();
    // SAFETY: as in `write_ids`.
    unsafe {
        copy(&mut user.clear_child_tid, task, TASK_CLEAR_CHILD_TID.load())?;
        copy(&mut user.set_child_tid, task, TASK_SET_CHILD_TID.load())?;
        optional(&mut user.robust_list, task, TASK_ROBUST_LIST.load())?;
        optional(&mut user.rseq, task, TASK_RSEQ.load())?;
        optional(&mut user.rseq_len, task, TASK_RSEQ_LEN.load())?;
        optional(&mut user.rseq_sig, task, TASK_RSEQ_SIG.load())?;
        optional(&mut user.atomic_flags, task, TASK_ATOMIC_FLAGS.load())?;
    }
    rows.write(&user)
}

#[inline(always)]
unsafe fn write_settings(rows: Rows, task: *const c_void) -> Option<()> {
    let mut settings = TaskSettings::new_zeroed();
    // SAFETY: as in `write_ids`; what `cred` points to is read with checks.
    unsafe {
        copy(&mut settings.thread_flags, task, TASK_THREAD_FLAGS.load())?;
        optional(&mut settings.memory_policy, task, TASK_MEMPOLICY.load())?;
        optional(&mut settings.filter, task, TASK_SECCOMP.load())?;
        settings.semaphores = adjustments(task)?;
        optional(&mut settings.ports, task, TASK_PORTS.load())?;
        optional(&mut settings.port_level, task, TASK_PORT_LEVEL.load())?;
        settings.ring = ring(task)?;
        let cred = read::<u64>(task, TASK_CRED.load())? as *const c_void;
        copy(&mut settings.securebits, cred, CRED_SECUREBITS.load())?;
        if CRED_SECURITY.load() != ABSENT {
            let modules = read::<u64>(cred, CRED_SECURITY.load())? as *const c_void;
            if !modules.is_null() {
                copy(&mut settings.security, modules, 0)?;
            }
        }
    }
    rows.write(&settings)
}

/// The first adjustment at the task's exit, 0 for none: threads share a list, which may be empty.
#[inline(always)]
unsafe fn adjustments(task: *const c_void) -> Option<u64> {
    if TASK_SEMAPHORES.load() == ABSENT || UNDO_ENTRIES.load() == ABSENT {
        return Some(0);
    }
    // SAFETY: as in `write_ids`; the list is read with checks.
    unsafe {
        let list = read::<u64>(task, TASK_SEMAPHORES.load())?;
        if list == 0 {
            return Some(0);
        }
        let first = read::<u64>(list as *const c_void, UNDO_ENTRIES.load())?;
        Some(if first == list + u64::from(UNDO_ENTRIES.load()) { 0 } else { first })
    }
}

/// An io_uring of the task's, 0 for none. It is on the task's list until its last request is over, closed or not.
#[inline(always)]
unsafe fn ring(task: *const c_void) -> Option<u64> {
    if TASK_RINGS.load() == ABSENT || RINGS_FIRST.load() == ABSENT {
        return Some(0);
    }
    // SAFETY: as in `write_ids`; the list is read with checks.
    unsafe {
        let list = read::<u64>(task, TASK_RINGS.load())?;
        if list == 0 { Some(0) } else { read(list as *const c_void, RINGS_FIRST.load()) }
    }
}

#[inline(always)]
unsafe fn write_keyrings(rows: Rows, task: *const c_void) -> Option<()> {
    let mut rings = Keyrings::new_zeroed();
    // SAFETY: as in `write_ids`; what `cred` and the keyrings point to is read with checks.
    unsafe {
        let cred = read::<u64>(task, TASK_CRED.load())? as *const c_void;
        serial(&mut rings.thread, cred, CRED_THREAD_KEYRING.load())?;
        serial(&mut rings.process, cred, CRED_PROCESS_KEYRING.load())?;
        if CRED_DESTINATION.load() != ABSENT {
            rings.destination = u64::from(read::<u8>(cred, CRED_DESTINATION.load())?);
        }
        let session = serial(&mut rings.session, cred, CRED_SESSION_KEYRING.load())?;
        if !session.is_null() && KEY_NAME.load() != ABSENT {
            copy(&mut rings.permissions, session, KEY_PERMISSIONS.load())?;
            copy(&mut rings.keys, session, KEY_KEYS.load())?;
            let name = read::<u64>(session, KEY_NAME.load())? as *const c_void;
            string(&mut rings.name, name)?;
        }
    }
    rows.write(&rings)
}

/// The serial number of the keyring at this place of `cred`, and where the keyring is.
#[inline(always)]
unsafe fn serial(to: &mut i32, cred: *const c_void, offset: u32) -> Option<*const c_void> {
    if offset == ABSENT || KEY_SERIAL.load() == ABSENT {
        return Some(core::ptr::null());
    }
    // SAFETY: as in `write_ids`; what `cred` points to is read with checks.
    unsafe {
        let ring = read::<u64>(cred, offset)? as *const c_void;
        if !ring.is_null() {
            copy(to, ring, KEY_SERIAL.load())?;
        }
        Some(ring)
    }
}

#[inline(always)]
unsafe fn write_restart_block(rows: Rows, task: *const c_void) -> Option<()> {
    let mut restart = RestartBlock::new_zeroed();
    // SAFETY: as in `write_ids`.
    unsafe {
        copy(&mut restart.function, task, TASK_RESTART_FN.load())?;
        copy(&mut restart.data, task, TASK_RESTART_DATA.load())?;
    }
    rows.write(&restart)
}

/// A field that some kernels lack stays 0 there.
#[inline(always)]
unsafe fn optional<T: FromBytes>(to: &mut T, task: *const c_void, offset: u32) -> Option<()> {
    if offset == ABSENT {
        return Some(());
    }
    // SAFETY: a field of `task` of this size.
    unsafe { copy(to, task, offset) }
}
