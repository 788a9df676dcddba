//! Pages into rebuilt address spaces, arriving clean and armed so that the next checkpoint is a delta.

use super::mappings;
use super::objects::Loan;
use super::process::Mapped;
use super::{RebuildError, Rebuilding};
use crate::image::{Chain, Run, Source, SpaceId};
use crate::memory::runs::PageSet;
use crate::memory::vma::{Kind, Pages, Vma};
use crate::page::pending::Pending;
use crate::page::source::{ChainSource, PageSource};
use crate::page::space::LazySpace;
use crate::page::{Pager, Plan};
use crate::record::Process;
use crate::sys::guardian;
use crate::sys::mem::Forced;
use crate::sys::pagemap::{Filter, PRESENT, Pagemap, Region, SWAPPED};
use crate::sys::remote::Remote;
use crate::sys::uffd::{self, Filled, MODE_MISSING, MODE_WP, USER_MODE_ONLY, Uffd};
use crate::track::compared::{self, Hashes};
use crate::track::{backend, soft_dirty};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Mutex;
use std::thread::Builder;

/// Pages copied at a time.
const BATCH: u64 = 256;

/// Threads that decompress and copy.
const THREADS: usize = 4;

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Whether pages of this mapping come through the userfaultfd.
fn by_uffd(vma: &Vma) -> bool {
    vma.is_private_memory() && vma.kind() == Kind::Anonymous && !is_droppable(vma) && vma.huge_page == 0
}

/// MAP_DROPPABLE, which no userfaultfd watches.
fn is_droppable(vma: &Vma) -> bool {
    vma.has("dp")
}

/// Private pages of the process that the chain holds content for.
pub fn stored(record: &Process, chain: &Chain) -> PageSet {
    let map = chain.pages(SpaceId(record.space));
    map.runs().iter().filter(|r| matches!(r.source, Source::Stored { .. })).map(Run::pages).collect()
}

/// Private pages of the process that the chain knows to be zeros.
pub fn zeros(record: &Process, chain: &Chain) -> PageSet {
    let map = chain.pages(SpaceId(record.space));
    map.runs().iter().filter(|r| matches!(r.source, Source::Zero)).map(Run::pages).collect()
}

/// The userfaultfds of one address space.
pub struct Watch {
    /// None of a process that has nearly as many mappings as it may have, once its pages are there; nor, where the kernel does
    /// not protect memory, of one whose pages are all there before it runs.
    pub uffd: Option<Uffd>,
    /// Lazy: for when all pages are there, it only protects.
    pub successor: Option<Uffd>,
    /// Of the pages that are not watched.
    pub hashes: Hashes,
}

/// Makes the userfaultfds of the skeleton, registers its mappings, and fills what no userfaultfd can fill.
pub fn prepare(
    record: &Process,
    remote: &mut Remote,
    pidfd: BorrowedFd<'_>,
    chain: &Chain,
    (lazy, loan): (bool, Option<&Loan>),
) -> Result<Watch, RebuildError> {
    let pid = record.pid;
    let target = remote.pid();
    let protects = backend::protects();
    let features = if protects { uffd::TRACKING } else { 0 } | if lazy { uffd::EVENTS } else { 0 };
    let mut make = |wanted: bool, features| {
        let made = wanted.then(|| make_uffd(remote, pidfd, features, (lazy, loan)));
        made.transpose().rebuilding(pid, "its userfaultfd")
    };
    let uffd = make(protects || lazy, features)?;
    let successor = make(protects && lazy, uffd::TRACKING)?;
    let hashes = fill_others(record, target, chain)?;
    mappings::protect_huge(record, remote).rebuilding(pid, "memory in huge pages")?;
    let modes = if protects { MODE_WP } else { 0 } | if lazy { MODE_MISSING } else { 0 };
    for vma in record.mappings.iter().filter(|v| by_uffd(v)) {
        let registered =
            uffd.as_ref().map_or(Ok(()), |uffd| uffd.register(vma.start, vma.end - vma.start, modes));
        registered.rebuilding(pid, "the watch over its memory")?;
    }
    Ok(Watch { uffd, successor, hashes })
}

/// `serves`: what the kernel itself finds missing, too. Every user may have one that does not, since Linux 5.11; who may have no
/// other has a loan.
fn make_uffd(
    remote: &mut Remote,
    pidfd: BorrowedFd<'_>,
    features: u64,
    (serves, loan): (bool, Option<&Loan>),
) -> io::Result<Uffd> {
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
    if let Some(loan) = loan.filter(|_| serves) {
        let device = loan.device.as_raw_fd() as u64;
        let fd = remote.call(libc::SYS_ioctl, &[device, uffd::IOCTL_NEW, flags])?;
        let ours = crate::sys::pidfd::get_fd(pidfd, fd as i32)?;
        remote.call(libc::SYS_close, &[fd])?;
        return match features & uffd::EVENTS {
            0 => Uffd::handshake(ours, features),
            _ => loan.lender.handshake(ours, features),
        };
    }
    let humble = if serves { 0 } else { USER_MODE_ONLY };
    let fd = match remote.call(libc::SYS_userfaultfd, &[flags | humble]) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            remote.call(libc::SYS_userfaultfd, &[flags])?
        }
        made => made?,
    };
    let ours = crate::sys::pidfd::get_fd(pidfd, fd as i32)?;
    remote.call(libc::SYS_close, &[fd])?;
    Uffd::handshake(ours, features)
}

