//! What the iterators write is what `/proc` and the system calls say.
use std::{
    fs::{self, File},
    io::{Seek as _, SeekFrom, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        linux::fs::MetadataExt as _,
    },
};

use crate::{
    support::{Victim, mask, state, wait_until},
    sys,
};
use ckptbpf::sys::bpf::{Bpf, FileRow, Kernel, Layout, Restart, RestartDecoder, TOLD, TaskRow};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::{SigSet, Signal},
};

fn tracking(pid: u32) -> Bpf {
    let mut bpf = Kernel::load().unwrap();
    bpf.track(pid).unwrap();
    bpf
}

fn own_task(bpf: &Bpf) -> TaskRow {
    let tid = u32::try_from(nix::unistd::gettid().as_raw()).unwrap();
    *bpf.tasks().unwrap().iter().find(|task| task.ids.pid == tid).unwrap()
}

#[test]
fn a_thread_is_as_its_system_calls_say() {
    let bpf = tracking(std::process::id());
    SigSet::from_iter([Signal::SIGUSR1]).thread_block().unwrap();
    let task = own_task(&bpf);
    assert_eq!(task.ids.tgid, std::process::id());
    assert_eq!(task.signals.blocked, mask("thread-self", "SigBlk"));
    assert_ne!(task.signals.blocked, 0);
    assert_eq!((task.signals.stack_base, task.signals.stack_size), sys::alternate_stack());
    assert_ne!(task.signals.stack_size, 0, "std gives each thread an alternate stack");
    assert_eq!(task.signals.exit_signal, -1);
    assert_eq!(task.user.robust_list, sys::robust_list());
    assert_ne!(task.user.clear_child_tid, 0);
    assert_eq!(task.ids.level_count, 1);
    assert_eq!(task.ids.levels[0].number, task.ids.pid);
}

#[test]
fn threads_share_what_processes_do_not() {
    let victim = Victim::sleeper();
    let mut bpf = tracking(std::process::id());
    bpf.track(victim.id()).unwrap();
    let tasks = bpf.tasks().unwrap();
    let keys = |task: &TaskRow| {
        [task.objects.mm, task.objects.files, task.objects.fs, task.objects.sighand, task.objects.signal]
    };
    let me = own_task(&bpf);
    let leader = tasks.iter().find(|task| task.ids.pid == std::process::id()).unwrap();
    let other = tasks.iter().find(|task| task.ids.pid == victim.id()).unwrap();
    assert_eq!(keys(&me), keys(leader));
    for (mine, theirs) in keys(&me).into_iter().zip(keys(other)) {
        assert!(mine != theirs && mine != 0 && theirs != 0);
    }
}

#[test]
fn signal_actions_are_as_status_says() {
    let bpf = tracking(std::process::id());
    let rows = bpf.signal_actions().unwrap();
    assert_eq!(rows.len(), 1);
    let with = |wanted: &dyn Fn(u64) -> bool| {
        rows[0]
            .actions
            .iter()
            .enumerate()
            .filter(|(_, a)| wanted(a.handler))
            .fold(0u64, |set, (n, _)| set | 1 << n)
    };
    let (caught, ignored) = (mask("self", "SigCgt"), mask("self", "SigIgn"));
    assert_eq!(with(&|handler| handler > 1), caught);
    assert_eq!(with(&|handler| handler == 1), ignored);
    assert_ne!(caught, 0, "std catches SIGSEGV");
    // std's handler of SIGSEGV: SA_SIGINFO | SA_ONSTACK, and libc's trampoline.
    let segv = rows[0].actions[10];
    assert_eq!(segv.flags & 0x0800_0004, 0x0800_0004);
    assert!(segv.restorer != 0 && segv.flags & 0x0400_0000 != 0);
}

#[test]
fn the_memory_layout_is_as_stat_says() {
    let victim = Victim::sleeper();
    let bpf = tracking(victim.id());
    let rows = bpf.processes().unwrap();
    assert_eq!(rows.len(), 1);
    let m = rows[0].memory;
    let text = fs::read_to_string(format!("/proc/{}/stat", victim.id())).unwrap();
    let after_name: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // proc_pid_stat(5) numbers fields from 1; the one after the name is 3.
    let field = |n: usize| after_name[n - 3].parse::<u64>().unwrap();
    let ours = [
        m.start_code,
        m.end_code,
        m.start_stack,
        m.start_data,
        m.end_data,
        m.start_brk,
        m.arg_start,
        m.arg_end,
        m.env_start,
        m.env_end,
    ];
    assert_eq!(ours, [26, 27, 28, 45, 46, 47, 48, 49, 50, 51].map(field));
    let maps = fs::read_to_string(format!("/proc/{}/maps", victim.id())).unwrap();
    let heap = maps.lines().find(|line| line.ends_with("[heap]")).unwrap();
    assert!(heap.contains(&format!("-{:08x} ", m.brk)), "{heap} {:x}", m.brk);
}

