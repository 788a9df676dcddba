use super::*;
use crate::object::{Description, pipe::PipeRecord};
use crate::task::control::Control;
use crate::task::credentials::Credentials;
use crate::task::settings::Settings;
use crate::task::surroundings::Surroundings;

/// `struct sched_attr` of a policy.
fn scheduling(policy: u32, nice: i32, priority: u32, io_priority: u32) -> Scheduling {
    let mut attributes = [48, policy, 0, 0, nice.cast_unsigned(), priority].map(u32::to_le_bytes).concat();
    attributes.resize(48, 0);
    Scheduling { attributes, io_priority, ..Scheduling::default() }
}

fn means() -> Means {
    let limits = (0..16).map(|resource| Limit { resource, soft: 0, hard: 0 }).collect();
    Means {
        limits,
        scheduling: scheduling(0, 0, 0, 0),
        oom_score_adj: 0,
        autogroup: 0,
        securebits: 0,
        pipe: 65536,
        buffer: 4096,
        lowest_address: 65536,
    }
}

fn limit(resource: u32, hard: u64) -> Limit {
    Limit { resource, soft: 0, hard }
}

fn with_limit(mut means: Means, resource: u32, hard: u64) -> Means {
    means.limits[resource as usize].hard = hard;
    means
}

fn image(change: impl FnOnce(&mut Process, &mut Thread)) -> Image {
    let (mut process, mut thread) = (Process { pid: 7, ..Process::default() }, Thread::default());
    change(&mut process, &mut thread);
    process.threads = vec![thread];
    Image { processes: vec![process], ..Image::default() }
}

fn refused(image: &Image, means: &Means) -> String {
    within(image, 4242, means).expect_err("refused").to_string()
}

#[test]
fn limits_up_to_ones_own() {
    let claims = image(|process, _| process.limits = vec![limit(7, 1024)]);
    assert_eq!(within(&claims, 4242, &with_limit(means(), 7, 1024)), Ok(()));
    let said = refused(&claims, &with_limit(means(), 7, 1023));
    assert!(said.contains("process 7 had the hard limit \"Max open files\" at 1024"), "{said}");
    let unlimited = image(|process, _| process.limits = vec![limit(7, u64::MAX)]);
    assert!(
        refused(&unlimited, &with_limit(means(), 7, 1024)).contains("at unlimited (ckptbpf's own: 1024)")
    );
    // A limit that nobody knows is nobody's.
    refused(&image(|process, _| process.limits = vec![limit(99, 1)]), &means());
    // A soft limit above the hard one is none, whoever is asked.
    let above = Limit { resource: 7, soft: 2000, hard: 1000 };
    refused(&image(|process, _| process.limits = vec![above]), &with_limit(means(), 7, 1024));
}

#[test]
fn priorities_up_to_ones_own_or_the_limit() {
    let of = |scheduling: Scheduling| image(|_, thread| thread.scheduling = Some(scheduling));
    let own = |scheduling: Scheduling| Means { scheduling, ..means() };
    for (policy, nice, priority) in [(1, 0, 1), (2, 0, 99), (0, -1, 0), (3, -20, 0), (6, 0, 0), (99, 0, 0)] {
        let wanted = of(scheduling(policy, nice, priority, 0));
        let said = refused(&wanted, &means());
        assert!(said.contains("thread 0 had "), "{said}");
    }
    for nice in 0..20 {
        assert_eq!(within(&of(scheduling(0, nice, 0, 0)), 4242, &means()), Ok(()));
        assert_eq!(within(&of(scheduling(0, nice, 0, 0)), 4242, &own(scheduling(1, 0, 5, 0))), Ok(()));
    }
    refused(&of(scheduling(0, 0, 0, 0)), &own(scheduling(0, 5, 0, 0)));
    assert_eq!(within(&of(scheduling(0, -5, 0, 0)), 4242, &own(scheduling(0, -5, 0, 0))), Ok(()));
    assert_eq!(within(&of(scheduling(0, -5, 0, 0)), 4242, &with_limit(means(), limits::NICE, 25)), Ok(()));
    refused(&of(scheduling(0, -5, 0, 0)), &with_limit(means(), limits::NICE, 24));
    assert_eq!(within(&of(scheduling(2, 0, 10, 0)), 4242, &own(scheduling(1, 0, 10, 0))), Ok(()));
    refused(&of(scheduling(2, 0, 11, 0)), &own(scheduling(1, 0, 10, 0)));
    let limited = with_limit(means(), limits::REALTIME_PRIORITY, 11);
    assert_eq!(within(&of(scheduling(2, 0, 11, 0)), 4242, &limited), Ok(()));
    // I/O: class 1 is real time, 2 best effort, 3 idle.
    refused(&of(scheduling(0, 0, 0, 1 << 13)), &means());
    assert_eq!(within(&of(scheduling(0, 0, 0, 1 << 13)), 4242, &own(scheduling(0, 0, 0, 1 << 13))), Ok(()));
    assert_eq!(within(&of(scheduling(0, 0, 0, 3 << 13)), 4242, &means()), Ok(()));
    let short = Scheduling { attributes: vec![0; 20], ..Scheduling::default() };
    refused(&of(short), &means());
}