/// Changed pages of private file mappings, of droppable memory and of huge pages, written through /proc/PID/mem whatever
/// their protection; returns their hashes.
fn fill_others(record: &Process, target: Pid, chain: &Chain) -> Result<Hashes, RebuildError> {
    let mut hashes = Hashes::new();
    let map = chain.pages(SpaceId(record.space));
    let memory = Forced::open(target).rebuilding(record.pid, "its memory")?;
    let mut reader = chain.reader();
    let mut buffer = vec![0; BATCH as usize * 4096];
    for vma in record.mappings.iter().filter(|v| v.is_private_memory() && !by_uffd(v)) {
        let pages = vma.pages();
        for run in map.iter_range(pages.start, pages.end - pages.start) {
            for part in split(run) {
                let bytes = &mut buffer[..part.count as usize * 4096];
                match part.source {
                    Source::BackToFile => continue,
                    // There already: a huge page of zeros is not made for it.
                    Source::Zero if vma.huge_page != 0 && vma.kind() == Kind::Anonymous => continue,
                    Source::Zero => bytes.fill(0),
                    Source::Stored { .. } => reader.read_run(&part, bytes)?,
                }
                memory.write(part.first_page * 4096, bytes).rebuilding(record.pid, "a page of its own")?;
                let of_each = part.pages().zip(bytes.chunks_exact(4096));
                hashes.extend(of_each.map(|(page, bytes)| (page, compared::hash(bytes))));
            }
        }
    }
    Ok(hashes)
}

/// A run in parts of at most [`BATCH`] pages.
fn split(run: Run) -> impl Iterator<Item = Run> {
    let pages = run.pages();
    (0..)
        .map(move |i| pages.start + i * BATCH)
        .take_while(move |&p| p < run.pages().end)
        .filter_map(move |p| run.clip(&(p..p + BATCH)))
}

/// Starts the pager for all anonymous memory; `processes` are the tree, and alone in their time namespace.
pub fn lazy(processes: &[Mapped], chain: &Chain, plan: Plan) -> Result<Pager, RebuildError> {
    let source = ChainSource::new(chain, processes.iter().map(|p| SpaceId(p.record.space)));
    let mut spaces = Vec::with_capacity(processes.len());
    for process in processes {
        let id = SpaceId(process.record.space);
        let served: PageSet = process.record.mappings.iter().filter(|v| by_uffd(v)).map(Vma::pages).collect();
        // What is below a guard page is nobody's any more.
        let guards: PageSet = process.record.guards.iter().map(Pages::numbers).collect();
        let wanted = stored(&process.record, chain).intersection(&served).difference(&guards);
        let looked_at = looked_at(process).map(|seen| seen.intersection(&wanted));
        let looked_at = looked_at.rebuilding(process.record.pid, "what is there of its memory")?;
        write_over(process, &looked_at, chain)?;
        let pending = Pending::at_home(&wanted.difference(&looked_at));
        let uffd = process.watch.uffd.as_ref().ok_or_else(|| invalid("its memory is not watched"));
        let uffd = uffd.and_then(Uffd::duplicate);
        let uffd = uffd.rebuilding(process.record.pid, "its userfaultfd")?;
        let pid = Some(process.remote.pid());
        spaces.push(LazySpace::new(id, pid, uffd, pending, source.order(id), served));
    }
    let root = processes.first().map_or(Pid::from_raw(0), |p| p.remote.pid());
    let namespace = guardian::time_namespace(root).rebuilding(root.as_raw(), "its clocks")?;
    if guardian::time_namespace(Pid::this()).rebuilding(0, "the clocks")? == namespace {
        // The guardian would not know the program from everything else.
        return Err(RebuildError::Refused("it holds no clocks; restart it without --lazy".to_owned()));
    }
    Pager::start(spaces, Box::new(source), plan, namespace).rebuilding(root.as_raw(), "its pager")
}

