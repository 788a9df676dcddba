//! System V shared memory (shmget(2), shmat(2), shmctl(2)), by ids that we choose.

use super::check;
use std::fs::File;
use std::io;

/// SHM_LOCK of sys/shm.h.
const SHM_LOCK: i32 = 11;

/// Makes a segment of `size` bytes that belongs to `creator` (user, group); its id is the kernel's choice. `mode`: its
/// permission bits, and SHM_HUGETLB with a page size.
///
/// # Errors
/// EEXIST when the key, other than 0, is taken; EPERM when these ids are not ours to take.
pub fn create(key: i32, size: u64, mode: u32, creator: (u32, u32)) -> io::Result<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | mode as i32;
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let made = as_ids(creator).and_then(|()| {
        // SAFETY: shmget(2) takes no pointer.
        check(i64::from(unsafe { libc::shmget(key, size as usize, flags) }))
    });
    as_ids((uid, gid))?;
    made.map(|id| id as i32)
}

/// Effective ids of this thread alone; the user comes back first, who may change the group.
fn as_ids((uid, gid): (u32, u32)) -> io::Result<()> {
    const KEEP: u32 = u32::MAX;
    let set = |number, id: u32| {
        // SAFETY: three ids and no pointer; the system call itself, unlike the C library, changes this thread alone.
        check(unsafe { libc::syscall(number, KEEP, id, KEEP) }).map(drop)
    };
    let root = nix::unistd::getuid().as_raw();
    set(libc::SYS_setresuid, root)?;
    set(libc::SYS_setresgid, gid)?;
    set(libc::SYS_setresuid, uid)
}

/// The memory of a segment as a file, reached through /proc/self/map_files; it stays attached nowhere. `len`: bytes that
/// it has attached, whole pages.
pub fn open(id: i32, len: u64) -> io::Result<File> {
    // SAFETY: attached where the kernel likes, which replaces nothing; no reference to it is made.
    let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    if at as isize == -1 {
        return Err(io::Error::last_os_error());
    }
    let start = at as u64;
    let path = format!("/proc/self/map_files/{start:x}-{:x}", start + len);
    let file = File::options().read(true).write(true).open(path);
    // SAFETY: what was attached above, to which no reference exists.
    check(i64::from(unsafe { libc::shmdt(at) }))?;
    file
}

/// Owner and permissions.
pub fn set(id: i32, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    // SAFETY: a structure of integers, for which zeros are valid.
    let mut wanted: libc::shmid_ds = unsafe { std::mem::zeroed() };
    (wanted.shm_perm.uid, wanted.shm_perm.gid) = (uid, gid);
    wanted.shm_perm.mode = (mode & 0o777) as u16;
    // SAFETY: the kernel reads one structure, which lives until the call returns.
    check(i64::from(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut wanted) })).map(drop)
}

/// Removes it: at once, or when it is attached no more.
pub fn remove(id: i32) -> io::Result<()> {
    // SAFETY: this command takes no structure.
    check(i64::from(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) })).map(drop)
}

/// SHM_LOCK: its pages stay in memory.
pub fn lock(id: i32) -> io::Result<()> {
    // SAFETY: this command takes no structure.
    check(i64::from(unsafe { libc::shmctl(id, SHM_LOCK, std::ptr::null_mut()) })).map(drop)
}