#[test]
fn everything_else_that_takes_a_right() {
    let settings = |change: fn(&mut Settings)| {
        let mut settings = Settings::default();
        change(&mut settings);
        image(|process, _| process.settings = Some(settings))
    };
    let around = Surroundings { root: b"/srv".to_vec(), ..Surroundings::default() };
    let elsewhere = image(|process, _| process.surroundings = Some(around));
    assert!(refused(&elsewhere, &means()).contains("process 7 had a root directory of its own"));
    assert!(refused(&settings(|s| s.oom_score_adj = -1), &means()).contains("oom_score_adj -1"));
    assert_eq!(within(&settings(|s| s.oom_score_adj = 5), 4242, &means()), Ok(()));
    assert_eq!(
        within(&settings(|s| s.oom_score_adj = -1), 4242, &Means { oom_score_adj: -1, ..means() }),
        Ok(())
    );
    assert!(refused(&settings(|s| s.autogroup = -1), &means()).contains("autogroup"));
    assert_eq!(within(&settings(|s| s.autogroup = 3), 4242, &Means { autogroup: 5, ..means() }), Ok(()));
    let bits = |securebits| {
        image(|_, thread| {
            thread.credentials = Some(Credentials { securebits, ..Credentials::default() });
        })
    };
    assert!(refused(&bits(4), &means()).contains("secure bits 0x4"));
    assert_eq!(within(&bits(credentials::KEEP_CAPS), 4242, &means()), Ok(()));
    assert_eq!(within(&bits(4), 4242, &Means { securebits: 4, ..means() }), Ok(()));
    let flusher =
        image(|_, thread| thread.control = Some(Control { io_flusher: true, ..Control::default() }));
    assert!(refused(&flusher, &means()).contains("PR_SET_IO_FLUSHER"));
    let pipe = |capacity| Image {
        descriptions: vec![Description {
            object: Some(Object::Pipe(PipeRecord { capacity, ..PipeRecord::default() })),
            ..Description::default()
        }],
        ..Image::default()
    };
    assert_eq!(within(&pipe(65536), 4242, &means()), Ok(()));
    assert!(refused(&pipe(65537), &means()).contains("a pipe of 65537 bytes"));
}

