//! Shared memory of an ordinary user's program, without root and without anybody who is: it is read through its mappings.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::panic::catch_unwind;
use std::time::Duration;

use ckpt_tests::scenario::{Survival, Tool, ckptbpf, held, let_go, python_loop, survive};
use ckpt_tests::{Cmd, Expected, Job, Mode, Sandbox, assert_same, skip, victim_cmd};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

fn survives(name: &str, program: Cmd) {
    survive(&Survival { by_user: true, ..Survival::of(&format!("alone_{name}"), program) });
}

fn python(script: &str) -> Cmd {
    Cmd::new("/usr/bin/python3").args(["-c", script])
}

#[test]
fn a_tree_with_shared_memory_alone() {
    survives("forktree", victim_cmd("forktree").args(["80", "50000"]));
}

/// Holes, dropped pages, memory that is mapped half by one process and half by the other, in two places, or may not be read.
#[test]
fn memory_shared_in_parts_alone() {
    survives("sharing", victim_cmd("sharing").args(["700", "3000"]));
}

#[test]
fn every_kind_of_mapping_alone() {
    survives("maps", victim_cmd("maps").args([".", "1000", "3000"]));
}

/// What a restart does not see would be zeros.
#[test]
fn planted_bugs_of_shared_memory_alone_are_found() {
    if std::env::var_os("CKPTBPF_PLANTED").is_none() {
        let why = "needs ckptbpf built once more: cargo xtask soak";
        return skip::skip("planted_bugs_of_shared_memory_alone_are_found", why);
    }
    let run = |bug: &str| {
        let tool = Tool {
            binary: ckptbpf().with_file_name("ckptbpf-planted"),
            environment: vec![("CKPTBPF_PLANT".to_owned(), bug.to_owned())],
            ..Tool::default()
        };
        let program = victim_cmd("sharing").args(["1000", "3000"]);
        let name = format!("planted-alone-{bug}");
        survive(&Survival { rounds: 2, by_user: true, tool, ..Survival::of(&name, program) });
    };
    run("none");
    assert!(catch_unwind(|| run("lost-shared")).is_err(), "lost-shared is not found");
}

/// A file that was removed, as multiprocessing of Python has it, and memory of memfd_create(2), both mapped and open; in the second
/// process the latter is mapped alone.
#[test]
fn what_is_mapped_and_open_alone() {
    let begin = "
import mmap, os, tempfile, zlib
from multiprocessing.heap import Arena
arena = Arena(16 * 4096)
array = arena.buffer
fd = os.memfd_create('memory')
os.truncate(fd, 16 * 4096)
memory = mmap.mmap(fd, 16 * 4096)
to_child, of_child = os.pipe(), os.pipe()
if not os.fork():
    for name in os.listdir('/proc/self/fd'):
        link = f'/proc/self/fd/{name}'
        if os.path.islink(link) and os.readlink(link).startswith('/memfd:'):
            os.close(int(name))
    os.close(to_child[1])
    while byte := os.read(to_child[0], 1):
        array[byte[0] * 101 % len(array)] = byte[0]
        memory[byte[0] * 103 % len(memory)] = byte[0]
        os.write(of_child[1], byte)
    os._exit(0)
";
    let step = "
array[i * 4099 % len(array)] = i % 256
memory[i * 4097 % len(memory)] = i % 251
os.write(to_child[1], bytes([i % 256]))
assert os.read(of_child[0], 1)[0] == i % 256
print(i, zlib.crc32(array[:]), zlib.crc32(memory[:]), flush=True)";
    survives("open", python(&format!("{begin}{}", python_loop(800, 0.004, step))));
}

/// Semaphores and locks as Python's multiprocessing has them, mapped under names that are gone; and one that has another name.
#[test]
fn semaphores_alone() {
    let begin = "
import ctypes, multiprocessing, os
context = multiprocessing.get_context('fork')
lock, total = context.Lock(), context.Value('Q', 0)
asked, told = context.SimpleQueue(), context.Queue()
libc = ctypes.CDLL(None)
libc.sem_open.restype = ctypes.c_void_p
libc.sem_wait.argtypes = libc.sem_post.argtypes = [ctypes.c_void_p]
named = libc.sem_open(b'/ckptbpf-alone', os.O_CREAT, 0o600, 1)
def work():
    while (number := asked.get()) is not None:
        with lock:
            total.value = total.value * 31 + number & 0xffffffff
        libc.sem_post(named)
        told.put(total.value)
child = context.Process(target=work)
child.start()
";
    let step = "
libc.sem_wait(named)
with lock:
    total.value += i
asked.put(i)
print(i, told.get(), flush=True)";
    let end = "asked.put(None)\nchild.join()\nlibc.sem_unlink(b'/ckptbpf-alone')\n";
    survives("semaphores", python(&format!("{begin}{}{end}", python_loop(700, 0.004, step))));
}

/// Nothing leads to it but its mappings, one of which is of its second half, and one cannot be written.
#[test]
fn memory_of_memfd_without_a_descriptor_alone() {
    let begin = "
import mmap, os, zlib
fd = os.memfd_create('a memory')
os.truncate(fd, 16 * 4096)
memory = mmap.mmap(fd, 16 * 4096)
half = mmap.mmap(fd, 8 * 4096, offset=8 * 4096)
seen = mmap.mmap(os.open(f'/proc/self/fd/{fd}', os.O_RDONLY), 16 * 4096, access=mmap.ACCESS_READ)
for name in os.listdir('/proc/self/fd'):
    link = f'/proc/self/fd/{name}'
    if os.path.islink(link) and os.readlink(link).startswith('/memfd:'):
        os.close(int(name))
";
    let step = "
memory[i * 4099 % len(memory)] = i % 256
half[i % len(half)] = i % 251
assert seen[:] == memory[:]
print(i, zlib.crc32(memory[:]), zlib.crc32(half[:]), flush=True)
assert any('/memfd:a memory (deleted)' in line for line in open('/proc/self/maps'))";
    survives("memfd", python(&format!("{begin}{}", python_loop(800, 0.004, step))));
}

