//! Both sources of what a stopped program is, BPF iterators and the system calls that need none, give the same image.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use ckptbpf::capture::capture;
use ckptbpf::freeze::freeze;
use ckptbpf::memory::vma;
use ckptbpf::object::known_ends::Known;
use ckptbpf::record::Image;
use ckptbpf::sys::bpf;
use ckptbpf::task::iterators::{Hidden, Kernel};
use nix::unistd::Pid;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A tree is the program and whatever else this process has started: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Handlers, an ignored signal, a pending one, an alternate stack, a timer, settings by prctl(2), and four threads.
const PROGRAM: &str = "
import ctypes, faulthandler, os, signal, threading, time
os.closerange(3, 1024)
prctl = ctypes.CDLL(None).prctl
prctl(1, signal.SIGURG) # PR_SET_PDEATHSIG
prctl(28, 2) # PR_SET_SECUREBITS
prctl(36, 1) # PR_SET_CHILD_SUBREAPER
prctl(4, 0) # PR_SET_DUMPABLE
faulthandler.enable()
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN + 1])
os.kill(os.getpid(), signal.SIGRTMIN + 1)
signal.setitimer(signal.ITIMER_REAL, 1000, 7)
signal.setitimer(signal.ITIMER_PROF, 2000)
for _ in range(4):
    threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
print('ready', flush=True)
time.sleep(1000)
";

/// Times are never the same twice: what remains of them is whether there are any.
fn without_times(mut image: Image) -> Image {
    image.clocks = None;
    image.processes.iter_mut().for_each(|process| process.cpu_time = 0);
    for timer in image.processes.iter_mut().flat_map(|p| &mut p.timers) {
        timer.left = timer.left.min(1);
    }
    image
}

/// Mappings by mmap(2), mprotect(2), madvise(2); what `ordinary` makes every kernel takes and a restart makes again.
const MAPPINGS: &str = "
import ctypes, fcntl, os, struct, sys, tempfile
os.closerange(3, 1024)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mlock2.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
libc.syscall.argtypes = [ctypes.c_long] * 4
PRIVATE, SHARED, DROPPABLE, ANONYMOUS, GROWSDOWN, LOCKED, NORESERVE, HUGETLB = 2, 1, 8, 32, 256, 8192, 16384, 262144
NONE, READ, WRITE, EXEC = 0, 1, 2, 4

def pages(flags, protection=READ | WRITE, fd=-1, bytes=16384):
    flags |= ANONYMOUS if fd < 0 else 0
    place = libc.mmap(None, bytes, protection, flags, fd, 0)
    assert place != 2**64 - 1, os.strerror(ctypes.get_errno())
    return place

def advised(*advice):
    place = pages(PRIVATE)
    for one in advice:
        assert libc.madvise(place, 16384, one) == 0, one
    return place

file = tempfile.TemporaryFile()
path = tempfile.mkdtemp() + '/file'
named = open(path, 'wb+')
named.write(bytes(65536))
named.flush()

def ordinary():
    for flags in PRIVATE, SHARED, PRIVATE | NORESERVE, PRIVATE | GROWSDOWN, PRIVATE | LOCKED:
        for protection in NONE, READ, READ | WRITE, READ | EXEC, READ | WRITE | EXEC:
            pages(flags, protection)
    for fd_flags in PRIVATE, SHARED, PRIVATE | NORESERVE:
        pages(fd_flags, READ | WRITE, named.fileno())
        pages(fd_flags, READ, named.fileno())
    for advice in 1, 2, 10, 12, 14, 15, 16, 18:
        advised(advice)
    advised(1, 10, 16, 18, 12)
";

fn python(program: &str) -> Child {
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", program])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn smaps(pid: Pid) -> Vec<vma::Raw> {
    let mut raws = vma::parse(&std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap()).unwrap();
    raws.retain(|raw| raw.name != "[vsyscall]");
    raws
}