/// Pages that are there already: somebody has looked at the process before its mappings were registered. Nobody can from then
/// on: a look finds that it has to wait, or fails.
fn looked_at(process: &Mapped) -> io::Result<PageSet> {
    let mut pagemap = Pagemap::open(process.remote.pid())?;
    let filter = Filter { any: PRESENT | SWAPPED, ..Filter::default() };
    let mut found = PageSet::new();
    for vma in process.record.mappings.iter().filter(|v| by_uffd(v)) {
        let each = |region: Region| found.insert(region.start / 4096..region.end / 4096);
        match pagemap.scan(vma.start, vma.end, filter, false, each) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                let all = soft_dirty::scan(&pagemap, std::slice::from_ref(vma), false)?;
                found = found.union(&all.populated);
            }
            scanned => scanned?,
        }
    }
    Ok(found)
}

/// Writes `pages` over the zeros that a look has left there, as [`place`] does: they count as changed.
fn write_over(process: &Mapped, pages: &PageSet, chain: &Chain) -> Result<(), RebuildError> {
    if pages.is_empty() {
        return Ok(());
    }
    let pid = process.record.pid;
    let map = chain.pages(SpaceId(process.record.space));
    let memory = Forced::open(process.remote.pid()).rebuilding(pid, "its memory")?;
    let mut reader = chain.reader();
    let mut buffer = vec![0; BATCH as usize * 4096];
    for range in pages.runs() {
        for part in map.iter_range(range.start, range.end - range.start).flat_map(split) {
            let bytes = &mut buffer[..part.count as usize * 4096];
            reader.read_run(&part, bytes)?;
            memory.write(part.first_page * 4096, bytes).rebuilding(pid, "its memory")?;
        }
    }
    Ok(())
}

/// Fills all anonymous memory from several threads.
pub fn eager(processes: &[Mapped], chain: &Chain) -> Result<(), RebuildError> {
    let mut work: Vec<(usize, Run)> = Vec::new();
    for (index, process) in processes.iter().enumerate() {
        let map = chain.pages(SpaceId(process.record.space));
        for vma in process.record.mappings.iter().filter(|v| by_uffd(v)) {
            let pages = vma.pages();
            let stored = map
                .iter_range(pages.start, pages.end - pages.start)
                .filter(|r| matches!(r.source, Source::Stored { .. }));
            work.extend(stored.flat_map(split).map(|r| (index, r)));
        }
    }
    work.reverse();
    let work = Mutex::new(work);
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        let start = |_| Builder::new().spawn_scoped(scope, || worker(processes, chain, &work)).ok();
        let workers: Vec<_> = (1..cpus.clamp(2, THREADS)).filter_map(start).collect();
        // Where there can be no other threads, this one does it all.
        let own = worker(processes, chain, &work);
        workers.into_iter().fold(own, |so_far, one| {
            let failed = |_| Err(RebuildError::Refused("a fill thread failed".to_owned()));
            so_far.and(one.join().unwrap_or_else(failed))
        })
    })?;
    processes.iter().try_for_each(mark_clean)
}

/// Where pages do not arrive write-protected, their soft-dirty bits say that they have been written.
fn mark_clean(process: &Mapped) -> Result<(), RebuildError> {
    if backend::protects() {
        return Ok(());
    }
    match soft_dirty::clear(process.remote.pid()) {
        // It has no such bits: the next checkpoint is a full one.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        cleared => cleared.rebuilding(process.record.pid, "the marks of its pages"),
    }
}

fn worker(processes: &[Mapped], chain: &Chain, work: &Mutex<Vec<(usize, Run)>>) -> Result<(), RebuildError> {
    let mut reader = chain.reader();
    let mut buffer = vec![0; BATCH as usize * 4096];
    loop {
        let next = work.lock().map_or(None, |mut w| w.pop());
        let Some((index, run)) = next else { return Ok(()) };
        let bytes = &mut buffer[..run.count as usize * 4096];
        reader.read_run(&run, bytes)?;
        let process = &processes[index];
        let (pid, start) = (process.remote.pid(), run.first_page * 4096);
        let placed = match &process.watch.uffd {
            Some(uffd) => place(uffd, pid, start, bytes),
            None => Forced::open(pid).and_then(|memory| memory.write(start, bytes)),
        };
        placed.rebuilding(process.record.pid, "its memory")?;
    }
}

/// Copies `bytes` to `start`, all of them.
///
/// Somebody may look at the process already, as ps(1) reads the arguments of every process: where it has looked there is a
/// page of zeros, which is written over. That one counts as changed.
fn place(uffd: &Uffd, pid: Pid, start: u64, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match uffd.copy(start + done as u64, &bytes[done..], true, false)? {
            Filled::Bytes(n) => done += n as usize,
            Filled::Busy => std::thread::yield_now(),
            Filled::Exists => {
                Forced::open(pid)?.write(start + done as u64, &bytes[done..done + 4096])?;
                done += 4096;
            }
            Filled::Gone | Filled::Dead => return Err(invalid("the process to fill is gone")),
        }
    }
    Ok(())
}
