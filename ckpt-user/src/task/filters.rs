//! Seccomp (seccomp(2)): strict mode, and filters, which a thread has in a chain, each from its maker on.
//!
//! A filter is code, and comes out of the kernel as the program gave it. It goes in again through the kernel, which
//! verifies it, and can do nothing but refuse system calls. Threads that have the same filters get the same ones, not
//! copies: SECCOMP_FILTER_FLAG_TSYNC asks for threads whose chains go on from one another.
//!
//! While ckptbpf works on a thread, stopped or not yet running, its filters are suspended (PTRACE_O_SUSPEND_SECCOMP).

use super::proc::Status;
use crate::record::Image;
use crate::refusal::Refusal;
use crate::sys::ptrace::Stopped;
use crate::sys::remote::Remote;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io;

/// One filter: `struct sock_filter` after `struct sock_filter`.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message, serde::Serialize)]
pub struct Filter {
    #[prost(bytes = "vec", tag = "1")]
    pub code: Vec<u8>,
    /// SECCOMP_FILTER_FLAG_LOG.
    #[prost(bool, tag = "2")]
    pub log: bool,
}

/// What a thread has.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Seccomp {
    /// SECCOMP_SET_MODE_STRICT; then it has no filters.
    #[prost(bool, tag = "1")]
    pub strict: bool,
    /// Its filters among the image's, the oldest first.
    #[prost(uint32, repeated, tag = "2")]
    pub filters: Vec<u32>,
}

/// Bytes of a `struct sock_filter`.
const INSTRUCTION: usize = 8;
/// `BPF_MAXINSNS`.
const LONGEST: usize = 4096;
/// `MAX_INSNS_PER_PATH` of kernel/seccomp.c: instructions of a chain.
const CHAIN: usize = 32768;

/// The filters of a tree, each once.
#[derive(Debug, Default)]
pub struct Found {
    pub filters: Vec<Filter>,
    places: HashMap<Filter, u32>,
    /// Of each newest filter that a thread has, as the kernel knows it: the chain.
    chains: HashMap<u64, Vec<u32>>,
}

/// What a stopped thread has; `newest` is the same number where it is the same chain.
///
/// # Errors
/// Named: filters that cannot be read, or that ask a process which listens.
pub fn capture(
    pid: Pid,
    thread: &Stopped,
    status: &Status,
    newest: Option<u64>,
    found: &mut Found,
) -> Result<Option<Seccomp>, Refusal> {
    const STRICT: u64 = 1;
    const FILTERS: u64 = 2;
    match status.decimal("Seccomp").unwrap_or(0) {
        0 => return Ok(None),
        STRICT => return Ok(Some(Seccomp { strict: true, filters: Vec::new() })),
        FILTERS => {}
        other => {
            return Err(Refusal::unsupported(
                pid,
                format!("is in seccomp mode {other}"),
                "which is not known",
            ));
        }
    }
    if let Some(chain) = newest.and_then(|key| found.chains.get(&key)) {
        return Ok(Some(Seccomp { strict: false, filters: chain.clone() }));
    }
    let mut chain = Vec::new();
    while let Some(filter) = read(thread, chain.len()).map_err(|e| unreadable(pid, &e))? {
        if may_ask(&filter.code) {
            return Err(Refusal::unsupported(
                pid,
                "has a seccomp filter that may ask a listening process",
                "notifications (SECCOMP_RET_USER_NOTIF) cannot be saved",
            ));
        }
        let new = found.filters.len() as u32;
        let place = *found.places.entry(filter.clone()).or_insert(new);
        if place == new {
            found.filters.push(filter);
        }
        chain.push(place);
    }
    chain.reverse();
    if let Some(key) = newest {
        found.chains.insert(key, chain.clone());
    }
    Ok(Some(Seccomp { strict: false, filters: chain }))
}

fn read(thread: &Stopped, back: usize) -> io::Result<Option<Filter>> {
    let Some(code) = thread.seccomp_filter(back)? else { return Ok(None) };
    Ok(Some(Filter { code, log: thread.is_seccomp_logged(back)? }))
}

fn unreadable(pid: Pid, error: &io::Error) -> Refusal {
    let why = match error.raw_os_error() {
        Some(libc::EACCES) => {
            "reading them takes CAP_SYS_ADMIN, and that ckptbpf has no filters itself".to_owned()
        }
        _ => error.to_string(),
    };
    Refusal::unsupported(pid, "has seccomp filters that cannot be read", why)
}