/// smaps does not show any.
fn without_policies(mappings: &[vma::Raw]) -> Vec<vma::Raw> {
    mappings.iter().map(|raw| vma::Raw { policy: None, ..raw.clone() }).collect()
}

#[test]
fn flags_of_mappings_are_those_of_smaps_and_smaps_is_not_read() {
    let _alone = alone();
    let child =
        python(&format!("{MAPPINGS}\nordinary()\nprint('ready', flush=True)\nos.read(os.pipe()[0], 1)"));
    let pid = Pid::from_raw(child.id() as i32);
    let kernel = Kernel::default();
    kernel.load(bpf::Options::default());
    let tree = freeze(pid, &kernel).unwrap();
    let hidden = kernel.read(&[pid]);
    let shown = smaps(pid);
    tree.thaw();
    end(child);
    assert_eq!(hidden.unnamed, 0);
    assert_eq!(without_policies(&hidden.mappings[&pid]), shown);
    let mut flags: Vec<&str> = shown.iter().flat_map(|raw| &raw.flags).map(String::as_str).collect();
    flags.sort_unstable();
    flags.dedup();
    for wanted in ["gd", "nr", "lo", "ac", "dc", "dd", "hg", "nh", "mg", "wf", "sr", "rr", "ms", "io"] {
        assert!(flags.contains(&wanted), "{wanted} of {flags:?}");
    }
}

/// What this kernel has of: huge pages, sealed and droppable memory, memory locked when it is touched, a guard page,
/// and userfaultfd in each of its modes.
const RARE: &str = "
made = []
def rare(name, make):
    try:
        make()
        made.append(name)
    except (AssertionError, OSError) as error:
        print(name, error, file=sys.stderr)

def sealed():
    assert libc.syscall(462, pages(PRIVATE), 16384, 0) == 0

def on_fault():
    assert libc.mlock2(pages(PRIVATE), 16384, 1) == 0

def watched(mode, features, flags):
    fd = libc.syscall(323, 1, 0, 0)
    assert fd >= 0
    fcntl.ioctl(fd, 0xc018aa3f, struct.pack('3Q', 0xaa, features, 0))
    fcntl.ioctl(fd, 0xc020aa00, bytearray(struct.pack('4Q', pages(flags), 16384, mode, 0)))

rare('hugetlb', lambda: pages(PRIVATE | HUGETLB | NORESERVE, bytes=2 << 20))
rare('sealed', sealed)
rare('droppable', lambda: pages(DROPPABLE))
rare('locked on fault', on_fault)
rare('guard', lambda: advised(102))
rare('missing', lambda: watched(1, 0, PRIVATE))
rare('protected', lambda: watched(2, 1 << 15, PRIVATE))
rare('both', lambda: watched(3, 1 << 15, PRIVATE))
rare('minor', lambda: watched(4, 1 << 10, SHARED))
";

#[test]
fn a_flag_met_for_the_first_time_is_learnt_from_smaps_once() {
    let _alone = alone();
    let program =
        format!("{MAPPINGS}{RARE}\nassert made\nprint('ready', flush=True)\nos.read(os.pipe()[0], 1)");
    let child = python(&program);
    let pid = Pid::from_raw(child.id() as i32);
    let kernel = Kernel::default();
    kernel.load(bpf::Options::default());
    let mut tree = freeze(pid, &kernel).unwrap();
    let (first, second) = (kernel.read(&[pid]), kernel.read(&[pid]));
    let shown = smaps(pid);
    let by_iterators =
        capture(&mut tree, pid, &second, false, Some(&mut Known::default())).err().map(|e| e.to_string());
    let by_smaps = capture(&mut tree, pid, &Hidden::default(), false, Some(&mut Known::default()))
        .err()
        .map(|e| e.to_string());
    tree.thaw();
    end(child);
    assert_eq!((first.unnamed, second.unnamed), (1, 0));
    assert_eq!(without_policies(&first.mappings[&pid]), shown);
    assert_eq!(without_policies(&second.mappings[&pid]), shown);
    assert!(by_smaps.is_some() && by_iterators == by_smaps, "{by_iterators:?} {by_smaps:?}");
}

