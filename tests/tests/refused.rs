//! What cannot be saved is refused by name: the checkpoint fails and leaves no file, the program goes on, and where the
//! program can let go of the thing, the next checkpoint succeeds.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::verb;
use ckpt_tests::{Cmd, Job, Sandbox, skip};

const SOON: Duration = Duration::from_secs(30);

/// What a kernel or a container without the thing answers, by errno: the test is then skipped by name.
const PROGRAM: &str = r#"
import ctypes, errno, fcntl, gc, mmap, os, select, signal, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.shmat.restype = ctypes.c_void_p

def must(got):
    if got in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got

def offered(got):
    if got == -1 and ctypes.get_errno() in (errno.EINVAL, errno.ENODEV):
        raise OSError(errno.EOPNOTSUPP, 'neither kernel nor processor offer it')
    return must(got)

def mapping(protection, flags, fd=-1, offset=0):
    return must(libc.mmap(None, ctypes.c_long(2 << 20), protection, flags, fd, ctypes.c_long(offset)))

def unmap(at):
    must(libc.munmap(ctypes.c_void_p(at), ctypes.c_long(2 << 20)))

def filter_calls(*instructions):
    code = (ctypes.c_uint64 * len(instructions))(*instructions)
    program = (ctypes.c_uint64 * 2)(len(instructions), ctypes.addressof(code))
    must(libc.prctl(38, 1, 0, 0, 0))
    must(libc.prctl(22, 2, program, 0, 0))

def in_a_thread(act):
    done = threading.Event()
    def body():
        act()
        done.set()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        signal.sigwait([signal.SIGUSR1])
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    done.wait()
    return thread

def end(thread):
    signal.pthread_kill(thread.ident, signal.SIGUSR1)
    thread.join()

child = []
def fork_told():
    child.append(os.fork())
    if not child[0]:
        must(libc.prctl(1, 10, 0, 0, 0))
        os.write(told[1], b'x')
        signal.pause()
        os._exit(0)
    os.read(told[0], 1)
told = os.pipe()

def undo():
    UNDO
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
try:
    MAKE
    print('made', flush=True)
except OSError as error:
    if error.errno not in (errno.ENOSYS, errno.EPERM, errno.ENOENT, errno.EOPNOTSUPP):
        raise
    print('cannot:', error, flush=True)
i = 0
while True:
    i += 1
    print('step', i, flush=True)
    if signal.sigtimedwait([signal.SIGUSR2], 0.01):
        undo()
        print('undone', flush=True)
"#;

/// `make` makes what is refused, of the program's first process, in words that hold all of `reasons`; `undo` lets go of it, where
/// it can be.
fn refused(name: &str, make: &str, undo: &str, reasons: &[&str]) {
    refused_of(name, make, undo, reasons, true);
}

