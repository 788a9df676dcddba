//! What the kernel shows of a program: text of /proc, events and rows of the eBPF programs.

use crate::machine;
use crate::memory::flags::{Names, Word};
use crate::memory::{sysv, vdso, vma};
use crate::object::tcp_info::TcpInfo;
use crate::object::{Seen, epoll, eventfd, inotify, lock, ports, signalfd, timerfd};
use crate::sys::{bpf, diag};
use crate::task::proc::{Stat, Status};
use crate::task::{call, clock, control, credentials, hidden, keyring, limits, mounts, posix_timers};
use crate::track::fault_log::FaultLog;
use nix::unistd::Pid;
use std::time::Duration;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Of this very process; what is not there is no seed.
fn own(names: &[&str]) -> Vec<Vec<u8>> {
    names.iter().filter_map(|name| std::fs::read(format!("/proc/self/{name}")).ok()).collect()
}

pub mod proc_stat {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let Ok(stat) = Stat::parse(&text(bytes)) else { return };
        let _ = (stat.state(), stat.parent(), stat.process_group(), stat.session(), stat.terminal());
        let _ = (stat.foreground(), stat.start_time(), (0..60).map(|n| stat.number(n)).max());
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        own(&["stat"])
    }
}

pub mod proc_status {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let status = Status::of(text(bytes));
        let _ = (credentials::capture(&status, 0), control::capture(&control::Known::default(), &status));
        let _ = (status.octal("Umask"), status.hex("SigBlk"), status.field("THP_enabled"));
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        own(&["status"])
    }
}

pub mod proc_limits {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let _ = limits::parse(&text(bytes));
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        own(&["limits"])
    }
}

pub mod proc_timers {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let timers = posix_timers::parse(&text(bytes)).unwrap_or_default();
        let (interval, left) = posix_timers::times(bytes);
        for timer in &timers {
            let timer = posix_timers::PosixTimer { interval, left, due: true, ..*timer };
            let _ = posix_timers::first_ring(&timer, clock::Shift::default());
        }
        let infos = bytes.as_chunks::<128>().0.to_vec();
        let _ = posix_timers::without(infos, &timers, bytes.len().is_multiple_of(2));
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let text = "ID: 7\nsignal: 34/00007fff86e452a8\nnotify: signal/tid.2634\nClockID: 1\n\
                    ID: 2\nsignal: 14/0000000000000002\nnotify: none/pid.2634\nClockID: -6\n";
        vec![text.as_bytes().to_vec(), vec![0xff; 160]]
    }
}

/// maps and smaps, and the names of flags learnt from them.
pub mod proc_maps {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let _ = vma::in_swap(&text(bytes), &(0..u64::MAX));
        let Ok(raws) = vma::parse(&text(bytes)) else { return };
        let word = |(at, raw): (u32, &vma::Raw)| Word {
            start: raw.start,
            end: raw.end,
            flags: raw.offset.rotate_left(at) | u64::from(raw.protection()),
        };
        let words: Vec<Word> = (0..).zip(&raws).map(word).collect();
        let mut names = Names::default();
        names.learn_from(&raws, &words);
        let _ = (vdso::find(&raws), raws.iter().map(vma::Raw::to_private).count());
        let _ = names.give(raws, &words);
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        // Some of the mappings are enough.
        let short =
            |text: Vec<u8>| text.split_inclusive(|b| *b == b'\n').take(120).flatten().copied().collect();
        own(&["maps", "smaps"]).into_iter().map(short).collect()
    }
}