/// Descriptors in two processes: shared by dup and by fork, and alike without being shared.
const DESCRIPTORS: &str = "
first = open(path, 'rb')
again = open(path, 'rb')
os.dup2(first.fileno(), 100)
os.dup2(again.fileno(), 5, inheritable=False)
ends = os.pipe()
event = os.eventfd(7)
import select
poll = select.epoll()
poll.register(ends[0], select.EPOLLIN)
poll.register(event, select.EPOLLIN)
os.set_blocking(ends[1], False)
shut = os.open('/', os.O_RDONLY | os.O_DIRECTORY)
file.close()
wait = os.pipe()
if os.fork() == 0:
    first.seek(10)
    mine = open(path, 'rb')
    mine.seek(10)
    os.dup2(mine.fileno(), 200)
    os.close(event)
    print('ready', flush=True)
os.read(wait[0], 1)
";

#[test]
fn descriptors_shared_and_alike_are_told_apart_both_ways() {
    let _alone = alone();
    let child = python(&format!("{MAPPINGS}\nordinary()\n{DESCRIPTORS}"));
    let pid = Pid::from_raw(child.id() as i32);
    let kernel = Kernel::default();
    kernel.load(bpf::Options::default());
    let mut tree = freeze(pid, &kernel).unwrap();
    let pids: Vec<Pid> = tree.processes.iter().map(|p| p.pid).collect();
    let hidden = kernel.read(&pids);
    let by_iterators = capture(&mut tree, pid, &hidden, false, Some(&mut Known::default()));
    let by_looking = capture(&mut tree, pid, &Hidden::default(), false, Some(&mut Known::default()));
    tree.kill();
    end(child);
    let (by_iterators, by_looking) = (by_iterators.unwrap().image, by_looking.unwrap().image);
    assert_eq!(hidden.descriptors.keys().len(), 2);
    let of = |process: usize, number: u32| {
        let table = &by_looking.processes[process].descriptors;
        table.iter().find(|d| d.number == number).map(|d| (d.description, d.close_on_exec))
    };
    assert!(of(0, 100).is_some() && of(0, 100) == of(1, 100));
    assert!(of(1, 200).is_some_and(|mine| Some(mine.0) != of(1, 100).map(|shared| shared.0)));
    assert!(of(0, 5).is_some_and(|five| five.1));
    assert_eq!(without_times(by_iterators), without_times(by_looking));
}

#[test]
fn iterators_and_injected_calls_find_the_same() {
    let _alone = alone();
    let child = python(PROGRAM);
    let pid = Pid::from_raw(child.id() as i32);
    let kernel = Kernel::default();
    kernel.load(bpf::Options::default());
    let mut tree = freeze(pid, &kernel).unwrap();
    let hidden = kernel.read(&[pid]);
    let by_iterators = capture(&mut tree, pid, &hidden, false, Some(&mut Known::default())).unwrap();
    let by_injection =
        capture(&mut tree, pid, &Hidden::default(), false, Some(&mut Known::default())).unwrap();
    tree.thaw();
    end(child);
    assert_eq!(by_iterators.injected, 0);
    assert!(by_injection.injected > 60, "{}", by_injection.injected);
    let process = &by_iterators.image.processes[0];
    assert_eq!((process.threads.len(), process.timers.len()), (5, 3));
    assert!(
        process.actions.len() >= 2
            && process.pending.len() + process.threads[0].signals.as_ref().unwrap().pending.len() == 1
    );
    assert!(process.threads.iter().any(|t| t.signals.as_ref().is_some_and(|s| s.altstack_size > 0)));
    assert!(process.threads.iter().all(|t| t.clear_child_tid != 0 && t.robust_list != 0));
    assert_eq!(without_times(by_iterators.image), without_times(by_injection.image));
}
