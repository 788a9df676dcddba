//! A kernel that refuses one of the eBPF programs, or all of a kind, costs the fallback and a line, never the job.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ckpt_tests::scenario::{MODES, Tool, held, let_go, verb};
use ckpt_tests::{Cmd, Expected, Job, Sandbox, assert_same, ckptbpf, victim_cmd};

const SOON: Duration = Duration::from_secs(60);

const ITERATORS: &[&str] = &[
    "iter_pids",
    "iter_tasks",
    "iter_processes",
    "iter_signal_actions",
    "iter_waits",
    "iter_timers",
    "iter_vmas",
    "iter_descriptors",
];
const TRACEPOINTS: &[&str] =
    &["on_fork", "on_exec", "on_group_exit", "on_write_fault", "on_kernel_write_fault"];

/// What is said where an iterator is refused without which the others are of no use.
const INJECTED: &str = "system calls are injected for what eBPF would read";
/// What else may be said.
const LOOKED_FOR: &str = "forks, execs and exits are looked for, not reported";
const UNREPORTED: &str = "write faults are not reported";
const ANEW: &str = "waits that only the kernel knows the end of begin anew";
const HIDDEN: &str =
    "interrupted sleeps begin anew after a restart: this kernel shows nobody where its functions are";
const UNTOLD: &str = "this kernel does not tell how long waits still go";
const UNCOUNTED: &str = "how often POSIX timers have rung is not saved";
const SMAPS: &str = "/proc/PID/smaps is read of each process";
const FROM_PROC: &str = "descriptors are read from /proc";

