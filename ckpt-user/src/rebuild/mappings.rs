//! The mappings of one process, made again in its skeleton.

use super::objects::Objects;
use super::skeleton::Skeleton;
use crate::memory::vma::{self, Kind, Pages, Vma};
use crate::memory::{policy, protection_keys, sysv, vdso};
use crate::record::{Image, Process};
use crate::sys::inject::Call;
use crate::sys::remote::Remote;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Moves the vdso home and maps everything else, with its advice and locks; returns where the vdso lies.
pub fn rebuild(
    record: &Process,
    skeleton: &mut Skeleton,
    objects: &Objects,
    image: &Image,
) -> io::Result<Range<u64>> {
    let shared = &image.objects;
    protection_keys::allocate(record, &mut skeleton.remote)?;
    let made_on = image.machine.as_ref().ok_or(io::ErrorKind::InvalidData)?;
    let (special, spare) = (&skeleton.special, skeleton.spare);
    let vdso = vdso::rebuild(&mut skeleton.remote, special, &record.mappings, made_on, spare)?;
    let mapped: Vec<&Vma> =
        record.mappings.iter().filter(|v| !matches!(v.kind(), Kind::Vdso | Kind::Vvar)).collect();
    sysv::attach(&record.mappings, shared, &mut skeleton.remote)?;
    let made: Vec<&Vma> = mapped.iter().copied().filter(|v| !sysv::is_attached(shared, v)).collect();
    for pieces in made.chunk_by(|a, b| were_one(a, b)) {
        whole(pieces, objects, &mut skeleton.remote)?;
    }
    let mut advice = Vec::new();
    for vma in &mapped {
        let len = vma.end - vma.start;
        advice.extend(
            vma.flags
                .iter()
                .filter_map(|f| vma::advice(f))
                .map(|number| Call::new(libc::SYS_madvise, &[vma.start, len, number as u64])),
        );
    }
    for (call, result) in advice.iter().zip(skeleton.remote.run(&advice)?) {
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result as i32);
            return Err(io::Error::new(
                error.kind(),
                format!("madvise {} at {:x}: {error}", call.args[2], call.args[0]),
            ));
        }
    }
    policy::rebuild(&record.mappings, &mut skeleton.remote)?;
    names(&mapped, &mut skeleton.remote)?;
    Ok(vdso)
}

/// What PR_SET_VMA_ANON_NAME calls them.
fn names(mapped: &[&Vma], remote: &mut Remote) -> io::Result<()> {
    const PR_SET_VMA: u64 = 0x5356_4d41;
    const PR_SET_VMA_ANON_NAME: u64 = 0;
    for vma in mapped.iter().filter(|v| !v.name.is_empty()) {
        let name = remote.string(&vma.name)?;
        let (start, len) = (vma.start, vma.end - vma.start);
        remote
            .call(libc::SYS_prctl, &[PR_SET_VMA, PR_SET_VMA_ANON_NAME, start, len, name])
            .map_err(|e| io::Error::new(e.kind(), format!("the name of {start:x} (PR_SET_VMA): {e}")))?;
    }
    Ok(())
}

/// Whether two neighbours differ in their protection only: mprotect(2) may have split them, and may make them one
/// again, which mremap(2) needs.
pub(crate) fn were_one(a: &Vma, b: &Vma) -> bool {
    let plain = |v: &Vma| v.kind() == Kind::Anonymous && !v.shared && !v.has("gd") && v.huge_page == 0;
    // Write protection is the tracker's, and comes to all of them.
    let kept = |v: &Vma| v.flags.iter().filter(|f| *f != "uw").cloned().collect::<Vec<_>>();
    a.end == b.start && plain(a) && plain(b) && kept(a) == kept(b)
}

/// Maps neighbours that were one as one, so that the kernel sees them as such (one anon_vma), then splits them.
///
/// What could once be written is counted as committed (VM_ACCOUNT) when that is taken from it, as a loader does with its
/// relocations: so it is mapped writable first, or it would become one with a neighbour that never could.
fn whole(pieces: &[&Vma], objects: &Objects, remote: &mut Remote) -> io::Result<()> {
    const POPULATE_WRITE: u64 = 23;
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return Ok(()) };
    let is_writable = |v: &Vma| v.protection & libc::PROT_WRITE as u32 != 0;
    let was_writable = !first.shared && first.has("ac") && !is_writable(first);
    let write_first = was_writable || pieces.iter().any(|v| is_writable(v));
    let protect_later = was_writable || pieces.len() > 1;
    let protection = match (protect_later, write_first) {
        (true, true) => READ_WRITE,
        // To be filled; then [`protect_huge`].
        _ if is_private_huge(first) => READ_WRITE,
        _ => first.protection_at_first(),
    };
    let all = Vma { end: last.end, protection, ..(*first).clone() };
    let mut calls = vec![mmap(&all, objects)?];
    if protect_later {
        if write_first && first.kind() == Kind::Anonymous {
            // A page that comes and goes leaves the anon_vma that the pieces are to share, and that what is counted has. It may be a
            // huge one, all of which has to go: what is there already counts as written.
            calls.push(Call::new(libc::SYS_madvise, &[all.start, 4096, POPULATE_WRITE]));
            let len = all.end - all.start;
            calls.push(Call::new(libc::SYS_madvise, &[all.start, len, libc::MADV_DONTNEED as u64]));
        }
        let protect = |v: &&Vma| {
            Call::new(libc::SYS_mprotect, &[v.start, v.end - v.start, u64::from(v.protection_at_first())])
        };
        calls.extend(pieces.iter().map(protect));
    }
    let results = remote.run(&calls)?;
    for (at, (call, &result)) in calls.iter().zip(&results).enumerate() {
        let failed = if at == 0 { result as u64 != all.start } else { result < 0 };
        // Before Linux 5.14 nothing is populated: the pieces stay apart, and are right otherwise.
        let is_advice = call.number == libc::SYS_madvise;
        if failed && !is_advice {
            let error = io::Error::from_raw_os_error(-result as i32);
            return Err(io::Error::new(error.kind(), format!("{:x}-{:x}: {error}", all.start, all.end)));
        }
    }
    Ok(())
}

