//! What the machine of a restart has to allow: numbers of processes and of descriptors as high as the program's, and files as large.

use super::RebuildError;
use super::objects::above_all;
use super::taken;
use crate::object::Object;
use crate::record::Image;
use crate::task::limits::{self, Limit, OPEN_FILES, own_hard};
use nix::sys::resource::Resource;

/// A setting of the kernel; none where it is not told.
fn setting(name: &str) -> Option<u64> {
    std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
}

/// Before anything is made: whether there is room for the program's descriptors and for the largest of its files that are made or
/// filled.
///
/// # Errors
/// What is too little, and what to do.
pub fn check(image: &Image) -> Result<(), String> {
    // Each description has a number above those of the program, too, while it is handed over.
    let needed = above_all(image) as u64 + image.descriptions.len() as u64;
    fits_open_files(needed, own_hard(Resource::RLIMIT_NOFILE), setting("fs/nr_open"))?;
    let open = image.descriptions.iter().filter_map(|description| match &description.object {
        Some(Object::Deleted(file)) => Some(file.size),
        _ => None,
    });
    let made = image.objects.iter().filter(|object| object.file.is_none());
    let sizes = made.map(|object| object.size);
    let largest = sizes.chain(image.deleted.iter().map(|file| file.size)).chain(open).max().unwrap_or(0);
    fits_file(largest, own_hard(Resource::RLIMIT_FSIZE))
}

fn fits_open_files(needed: u64, hard: u64, most: Option<u64>) -> Result<(), String> {
    let (allowed, name, how) = match most {
        Some(most) if most < hard => (most, "fs.nr_open", "have root set it: sysctl fs.nr_open="),
        _ => (hard, "the hard limit of open files", "raise it: ulimit -n "),
    };
    if needed <= allowed {
        return Ok(());
    }
    let enough = needed.next_power_of_two();
    Err(format!(
        "the program has so many descriptors, or such high ones, that ckptbpf needs numbers up to {needed}, and {name} is \
         {allowed} here; {how}{enough}"
    ))
}

fn fits_file(largest: u64, hard: u64) -> Result<(), String> {
    if largest <= hard {
        return Ok(());
    }
    Err(format!(
        "the program has shared memory, or a file without a name, of {largest} bytes, and ckptbpf may write no file of more than \
         {hard} here; raise that limit: ulimit -f unlimited"
    ))
}

/// Where its processes are going to be made: whether their ids are to be had. Limits of open files beyond what the kernel gives
/// anybody are lowered to that, with a word.
///
/// # Errors
/// The highest id is beyond what this kernel gives.
pub fn settle(image: &mut Image) -> Result<(), RebuildError> {
    let highest = taken::ids(image).last().copied().unwrap_or(0);
    fits_ids(highest, setting("kernel/pid_max")).map_err(RebuildError::Refused)?;
    let Some(most) = setting("fs/nr_open") else { return Ok(()) };
    let limits = image.processes.iter_mut().flat_map(|process| &mut process.limits);
    if let Some(had) = lower(limits, most) {
        log::warn!(
            "the program's limit of open files was {}, and is {most} from now on: this machine allows no more (fs.nr_open)",
            limits::shown(had)
        );
    }
    Ok(())
}

fn fits_ids(highest: i32, pid_max: Option<u64>) -> Result<(), String> {
    let wanted = u64::from(highest.unsigned_abs()) + 1;
    match pid_max {
        Some(most) if wanted > most => Err(format!(
            "the program has process id {highest}, and this machine gives none from {most} on (kernel.pid_max); have root \
             raise that: sysctl kernel.pid_max={wanted}"
        )),
        _ => Ok(()),
    }
}

/// The highest hard limit of open files that was beyond `most`.
fn lower<'l>(limits: impl Iterator<Item = &'l mut Limit>, most: u64) -> Option<u64> {
    let beyond = limits.filter(|limit| limit.resource == OPEN_FILES && limit.hard > most);
    let lowered = beyond.map(|limit| {
        let had = std::mem::replace(&mut limit.hard, most);
        limit.soft = limit.soft.min(most);
        had
    });
    lowered.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_little_is_said_with_what_to_do() {
        assert!(fits_open_files(1000, 1000, Some(1 << 20)).is_ok() && fits_open_files(9, 9, None).is_ok());
        let said = fits_open_files(5000, 4096, Some(1 << 20)).unwrap_err();
        assert!(
            said.contains("the hard limit of open files is 4096 here; raise it: ulimit -n 8192"),
            "{said}"
        );
        let said = fits_open_files(5000, 1 << 20, Some(1024)).unwrap_err();
        assert!(
            said.contains("fs.nr_open is 1024 here") && said.ends_with("sysctl fs.nr_open=8192"),
            "{said}"
        );
        assert!(fits_file(5, 5).is_ok() && fits_file(6, 5).unwrap_err().contains("of 6 bytes"));
        assert!(fits_ids(32767, Some(32768)).is_ok() && fits_ids(1 << 21, None).is_ok());
        assert!(fits_ids(32768, Some(32768)).unwrap_err().ends_with("sysctl kernel.pid_max=32769"));
    }

    #[test]
    fn a_limit_of_open_files_that_no_machine_gives_is_lowered() {
        let limit = |resource, soft, hard| Limit { resource, soft, hard };
        let mut all = [
            limit(OPEN_FILES, 1024, 1 << 30),
            limit(OPEN_FILES, 1 << 30, 1 << 31),
            limit(OPEN_FILES, 1024, 4096),
            limit(0, 9, u64::MAX),
        ];
        assert_eq!(lower(all.iter_mut(), 1 << 20), Some(1 << 31));
        let expected = [
            limit(OPEN_FILES, 1024, 1 << 20),
            limit(OPEN_FILES, 1 << 20, 1 << 20),
            limit(OPEN_FILES, 1024, 4096),
            limit(0, 9, u64::MAX),
        ];
        assert_eq!(all, expected);
        assert_eq!(lower(all.iter_mut(), 1 << 20), None);
    }
}
