//! System V shared memory (shmget(2)): segments with an id and mostly a key, which processes attach.
//!
//! A segment that was not removed outlives the program. At a restart it is taken again if it is the very one and nobody
//! has attached it, and made anew, under its id and key, if it is gone; somebody else's is never touched. What it holds
//! is written as the last act, as with files ([`super::shared`]).

use super::behind::Behind;
use super::capture::Objects;
use super::hugetlb;
use super::vma::{Kind, Raw, Vma};
use crate::object::memfd;
use crate::rebuild::{RebuildError, Rebuilding};
use crate::record::{Image, Process, SharedObject};
use crate::refusal::{Reading, Refusal};
use crate::sys::ids::FsIds;
use crate::sys::inject::Call;
use crate::sys::remote::Remote;
use crate::sys::{mem, shm};
use nix::unistd::Pid;
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

/// How long a segment may still be attached by what has just been killed.
const HELD: Duration = Duration::from_secs(2);

/// What shmctl(2) tells of a segment, besides its size.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Segment {
    #[prost(int32, tag = "1")]
    pub id: i32,
    /// 0: IPC_PRIVATE, or removed.
    #[prost(int32, tag = "2")]
    pub key: i32,
    /// Permission bits, SHM_DEST, SHM_LOCKED.
    #[prost(uint32, tag = "3")]
    pub mode: u32,
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    /// Who made it.
    #[prost(uint32, tag = "6")]
    pub cuid: u32,
    #[prost(uint32, tag = "7")]
    pub cgid: u32,
}

/// Removed, and there until it is attached no more (linux/shm.h).
const SHM_DEST: u32 = 0o1000;
const SHM_LOCKED: u32 = 0o2000;
/// No device: segments and other memory without a name share one, and may have the same inode numbers there.
const DEVICE: u64 = u64::MAX;

impl Segment {
    /// SHM_LOCK of shmctl(2).
    pub fn is_locked(&self) -> bool {
        self.mode & SHM_LOCKED != 0
    }
}

/// A line of /proc/sysvipc/shm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    segment: Segment,
    size: u64,
    attached: u64,
}

fn rows() -> io::Result<Vec<Row>> {
    let text = std::fs::read_to_string("/proc/sysvipc/shm")?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "cannot understand /proc/sysvipc/shm");
    text.lines().skip(1).map(|line| parse(line).ok_or_else(invalid)).collect()
}

/// key shmid perms size cpid lpid nattch uid gid cuid cgid …
pub(crate) fn parse(line: &str) -> Option<Row> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    let id = |at: usize| Some(number(at)? as u32);
    let segment = Segment {
        key: words.first()?.parse().ok()?,
        id: words.get(1)?.parse().ok()?,
        mode: u32::from_str_radix(words.get(2)?, 8).ok()?,
        uid: id(7)?,
        gid: id(8)?,
        cuid: id(9)?,
        cgid: id(10)?,
    };
    Some(Row { segment, size: number(3)?, attached: number(6)? })
}

/// Whether the machine has a segment of this id now.
pub fn is_there(wanted: &Segment) -> bool {
    rows().is_ok_and(|rows| rows.iter().any(|row| row.segment.id == wanted.id))
}

/// Whether a mapping is of a segment: no file has a name like this, but one that was deleted at the root.
pub fn is_segment(raw: &Raw) -> bool {
    raw.is_shared() && raw.name.starts_with("/SYSV") && raw.name.ends_with(" (deleted)")
}

/// The record of a mapping of a segment, which begins as `vma`.
pub fn describe(pid: Pid, raw: &Raw, mut vma: Vma, objects: &mut Objects) -> Result<Vma, Refusal> {
    let rows = rows().reading(pid, "/proc/sysvipc/shm")?;
    let what = || format!("has the mapping {:x}-{:x} {}", raw.start, raw.end, raw.name);
    let behind = Behind::of(pid, raw).reading(pid, "map_files")?;
    let Behind { metadata, .. } = behind.map_err(|reason| Refusal::unsupported(pid, what(), reason))?;
    let mut rows = rows.into_iter().filter(|_| memfd::is_internal(&metadata));
    let row = rows.find(|row| row.segment.id as u64 == raw.inode).ok_or_else(|| {
        Refusal::unsupported(pid, what(), "this System V segment cannot be found (/proc/sysvipc/shm)")
    })?;
    vma.huge_page = hugetlb::page_size(&metadata).unwrap_or(0);
    check_tail(pid, &vma, row.size)?;
    let index = objects.index_of((DEVICE, raw.inode), row.size, |object| {
        object.segment = Some(row.segment);
        object.huge_page = vma.huge_page;
        Ok(())
    });
    vma.object = Some(index.reading(pid, "a System V segment")?);
    vma.set_kind(if raw.flags.iter().any(|f| f == "mw") { Kind::SharedObject } else { Kind::File });
    Ok(vma)
}