/// Whether it may return SECCOMP_RET_USER_NOTIF: as a constant, or as what it has computed.
fn may_ask(code: &[u8]) -> bool {
    /// `BPF_RET | BPF_K`, `BPF_RET | BPF_A`.
    const CONSTANT: u16 = 0x06;
    const COMPUTED: u16 = 0x16;
    const ACTION: u32 = 0xffff_0000;
    const ASK: u32 = 0x7fc0_0000;
    code.chunks_exact(INSTRUCTION).any(|i| match u16::from_le_bytes([i[0], i[1]]) {
        CONSTANT => u32::from_le_bytes([i[4], i[5], i[6], i[7]]) & ACTION == ASK,
        COMPUTED => true,
        _ => false,
    })
}

/// What can be known to be wrong before anything is made; `privileged` is an image of root's.
///
/// # Errors
/// In words: sizes and numbers that no program has, or filters that its owner could not have installed.
pub fn check(image: &Image, privileged: bool) -> Result<(), String> {
    for filter in &image.filters {
        let instructions = filter.code.len() / INSTRUCTION;
        if filter.code.len() % INSTRUCTION != 0
            || !(1..=LONGEST).contains(&instructions)
            || may_ask(&filter.code)
        {
            return Err("it holds a seccomp filter that no program can have had".to_owned());
        }
    }
    for process in &image.processes {
        for thread in &process.threads {
            let Some(seccomp) = &thread.seccomp else { continue };
            let length = |&f: &u32| image.filters.get(f as usize).map(|f| f.code.len() / INSTRUCTION);
            let lengths: Option<Vec<usize>> = seccomp.filters.iter().map(length).collect();
            if lengths.is_none_or(|l| l.iter().sum::<usize>() > CHAIN)
                || seccomp.strict != seccomp.filters.is_empty()
            {
                return Err(format!(
                    "the seccomp filters of thread {} are not those of a thread",
                    thread.tid
                ));
            }
            // Under a filter of its choice, a set-user-id program may be made to believe what is not so.
            let may_gain = thread.credentials.as_ref().is_none_or(|c| !c.no_new_privileges);
            if !seccomp.strict && may_gain && !privileged {
                return Err(format!(
                    "thread {} has seccomp filters and may still gain privileges; only root's images give that",
                    thread.tid
                ));
            }
        }
    }
    Ok(())
}

/// What is done for the threads of a process, in order; numbers are those of threads in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Make {
        thread: usize,
        by: usize,
    },
    /// The filter with this number in the image.
    Install {
        thread: usize,
        filter: u32,
    },
}

/// How threads with these chains come about, so that what is equal from the beginning on is shared. The first is there.
pub fn plan(chains: &[&[u32]]) -> Vec<Step> {
    let mut steps = Vec::new();
    grow(chains, 0, (1..chains.len()).collect(), 0, &mut steps);
    steps
}

/// `by` has the first `depth` filters of its own chain, with which those of `rest` begin, too.
fn grow(chains: &[&[u32]], by: usize, rest: Vec<usize>, depth: usize, steps: &mut Vec<Step>) {
    let (mut rest, mut depth) = (rest, depth);
    loop {
        let next = chains[by].get(depth).copied();
        let (with, mut others): (Vec<usize>, Vec<usize>) =
            rest.into_iter().partition(|&t| next.is_some() && chains[t].get(depth).copied() == next);
        while let Some(&thread) = others.first() {
            steps.push(Step::Make { thread, by });
            let filter = chains[thread].get(depth).copied();
            let (alike, left): (Vec<usize>, Vec<usize>) = others
                .into_iter()
                .skip(1)
                .partition(|&t| filter.is_some() && chains[t].get(depth).copied() == filter);
            if let Some(filter) = filter {
                steps.push(Step::Install { thread, filter });
                grow(chains, thread, alike, depth + 1, steps);
            }
            others = left;
        }
        let Some(filter) = next else { return };
        steps.push(Step::Install { thread: by, filter });
        (rest, depth) = (with, depth + 1);
    }
}

/// Suspends what a skeleton thread, and whoever it makes, will have; the last letting-go ends that.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, or where ckptbpf itself has filters.
pub fn suspend(remote: &Remote) -> io::Result<()> {
    let suspended = remote.thread()?.suspend_seccomp(crate::rebuild::skeleton::OPTIONS);
    suspended.map_err(|e| io::Error::new(e.kind(), format!("seccomp filters cannot be suspended: {e}")))
}

