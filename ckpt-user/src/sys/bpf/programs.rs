//! The programs of the object, by name, kind and use. One line each; `ckptbpf check` lists them.

/// How a program hooks into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// A tracepoint with typed arguments.
    Tracepoint(&'static str),
    /// An iterator over this kind of object.
    Iterator(&'static str),
    /// The entry of a kernel function; loaded only to find out whether it can be.
    FunctionEntry(&'static str),
    /// A security hook; loaded only to find out whether it can be.
    Security(&'static str),
}

macro_rules! programs {
    ($($name:ident $symbol:literal $hook:ident($target:literal) $purpose:literal;)*) => {
        /// A program of the object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Program {
            $(#[doc = $purpose] $name,)*
        }

        impl Program {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name in the object and in messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $symbol,)* }
            }

            /// Its name in a list with other things.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => concat!("eBPF ", $symbol),)* }
            }

            /// What it is for, as a noun phrase.
            #[must_use]
            pub const fn purpose(self) -> &'static str {
                match self { $(Self::$name => $purpose,)* }
            }

            pub(super) const fn hook(self) -> Hook {
                match self { $(Self::$name => Hook::$hook($target),)* }
            }
        }
    };
}

programs! {
    OnFork "on_fork" Tracepoint("sched_process_fork") "new child processes, tracked before they run";
    OnExec "on_exec" Tracepoint("sched_process_exec") "programs replaced by exec";
    OnGroupExit "on_group_exit" Tracepoint("sched_process_exit") "processes that end";
    OnWriteFault "on_write_fault" Tracepoint("page_fault_user") "a hint of which pages become dirty";
    OnKernelWriteFault "on_kernel_write_fault" Tracepoint("page_fault_kernel") "the same, written by system calls";
    Pids "iter_pids" Iterator("task") "process ids across pid namespaces";
    Tasks "iter_tasks" Iterator("task") "threads: signals, alternate stack, rseq, restart block";
    Processes "iter_processes" Iterator("task") "processes: memory layout, interval timers";
    SignalActions "iter_signal_actions" Iterator("task") "signal handlers";
    Waits "iter_waits" Iterator("task") "how long interrupted waits still have to go";
    Timers "iter_timers" Iterator("task") "how often POSIX timers have rung";
    Vmas "iter_vmas" Iterator("task_vma") "memory mappings";
    Descriptors "iter_descriptors" Iterator("task_file") "open descriptors";
    ProbeFentry "probe_fentry" FunctionEntry("do_exit") "function-entry programs (not needed by any feature yet)";
    ProbeLsm "probe_lsm" Security("file_open") "security-hook programs (not needed by any feature yet)";
}

impl Program {
    /// Whether it is only there to be probed.
    #[must_use]
    pub const fn probe_only(self) -> bool {
        matches!(self.hook(), Hook::FunctionEntry(_) | Hook::Security(_))
    }
}
