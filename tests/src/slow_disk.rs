//! A disk that answers when the test lets it: a read that is asked of it is in flight for exactly that long.
//!
//! ```text
//! program in the box ─read(2)─▶ kernel ─/dev/fuse─▶ serve ─┬─▶ held ─ let_go ─▶ the bytes are in memory
//!                                                          └─▶ answered at once, while nothing is to be held
//! ```
//! A file system in user space, raw: the test process serves it, so nobody in the box can kill it. It has two files of the
//! same bytes: `cached`, whose reads go through the page cache unless it is opened with O_DIRECT, and `direct`, which no
//! page cache is before however it is opened (FOPEN_DIRECT_IO), as on a network file system that does without.
//! Structures and numbers are those of include/uapi/linux/fuse.h.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::os::fd::AsRawFd;

use crate::sandbox::Sandbox;

/// Pages of each file.
pub const PAGES: u64 = 512;
/// The version of its content, in the words of `tests/victims/dirty.h`.
const VERSION: u64 = 7;
const PAGE: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(30);

/// Inode numbers.
const ROOT: u64 = 1;
const CACHED: u64 = 2;
const DIRECT: u64 = 3;

const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;

/// The file system, mounted in a box until this is dropped.
pub struct SlowDisk {
    folder: PathBuf,
    namespace: PathBuf,
    served: Arc<Served>,
}

struct Served {
    device: File,
    reads: Mutex<Reads>,
}

/// While `holding`, answers to reads are kept back.
#[derive(Default)]
struct Reads {
    holding: bool,
    held: Vec<Vec<u8>>,
}

impl SlowDisk {
    /// Mounted at `disk` in the box's folder. `None` where there is no /dev/fuse.
    pub fn mounted(sandbox: &Sandbox) -> Option<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let folder = sandbox.dir().join("disk");
        std::fs::create_dir(&folder).expect("a folder to mount at");
        let namespace = sandbox.root().parent().expect("/proc/PID").join("ns/mnt");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let at = folder.clone();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        inside(&namespace, move || mount(Some("slow"), &at, Some("fuse"), flags, Some(options.as_str())))
            .expect("mounting the slow disk");
        let served = Arc::new(Served { device, reads: Mutex::default() });
        let server = served.clone();
        // Ends with the mount, when the kernel has nothing to ask any more.
        std::thread::spawn(move || server.serve());
        Some(Self { folder, namespace, served })
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// From now on reads are held.
    pub fn hold(&self) {
        self.served.reads.lock().unwrap().holding = true;
    }

    /// Waits until a read is held: until then nothing is in flight.
    pub fn wait_for_a_read(&self, sandbox: &Sandbox) {
        sandbox.wait_for("a read in flight", PATIENCE, || !self.served.reads.lock().unwrap().held.is_empty());
    }

    /// Whoever holds this can let go.
    pub fn release(&self) -> Release {
        Release(self.served.clone())
    }

    /// All that is held lands: when this returns, the bytes are in the readers' memory.
    pub fn let_go(&self) {
        self.release().let_go();
    }
}

/// Lets go of what a [`SlowDisk`] holds, from any thread.
pub struct Release(Arc<Served>);

impl Release {
    /// All that is held lands, and from now on reads are answered at once.
    pub fn let_go(&self) {
        let mut reads = self.0.reads.lock().unwrap();
        reads.holding = false;
        for answer in std::mem::take(&mut reads.held) {
            self.0.send(&answer);
        }
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.let_go();
        let folder = self.folder.clone();
        let unmounted = inside(&self.namespace, move || umount2(&folder, MntFlags::MNT_DETACH));
        assert!(unmounted.is_ok() || std::thread::panicking(), "unmounting the slow disk: {unmounted:?}");
    }
}

/// Does `deed` on a thread of its own in another mount namespace.
fn inside(namespace: &Path, deed: impl FnOnce() -> nix::Result<()> + Send + 'static) -> nix::Result<()> {
    // Nobody is there any more where the box has ended.
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or_default());
    let namespace = File::open(namespace).map_err(errno)?;
    let there = move || {
        // What is shared with other threads forbids the change.
        unshare(CloneFlags::CLONE_FS)?;
        setns(namespace, CloneFlags::CLONE_NEWNS)?;
        deed()
    };
    std::thread::spawn(there).join().unwrap_or(Err(Errno::UnknownErrno))
}

/// A number at a place in a request.
fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..size].copy_from_slice(&bytes[at..at + size]);
    u64::from_le_bytes(wide)
}

