//! Where fields are in this kernel's structures, set by user space from the kernel's BTF before loading.
//!
//! They are in a frozen read-only map, so the verifier takes them for constants. [`ckpt_common::ABSENT`] marks a
//! field that this kernel does not have; a program that cannot do without it is then not loaded.
use aya_ebpf::Global;
use ckpt_common::ABSENT;

macro_rules! offsets {
    ($($name:ident)*) => {
        $(#[unsafe(no_mangle)] pub static $name: Global<u32> = Global::new(ABSENT);)*
    };
}

offsets! {
    TASK_PID TASK_TGID TASK_GROUP_LEADER TASK_THREAD_PID TASK_START_BOOTTIME TASK_EXIT_STATE TASK_FLAGS
    TASK_PDEATH_SIGNAL TASK_EXIT_SIGNAL TASK_ATOMIC_FLAGS TASK_MM TASK_FILES TASK_FS TASK_SIGHAND TASK_SIGNAL
    TASK_BLOCKED TASK_SAVED_SIGMASK TASK_SAS_SS_SP TASK_SAS_SS_SIZE TASK_SAS_SS_FLAGS TASK_CLEAR_CHILD_TID
    TASK_SET_CHILD_TID TASK_ROBUST_LIST TASK_RSEQ TASK_RSEQ_LEN TASK_RSEQ_SIG TASK_RESTART_FN TASK_RESTART_DATA
    TASK_STATE TASK_STACK TASK_NVCSW
    PID_LEVEL PID_NUMBERS UPID_SIZE UPID_NR UPID_NS PIDNS_INUM
    SIGNAL_LIVE SIGNAL_REAL_INTERVAL SIGNAL_REAL_EXPIRES SIGNAL_REAL_STATE SIGNAL_CPU_TIMERS
    SIGNAL_GROUP_STOP_COUNT SIGNAL_FLAGS SIGNAL_SUBREAPER_BIT SIGHAND_ACTION
    MM_START_CODE MM_END_CODE MM_START_DATA MM_END_DATA MM_START_BRK MM_BRK MM_START_STACK
    MM_ARG_START MM_ARG_END MM_ENV_START MM_ENV_END
    VMA_START VMA_END VMA_FLAGS VMA_PGOFF VMA_FILE
    FILE_INODE FILE_FLAGS FILE_POS INODE_INO INODE_MODE INODE_SB SB_DEV
    FILES_FDT FDT_CLOSE_ON_EXEC FDT_MAX_FDS
}

/// Inode number of the loader's pid namespace.
#[unsafe(no_mangle)]
pub static OWN_PIDNS: Global<u32> = Global::new(0);
