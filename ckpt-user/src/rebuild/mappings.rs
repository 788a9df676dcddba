//! The mappings of one process, made again in its skeleton.

use super::objects::Objects;
use super::skeleton::Skeleton;
use crate::memory::vma::{self, Kind, Vma};
use crate::record::Process;
use crate::sys::inject::Call;
use crate::sys::remote::Remote;
use std::io;
use std::os::fd::AsRawFd;

/// Moves the vdso home and maps everything else, with its advice and locks.
pub fn rebuild(record: &Process, skeleton: &mut Skeleton, objects: &Objects) -> io::Result<()> {
    crate::memory::vdso::rebuild(&mut skeleton.remote, &skeleton.special, &record.mappings, skeleton.spare)?;
    let mapped: Vec<&Vma> =
        record.mappings.iter().filter(|v| !matches!(v.kind(), Kind::Vdso | Kind::Vvar)).collect();
    let calls = mapped.iter().map(|v| mmap(v, objects)).collect::<io::Result<Vec<Call>>>()?;
    for (vma, result) in mapped.iter().zip(skeleton.remote.run(&calls)?) {
        if result as u64 != vma.start {
            let error = io::Error::from_raw_os_error(-result as i32);
            return Err(io::Error::new(error.kind(), format!("{:x}-{:x}: {error}", vma.start, vma.end)));
        }
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
    Ok(())
}

/// Locked memory is locked once its pages are there.
pub fn lock(record: &Process, remote: &mut Remote) -> io::Result<()> {
    let locked = record.mappings.iter().filter(|v| v.has("lo"));
    let calls: Vec<Call> =
        locked.map(|v| Call::new(libc::SYS_mlock2, &[v.start, v.end - v.start, 0])).collect();
    match remote.run(&calls)?.into_iter().find(|&r| r < 0) {
        Some(error) => Err(io::Error::from_raw_os_error(-error as i32)),
        None => Ok(()),
    }
}

fn mmap(vma: &Vma, objects: &Objects) -> io::Result<Call> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "a mapping refers to nothing in the image");
    let fd = match vma.kind() {
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