/// The same, of its first process or of another one.
fn refused_of(name: &str, make: &str, undo: &str, reasons: &[&str], is_first: bool) {
    let sandbox = Sandbox::new(name);
    let script = PROGRAM
        .replace("UNDO", if undo.is_empty() { "pass" } else { undo })
        .replace("    MAKE", &format!("    {}", make.replace('\n', "\n    ")))
        .replace("[signal.SIGUSR1])\ntry", "[signal.SIGUSR1, signal.SIGUSR2])\ntry");
    let mut job = Job::launch(&sandbox, &[], &Cmd::new("/usr/bin/python3").args(["-c", &script]));
    job.running().wait_for_output("step 2\n", SOON);
    let printed = String::from_utf8_lossy(&job.running().stdout()).into_owned();
    if let Some(why) = printed.lines().find_map(|line| line.strip_prefix("cannot: ")) {
        skip::skip(name, why);
        job.kill_all();
        return;
    }
    let said = sandbox.run(verb("checkpoint", [job.dir()])).expect_code(125).stderr_text();
    let process = format!("process {} (", job.program());
    for word in reasons {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert_eq!(said.contains(&process), is_first, "{said}");
    assert!(job.checkpoints().is_empty(), "something was written");
    // Nor is a file made that goes again: its directory would show that.
    let changed = || std::fs::metadata(job.dir()).unwrap().modified().unwrap();
    let before = changed();
    sandbox.run(verb("checkpoint", [job.dir()])).expect_code(125);
    assert_eq!(changed(), before, "a file was made for a checkpoint that is refused");
    let now = job.running().stdout().len();
    sandbox.wait_for("the program to go on", SOON, || job.running().stdout().len() > now);
    if !undo.is_empty() {
        job.signal(nix::sys::signal::Signal::SIGUSR2);
        job.running().wait_for_output("undone\n", SOON);
        assert_eq!(job.checkpoint().id, 1);
    }
    job.kill_all();
}

/// A child that has its own namespaces from its beginning; whoever made it has none for children.
const CHILD: &str = "def child_with(flags):
    child.append(must(libc.syscall(56, ctypes.c_ulong(flags | signal.SIGCHLD), 0, 0, 0, 0)))
    if not child[0]:
        while True: signal.pause()
";

#[test]
fn a_child_in_a_pid_namespace_of_its_own() {
    let make = format!("{CHILD}child_with(0x20000000)");
    let undo = "os.kill(child[0], 9), os.wait()";
    refused_of("child_pid_namespace", &make, undo, &["is in a pid namespace of its own"], false);
}

/// A file system of one file, whose attributes are asked for each time; by the kernel's protocol, version 7.19 (linux/fuse.h).
const FUSE: &str = "import stat, struct
os.mkdir('mnt')
device = os.open('/dev/fuse', os.O_RDWR)
must(libc.mount(b'fuse', b'mnt', b'fuse', 0, f'fd={device},rootmode=40000,user_id=0,group_id=0'.encode()))
def attributes(node):
    mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o644
    return struct.pack('6Q10I', node, 5, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
def answer(code, node):
    if code == 26: return struct.pack('IIIIHHI', 7, 19, 0, 0, 0, 0, 4096)
    if code == 1: return struct.pack('4Q2I', 2, 0, 0, 0, 0, 0) + attributes(2)
    if code == 3: return struct.pack('QII', 0, 0, 0) + attributes(node)
    if code == 14: return bytes(16)
    return b'' if code in (18, 25) else None
def serve():
    while True:
        asked = os.read(device, 1 << 17)
        code, unique, node = struct.unpack_from('4xIQQ', asked)
        if code == 2: continue
        said = answer(code, node)
        error = -38 if said is None else 0
        os.write(device, struct.pack('IiQ', 16 + len(said or b''), error, unique) + (said or b''))
child.append(os.fork())
if not child[0]:
    must(libc.prctl(1, 9, 0, 0, 0))
    serve()
os.close(device)
keep = open('mnt/file')";

/// Whoever looked at the open file while the server stands still would wait without end.
#[test]
fn a_file_of_a_file_system_that_the_program_serves() {
    let undo = "keep.close(), os.kill(child[0], 9), os.waitpid(child[0], 0), must(libc.umount2(b'mnt', 2))";
    let make = format!("global keep\n{FUSE}");
    refused_of("served", &make, undo, &["/dev/fuse", "serves a file system"], false);
}

/// Nobody is left in its session who could make it there.
#[test]
fn an_adopted_process_of_a_session_without_its_leader() {
    let make = "must(libc.prctl(36, 1, 0, 0, 0))
between = os.fork()
if not between:
    os.setsid()
    if not os.fork():
        os.write(told[1], str(os.getpid()).encode())
        while True: signal.pause()
    os._exit(0)
os.waitpid(between, 0)
child.append(int(os.read(told[0], 20)))";
    let undo = "os.kill(child[0], 9), os.waitpid(child[0], 0)";
    refused_of("adopted_session", make, undo, &["cannot be made again"], false);
}

/// It has got others and executed a program, which moves it there.
#[test]
fn a_child_with_clocks_of_its_own() {
    let make = "import subprocess\nglobal keep\nsays = \"import ctypes, os; assert not ctypes.CDLL(None).unshare(0x80); \\\n\
         open('/proc/self/timens_offsets', 'w').write('monotonic 1000 0'); \\\n\
         os.execvp('sh', ['sh', '-c', 'echo ready; read line; exit'])\"\n\
         keep = subprocess.Popen(['/usr/bin/python3', '-c', says], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n\
         if not keep.stdout.readline(): raise OSError(errno.EOPNOTSUPP, 'no time namespaces')";
    let undo = "keep.kill(), keep.wait(), keep.stdin.close(), keep.stdout.close()";
    refused_of("child_clocks", make, undo, &["is in a time namespace of its own"], false);
}

/// One test a row: its name, what it makes, how it lets go of that, what the refusal says.
macro_rules! rows {
    ($($name:ident: $make:expr, $undo:expr, $reasons:expr;)*) => {$(
        #[test]
        fn $name() {
            refused(stringify!($name), $make, $undo, &$reasons);
        }
    )*};
}

rows! {
    a_file_of_proc_on_its_way: "global keep\nkeep = socket.socketpair(), open('/proc/self/stat')\nsocket.send_fds(keep[0][0], [b'x'], [keep[1].fileno()])",
        "keep[0][0].close(), keep[0][1].close()", ["descriptor ", "/stat is on its way in it"];
    an_epoll_on_its_way: "global keep\nkeep = socket.socketpair()\nwith select.epoll() as e: socket.send_fds(keep[0], [b'x'], [e.fileno()])",
        "keep[0].close(), keep[1].close()", ["descriptor ", "waits in a message", "it is open nowhere else"];
    a_message_of_a_process_that_is_gone: "global keep\nkeep = socket.socketpair()\nkeep[1].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)\nif not os.fork():\n    keep[0].send(b'x')\n    os._exit(0)\nos.wait()",
        "keep[0].close(), keep[1].close()", ["descriptor ", "a message of process", "not of the program"];
    an_empty_message: "global keep\nkeep = socket.socketpair(type=socket.SOCK_DGRAM)\nkeep[0].send(b'')",
        "keep[0].close(), keep[1].close()", ["descriptor ", "an empty message waits in it"];
    an_empty_message_behind_another: "global keep\nkeep = socket.socketpair(type=socket.SOCK_SEQPACKET)\nkeep[0].send(b'abc'), keep[0].send(b''), keep[0].send(b'd')",
        "(keep[1].recv(9), keep[1].recv(9), keep[1].recv(9)) == (b'abc', b'', b'd') or os._exit(9)", ["descriptor ", "an empty message waits in it"];
    an_empty_message_before_the_end: "global keep\nkeep = socket.socketpair(type=socket.SOCK_SEQPACKET)\nkeep[0].send(b''), keep[0].send(b'x'), keep[0].close()",
        "(keep[1].recv(9), keep[1].recv(9)) == (b'', b'x') or os._exit(9), keep[1].close()", ["descriptor ", "an empty message waits in it"];
    packets_beside_bytes: "global keep\nkeep = os.pipe()\nos.write(keep[1], b'ab')\nfcntl.fcntl(keep[1], fcntl.F_SETFL, os.O_DIRECT)\nos.write(keep[1], b'cd')",
        "os.close(keep[0]), os.close(keep[1])", ["descriptor ", "packets (O_DIRECT) beside other bytes"];
    a_packet_that_is_not_complete: "global keep\nkeep = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)\nkeep[0].bind(('127.0.0.1', 0)), keep[1].connect(keep[0].getsockname()), keep[1].send(b'x', socket.MSG_MORE)",
        "keep[1].send(b'y'), keep[0].recv(9) == b'xy' or os._exit(9)", ["descriptor ", "(MSG_MORE, UDP_CORK)"];
    a_directory_that_signals_its_changes: "global keep\nkeep = os.open('.', os.O_RDONLY)\nfcntl.fcntl(keep, fcntl.F_NOTIFY, fcntl.DN_CREATE | fcntl.DN_MULTISHOT)",
        "os.close(keep)", ["descriptor ", "(F_NOTIFY)"];
    a_connection_that_waits_to_be_accepted: "global keep\nkeep = [socket.create_server(('127.0.0.1', 0))]\nkeep.append(socket.create_connection(keep[0].getsockname()))",
        "keep.pop().close(), keep[0].accept()[0].close()", ["descriptor ", "1 connections wait to be accepted"];
    a_connection_that_is_being_made: "global keep\nkeep = [socket.create_server(('127.0.0.1', 0))]\nkeep[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)\nkeep.append(socket.create_connection(keep[0].getsockname()))",
        "keep[1].close(), keep[0].close()", ["descriptor ", "1 connections wait to be accepted"];
    a_unix_connection_that_waits_to_be_accepted: "global keep\nkeep = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)\nkeep[0].bind('name'), keep[0].listen(), keep[1].connect('name')",
        "keep[1].close(), keep[0].accept()[0].close()", ["descriptor ", "1 connections wait to be accepted"];
    a_tcp_connection_to_itself: "global keep\nkeep = socket.socket()\nkeep.bind(('127.0.0.1', 0)), keep.connect(keep.getsockname())",
        "keep.close()", ["descriptor ", "it is connected to itself"];
    a_tcp_connection_with_urgent_data: "global keep\nserver = socket.create_server(('127.0.0.1', 0))\nkeep = [socket.create_connection(server.getsockname())]\nkeep.append(server.accept()[0])\nserver.close()\nkeep[0].send(b'!', socket.MSG_OOB)",
        "keep[1].recv(1, socket.MSG_OOB)", ["descriptor ", "data out of band"];
    a_tcp_connection_that_was_reset: "global keep\nserver = socket.create_server(('127.0.0.1', 0))\nkeep = socket.create_connection(server.getsockname())\nother = server.accept()[0]\nother.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1]) + bytes(7))\nother.close(), server.close()\ntry: keep.recv(1)\nexcept ConnectionResetError: pass",
        "keep.close()", ["descriptor ", "its connection has ended"];
    packets_that_wait: "global keep\nkeep = socket.socket(type=socket.SOCK_DGRAM)\nkeep.bind(('127.0.0.1', 0)), keep.sendto(b'', keep.getsockname())",
        "keep.recv(1)", ["descriptor ", "packets wait in it"];
    messages_that_wait: "global keep\nkeep = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\nkeep.bind('name'), keep.sendto(b'', 'name')",
        "keep.recv(1)", ["descriptor ", "messages wait in it"];
    a_member_of_a_multicast_group: "global keep\nkeep = socket.socket(type=socket.SOCK_DGRAM)\nkeep.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('224.1.2.3') + socket.inet_aton('127.0.0.1'))",
        "keep.close()", ["descriptor ", "it has joined a multicast group"];
    a_member_of_a_multicast_group_of_ipv6: "global keep\nkeep = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\nkeep.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, 'ff02::1:7') + (1).to_bytes(4, 'little'))",
        "keep.close()", ["descriptor ", "it has joined a multicast group"];
    a_socket_with_a_filter: "global keep\nkeep = socket.create_server(('127.0.0.1', 0))\ncode = ctypes.c_uint64(0xffffffff00000006)\nkeep.setsockopt(socket.SOL_SOCKET, 26, bytes((ctypes.c_uint64 * 2)(1, ctypes.addressof(code))))",
        "keep.close()", ["descriptor ", "a filter (SO_ATTACH_FILTER)"];
    a_socket_whose_file_is_gone: "global keep\nkeep = socket.socket(socket.AF_UNIX)\nkeep.bind('name'), os.unlink('name')", "keep.close()",
        ["descriptor ", "its name in the file system has been removed"];
    a_listening_socket_on_its_way: "global keep\nkeep = socket.socketpair()\nwith socket.create_server(('127.0.0.1', 0)) as s: socket.send_fds(keep[0], [b'x'], [s.fileno()])",
        "keep[0].close(), keep[1].close()", ["descriptor ", "waits in a message", "it is open nowhere else"];
    a_netlink_socket: "global keep\nkeep = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "keep.close()",
        ["descriptor ", "sockets of family 16 (netlink) cannot be saved yet"];
    a_socket_of_another_protocol: "global keep\nkeep = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "keep.close()",
        ["descriptor ", "sockets of protocol 1 cannot be saved yet"];
    a_named_datagram_socket_that_is_connected: "global keep\nkeep = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]\nkeep[0].bind('\\0name'), keep[1].connect('\\0name')",
        "keep[0].close(), keep[1].close()", ["descriptor ", "it is connected, with an address"];
    a_segment_attached_in_part: "global keep\nid = must(libc.shmget(0, 8192, 0o1600))\nkeep = must(libc.shmat(id, None, 0))\nmust(libc.shmctl(id, 0, None))\nmust(libc.munmap(ctypes.c_void_p(keep), ctypes.c_long(4096)))",
        "must(libc.munmap(ctypes.c_void_p(keep + 4096), ctypes.c_long(4096)))", ["System V segment", "only in part"];
    bytes_behind_a_segment: "global keep\nid = must(libc.shmget(0, 8000, 0o1600))\nkeep = must(libc.shmat(id, None, 0))\nmust(libc.shmctl(id, 0, None))\nctypes.c_char.from_address(keep + 8100).value = b'x'",
        "ctypes.c_char.from_address(keep + 8100).value = b'\\0'", ["System V segment", "behind the end"];
    a_file_whose_other_name_is_not_known: "global keep\nos.mkdir('folder')\nkeep = open('folder/lost', 'w')\nos.link('folder/lost', 'other')\nos.unlink('folder/lost')",
        "keep.close()", ["descriptor ", "it has lost its name, and no other one"];
    a_removed_directory: "global keep\nos.mkdir('gone')\nkeep = os.open('gone', os.O_RDONLY)\nos.rmdir('gone')", "os.close(keep)",
        ["descriptor ", "the directory has been removed"];
    a_lease_that_somebody_waits_for: "global keep\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])\nkeep = open('leased', 'w')\nfcntl.fcntl(keep, fcntl.F_SETLEASE, fcntl.F_WRLCK)\ntry: os.open('leased', os.O_RDONLY | os.O_NONBLOCK)\nexcept BlockingIOError: pass", "keep.close()",
        ["descriptor ", "somebody waits for its lease"];
    a_write_lease_on_a_mapped_file: "global keep\nkeep = [open('f', 'w+b', 0)]\nkeep[0].write(bytes(4096))\nkeep.append(mmap.mmap(keep[0].fileno(), 4096))\nfcntl.fcntl(keep[0], fcntl.F_SETLEASE, fcntl.F_WRLCK)",
        "fcntl.fcntl(keep[0], fcntl.F_SETLEASE, fcntl.F_UNLCK)", ["has a write lease on", "/f, and it is mapped, too"];
    a_write_lease_on_a_file_without_a_name: "global keep\nkeep = open('f', 'w+b', 0)\nos.unlink('f')\nfcntl.fcntl(keep, fcntl.F_SETLEASE, fcntl.F_WRLCK)",
        "keep.close()", ["has a write lease on a file without a name"];
    an_owner_outside_who_is_signalled: "global keep\nkeep = os.pipe()\nfcntl.fcntl(keep[0], fcntl.F_SETOWN, 1)",
        "os.close(keep[0]), os.close(keep[1])", ["descriptor ", "it signals 1 (F_SETOWN)"];
    another_thread_that_is_signalled: "global keep\nids = []\nkeep = os.pipe(), in_a_thread(lambda: ids.append(threading.get_native_id()))\nfcntl.fcntl(keep[0][0], 15, bytes(4) + ids[0].to_bytes(4, 'little'))",
        "os.close(keep[0][0]), os.close(keep[0][1]), end(keep[1])", ["descriptor ", "(F_SETOWN)"];
    events_that_were_not_read: "global keep\nkeep = must(libc.inotify_init())\nmust(libc.inotify_add_watch(keep, b'.', 0x100))\nopen('new', 'w').close()", "os.close(keep)",
        ["descriptor ", "events wait in it"];
    a_pidfd: "global keep\nkeep = os.pidfd_open(1)", "os.close(keep)", ["descriptor ", "it names process 1 (pidfd), which is not of the program"];
    a_file_of_a_process: "global keep\nkeep = open('/proc/1/stat')", "keep.close()",
        ["descriptor ", "it is of process 1, which is not of the program"];
    a_watch_for_pressure: "global keep\nkeep = os.open('/proc/pressure/cpu', os.O_RDWR)\nos.write(keep, b'some 500000 2000000 ')", "os.close(keep)",
        ["descriptor ", "a watch for pressure (PSI)"];
    a_lock_on_a_file_of_proc: "global keep\nkeep = open('/proc/self/stat')\nfcntl.flock(keep, fcntl.LOCK_EX)", "keep.close()",
        ["descriptor ", "locks on it"];
    a_pidfd_of_a_process_that_was_waited_for: "global keep\nchild.append(os.fork() or os._exit(0))\nkeep = os.pidfd_open(child[0])\nos.waitpid(child[0], 0)",
        "os.close(keep)", ["descriptor ", "has ended and was waited for"];
    a_terminal_of_its_own: "global keep\nkeep = os.openpty()", "os.close(keep[0]), os.close(keep[1])",
        ["descriptor ", "this device cannot be saved"];
    a_message_queue: "global keep\nkeep = must(libc.mq_open(b'/ckptbpf', os.O_RDWR | os.O_CREAT, 0o600, None))\nlibc.mq_unlink(b'/ckptbpf')",
        "os.close(keep)", ["descriptor "];
    a_timer_of_a_thread_s_time: "global keep, other\nother = in_a_thread(lambda: None)\nkeep = ctypes.c_void_p()\nmust(libc.timer_create(3, None, ctypes.byref(keep)))",
        "must(libc.timer_delete(keep)), end(other)", ["POSIX timer 0", "pthread_getcpuclockid"];
    a_timer_that_wakes_the_machine: "global keep\nkeep = ctypes.c_void_p()\nmust(libc.timer_create(8, None, ctypes.byref(keep)))",
        "must(libc.timer_delete(keep))", ["POSIX timer 0", "clock"];
    a_parent_death_signal_of_another_thread: "global keep\nkeep = in_a_thread(fork_told)", "os.kill(child[0], 9), os.wait(), end(keep)",
        ["by another thread", "parent-death signal"];
    a_file_of_hugetlbfs: "global keep\nos.mkdir('huge')\nmust(libc.mount(b'none', b'huge', b'hugetlbfs', 0, None))\nfd = os.open('huge/file', os.O_RDWR | os.O_CREAT)\nos.ftruncate(fd, 2 << 20)\nkeep = mapping(3, 0x4001, fd)\nos.close(fd)",
        "unmap(keep), os.unlink('huge/file'), must(libc.umount(b'huge'))", ["mapping", "a file of hugetlbfs"];
    policies_given_through_a_mapping_that_is_gone: "global keep\nfd = os.memfd_create('m')\nos.ftruncate(fd, 2 << 20)\nother, keep = mapping(3, 1, fd), mapping(3, 1, fd)\nos.close(fd)\nmust(libc.syscall(237, ctypes.c_void_p(other), ctypes.c_long(4096), 2, ctypes.byref(ctypes.c_ulong(1)), ctypes.c_long(64), 0))\nunmap(other)",
        "unmap(keep)", ["mapping", "mbind(2)"];
    device_memory: "global keep\nfd = os.open('/dev/mem', os.O_RDONLY)\nkeep = must(libc.mmap(None, ctypes.c_long(4096), 1, 1, fd, ctypes.c_long(0xf0000)))\nos.close(fd)",
        "must(libc.munmap(ctypes.c_void_p(keep), ctypes.c_long(4096)))", ["device memory"];
    a_seccomp_filter_that_asks_a_listener: "filter_calls(0x20, 0x3e701000015, 0x7fc0000000000006, 0x7fff000000000006)", "", ["seccomp filter", "may ask a listening process"];
    a_seccomp_filter_of_one_thread_that_computes: "global keep\nkeep = in_a_thread(lambda: filter_calls(0x7fff000000000000, 0x16))", "end(keep)",
        ["seccomp filter", "may ask a listening process"];
    a_session_keyring_without_a_name: "must(libc.syscall(250, 1, None))", "", ["session keyring", "one without a name"];
    a_keyring_of_one_thread: "global keep\nkeep = in_a_thread(lambda: must(libc.syscall(250, 0, -1, 1)))", "end(keep)",
        ["keyring of its own"];
    a_keyring_of_the_process: "must(libc.syscall(250, 0, -2, 1))", "", ["keyring of its own"];
    a_session_keyring_with_a_long_name: "must(libc.syscall(250, 1, b'n' * 127))", "", ["session keyring", "joined by name"];
    a_session_keyring_of_two_users: "global keep\nmust(libc.syscall(250, 1, b'of two users'))\nkeep = in_a_thread(lambda: must(libc.syscall(117, 1000, 1000, 1000)))", "end(keep)",
        ["session keyring \"of two users\"", "another user"];
    a_keyring_for_requested_keys: "must(libc.syscall(250, 14, 3))", "must(libc.syscall(250, 14, 0))", ["keys that it requests"];
    rules_of_landlock: "rules = must(libc.syscall(444, (ctypes.c_uint64 * 1)(1), 8, 0))\nmust(libc.prctl(38, 1, 0, 0, 0))\nmust(libc.syscall(446, rules, 0))\nos.close(rules)",
        "", ["restricted by Landlock"];
    rules_of_landlock_for_one_thread: "global keep\nrules = must(libc.syscall(444, (ctypes.c_uint64 * 1)(1), 8, 0))\nkeep = in_a_thread(lambda: [must(libc.prctl(38, 1, 0, 0, 0)), must(libc.syscall(446, rules, 0))])\nos.close(rules)",
        "end(keep)", ["restricted by Landlock"];
    a_local_descriptor_table: "must(libc.syscall(154, 1, (ctypes.c_uint32 * 4)(0, 4096, 1, 0x51), 16))", "",
        ["local descriptor table"];
    semaphores_given_back_at_the_end: "id = must(libc.semget(0, 1, 0o1600))\nmust(libc.semop(id, (ctypes.c_int16 * 3)(0, 1, 0x1000), 1))",
        "", ["SEM_UNDO"];
    ports_of_devices: "must(libc.ioperm(0x80, 1, 1))", "must(libc.ioperm(0x80, 1, 0))", ["I/O ports"];
    a_core_scheduling_group: "offered(libc.prctl(62, 1, 0, 0, 0))", "", ["core scheduling group"];
    tagged_addresses: "offered(libc.syscall(158, 0x4002, ctypes.c_long(6)))", "", ["tagged addresses"];
    a_child_that_has_dumped_core: "import resource\nresource.setrlimit(resource.RLIMIT_CORE, (-1, -1))\nchild.append(os.fork() or os.abort())\nif os.waitid(os.P_PID, child[0], os.WEXITED | os.WNOWAIT).si_code != os.CLD_DUMPED:\n    raise OSError(errno.EOPNOTSUPP, 'no core is dumped here')",
        "os.waitpid(child[0], 0)", ["core dump"];
    a_host_name_of_its_own: "must(libc.unshare(0x04000000))", "", ["uts namespace of its own"];
    mounts_of_its_own: "must(libc.unshare(0x00020000))", "", ["mnt namespace of its own"];
    a_network_of_its_own: "must(libc.unshare(0x40000000))", "", ["net namespace of its own"];
    ipc_of_its_own: "must(libc.unshare(0x08000000))", "", ["ipc namespace of its own"];
    a_namespace_of_one_thread: "global keep\nkeep = in_a_thread(lambda: must(libc.unshare(0x04000000)))", "end(keep)",
        ["uts namespace of its own"];
    a_pid_namespace_for_children: "must(libc.unshare(0x20000000))", "", ["pid namespace for its children"];
    clocks_for_children: "must(libc.unshare(0x80))", "", ["time namespace for its children"];
    a_directory_of_one_thread: "global keep\nkeep = in_a_thread(lambda: must(libc.unshare(0x200)))", "end(keep)",
        ["with a working directory of its own"];
    descriptors_of_one_thread: "global keep\nkeep = in_a_thread(lambda: must(libc.unshare(0x400)))", "end(keep)",
        ["with a descriptor table of its own"];
    a_removed_root_directory: "os.mkdir('gone')\nos.chroot('gone')\nos.rmdir('gone')", "", ["root directory", "removed"];
    a_file_of_proc_in_another_root_directory: "global keep\nkeep = open('/proc/self/stat')\nos.chroot('/usr')", "keep.close()",
        ["root directory", "a file of /proc"];
    a_removed_working_directory: "os.mkdir('gone')\nos.chdir('gone')\nos.rmdir('../gone')", "os.chdir('/')",
        ["working directory has been removed"];
    another_execution_domain_of_one_thread: "global keep\nkeep = in_a_thread(lambda: must(libc.personality(6)))", "end(keep)",
        ["execution domain"];
    another_execution_domain: "must(libc.personality(6))", "must(libc.personality(0))", ["execution domain"];
}