/// Numbers with their sizes in bytes, one after another.
fn packed(fields: &[(u64, usize)]) -> Vec<u8> {
    fields.iter().flat_map(|&(value, size)| value.to_le_bytes()[..size].to_vec()).collect()
}

fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = if node == ROOT { (0o040_755, 0) } else { (0o100_444, PAGES * PAGE) };
    let times = [(1, 8), (1, 8), (1, 8), (0, 4), (0, 4), (0, 4)];
    let fields = [&[(node, 8), (size, 8), (size / 512, 8)][..], &times, &[(mode, 4), (1, 4)]].concat();
    // Owner, group, device, block size, flags.
    packed(&[&fields[..], &[(0, 4), (0, 4), (0, 4), (PAGE, 4), (0, 4)]].concat())
}

/// How long the kernel may rely on a name and its attributes, in seconds.
const VALID: u64 = 3600;

impl Served {
    fn serve(&self) {
        let mut request = vec![0; 1 << 20];
        loop {
            match (&self.device).read(&mut request) {
                Ok(length) => self.request(&request[..length]),
                // The one who asked was interrupted before this was read.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {}
                // Unmounted.
                Err(_) => return,
            }
        }
    }

    /// A request is a header of 40 bytes (length, operation, unique id, node, …) and what belongs to it.
    fn request(&self, request: &[u8]) {
        const FOPEN_DIRECT_IO: u64 = 1;
        const FUSE_ASYNC_DIO: u64 = 1 << 15;
        let (operation, unique, node) =
            (number(request, 4, 4), number(request, 8, 8), number(request, 16, 8));
        let body = &request[40..];
        let answer = match operation {
            // LOOKUP
            1 => {
                let node = match body {
                    b"cached\0" => CACHED,
                    b"direct\0" => DIRECT,
                    _ => return self.send(&answer(unique, -ENOENT, &[])),
                };
                let entry = packed(&[(node, 8), (0, 8), (VALID, 8), (VALID, 8), (0, 4), (0, 4)]);
                [entry, attributes(node)].concat()
            }
            // FORGET, INTERRUPT, BATCH_FORGET: nobody waits for an answer, and a disk does not hurry.
            2 | 36 | 42 => return,
            // GETATTR
            3 => [packed(&[(VALID, 8), (0, 8)]), attributes(node)].concat(),
            // OPEN, OPENDIR
            14 | 27 => packed(&[(0, 8), (if node == DIRECT { FOPEN_DIRECT_IO } else { 0 }, 4), (0, 4)]),
            // READ
            15 => return self.read(unique, number(body, 8, 8), number(body, 16, 4)),
            // RELEASE, FLUSH, RELEASEDIR, DESTROY
            18 | 25 | 29 | 38 => Vec::new(),
            // INIT: version 7.31, no reading ahead.
            26 => {
                let flags = number(body, 12, 4) & FUSE_ASYNC_DIO;
                let sizes = [(7, 4), (31, 4), (0, 4), (flags, 4), (16, 2), (12, 2), (1 << 17, 4), (1, 4)];
                [packed(&sizes), vec![0; 36]].concat()
            }
            _ => return self.send(&answer(unique, -ENOSYS, &[])),
        };
        self.send(&self::answer(unique, 0, &answer));
    }

    fn read(&self, unique: u64, offset: u64, size: u64) {
        let end = (offset + size).min(PAGES * PAGE);
        let bytes: Vec<u8> =
            (offset.min(end) / 8..end / 8).flat_map(|word| content(word).to_le_bytes()).collect();
        let answer = answer(unique, 0, &bytes);
        let mut reads = self.reads.lock().unwrap();
        if reads.holding {
            reads.held.push(answer);
        } else {
            drop(reads);
            self.send(&answer);
        }
    }

    fn send(&self, answer: &[u8]) {
        // ENOENT: whoever asked has been killed meanwhile. ENODEV: it is unmounted.
        let _ = (&self.device).write(answer);
    }
}

fn answer(unique: u64, error: i32, bytes: &[u8]) -> Vec<u8> {
    let length = 16 + bytes.len() as u64;
    [packed(&[(length, 4), (u64::from(error.cast_unsigned()), 4), (unique, 8)]), bytes.to_vec()].concat()
}

/// A word of the files: `word` in `tests/victims/dirty.h`.
fn content(word: u64) -> u64 {
    let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x0100_0000_01b3);
    mix(mix(mix(17, word / 512), VERSION), word % 512)
}