/// A number in an ELF file, little-endian.
fn number(elf: &[u8], at: usize, bytes: usize) -> usize {
    elf[at..at + bytes].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Where the code of a function begins in an ELF file of 64 bits.
fn place_of(elf: &[u8], function: &str) -> usize {
    const SYMBOLS: usize = 2;
    let (sections, size, count) = (number(elf, 40, 8), number(elf, 58, 2), number(elf, 60, 2));
    let section = |index: usize| sections + index * size;
    let offset = |index: usize| number(elf, section(index) + 24, 8);
    let table = (0..count).find(|&index| number(elf, section(index) + 4, 4) == SYMBOLS).expect("symbols");
    let names = offset(number(elf, section(table) + 40, 4));
    let symbols = elf[offset(table)..][..number(elf, section(table) + 32, 8)].chunks_exact(24);
    let wanted = [function.as_bytes(), b"\0"].concat();
    let symbol = symbols.clone().find(|symbol| elf[names + number(symbol, 0, 4)..].starts_with(&wanted));
    let symbol = symbol.unwrap_or_else(|| panic!("no function {function} in the object"));
    offset(number(symbol, 6, 2)) + number(symbol, 8, 8)
}

/// A copy of ckptbpf in which these programs begin with an instruction that there is not: the kernel refuses them and no other.
fn refused(sandbox: &Sandbox, programs: &[&str]) -> PathBuf {
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ckpt-ebpf/ckptbpf.bpf.o");
    let object = fs::read(object).unwrap();
    let mut binary = fs::read(ckptbpf()).unwrap();
    let at = binary.windows(64).position(|bytes| bytes == &object[..64]).expect("the object in ckptbpf");
    assert!(binary[at..].starts_with(&object), "ckptbpf holds another object");
    for program in programs {
        binary[at + place_of(&object, program)..][..8].fill(0xff);
    }
    let path = sandbox.dir().join("bin/ckptbpf");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, binary).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// The eBPF programs that a ckptbpf can use here.
fn usable(sandbox: &Sandbox, binary: &Path) -> BTreeSet<String> {
    let report = sandbox.run(Cmd::new(binary).args(["check", "--json"])).stdout;
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let features = report["features"].as_array().unwrap().iter();
    let usable = features.filter(|feature| feature["status"] == "ok");
    usable.filter_map(|feature| Some(feature["name"].as_str()?.strip_prefix("eBPF ")?.to_owned())).collect()
}

/// Launch, checkpoints, death and a restart of each kind: the output is that of an undisturbed run, and each run says what it
/// does without once.
fn goes_on(sandbox: &Sandbox, what: &str, binary: PathBuf, program: &Cmd, says: &[&str]) {
    let expected = Expected::of(sandbox, program, None);
    let program = held(sandbox, program.clone());
    let tool = Tool { binary, ..Tool::default() };
    let mut job = Job::launch_by(sandbox, tool, sandbox.dir().join("images"), &["-i", "0"], &program);
    job.running().wait_for_output("\n", SOON);
    for mode in MODES {
        for _ in 0..3 {
            job.checkpoint();
        }
        let said = job.running().stderr();
        for known in says {
            assert_eq!(said.matches(known).count(), 1, "without {what} it says {said:?}");
        }
        let own = said.lines().filter(|line| line.starts_with("ckptbpf: "));
        assert_eq!(own.count(), says.len(), "without {what} it says {said:?}");
        job.kill_all();
        sandbox.run(verb("verify", [job.dir()])).success();
        job.restart(*mode, &["-i", "0"]);
    }
    job.checkpoint();
    let_go(sandbox);
    job.wait(SOON).success();
    assert_same(&format!("without {what}"), &expected.stdout, &job.stdout());
}

/// The kernel refuses these programs, and no other.
fn goes_on_without(programs: &[&str], program: &Cmd, says: &[&str]) {
    let sandbox = Sandbox::with_limit(&format!("without_{}", programs[0]), Duration::from_secs(170));
    let binary = refused(&sandbox, programs);
    let lost: BTreeSet<String> = &usable(&sandbox, &ckptbpf()) - &usable(&sandbox, &binary);
    assert_eq!(lost, programs.iter().map(|&name| name.to_owned()).collect(), "refused by the kernel");
    goes_on(&sandbox, &programs.join(", "), binary, program, says);
}

#[test]
fn iterators_that_the_others_need() {
    for name in &ITERATORS[..4] {
        goes_on_without(&[name], &victim_cmd("signals").args(["150", "3000"]), &[INJECTED]);
    }
}

#[test]
fn iterators_that_are_done_without() {
    let [maps, fds] = ["maps", "fds"].map(|name| victim_cmd(name).args([".", "150", "3000"]));
    let signals = victim_cmd("signals").args(["150", "3000"]);
    let each = [(&signals, ANEW), (&signals, UNCOUNTED), (&maps, SMAPS), (&fds, FROM_PROC)];
    for (name, (program, says)) in ITERATORS[4..].iter().zip(each) {
        goes_on_without(&[name], program, &[says]);
    }
}

/// As where iterators cannot be restricted to a process (before Linux 6.1).
#[test]
fn neither_mappings_nor_descriptors_by_iterators() {
    let program = victim_cmd("fds").args([".", "150", "3000"]);
    goes_on_without(&["iter_vmas", "iter_descriptors"], &program, &[SMAPS, FROM_PROC]);
}

#[test]
fn tracepoints() {
    let tree = victim_cmd("forktree").args(["15", "20000"]);
    let memory = victim_cmd("memory").args(["16", "30", "sums", "10000", "10"]);
    for name in &TRACEPOINTS[..3] {
        goes_on_without(&[name], &tree, &[LOOKED_FOR]);
    }
    goes_on_without(&TRACEPOINTS[3..4], &memory, &[UNREPORTED]);
    goes_on_without(&TRACEPOINTS[4..], &memory, &[UNREPORTED]);
}

#[test]
fn all_of_a_kind() {
    goes_on_without(ITERATORS, &victim_cmd("taskstate").args(["controls", "150", "3000"]), &[INJECTED]);
    goes_on_without(TRACEPOINTS, &victim_cmd("forktree").args(["15", "20000"]), &[LOOKED_FOR, UNREPORTED]);
}

/// A kernel that shows nobody where its functions are, as with kernel.kptr_restrict=2, which is a setting of the whole machine.
#[test]
fn addresses_of_functions() {
    let sandbox = Sandbox::with_limit("without_addresses", Duration::from_secs(170));
    let status = || {
        let report = sandbox.run(verb("check", ["--json"])).stdout;
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        let mut features = report["features"].as_array().unwrap().iter();
        features.find(|feature| feature["name"] == "kallsyms").unwrap()["status"].clone()
    };
    assert_eq!(status(), "ok");
    sandbox.run("sed 's/^[0-9a-f]*/0000000000000000/' /proc/kallsyms > hidden").success();
    sandbox.run("mount --bind hidden /proc/kallsyms").success();
    assert_eq!(status(), "fallback");
    let program = victim_cmd("signals").args(["150", "3000"]);
    goes_on(&sandbox, "addresses", ckptbpf(), &program, &[HIDDEN, UNTOLD]);
    sandbox.run("umount /proc/kallsyms").success();
}

/// A kernel that says nothing of its types has no place for any of them.
#[test]
fn all_of_them() {
    let sandbox = Sandbox::with_limit("without_types", Duration::from_secs(170));
    sandbox.run("mount --bind /dev/null /sys/kernel/btf/vmlinux").success();
    assert_eq!(usable(&sandbox, &ckptbpf()), BTreeSet::new());
    let program = victim_cmd("taskstate").args(["controls", "150", "3000"]);
    goes_on(&sandbox, "types", ckptbpf(), &program, &[INJECTED]);
    sandbox.run("umount /sys/kernel/btf/vmlinux").success();
}