/// A checkpoint after the first one holds the pages that have changed, after a restart too, and looking fills no hole.
#[test]
fn deltas_of_shared_memory_alone() {
    let begin = "
import mmap, os, random, zlib
random.seed(1)
memory = mmap.mmap(-1, 16 << 20)
memory[:] = random.randbytes(len(memory))
reserved = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x4000)
reserved[-1] = 1
";
    let step = "
memory[i * 4099 % len(memory)] = i % 256
reserved[i % 8 << 27] = i % 256
kilobytes = [int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('RssShmem')][0]
assert kilobytes < 32 << 10, kilobytes
print(i, '' if i % 20 else zlib.crc32(memory[:]), flush=True)";
    let program = python(&format!("{begin}{}", python_loop(600, 0.004, step)));
    let sandbox = Sandbox::new("alone_deltas");
    let expected = Expected::of(&sandbox, &program, None);
    let tool = Tool::of_user(&sandbox);
    let images = tool.user.clone().unwrap().home().join("images");
    let mut job = Job::launch_by(&sandbox, tool, images, &[], &held(&sandbox, program));
    job.running().wait_for_output("\n20 ", SOON);
    let full = job.checkpoint();
    let small = |job: &Job| {
        let delta = job.checkpoint();
        assert_eq!(delta.kind, "delta");
        assert!(delta.pages + 3000 < full.pages, "{} pages of {}", delta.pages, full.pages);
    };
    for _ in 0..2 {
        small(&job);
        job.kill_all();
        job.restart(Mode::Eager, &[]);
        small(&job);
    }
    let_go(&sandbox);
    job.wait(SOON).success();
    assert_same("standard output", &expected.stdout, &job.stdout());
}

/// One that is killed while it looks leaves a second mapping of the last page and of the one behind it, which there is not.
#[test]
fn what_a_look_leaves_that_was_killed_is_in_nobody_s_way_alone() {
    let begin = "
import ctypes, mmap, zlib
libc = ctypes.CDLL(None)
libc.mremap.restype = ctypes.c_long
libc.mremap.argtypes = [ctypes.c_long] * 4
memory = mmap.mmap(-1, 8 * 4096)
at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
left = libc.mremap(at + 7 * 4096, 0, 2 * 4096, 1)
assert left != -1
";
    let step = "
memory[i * 4099 % len(memory)] = i % 256
print(i, zlib.crc32(memory[:]), zlib.crc32(ctypes.string_at(left, 4096)), flush=True)";
    survives("left", python(&format!("{begin}{}", python_loop(700, 0.004, step))));
}

/// What no process of the program has mapped can be mapped again, and nobody but root can read it before.
#[test]
fn memory_that_is_not_mapped_as_a_whole_is_refused_alone() {
    const GONE: &str = "libc.munmap(at, 8 * 4096)";
    for (name, call, end, words) in [
        ("end", "libc.munmap(at + 6 * 4096, 2 * 4096)", GONE, "there is more of it than any process"),
        ("beginning", "libc.munmap(at, 4096)", GONE, "page 0 of it is mapped by no process"),
        ("middle", "libc.munmap(at + 3 * 4096, 4096)", GONE, "page 3 of it is mapped by no process"),
        (
            "beyond",
            "libc.mremap(at, 8 * 4096, 9 * 4096, 1)",
            "libc.munmap(now, 9 * 4096)",
            "it is mapped beyond its end",
        ),
    ] {
        let script = format!(
            "import ctypes, signal\n\
             libc = ctypes.CDLL(None)\n\
             libc.mmap.restype = libc.mremap.restype = ctypes.c_long\n\
             libc.mmap.argtypes = [ctypes.c_long] * 6\n\
             libc.mremap.argtypes = [ctypes.c_long] * 4\n\
             libc.munmap.argtypes = [ctypes.c_long] * 2\n\
             signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n\
             at = libc.mmap(0, 8 * 4096, 3, 0x21, -1, 0)\n\
             ctypes.memset(at, 7, 8 * 4096)\n\
             now = {call}\n\
             assert now != -1\n\
             print('there', flush=True)\n\
             signal.sigwait([signal.SIGUSR1])\n\
             {end}\n\
             print('gone', flush=True)\n\
             signal.sigwait([signal.SIGUSR1])\n"
        );
        let sandbox = Sandbox::new(&format!("alone_not_whole_{name}"));
        let tool = Tool::of_user(&sandbox);
        let images = tool.user.clone().unwrap().home().join("images");
        let mut job = Job::launch_by(&sandbox, tool, images, &[], &python(&script));
        job.running().wait_for_output("there", SOON);
        job.program();
        for _ in 0..2 {
            let said = job.try_checkpoint().expect_code(125).stderr_text();
            assert!(
                said.contains("has shared memory without a name at ") && said.contains(words),
                "{name}: {said}"
            );
        }
        job.signal(Signal::SIGUSR1);
        job.running().wait_for_output("gone", SOON);
        job.checkpoint();
        job.kill_all();
        job.restart(Mode::Eager, &[]);
        job.signal(Signal::SIGUSR1);
        job.wait(SOON).success();
    }
}