/// fdinfo of every kind of descriptor; the first line is what its link says.
pub mod proc_fdinfo {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let text = text(bytes);
        let (target, info) = text.split_once('\n').unwrap_or_default();
        let (seen, _) = Seen::of(Pid::this(), 1, target.into(), info.to_owned());
        let _ = (seen.unknown(), seen.is_path_only());
        let _ = (eventfd::capture(info, None), signalfd::capture(&seen), timerfd::shown(info));
        let _ = info.lines().filter_map(epoll::parse).count();
        let _ = info.lines().filter_map(inotify::Shown::parse).count();
        for owner in [lock::Owner::Description, lock::Owner::Process] {
            assert!(lock::parse(info, owner).len() <= info.lines().count());
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let common = "pos:\t17\nflags:\t02100002\nmnt_id:\t15\nino:\t1057\n";
        let kinds = [
            "/a\n%lock:\t1: POSIX  ADVISORY  WRITE 359 00:13:11691 10 14\nlock:\t2: FLOCK  ADVISORY  READ 359 00:13:11691 0 EOF\nlock:\t3: OFDLCK ADVISORY  WRITE -1 00:13:1 7 EOF\n",
            "anon_inode:[eventfd]\n%eventfd-count:               1f\neventfd-id: 3\neventfd-semaphore: 1\n",
            "anon_inode:[eventpoll]\n%tfd:       13 events: 80000019 data: 1122334455667788  pos:0 ino:c1 sdev:f\n",
            "anon_inode:[timerfd]\n%clockid: 1\nticks: 3\nsettime flags: 01\nit_value: (0, 5)\nit_interval: (1, 0)\n",
            "anon_inode:[signalfd]\n%sigmask:\t0000000000000200\n",
            "anon_inode:inotify\n%inotify wd:1 ino:1 sdev:1 mask:1 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:01\n",
        ];
        kinds.iter().map(|kind| kind.replace('%', common).into_bytes()).collect()
    }
}

/// Files of a few words.
pub mod proc_words {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let _ = clock::parse(&text(bytes));
        let _ = text(bytes).lines().filter_map(sysv::parse).count();
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        const SEGMENT: &[u8] = b"-17 4 1600 4096 7 7 1 1000 1000 1000 1000 1795914895 0 1795914895 4096 0\n";
        let shifted = b"monotonic 86400 999999999\nboottime -3 5\n";
        [own(&["timens_offsets"]), vec![shifted.to_vec(), SEGMENT.to_vec()]].concat()
    }
}

pub mod proc_mountinfo {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let found = mounts::parse(bytes);
        assert!(found.len() <= bytes.split(|byte| *byte == b'\n').count());
        assert!(found.iter().all(|mount| mount.path.as_os_str().len() <= bytes.len()));
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let hard = b"40 36 0:52 /sub /a\\040b\\134\xff rw shared:3 - fuse.sshfs host:/ rw,user_id=0\n";
        [own(&["mountinfo"]), vec![hard.to_vec()]].concat()
    }
}

pub mod proc_syscall {
    use super::*;

    pub fn run(bytes: &[u8]) {
        assert!(call::parse(&text(bytes)).is_none_or(|call| call.number >= 0));
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let waiting = b"295 0x3 0x7ffd0 0x2 0x64000 0x0 0xffffffffffffffff 0x7ffc0 0x7f11\n".to_vec();
        [own(&["syscall"]), vec![waiting, b"-1 0x7ffc0 0x7f11\n".to_vec()]].concat()
    }
}

/// /proc/net: ports, names of Unix sockets, groups; the second half is of IPv6.
pub mod proc_net {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let text = text(bytes);
        assert!(ports::parse(&text).len() <= text.lines().count());
        assert!(ports::named(&text).all(|(_, path)| !path.starts_with('@')));
        let (igmp, igmp6) = text.split_at(text.floor_char_boundary(text.len() / 2));
        assert!(ports::groups(igmp, igmp6).iter().all(|(_, group)| [4, 16].contains(&group.len())));
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let files = own(&["net/tcp", "net/udp6", "net/unix", "net/igmp", "net/igmp6"]);
        let short =
            |text: Vec<u8>| text.split_inclusive(|b| *b == b'\n').take(40).flatten().copied().collect();
        files.into_iter().map(short).collect()
    }
}