#[test]
fn locked_memory_up_to_the_limit() {
    let vma = |start, end| crate::memory::vma::Vma {
        start,
        end,
        flags: vec!["lo".to_owned()],
        ..Default::default()
    };
    let locked = |ends: &[(u64, u64)]| {
        let mappings = ends.iter().map(|&(start, end)| vma(start, end)).collect();
        image(|process, _| process.mappings = mappings)
    };
    let means = Means { lowest_address: 0, ..with_limit(means(), limits::LOCKED_MEMORY, 8192) };
    assert_eq!(within(&locked(&[(0, 4096), (8192, 12288)]), 4242, &means), Ok(()));
    assert!(refused(&locked(&[(0, 4096), (8192, 16384)]), &means).contains("12288 bytes of locked memory"));
    refused(&locked(&[(0, u64::MAX), (0, u64::MAX), (9, 3)]), &means);
    let segment = |mode, size| {
        let segment = Some(crate::memory::sysv::Segment { mode, ..Default::default() });
        let objects = vec![crate::record::SharedObject { segment, size, ..Default::default() }];
        Image { objects, ..Image::default() }
    };
    assert_eq!(within(&segment(0o2600, 8192), 4242, &means), Ok(()));
    assert_eq!(within(&segment(0o600, 1 << 40), 4242, &means), Ok(()));
    assert!(refused(&segment(0o2600, 8193), &means).contains("8193 bytes of locked memory"));
}

#[test]
fn memory_not_below_the_lowest_address() {
    let at = |start| {
        let vma = crate::memory::vma::Vma { start, end: 1 << 20, ..Default::default() };
        image(|process, _| process.mappings = vec![vma])
    };
    assert_eq!(within(&at(65536), 4242, &means()), Ok(()));
    assert!(refused(&at(0), &means()).contains("memory at 0x0 (vm.mmap_min_addr: 0x10000)"));
}

#[test]
fn buffers_of_sockets_up_to_what_anybody_gets() {
    let buffer = |name, size: u32| {
        let option = SocketOption { level: libc::SOL_SOCKET, name, value: size.to_ne_bytes().to_vec() };
        let socket = crate::object::socket::SocketRecord { options: vec![option], ..Default::default() };
        let object = Some(Object::Socket(socket));
        Image { descriptions: vec![Description { object, ..Description::default() }], ..Image::default() }
    };
    for name in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
        assert_eq!(within(&buffer(name, 4096), 4242, &means()), Ok(()));
        assert!(
            refused(&buffer(name, 0x7fff_fffe), &means()).contains("a socket buffer of 2147483646 bytes")
        );
    }
    assert_eq!(within(&buffer(libc::SO_MARK, u32::MAX), 4242, &means()), Ok(()));
}

#[test]
fn what_wakes_the_machine_is_root_s() {
    let with = |object| {
        let description = Description { object: Some(object), ..Description::default() };
        Image { descriptions: vec![description], ..Image::default() }
    };
    let timer =
        |clock| with(Object::Timer(crate::object::timerfd::TimerRecord { clock, ..Default::default() }));
    assert_eq!(within(&timer(libc::CLOCK_BOOTTIME), 4242, &means()), Ok(()));
    assert!(refused(&timer(libc::CLOCK_BOOTTIME_ALARM), &means()).contains("wakes the machine"));
    let epoll = |events: i32| {
        let entry = crate::object::epoll::Entry { events: events as u32, ..Default::default() };
        with(Object::Epoll(crate::object::epoll::EpollRecord { entries: vec![entry] }))
    };
    assert_eq!(within(&epoll(libc::EPOLLIN | libc::EPOLLET), 4242, &means()), Ok(()));
    assert!(refused(&epoll(libc::EPOLLIN | libc::EPOLLWAKEUP), &means()).contains("EPOLLWAKEUP"));
}

#[test]
fn limits_of_another_machine_s_size_are_lowered() {
    let mut claims = image(|process, _| process.limits = vec![limit(6, 9000), limit(7, 9000), limit(11, 10)]);
    let means = with_limit(with_limit(means(), 6, 100), 11, 100);
    fit(&mut claims, &means);
    assert_eq!(claims.processes[0].limits, [limit(6, 100), limit(7, 9000), limit(11, 10)]);
}

#[test]
fn ckptbpf_s_own_are_within_its_means() {
    let means = Means::own().expect("what this process has");
    let claims = image(|process, thread| {
        process.limits = means.limits.clone();
        thread.scheduling = Some(means.scheduling.clone());
        thread.credentials = Some(Credentials { securebits: means.securebits, ..Credentials::default() });
    });
    assert_eq!(within(&claims, 4242, &means), Ok(()));
}
