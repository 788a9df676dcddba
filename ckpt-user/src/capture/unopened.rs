//! Shared memory that is read through its mappings ([`crate::memory::through`]): its processes are asked, by injected system calls,
//! what /proc does not show of it.
//!
//! **Which pages hold something.** To read a hole of such memory fills it. mincore(2) tells which pages are in memory, whoever has
//! touched them (`mincore_page` of mm/mincore.c); a process's own page table does not. What is in swap is not told, but smaps counts
//! it (`shmem_swap_usage` of mm/shmem.c): it is brought back, until there is none. Nobody touches the memory meanwhile.
//!
//! **Whether all of it is mapped.** What no process has mapped is still there, and mremap(2) would show it again: a mapping of no old
//! size is a second one, of any length. So the last page is mapped once more together with the one behind it, which must be none.
//! Where there is more of it than is mapped, that cannot be saved.

use super::asked::room;
use crate::freeze::{FrozenProcess, FrozenTree};
use crate::memory::capture::Objects;
use crate::memory::runs::PageSet;
use crate::memory::through::{self, Piece, Through};
use crate::memory::vma::{self, Vma};
use crate::object::{Description, Object};
use crate::planted;
use crate::record::Process;
use crate::refusal::{Reading, Refusal};
use crate::sys::ptrace::Stopped;
use crate::task::hidden::Injector;
use crate::task::proc::ProcDir;
use nix::sys::sysinfo::sysinfo;
use nix::unistd::Pid;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;

/// How long pages in swap may take to come back, while the program stands still.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the mappings show of each object that nobody opens, by its index; its size is known from then on.
///
/// # Errors
/// Names memory that is not mapped as a whole, or does not come back from swap.
pub fn look(
    tree: &mut FrozenTree,
    (processes, descriptions): (&[Process], &[Description]),
    objects: &mut Objects,
    injected: &mut u64,
) -> Result<HashMap<u32, Through>, Refusal> {
    let mut found = HashMap::new();
    for index in std::mem::take(&mut objects.unopened) {
        if is_open(index, descriptions, objects) {
            continue;
        }
        let all = mapped(tree, processes, index);
        let pages = size(tree, processes, &all, injected)?;
        let unmapped = |page: u64| {
            let (pid, at) = all.first().map_or((Pid::from_raw(0), 0), |piece| (piece.pid, piece.address));
            refused(pid, at, &format!("page {page} of it is mapped by no process of the program"))
        };
        let pieces = through::cover(all.clone(), pages).map_err(unmapped)?;
        let mut data = PageSet::new();
        for piece in &pieces {
            let (process, mappings) =
                (&mut tree.processes[piece.process], &processes[piece.process].mappings);
            data = data.union(&held(process, mappings, piece, injected)?);
        }
        if let Some(run) = data.runs().last().cloned().filter(|_| planted::is("lost-shared")) {
            data.remove(&run);
        }
        let size = pages * PAGE;
        if let Some(object) = objects.found.get_mut(index as usize) {
            object.size = size;
            let identity = (object.device, object.inode);
            let files = objects.deleted.iter_mut().filter(|file| file.identity() == identity);
            files.for_each(|file| file.size = size);
        }
        found.insert(index, Through { pieces, data });
    }
    Ok(found)
}

/// Whether it is a file that another process of the program has open, which tells all there is to know of it.
fn is_open(index: u32, descriptions: &[Description], objects: &mut Objects) -> bool {
    let Some(object) = objects.found.get_mut(index as usize) else { return false };
    let identity = (object.device, object.inode);
    let mut files = descriptions.iter().filter_map(|description| match &description.object {
        Some(Object::Deleted(file)) => Some(file),
        _ => None,
    });
    let Some(known) = files.find(|file| file.identity() == identity) else { return false };
    object.size = known.size;
    let records = objects.deleted.iter_mut().filter(|file| file.identity() == identity);
    records.for_each(|file| *file = known.clone());
    true
}