/// Behind the end of the segment, in its last page, may be bytes that no file shows.
fn check_tail(pid: Pid, vma: &Vma, size: u64) -> Result<(), Refusal> {
    let (begin, end) = (vma.start + size.saturating_sub(vma.offset), vma.end);
    if size <= vma.offset || end <= begin {
        return Ok(());
    }
    let mut tail = vec![0; (end - begin) as usize];
    // What the process may not read it has not written here.
    if mem::read(pid, begin, &mut tail).is_ok() && tail.iter().any(|&b| b != 0) {
        let what = format!("has written behind the end of the System V segment at {:x}", vma.start);
        return Err(Refusal::unsupported(pid, what, "what is there cannot be saved"));
    }
    Ok(())
}

/// The mappings that one shmat(2) has made, or pieces of it that mprotect(2) has.
fn attachments(mappings: &[Vma], is_segment: impl Fn(&Vma) -> bool) -> impl Iterator<Item = &[Vma]> {
    let one = |a: &Vma, b: &Vma| {
        let next = (a.end, a.offset.wrapping_add(a.end.wrapping_sub(a.start)));
        a.object.is_some() && a.object == b.object && a.kind == b.kind && next == (b.start, b.offset)
    };
    mappings.chunk_by(one).filter(move |pieces| is_segment(&pieces[0]))
}

fn segment_of<'o>(objects: &'o [SharedObject], vma: &Vma) -> Option<(&'o SharedObject, Segment)> {
    let object = objects.get(vma.object? as usize)?;
    Some((object, object.segment?))
}

/// Whether the mapping is made by [`attach`].
pub fn is_attached(objects: &[SharedObject], vma: &Vma) -> bool {
    segment_of(objects, vma).is_some()
}

/// Whether these pieces are all of a segment.
fn is_whole(pieces: &[Vma], object: &SharedObject) -> bool {
    let len = pieces.last().map_or(0, |last| last.end.wrapping_sub(pieces[0].start));
    pieces[0].offset == 0 && Some(len) == object.size.checked_next_multiple_of(object.huge_page.max(4096))
}

/// # Errors
/// Names a segment that is attached in part, or by somebody outside of the program, too.
pub fn check(processes: &[Process], objects: &[SharedObject]) -> Result<(), Refusal> {
    if objects.iter().all(|object| object.segment.is_none()) {
        return Ok(());
    }
    let root = processes.first().map_or(Pid::from_raw(0), |p| Pid::from_raw(p.pid));
    let rows = rows().reading(root, "/proc/sysvipc/shm")?;
    for process in processes {
        let pid = Pid::from_raw(process.pid);
        for pieces in attachments(&process.mappings, |vma| is_attached(objects, vma)) {
            let Some((object, segment)) = segment_of(objects, &pieces[0]) else { continue };
            let what = || format!("has the System V segment {} at {:x}", segment.id, pieces[0].start);
            if !is_whole(pieces, object) {
                return Err(Refusal::unsupported(pid, what(), "it is attached only in part"));
            }
            let index = pieces[0].object;
            let all = processes.iter().flat_map(|p| &p.mappings);
            let ours = all.filter(|vma| vma.object == index).count() as u64;
            let row = rows.iter().find(|row| row.segment.id == segment.id);
            if row.is_none_or(|row| row.attached > ours) {
                return Err(Refusal::unsupported(
                    pid,
                    what(),
                    "a process outside of the program has attached it, too",
                ));
            }
        }
    }
    Ok(())
}

/// A segment that is there for a restart; one that was made for it goes again unless it is [`Made::finish`]ed.
#[derive(Debug)]
pub struct Made {
    segment: Segment,
    pub size: u64,
    huge_page: u64,
    /// Nobody else's: removed when the restart fails.
    is_new: Cell<bool>,
}