#[test]
fn an_alarm_is_an_armed_real_timer_and_a_subreaper_is_one() {
    const SECONDS: u64 = 5000;
    let bpf = tracking(std::process::id());
    let before = bpf.processes().unwrap()[0];
    assert_eq!((before.real_armed, before.child_subreaper), (0, 0));
    let now = sys::monotonic();
    nix::unistd::alarm::set(u32::try_from(SECONDS).unwrap());
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let after = bpf.processes().unwrap()[0];
    nix::unistd::alarm::cancel();
    nix::sys::prctl::set_child_subreaper(false).unwrap();
    assert_eq!((after.real_armed, after.child_subreaper, after.real.interval), (1, 1, 0));
    let left = after.real.expires - now;
    assert!((SECONDS * 1_000_000_000..(SECONDS + 60) * 1_000_000_000).contains(&left), "{left}");
    assert_eq!((after.prof.expires, after.virt.expires), (0, 0));
    assert_eq!(bpf.processes().unwrap()[0].real_armed, 0);
}

#[test]
fn mappings_are_as_maps_says() {
    let victim = Victim::sleeper();
    let bpf = tracking(victim.id());
    let maps = fs::read_to_string(format!("/proc/{}/maps", victim.id())).unwrap();
    let said: Vec<String> =
        maps.lines().filter(|line| !line.contains("[vsyscall]")).map(first_columns).collect();
    let bit = |set: u64, mask: u64, letter: char| if set & mask == 0 { '-' } else { letter };
    let ours: Vec<String> = bpf
        .vmas()
        .unwrap()
        .iter()
        .map(|v| {
            let shared = if v.flags & 0x80 == 0 { 'p' } else { 's' };
            let (r, w, x) = (bit(v.flags, 1, 'r'), bit(v.flags, 2, 'w'), bit(v.flags, 4, 'x'));
            let offset = if v.file == 0 { 0 } else { v.page_offset << 12 };
            format!("{:08x}-{:08x} {r}{w}{x}{shared} {offset:08x} {}", v.start, v.end, v.inode)
        })
        .collect();
    assert_eq!(ours, said);
}

/// Address range, permissions, offset and inode of a line of maps: all but the device.
fn first_columns(line: &str) -> String {
    let c: Vec<&str> = line.split_whitespace().collect();
    format!("{} {} {} {}", c[0], c[1], c[2], c[4])
}

