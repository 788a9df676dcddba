//! Files whose devices have other numbers here than at the checkpoint: those of a network file system on another node, and of what
//! was mounted anew. Before anything is compared, the image is told by which numbers each is known here. What is not shown to
//! be the file of the checkpoint gets a number that no device has, lest it be taken for one that has its former number by now.

use super::known_files::{Identity, identity};
use crate::object::Object;
use crate::object::file::FileRecord;
use crate::object::handle::{self, FileHandle, Place, Verdict};
use crate::record::{Image, Machine};
use crate::sys::ids::FsIds;
use crate::task::mounts;
use crate::task::proc::ProcDir;
use nix::unistd::Pid;
use std::collections::{BTreeMap, HashMap};
use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Beyond the numbers that the kernel gives, which have 32 bits.
const ANOTHER: u64 = 1 << 62;
const UNTOLD: u64 = 1 << 63;

/// Whether another device has a file of that path and inode number, of which nothing tells that it is this one.
pub fn is_untold(file: &FileRecord) -> bool {
    file.device & UNTOLD != 0
}

/// Has `image` speak of the files that are there, by their numbers.
///
/// # Errors
/// The owner's rights cannot be had, or what is mounted cannot be read.
pub fn settle(image: &mut Image, owner: &FsIds) -> io::Result<()> {
    let recorded = recorded(image);
    if recorded.is_empty() {
        return Ok(());
    }
    let here = Here {
        systems: mounts::ours()?.into_iter().map(|mount| (mount.id, mount.kind)).collect(),
        same_machine: image.machine.as_ref().is_some_and(Machine::is_here),
    };
    let _as_owner = owner.assume()?;
    let mut now = HashMap::new();
    for ((device, inode), names) in recorded {
        let found = names.iter().find_map(|file| here.look(file, (device, inode)));
        let is = match found {
            Some(Outcome::Here(is)) => is,
            Some(Outcome::Another) => (device | ANOTHER, inode),
            Some(Outcome::Untold) => (device | UNTOLD, inode),
            // Where nothing is there, whoever opens it says so.
            Some(Outcome::AsItWas) | None => continue,
        };
        now.insert((device, inode), is);
    }
    image.renumber(&now);
    Ok(())
}

/// What an image says of a file under one of its names.
#[derive(Clone, Copy)]
struct Recorded<'i> {
    path: &'i Path,
    size: u64,
    modified_ns: i64,
    handle: Option<&'i FileHandle>,
}

/// Every file with a name whose device has a number of a mount; those of which most is known first.
fn recorded(image: &Image) -> BTreeMap<Identity, Vec<Recorded<'_>>> {
    let mut all: BTreeMap<Identity, Vec<Recorded<'_>>> = BTreeMap::new();
    for description in &image.descriptions {
        if let Some(Object::File(file)) = &description.object
            && !file.directory
        {
            let (path, handle) = (file.path(), file.handle.as_ref());
            let one = Recorded { path, size: file.size, modified_ns: file.modified_ns, handle };
            all.entry((file.device, file.inode)).or_default().push(one);
        }
    }
    let objects =
        image.objects.iter().filter_map(|object| Some((object.file.as_ref()?, object.handle.as_ref())));
    let executables =
        image.processes.iter().filter_map(|process| process.layout.as_ref()?.executable.as_ref());
    let mapped = image.processes.iter().flat_map(|process| &process.mappings).filter_map(|v| v.file.as_ref());
    for (file, handle) in objects.chain(executables.chain(mapped).map(|file| (file, None))) {
        let one = Recorded { path: file.path(), size: file.size, modified_ns: file.modified_ns, handle };
        all.entry((file.device, file.inode)).or_default().push(one);
    }
    // Those without a name are known by their numbers within the image.
    for description in &image.descriptions {
        if let Some(Object::Deleted(file)) = &description.object {
            all.remove(&file.identity());
        }
    }
    image.deleted.iter().for_each(|file| drop(all.remove(&file.identity())));
    all.retain(|(device, _), _| handle::is_of_a_mount(*device));
    all.values_mut().for_each(|names| names.sort_by_key(|file| file.handle.is_none()));
    all
}

/// What is under a name of a file now.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The file, by its numbers here.
    Here(Identity),
    /// What has its device, and is the file if it has the inode number.
    AsItWas,
    Another,
    Untold,
}

/// The machine of the restart.
struct Here {
    /// Kinds of file systems, by the ids of their mounts.
    systems: HashMap<u64, String>,
    /// The checkpoint was made here, too.
    same_machine: bool,
}