/// Finds or makes the image's segments, by index of its objects. Contents are not touched.
///
/// # Errors
/// Names a segment that would be somebody else's, or whose id or key is somebody else's now.
pub fn make(image: &Image, owner: &FsIds) -> Result<Vec<Option<Made>>, RebuildError> {
    let wanted = image.objects.iter().map(|object| Some((object.segment?, object.size, object.huge_page)));
    if image.objects.iter().all(|object| object.segment.is_none()) {
        return Ok(wanted.map(|_| None).collect());
    }
    let ids: Vec<i32> = wanted.clone().flatten().map(|(segment, ..)| segment.id).collect();
    let rows = detached(&ids).rebuilding(0, "/proc/sysvipc/shm")?;
    let mut is_there = Vec::new();
    for (segment, size, _) in wanted.clone().flatten() {
        let settled = permitted(&segment, owner).and_then(|()| settle(&segment, size, &rows));
        let refused = |why| RebuildError::Refused(format!("System V segment {}: {why}", segment.id));
        is_there.push(settled.map_err(refused)?);
    }
    let mut is_there = is_there.into_iter();
    let mut made = Vec::new();
    for wanted in wanted {
        let one = wanted.map(|(segment, size, huge_page)| {
            let is_new = is_there.next() == Some(false);
            let made = Made { segment, size, huge_page, is_new: Cell::new(false) };
            if is_new { made.create().map(|()| made) } else { Ok(made) }
        });
        made.push(one.transpose()?);
    }
    Ok(made)
}