/// What the kernel answers when it is asked for a Unix socket.
pub mod sock_diag {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let _ = diag::parse(bytes);
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let mut answer = vec![0; 60];
        answer[0] = 60;
        answer[18] = 10;
        // UNIX_DIAG_PEER, UNIX_DIAG_RQLEN, UNIX_DIAG_SHUTDOWN.
        answer[32..40].copy_from_slice(&[8, 0, 2, 0, 7, 0, 0, 0]);
        answer[40..52].copy_from_slice(&[12, 0, 4, 0, 1, 0, 0, 0, 5, 0, 0, 0]);
        answer[52..60].copy_from_slice(&[5, 0, 6, 0, 3, 0, 0, 0]);
        vec![answer]
    }
}

pub mod bpf_events {
    use super::*;

    pub fn run(bytes: &[u8]) {
        const LIMIT: usize = 64;
        let (lifecycle, faults) = bpf::fuzz::events(bytes);
        let _ = lifecycle.iter().filter_map(bpf::LifecycleEvent::what).count();
        let mut log = FaultLog::new(LIMIT);
        for (at, fault) in (0..).zip(&faults) {
            log.add(Pid::from_raw(fault.own_tgid as i32), fault.page / 4096, Duration::from_nanos(at));
        }
        assert!(log.written() <= LIMIT as u64 && log.written() + log.lost() <= faults.len() as u64);
        for fault in &faults {
            let _ = log.pages(Pid::from_raw(fault.own_tgid as i32), Duration::MAX);
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let fault = [7u64 << 32 | 7, 0x7f00_0000_1000].map(u64::to_le_bytes).concat();
        let event = [1u32, 7, 7, 7, 8, 8, 5, 0].map(u32::to_le_bytes).concat();
        vec![fault.repeat(4), event.repeat(2)]
    }
}

pub mod bpf_rows {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let (tasks, mappings) = bpf::fuzz::rows(bytes);
        for row in &tasks {
            let signals = &row.signals;
            let _ = hidden::altstack(signals.stack_base, signals.stack_flags as i32, signals.stack_size);
        }
        let words: Vec<Word> =
            mappings.iter().map(|row| Word { start: row.start, end: row.end, flags: row.flags }).collect();
        let mut names = Names::default();
        for word in &words {
            names.learn(word.flags, &["rd".to_owned(), "wr".to_owned()]);
            let _ = names.of(word.start);
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        [size_of::<bpf::TaskRow>(), size_of::<bpf::ProcessRow>(), 2 * size_of::<bpf::VmaRow>()]
            .map(|size| (0..size).map(|i| (i % 5) as u8).collect())
            .to_vec()
    }
}

/// The file of offsets in the runtime directory, and /proc/kallsyms.
pub mod bpf_offsets {
    use super::*;

    pub fn run(bytes: &[u8]) {
        bpf::fuzz::offsets(bytes);
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        vec![
            b"{\"TASK_PID\": 8, \"TASK_TGID\": 12}".to_vec(),
            b"ffffffff81000010 t do_restart_poll\n0000000000000000 t do_restart_poll\n".to_vec(),
        ]
    }
}

pub mod tcp_info {
    use super::*;

    pub fn run(bytes: &[u8]) {
        if let Some(info) = TcpInfo::parse(bytes) {
            let _ = (info.is_connected(), info.has_ended(), info.is_at_end());
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        vec![vec![1; 104], vec![0; 88]]
    }
}

pub mod keyring_text {
    use super::*;

    pub fn run(bytes: &[u8]) {
        if let Some((_, name)) = keyring::described(bytes) {
            assert!(name.len() < bytes.len().max(1), "a name that is longer than the text");
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        vec![b"keyring;0;0;3f3f0000;_ses\0\0\0".to_vec(), b"keyring;1000;-1;3f130000;a;b".to_vec()]
    }
}

pub mod proc_cpuinfo {
    use super::*;

    pub fn run(bytes: &[u8]) {
        let features = machine::features(&text(bytes));
        assert!(features.is_sorted(), "not in order");
        let _ = machine::version(&text(bytes));
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let first = |text: String| text.lines().take(28).collect::<Vec<_>>().join("\n").into_bytes();
        let own = std::fs::read_to_string("/proc/cpuinfo").map(first);
        own.into_iter().chain([b"6.13.0-rc1-amd64".to_vec()]).collect()
    }
}