#[test]
fn descriptors_are_as_fdinfo_says() {
    let victim = Victim::sleeper();
    let bpf = tracking(victim.id());
    let rows = bpf.files().unwrap();
    let mut said: Vec<u32> = fs::read_dir(format!("/proc/{}/fd", victim.id()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    said.sort_unstable();
    assert_eq!(rows.iter().map(|row| row.fd).collect::<Vec<_>>(), said);
    for row in rows {
        assert_like_fdinfo(&format!("/proc/{}/fdinfo/{}", victim.id(), row.fd), &row);
    }
}

fn assert_like_fdinfo(path: &str, row: &FileRow) {
    let text = fs::read_to_string(path).unwrap();
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
    let flags = u32::from_str_radix(&field("flags:"), 8).unwrap();
    let close_on_exec = u32::try_from(libc::O_CLOEXEC).unwrap();
    assert_eq!(row.position.to_string(), field("pos:"));
    assert_eq!(row.flags, flags & !close_on_exec);
    assert_eq!(row.close_on_exec, u32::from(flags & close_on_exec != 0));
    assert_eq!(row.inode.to_string(), field("ino:"));
}

#[test]
fn eventfds_tell_their_kinds() {
    use nix::sys::eventfd::{EfdFlags, EventFd};
    let kinds =
        [EfdFlags::empty(), EfdFlags::EFD_SEMAPHORE, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE];
    let events = kinds.map(|flags| EventFd::from_flags(flags).unwrap());
    let rows = tracking(std::process::id()).files().unwrap();
    let told = events.each_ref().map(|event| {
        let fd = u32::try_from(event.as_fd().as_raw_fd()).unwrap();
        rows.iter().find(|row| row.fd == fd).unwrap().eventfd
    });
    let semaphore = EfdFlags::EFD_SEMAPHORE.bits() as u32;
    assert!(told.iter().all(|told| told & TOLD != 0), "{told:x?}");
    assert_eq!(told.map(|told| told & semaphore != 0), kinds.map(|k| k.contains(EfdFlags::EFD_SEMAPHORE)));
}

#[test]
fn a_duplicate_shares_the_description_and_another_open_does_not() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[0; 100]).unwrap();
    let duplicate = file.as_file().try_clone().unwrap();
    file.seek(SeekFrom::Start(42)).unwrap();
    let again = File::open(file.path()).unwrap();
    fcntl(&duplicate, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let memfd = nix::sys::memfd::memfd_create("x", nix::sys::memfd::MFdFlags::empty()).unwrap();
    let rows = tracking(std::process::id()).files().unwrap();
    let row = |fd: i32| *rows.iter().find(|row| i32::try_from(row.fd).unwrap() == fd).unwrap();
    let (one, two, three) =
        (row(file.as_file().as_raw_fd()), row(duplicate.as_raw_fd()), row(again.as_raw_fd()));
    assert_eq!((one.file, one.position, two.position, three.position), (two.file, 42, 42, 0));
    assert_ne!(one.file, three.file);
    assert_eq!(one.eventfd, 0, "it is none");
    assert_eq!((one.close_on_exec, two.close_on_exec), (1, 0));
    for (fd, row) in [(file.as_file().as_raw_fd(), one), (again.as_raw_fd(), three)] {
        assert_like_fdinfo(&format!("/proc/self/fdinfo/{fd}"), &row);
    }
    let memory = row(memfd.as_raw_fd());
    let said = File::from(memfd).metadata().unwrap();
    let device = libc::makedev(memory.device >> 20, memory.device & 0xf_ffff);
    assert_eq!((device, memory.inode, memory.mode), (said.st_dev(), said.st_ino(), said.st_mode()));
}

#[test]
fn a_stopped_sleep_knows_when_it_ends() {
    let victim = Victim::sleeper();
    let bpf = tracking(victim.id());
    let decoder = RestartDecoder::new(bpf.offsets()).unwrap();
    victim.signal(Signal::SIGSTOP);
    wait_until("it is stopped", || state(victim.id()) == 'T');
    let now = sys::monotonic();
    let task = bpf.tasks().unwrap()[0];
    let Restart::Nanosleep { clock, expires, .. } = decoder.decode(&task.restart) else { panic!("{task:?}") };
    assert_eq!(clock, libc::CLOCK_MONOTONIC);
    assert!((now..now + 1_000_000_000_000).contains(&expires), "{now} {expires}");
}

#[test]
fn offsets_are_those_of_the_structures_that_user_space_shares() {
    let layout = Layout::of_kernel().unwrap();
    assert_eq!(layout.size("iovec").unwrap() as usize, size_of::<libc::iovec>());
    assert_eq!(layout.offset("iovec.iov_len").unwrap() as usize, std::mem::offset_of!(libc::iovec, iov_len));
    assert_eq!(
        layout.offset("pollfd.revents").unwrap() as usize,
        std::mem::offset_of!(libc::pollfd, revents)
    );
    // Through anonymous members, and through a named union.
    assert_eq!(
        layout.offset("siginfo.si_code").unwrap() as usize,
        std::mem::offset_of!(libc::siginfo_t, si_code)
    );
    assert_eq!(layout.offset("siginfo._sifields._sigfault._addr").unwrap(), 16);
    let bits = layout.bit_offset("signal_struct.is_child_subreaper").unwrap();
    // Neighbours: bits of one word, and bytes in Linux 7.3.
    let next = layout.bit_offset("signal_struct.has_child_subreaper").unwrap();
    assert!([bits + 1, bits + 8].contains(&next), "{bits} {next}");
    let missing = layout.offset("task_struct.unheard_of").unwrap_err().to_string();
    assert_eq!(missing, "this kernel's struct task_struct has no unheard_of");
    assert_eq!(layout.size("unheard_of").unwrap_err().to_string(), "this kernel has no struct unheard_of");
    assert!(Layout::parse(b"nonsense").is_err());
}