/// The segments of here, once nobody has any of `ids` attached, or at most [`HELD`] later: the kernel may hold the memory of
/// a process that is gone a little longer (khugepaged, ksmd).
fn detached(ids: &[i32]) -> io::Result<Vec<Row>> {
    let until = Instant::now() + HELD;
    loop {
        let rows = rows()?;
        let is_attached = |row: &Row| row.attached > 0 && ids.contains(&row.segment.id);
        if !rows.iter().any(is_attached) || Instant::now() > until {
            return Ok(rows);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// An image gives nobody what its owner could not have made.
fn permitted(segment: &Segment, owner: &FsIds) -> Result<(), String> {
    let has = |gid: u32| owner.gid == gid || owner.groups.contains(&gid);
    let own = [segment.uid, segment.cuid].iter().all(|&uid| uid == owner.uid);
    if owner.uid == 0 || (own && has(segment.gid) && has(segment.cgid)) {
        return Ok(());
    }
    Err("it belongs to somebody else than the image".to_owned())
}

/// Whether the segment is there to be taken again; an error says who else has its id or key.
fn settle(wanted: &Segment, size: u64, rows: &[Row]) -> Result<bool, String> {
    let identity = |s: &Segment| (s.key, s.uid, s.gid, s.cuid, s.cgid);
    if let Some(row) = rows.iter().find(|row| row.segment.id == wanted.id) {
        if identity(&row.segment) != identity(wanted) || row.size != size {
            return Err("its id is in use by another segment (ipcs -m)".to_owned());
        }
        if row.attached > 0 {
            return Err("somebody has attached it (ipcs -m -p)".to_owned());
        }
        return Ok(true);
    }
    match rows.iter().find(|row| wanted.key != 0 && row.segment.key == wanted.key) {
        Some(row) => Err(format!("its key {:#x} is that of segment {} now", wanted.key, row.segment.id)),
        None => Ok(false),
    }
}

impl Made {
    fn create(&self) -> Result<(), RebuildError> {
        const NEXT_ID: &str = "/proc/sys/kernel/shm_next_id";
        let Segment { id, key, mode, uid, gid, cuid, cgid } = self.segment;
        let what = format!("System V segment {id}");
        std::fs::write(NEXT_ID, id.to_string()).rebuilding(0, &what)?;
        let huge = hugetlb::flags(self.huge_page, libc::SHM_HUGETLB as u32);
        let made = shm::create(key, self.size, mode & 0o777 | huge, (cuid, cgid));
        if made.is_err() {
            // It waits for the next segment of anybody otherwise.
            std::fs::write(NEXT_ID, "-1").rebuilding(0, &what)?;
        }
        let made = made.rebuilding(0, &what)?;
        if made != id {
            shm::remove(made).rebuilding(0, &what)?;
            return Err(RebuildError::Refused(format!("{what}: its id is in use by another segment")));
        }
        self.is_new.set(true);
        shm::set(id, uid, gid, mode).rebuilding(0, &what)
    }

    /// Its memory.
    pub fn open(&self) -> io::Result<File> {
        shm::open(self.segment.id, self.size.next_multiple_of(self.huge_page.max(4096)))
    }

    /// What tracking knows it by.
    pub fn identity(&self) -> (u64, u64) {
        (DEVICE, self.segment.id as u64)
    }

    /// The last act before the program runs, which has it attached.
    pub fn finish(&self) -> io::Result<()> {
        let Segment { id, mode, uid, gid, .. } = self.segment;
        shm::set(id, uid, gid, mode)?;
        if mode & SHM_LOCKED != 0 {
            shm::lock(id)?;
        }
        if mode & SHM_DEST != 0 {
            shm::remove(id)?;
        }
        self.is_new.set(false);
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.is_new.get() {
            // Gone already: as it should be.
            let _ = shm::remove(self.segment.id);
        }
    }
}

/// Attaches the skeleton's segments where they were.
pub fn attach(mappings: &[Vma], objects: &[SharedObject], remote: &mut Remote) -> io::Result<()> {
    for pieces in attachments(mappings, |vma| is_attached(objects, vma)) {
        let Some((object, segment)) = segment_of(objects, &pieces[0]) else { continue };
        let failed = |e: io::Error| io::Error::new(e.kind(), format!("System V segment {}: {e}", segment.id));
        if !is_whole(pieces, object) {
            return Err(failed(io::ErrorKind::InvalidData.into()));
        }
        let is_read_only = pieces[0].kind() == Kind::File;
        let (flags, given) = match is_read_only {
            true => (libc::SHM_RDONLY, libc::PROT_READ),
            false => (0, libc::PROT_READ | libc::PROT_WRITE),
        };
        let at = pieces[0].start;
        remote.call(libc::SYS_shmat, &[segment.id as u64, at, flags as u64]).map_err(failed)?;
        for vma in pieces.iter().filter(|vma| vma.protection != given as u32) {
            let call = Call::new(
                libc::SYS_mprotect,
                &[vma.start, vma.end - vma.start, u64::from(vma.protection_at_first())],
            );
            remote.call(call.number, &call.args).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        parse("  4660 32768  1640  20000 5 6 2  1000 1001 1002 1003 1795398796 0 1795398796 4096 0").unwrap()
    }

    #[test]
    fn a_line_of_the_kernel_s_table() {
        let segment =
            Segment { id: 32768, key: 0x1234, mode: 0o1640, uid: 1000, gid: 1001, cuid: 1002, cgid: 1003 };
        assert_eq!(row(), Row { segment, size: 20000, attached: 2 });
        assert_eq!(parse("1 2 3"), None);
    }

    #[test]
    fn a_segment_is_taken_only_if_it_is_the_very_one_and_nobody_has_it() {
        let there = Row { attached: 0, ..row() };
        let wanted = there.segment;
        assert_eq!(settle(&wanted, 20000, &[]), Ok(false));
        assert_eq!(settle(&wanted, 20000, std::slice::from_ref(&there)), Ok(true));
        assert!(settle(&wanted, 20000, &[row()]).unwrap_err().contains("attached"));
        assert!(settle(&wanted, 4096, std::slice::from_ref(&there)).unwrap_err().contains("id is in use"));
        let other = Row { segment: Segment { id: 7, ..wanted }, ..there.clone() };
        assert!(settle(&wanted, 20000, &[other]).unwrap_err().contains("0x1234"));
        let private = Segment { key: 0, ..wanted };
        let other = Row { segment: Segment { id: 7, ..private }, ..there };
        assert_eq!(settle(&private, 20000, &[other]), Ok(false));
    }

    #[test]
    fn an_image_of_a_user_gives_no_segment_of_another() {
        let user = FsIds { uid: 1000, gid: 1000, groups: vec![1001] };
        let own = Segment { uid: 1000, cuid: 1000, gid: 1000, cgid: 1001, ..row().segment };
        assert!(permitted(&own, &user).is_ok());
        for other in [Segment { uid: 0, ..own }, Segment { cuid: 0, ..own }, Segment { gid: 5, ..own }] {
            assert!(permitted(&other, &user).is_err(), "{other:?}");
        }
        assert!(permitted(&row().segment, &FsIds { uid: 0, gid: 0, groups: Vec::new() }).is_ok());
    }
}
