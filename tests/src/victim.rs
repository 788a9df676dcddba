//! The programs that are checkpointed, compiled from `tests/victims` once a build.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};

use crate::Cmd;

/// A shell and what it calls, all in one program.
pub const BUSYBOX: &str = "/bin/busybox";

const STATIC: &[&str] = &["-static"];
const RUST: &[&str] = &["-O", "--edition", "2024", "-C", "target-feature=+crt-static"];
const THREADS: &[&str] = &["-pthread"];
/// Needs no C library of that kind.
const BARE_32_BIT: &[&str] =
    &["-m32", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector"];

/// Name, source, and the flags besides the common ones.
const TABLE: &[(&str, &str, &[&str])] = &[
    ("count", "count.c", &[]),
    ("count_static", "count.c", STATIC),
    ("count_rust", "count.rs", RUST),
    ("memory", "memory.c", &[]),
    ("bench", "bench.c", THREADS),
    ("fpu", "fpu.c", &[]),
    ("threads16", "threads16.c", THREADS),
    ("openmp", "openmp.c", &["-fopenmp"]),
    ("signals", "signals.c", THREADS),
    ("sleeps", "sleeps.c", THREADS),
    ("clocks", "clocks.c", &[]),
    ("suspended", "suspended.c", THREADS),
    ("forktree", "forktree.c", &[]),
    ("sharing", "sharing.c", &[]),
    ("family", "family.c", &[]),
    ("vfork", "vfork.c", &[]),
    ("herd", "herd.c", THREADS),
    ("fds", "fds.c", &[]),
    ("many", "many.c", &[]),
    ("unnamed", "unnamed.c", &[]),
    ("replaced", "replaced.c", &[]),
    ("channels", "channels.c", &[]),
    ("connections", "connections.c", &[]),
    ("endpoints", "endpoints.c", &[]),
    ("locks", "locks.c", &[]),
    ("handles", "handles.c", THREADS),
    ("settings", "settings.c", THREADS),
    ("rseq", "rseq.c", THREADS),
    ("invisible", "invisible.c", THREADS),
    ("seccomp", "seccomp.c", THREADS),
    ("execs", "execs.c", THREADS),
    ("unheard", "unheard.c", &[]),
    ("leftover", "leftover.c", &[]),
    ("travel", "travel.c", &[]),
    ("thirtytwo", "thirtytwo.c", BARE_32_BIT),
    ("mixed", "mixed.c", THREADS),
    ("leaderless", "leaderless.c", THREADS),
    ("taskstate", "taskstate.c", THREADS),
    ("maps", "maps.c", &[]),
    ("kept", "kept.c", &[]),
    ("lazymem", "lazymem.c", &[]),
    ("lazyops", "lazyops.c", THREADS),
    ("lookedat", "lookedat.c", &[]),
    ("forkwipe", "forkwipe.c", THREADS),
    ("dirty", "dirty.c", THREADS),
    ("inflight", "inflight.c", THREADS),
    ("memkinds", "memkinds.c", &[]),
    ("randops", "randops.c", THREADS),
    ("features", "features.c", &[]),
    ("handler", "handler.c", &[]),
    ("onewait", "onewait.c", &[]),
];

const COMMON: &[&str] =
    &["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer"];

/// The path of a victim: a script as it stands, a C program compiled if its source is newer than its binary.
///
/// Several tests may ask at once: one compiles, under a lock, and the others find a whole file under its name.
pub fn victim(name: &str) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("victims");
    let script = sources.join(name);
    if script.is_file() {
        return script;
    }
    let (_, source, flags) =
        TABLE.iter().find(|row| row.0 == name).unwrap_or_else(|| panic!("no victim is called {name}"));
    let folder = folder();
    let (source, binary) = (sources.join(source), folder.join(name));
    if is_fresh(&sources, &source, &binary) {
        return binary;
    }
    std::fs::create_dir_all(&folder).expect("a folder for the victims");
    let lock = File::create(folder.join(format!(".{name}.lock"))).expect("the lock file of a victim");
    let _held =
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("the lock of a victim");
    if !is_fresh(&sources, &source, &binary) {
        compile(&source, flags, &binary);
    }
    binary
}

/// All programs of the table, compiled.
pub fn all() -> impl Iterator<Item = PathBuf> {
    TABLE.iter().map(|row| victim(row.0))
}

/// The command that runs a victim: scripts by Debian's own interpreters, whatever PATH finds first.
pub fn victim_cmd(name: &str) -> Cmd {
    let path = victim(name);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("py") => Cmd::new("/usr/bin/python3").arg(path),
        Some("sh") => Cmd::new("/bin/bash").arg(path),
        Some("ash") => Cmd::new(BUSYBOX).arg("sh").arg(path),
        _ => Cmd::new(path),
    }
}

/// Beside the build's own output, wherever that is.
fn folder() -> PathBuf {
    let me = std::env::current_exe().expect("the path of the test program");
    me.ancestors().nth(3).expect("target/release/deps/test").join("victims")
}

/// Whether a file is one of them, or a script.
pub fn is_one(path: &Path) -> bool {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("victims");
    [sources, folder()].iter().any(|folder| path.parent() == Some(folder))
}

/// Newer than its source, than every header beside it, and than the table of flags above.
fn is_fresh(sources: &Path, source: &Path, binary: &Path) -> bool {
    let changed = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    let Some(built) = changed(binary) else { return false };
    let entries = std::fs::read_dir(sources).expect("the folder of the victims").flatten();
    let headers = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "h"));
    let others = [source.to_owned(), sources.join("../src/victim.rs")];
    headers.chain(others).all(|path| changed(&path).is_some_and(|time| time < built))
}

fn compile(source: &Path, flags: &[&str], binary: &Path) {
    let unfinished = binary.with_extension("new");
    let (compiler, common) = if source.extension().is_some_and(|kind| kind == "rs") {
        ("rustc", &[][..])
    } else {
        ("gcc", COMMON)
    };
    let output = Command::new(compiler)
        .args(common)
        .arg(source)
        .args(flags)
        .arg("-o")
        .arg(&unfinished)
        .output()
        .unwrap_or_else(|error| {
            panic!("{compiler}: {error}; `cargo xtask setup` installs gcc, rustup rustc")
        });
    assert!(
        output.status.success(),
        "{compiler} {}:\n{}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::rename(&unfinished, binary).expect("the victim's name");
}