impl Here {
    /// None where nothing is there that can be asked.
    fn look(&self, file: &Recorded<'_>, (device, inode): Identity) -> Option<Outcome> {
        let name = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(file.path).ok()?;
        let now = name.metadata().ok()?;
        let same_device = now.dev() == device;
        let is_comparable = now.is_file() && handle::is_of_a_mount(now.dev());
        if now.ino() != inode || !is_comparable {
            return Some(if same_device { Outcome::AsItWas } else { Outcome::Another });
        }
        let link = format!("/proc/self/fd/{}", name.as_raw_fd());
        let own = FileHandle::of(Path::new(&link), &now);
        let place = Place { same_device, same_machine: self.same_machine };
        Some(match handle::judge(file.handle, own.as_ref(), self.system_of(&name), place) {
            Verdict::Same if same_device => Outcome::AsItWas,
            Verdict::Same => Outcome::Here(identity(&now)),
            Verdict::Another => Outcome::Another,
            Verdict::Unknown if file.is_untouched(&now) => Outcome::Here(identity(&now)),
            Verdict::Unknown => Outcome::Untold,
        })
    }

    fn system_of(&self, file: &impl AsRawFd) -> &str {
        let info = ProcDir::process(Pid::this()).text(&format!("fdinfo/{}", file.as_raw_fd()));
        let info = info.unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        let id = id.and_then(|id| id.trim().parse().ok());
        id.and_then(|id: u64| self.systems.get(&id)).map_or("", String::as_str)
    }
}

impl Recorded<'_> {
    /// By its size and its time nothing has been written to it since.
    fn is_untouched(&self, now: &Metadata) -> bool {
        now.size() == self.size && FileRecord::of(self.path, now).modified_ns == self.modified_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Description;
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};

    /// What a restart takes the only file of an image for.
    fn settled(file: &FileRecord) -> FileRecord {
        let object = Some(Object::File(file.clone()));
        let mut image = Image {
            descriptions: vec![Description { object, ..Description::default() }],
            ..Image::default()
        };
        settle(&mut image, &FsIds::current()).unwrap();
        match image.descriptions.remove(0).object {
            Some(Object::File(file)) => file,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_on_another_device_is_the_file_only_if_something_tells_so() {
        let shm = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = shm.path().join("a");
        std::fs::write(&path, "some").unwrap();
        let metadata = path.metadata().unwrap();
        let here = FileRecord::of(&path, &metadata);
        if statfs(&path).unwrap().filesystem_type() != TMPFS_MAGIC {
            return crate::skipped::because("/dev/shm is no tmpfs here");
        }
        let elsewhere = FileRecord { device: libc::makedev(0, 0xf_fff0), ..here.clone() };
        assert_eq!(settled(&here), here);
        assert!(settled(&elsewhere).is_same_inode(&metadata), "nothing was written to it");
        std::fs::write(&path, "some more").unwrap();
        let untold = settled(&elsewhere);
        assert!(is_untold(&untold) && !untold.is_same_inode(&metadata));
        let other = FileRecord { inode: here.inode + 1, ..elsewhere.clone() };
        assert!(!is_untold(&settled(&other)) && !settled(&other).is_same_inode(&metadata));
        // It is where it was, and was made anew.
        let handle = FileHandle::of(&path, &metadata);
        if handle.as_ref().is_some_and(|handle| !handle.bytes.is_empty()) {
            let same = FileRecord { handle: handle.clone(), ..here.clone() };
            assert_eq!(settled(&same), same);
            let replaced = FileHandle { bytes: vec![1; 12], ..handle.unwrap() };
            let replaced = settled(&FileRecord { handle: Some(replaced), ..here });
            assert!(!is_untold(&replaced) && !replaced.is_same_inode(&metadata));
        }
        // That of a disk is compared as ever, and what is not there is left alone.
        let on_disk = FileRecord { device: libc::makedev(8, 1), ..elsewhere.clone() };
        assert_eq!(settled(&on_disk), on_disk);
        let gone = FileRecord { path: b"/dev/shm/nothing of that name".to_vec(), ..elsewhere };
        assert_eq!(settled(&gone), gone);
    }

    #[test]
    fn what_has_no_name_keeps_its_numbers() {
        let shm = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = shm.path().join("a");
        std::fs::write(&path, "some").unwrap();
        let file = FileRecord {
            device: libc::makedev(0, 0xf_fff0),
            ..FileRecord::of(&path, &path.metadata().unwrap())
        };
        let (device, inode) = (file.device, file.inode);
        let open = Description { object: Some(Object::File(file)), ..Description::default() };
        let deleted = crate::object::deleted::DeletedRecord { device, inode, ..Default::default() };
        let mut image = Image { descriptions: vec![open], deleted: vec![deleted], ..Image::default() };
        let before = image.clone();
        settle(&mut image, &FsIds::current()).unwrap();
        assert!(image == before);
    }
}