const READ_WRITE: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;

fn is_private_huge(vma: &Vma) -> bool {
    vma.huge_page != 0 && !vma.shared
}

/// Huge pages get their protection when they are filled: not every kernel writes to read-only ones for anybody.
pub fn protect_huge(record: &Process, remote: &mut Remote) -> io::Result<()> {
    let call = |v: &Vma| {
        Call::new(libc::SYS_mprotect, &[v.start, v.end - v.start, u64::from(v.protection_at_first())])
    };
    let huge = record.mappings.iter().filter(|v| is_private_huge(v) && v.protection != READ_WRITE);
    all_done(remote, &huge.map(call).collect::<Vec<_>>(), None)
}

/// Guard pages, before anything is locked or sealed: that would be refused afterwards.
pub fn guard(record: &Process, remote: &mut Remote) -> io::Result<()> {
    /// Linux 6.13.
    const MADV_GUARD_INSTALL: u64 = 102;
    let call = |p: &Pages| Call::new(libc::SYS_madvise, &[p.start, p.end - p.start, MADV_GUARD_INSTALL]);
    all_done(remote, &record.guards.iter().map(call).collect::<Vec<_>>(), None)
}

/// Locked memory is locked once its pages are there.
///
/// First on fault, which touches nothing; then what is to be there as a whole is brought in. Memory that nobody may
/// touch, and what lies behind the end of a file, cannot be, and is locked all the same.
pub fn lock(record: &Process, remote: &mut Remote) -> io::Result<()> {
    let call =
        |v: &Vma, flags: u32| Call::new(libc::SYS_mlock2, &[v.start, v.end - v.start, u64::from(flags)]);
    let locked = || record.mappings.iter().filter(|v| v.has("lo"));
    let calls: Vec<Call> = locked().map(|v| call(v, libc::MLOCK_ONFAULT)).collect();
    all_done(remote, &calls, None)?;
    let calls: Vec<Call> = locked().filter(|v| !v.has("lf")).map(|v| call(v, 0)).collect();
    all_done(remote, &calls, Some(libc::ENOMEM))?;
    // What is there already stays as it is.
    match record.locks_to_come & (libc::MCL_FUTURE | libc::MCL_ONFAULT) as u32 {
        0 => Ok(()),
        flags => remote.call(libc::SYS_mlockall, &[u64::from(flags)]).map(drop),
    }
}

/// Seals (mseal(2), Linux 6.10), when nothing is to be changed any more.
pub fn seal(record: &Process, remote: &mut Remote) -> io::Result<()> {
    const SYS_MSEAL: i64 = 462;
    let sealed = record.mappings.iter().filter(|v| v.has("sl"));
    let calls: Vec<Call> = sealed.map(|v| Call::new(SYS_MSEAL, &[v.start, v.end - v.start, 0])).collect();
    all_done(remote, &calls, None)
}

/// Runs the calls; the first that failed, but by `allowed`, is the error.
fn all_done(remote: &mut Remote, calls: &[Call], allowed: Option<i32>) -> io::Result<()> {
    let failed = |&result: &i64| result < 0 && allowed != Some(-result as i32);
    match remote.run(calls)?.into_iter().find(failed) {
        Some(error) => Err(io::Error::from_raw_os_error(-error as i32)),
        None => Ok(()),
    }
}

fn mmap(vma: &Vma, objects: &Objects) -> io::Result<Call> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "a mapping refers to nothing in the image");
    let fd = match vma.kind() {
        Kind::File if vma.object.is_some() => {
            let object = vma.object.and_then(|index| objects.read_only.get(&index));
            object.ok_or_else(invalid)?.as_raw_fd() as u64
        }
        Kind::File => {
            let file = vma.file.as_ref().ok_or_else(invalid)?;
            objects.files.get(file).ok_or_else(invalid)?.as_raw_fd() as u64
        }
        Kind::SharedObject => {
            let index = vma.object.ok_or_else(invalid)? as usize;
            objects.shared.get(index).ok_or_else(invalid)?.as_raw_fd() as u64
        }
        Kind::Anonymous | Kind::Vdso | Kind::Vvar => u64::MAX,
    };
    Ok(vma::mmap_call(vma, fd))
}
