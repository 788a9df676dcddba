//! What comes from outside is parsed here once more, for its own sake: one function a parser, with inputs to begin with.
//!
//! `cargo xtask fuzz` gives them to libFuzzer, `tests/fuzz.rs` mutates the seeds in CI. A function panics when it has found
//! something; what it takes of memory is measured by who calls it. The parsers below the checksums are called directly,
//! or the checksums are made right first. Nothing here does anything to a process.

mod dmtcp;
mod image;
mod kernel;
mod messages;
mod records;

/// One parser, or several of one thing.
pub struct Target {
    pub name: &'static str,
    /// Panics at a defect.
    pub run: fn(&[u8]),
    /// Inputs as they are in use: of files by the library's own writer, of /proc from this very process.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Memory that an input may take: bytes in any case, and bytes for each of its own.
    pub memory: (usize, usize),
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

macro_rules! targets {
    ($($room:ident::$name:ident: $memory:expr;)*) => {
        pub const TARGETS: &[Target] = &[$(Target {
            name: stringify!($name),
            run: $room::$name::run,
            seeds: $room::$name::seeds,
            memory: $memory,
        }),*];
    };
}

targets! {
    image::header: (4 * KIB, 4);
    image::footer: (4 * KIB, 4);
    image::block: (80 * KIB, 4);
    image::index: (4 * KIB, 16);
    image::summary: (16 * KIB, 8);
    image::generation: (512 * KIB, 16);
    image::chain: (4 * MIB, 32);
    image::metadata: (48 * MIB, 256);
    kernel::proc_stat: (4 * KIB, 32);
    kernel::proc_status: (4 * KIB, 16);
    kernel::proc_limits: (8 * KIB, 8);
    kernel::proc_timers: (4 * KIB, 32);
    kernel::proc_maps: (64 * KIB, 128);
    kernel::proc_fdinfo: (4 * KIB, 32);
    kernel::proc_words: (4 * KIB, 16);
    kernel::proc_mountinfo: (16 * KIB, 64);
    kernel::proc_syscall: (4 * KIB, 8);
    kernel::proc_net: (8 * KIB, 64);
    kernel::proc_cpuinfo: (16 * KIB, 64);
    kernel::tcp_info: (4 * KIB, 4);
    kernel::keyring_text: (4 * KIB, 8);
    kernel::sock_diag: (4 * KIB, 4);
    kernel::bpf_events: (64 * KIB, 32);
    kernel::bpf_rows: (64 * KIB, 32);
    kernel::bpf_offsets: (64 * KIB, 64);
    records::job_json: (16 * KIB, 64);
    records::registry: (16 * KIB, 64);
    records::request: (16 * KIB, 16);
    records::reply: (16 * KIB, 32);
    records::names: (4 * KIB, 16);
    records::arguments: (4 * KIB, 16);
    records::slurm: (16 * KIB, 64);
    messages::daemon_request: (4 * KIB, 4);
    messages::front_message: (4 * KIB, 16);
    messages::front_command_line: (16 * KIB, 32);
    messages::told_rows: (64 * KIB, 96);
    dmtcp::dmtcp_pointer: (16 * KIB, 16);
    dmtcp::dmtcp_state: (16 * KIB, 64);
    dmtcp::dmtcp_words: (16 * KIB, 256);
}