/// Installs one in the calling skeleton thread, whose filters are suspended.
pub fn install(filter: &Filter, remote: &mut Remote) -> io::Result<()> {
    const SET_MODE_FILTER: u64 = 1;
    const LOG: u64 = 2;
    /// What it does to speculation is recorded by itself.
    const SPEC_ALLOW: u64 = 4;
    let code = remote.data(&filter.code)?;
    let mut program = (filter.code.len() as u64 / INSTRUCTION as u64).to_le_bytes().to_vec();
    program.extend(code.to_le_bytes());
    let program = remote.data(&program)?;
    let flags = SPEC_ALLOW | if filter.log { LOG } else { 0 };
    remote
        .call(libc::SYS_seccomp, &[SET_MODE_FILTER, flags, program])
        .map(drop)
        .map_err(|e| io::Error::new(e.kind(), format!("a seccomp filter: {e}")))
}

/// The last thing that is done to a thread.
pub fn rebuild_strict(wanted: Option<&Seccomp>, remote: &mut Remote) -> io::Result<()> {
    const SET_MODE_STRICT: u64 = 0;
    if wanted.is_some_and(|w| w.strict) {
        remote.call(libc::SYS_seccomp, &[SET_MODE_STRICT, 0, 0])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Played through: every thread but the first is made once, has in the end exactly its chain, and shares with
        /// each other one the first of the filters that both chains begin with.
        #[test]
        fn equal_beginnings_are_shared(
            chains in proptest::collection::vec(proptest::collection::vec(0..3u32, 0..5), 1..8)
        ) {
            let chains: Vec<&[u32]> = chains.iter().map(Vec::as_slice).collect();
            let mut has: Vec<Option<Vec<(u32, usize)>>> = vec![None; chains.len()];
            has[0] = Some(Vec::new());
            for (at, step) in plan(&chains).into_iter().enumerate() {
                match step {
                    Step::Make { thread, by } => {
                        prop_assert!(has[thread].is_none());
                        has[thread] = has[by].clone();
                        prop_assert!(has[thread].is_some());
                    }
                    Step::Install { thread, filter } => has[thread].as_mut().unwrap().push((filter, at)),
                }
            }
            for (one, chain) in has.iter().zip(&chains) {
                let got: Vec<u32> = one.as_ref().unwrap().iter().map(|f| f.0).collect();
                prop_assert_eq!(got.as_slice(), *chain);
            }
            for (a, of_a) in has.iter().zip(&chains) {
                for (b, of_b) in has.iter().zip(&chains) {
                    let alike = of_a.iter().zip(*of_b).take_while(|(x, y)| x == y).count();
                    prop_assert_eq!(&a.as_ref().unwrap()[..alike], &b.as_ref().unwrap()[..alike]);
                }
            }
        }
    }

    fn image(code: Vec<u8>, filters: Vec<u32>, no_new_privileges: bool) -> Image {
        let credentials = crate::task::credentials::Credentials { no_new_privileges, ..Default::default() };
        let seccomp = Some(Seccomp { strict: false, filters });
        let thread = crate::record::Thread { seccomp, credentials: Some(credentials), ..Default::default() };
        let process = crate::record::Process { threads: vec![thread], ..Default::default() };
        Image { filters: vec![Filter { code, log: false }], processes: vec![process], ..Default::default() }
    }

    #[test]
    fn what_no_program_can_have_had_is_refused() {
        let allow = [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f];
        let ask = [0x06, 0, 0, 0, 0, 0, 0xc0, 0x7f];
        assert_eq!(check(&image(allow.to_vec(), vec![0, 0], true), false), Ok(()));
        assert_eq!(check(&image(allow.to_vec(), vec![0], false), true), Ok(()));
        for (code, filters) in [
            (allow[..7].to_vec(), vec![0]),
            (Vec::new(), vec![0]),
            (allow.repeat(4097), vec![0]),
            (ask.to_vec(), vec![0]),
            (allow.to_vec(), vec![1]),
            (allow.to_vec(), vec![]),
            (allow.repeat(4096), vec![0; 9]),
        ] {
            assert!(check(&image(code, filters, true), true).is_err());
        }
        assert!(
            check(&image(allow.to_vec(), vec![0], false), false).is_err(),
            "a user's, with new privileges"
        );
    }
}