/// All mappings of an object.
fn mapped(tree: &FrozenTree, processes: &[Process], index: u32) -> Vec<Piece> {
    let all = processes.iter().zip(&tree.processes).enumerate();
    let of = |(process, (record, frozen)): (usize, (&Process, &FrozenProcess))| {
        let pid = frozen.reached_by();
        let its = record.mappings.iter().filter(|vma| vma.object == Some(index));
        let piece = |vma: &Vma| {
            let (first, count) = (vma.offset / PAGE, (vma.end - vma.start) / PAGE);
            Piece { process, pid, address: vma.start, first, count }
        };
        its.map(piece).collect::<Vec<_>>()
    };
    all.flat_map(of).collect()
}

fn refused(pid: Pid, address: u64, why: &str) -> Refusal {
    let what = format!("has shared memory without a name at {address:x}");
    let reason = format!("{why}; without root (CAP_CHECKPOINT_RESTORE) it is saved only as a whole");
    Refusal::unsupported(pid, what, reason)
}

/// Has the first thread of a process make system calls.
fn ask<T>(
    process: &mut FrozenProcess,
    mappings: &[Vma],
    injected: &mut u64,
    calls: impl FnOnce(&mut Injector<'_>, Stopped) -> io::Result<(T, Stopped)>,
) -> Result<T, Refusal> {
    let (pid, room) = (process.pid, room(process, mappings)?);
    let lost = || Refusal::NotStopped(format!("a thread of process {pid} was lost"));
    let first = process.threads.first_mut().ok_or_else(lost)?;
    let stopped = first.stopped.take().ok_or_else(lost)?;
    let mut injector = Injector { memory: &process.memory, room, count: 0 };
    let (found, stopped) = calls(&mut injector, stopped).reading(pid, "its shared memory")?;
    // Those of a handler, if a signal has come meanwhile.
    first.regs = stopped.regs().reading(pid, "registers")?;
    first.stopped = Some(stopped);
    *injected += injector.count;
    Ok(found)
}

/// Where an object ends.
enum End {
    /// With the page that was asked about.
    Here,
    Later,
    Before,
    /// The result of a call that failed.
    Unknown(i64),
}

/// How many pages an object has, all mappings of which are `all`. It ends where one of them does.
///
/// # Errors
/// None of them shows its end.
fn size(
    tree: &mut FrozenTree,
    processes: &[Process],
    all: &[Piece],
    injected: &mut u64,
) -> Result<u64, Refusal> {
    let mut last: Vec<&Piece> = all.iter().collect();
    last.sort_by_key(|piece| Reverse(piece.end()));
    last.dedup_by_key(|piece| piece.end());
    for piece in &last {
        let refused = |why: &str| Err(refused(piece.pid, piece.address, why));
        let mappings = &processes[piece.process].mappings;
        // A copy of a sealed mapping (mseal(2)) would stay.
        if mappings.iter().any(|vma| vma.start == piece.address && vma.has("sl")) {
            return refused("it is sealed, so that whether all of it is mapped is not to be found out");
        }
        let page = piece.addresses().end - PAGE;
        let process = &mut tree.processes[piece.process];
        match ask(process, mappings, injected, |injector, thread| end(injector, thread, page))? {
            End::Here => return Ok(piece.end()),
            End::Later => return refused("there is more of it than any process of the program has mapped"),
            // A ckptbpf that was killed in the midst of this has left such a mapping.
            End::Before => {}
            End::Unknown(result) => {
                let error = io::Error::from_raw_os_error(-result as i32);
                return refused(&format!("whether all of it is mapped is not to be found out ({error})"));
            }
        }
    }
    let (pid, at) = last.first().map_or((Pid::from_raw(0), 0), |piece| (piece.pid, piece.address));
    Err(refused(pid, at, "it is mapped beyond its end"))
}

/// Whether shared memory ends with the page at an address.
fn end(injector: &mut Injector<'_>, thread: Stopped, page: u64) -> io::Result<(End, Stopped)> {
    const BOTH: u64 = 2 * PAGE;
    let touch = |at: u64| [at, PAGE, libc::MADV_POPULATE_READ as u64];
    let copy = [page, 0, BOTH, libc::MREMAP_MAYMOVE as u64];
    let (at, thread) = injector.call(thread, libc::SYS_mremap, &copy)?;
    if at < 0 {
        return Ok((End::Unknown(at), thread));
    }
    let at = at as u64;
    let readable = [at, BOTH, libc::PROT_READ as u64];
    let (_, thread) = injector.call(thread, libc::SYS_mprotect, &readable)?;
    let (inside, thread) = injector.call(thread, libc::SYS_madvise, &touch(at))?;
    let (beyond, thread) = injector.call(thread, libc::SYS_madvise, &touch(at + PAGE))?;
    let (gone, thread) = injector.call(thread, libc::SYS_munmap, &[at, BOTH])?;
    // What a touch gives where the program would get SIGBUS.
    let outside = -i64::from(libc::EFAULT);
    let end = match (gone, inside, beyond) {
        (0, 0, 0) => End::Later,
        (0, 0, beyond) if beyond == outside => End::Here,
        (0, inside, _) if inside == outside => End::Before,
        (0, 0, result) | (0, result, _) | (result, ..) => End::Unknown(result),
    };
    Ok((end, thread))
}

/// Which pages of a mapping hold something, by their numbers in the object.
fn held(
    process: &mut FrozenProcess,
    mappings: &[Vma],
    piece: &Piece,
    injected: &mut u64,
) -> Result<PageSet, Refusal> {
    const PAUSE: Duration = Duration::from_millis(1);
    let (pid, addresses) = (process.pid, piece.addresses());
    let reached_by = process.reached_by();
    let may_be_in_swap = has_swap();
    let begun = Instant::now();
    loop {
        // First this, then how many are in swap: between the two nobody brings one back.
        let there = ask(process, mappings, injected, |injector, thread| resident(injector, thread, piece))?;
        if !may_be_in_swap {
            return Ok(there);
        }
        let smaps = ProcDir::process(reached_by).text("smaps").reading(pid, "smaps")?;
        let away = vma::in_swap(&smaps, &addresses);
        let away = away.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
        if away.reading(pid, "smaps")? == 0 {
            return Ok(there);
        }
        if begun.elapsed() > PATIENCE {
            return Err(refused(pid, piece.address, "part of it is in swap, and does not come back"));
        }
        // Into the swap cache, which mincore(2) looks at, and from there, by a touch, into the object.
        let wanted = [addresses.start, addresses.end - addresses.start, libc::MADV_WILLNEED as u64];
        ask(process, mappings, injected, |injector, thread| {
            injector.call(thread, libc::SYS_madvise, &wanted)
        })?;
        let seen = Through { pieces: vec![*piece], data: there };
        seen.each(&seen.data, &mut |_, _| Ok(())).reading(pid, "its shared memory")?;
        std::thread::sleep(PAUSE);
    }
}

/// mincore(2) of a mapping: pages that are in memory, by their numbers in the object.
fn resident(injector: &mut Injector<'_>, thread: Stopped, piece: &Piece) -> io::Result<(PageSet, Stopped)> {
    /// A byte each, below the stack: no more than a signal's frame may take.
    const MOST: u64 = 2048;
    let (mut thread, mut found, mut at) = (thread, PageSet::new(), 0);
    while at < piece.count {
        let count = (piece.count - at).min(MOST);
        let from = piece.address + at * PAGE;
        let mincore = |to| (libc::SYS_mincore, vec![from, count * PAGE, to]);
        let bytes;
        (bytes, thread) = injector.reading(thread, count as usize, mincore)?;
        let there = (piece.first + at..).zip(bytes).filter(|(_, byte)| byte & 1 != 0);
        there.for_each(|(page, _)| found.insert(page..page + 1));
        at += count;
    }
    Ok((found, thread))
}

/// Whether anything can be in swap. The first does not count what is being switched off, the second may be another one in a
/// container.
fn has_swap() -> bool {
    let total = sysinfo().map_or(u64::MAX, |info| info.swap_total());
    let listed = std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1);
    total > 0 || listed
}
