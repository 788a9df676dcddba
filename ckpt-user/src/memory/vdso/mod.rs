//! The vdso and its data pages: found in a process, compared, moved to where the restored program expects them.

pub mod stand_in;

use super::vma::{Kind, Raw, Vma};
use crate::record::Machine;
use crate::sys::inject::Call;
use crate::sys::mem::Forced;
use crate::sys::remote::Remote;
use nix::unistd::Pid;
use std::io;
use std::ops::Range;

/// The kind of kernel-made mapping that `name` of /proc/PID/maps stands for.
pub fn kind(name: &str) -> Option<Kind> {
    match name {
        "[vdso]" => Some(Kind::Vdso),
        "[vvar]" | "[vvar_vclock]" => Some(Kind::Vvar),
        _ => None,
    }
}

/// Whether the kernel made the mapping by itself; `[vsyscall]` lies beyond user addresses and is never moved.
pub fn is_kernel_made(name: &str) -> bool {
    kind(name).is_some() || name == "[vsyscall]"
}

/// Where the vdso lies.
pub fn find(maps: &[Raw]) -> Option<Range<u64>> {
    maps.iter().find(|m| m.name == "[vdso]").map(|m| m.start..m.end)
}

/// A vdso as a process has it.
pub struct Shown {
    /// Its ELF image.
    pub image: Vec<u8>,
    /// XXH3 of the image; equal ones mean that one can stand for the other.
    pub fingerprint: u64,
    /// What lies behind the image: nothing, but for code of a ckptbpf that was killed while it had a system call made
    /// ([`crate::sys::inject`]).
    pub behind: Range<u64>,
}

/// # Errors
/// It cannot be read.
pub fn look(pid: Pid, range: &Range<u64>) -> io::Result<Shown> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    crate::sys::mem::read(pid, range.start, &mut bytes)?;
    bytes.truncate(image(&bytes).len());
    let behind = range.start + bytes.len() as u64..range.end;
    Ok(Shown { fingerprint: xxhash_rust::xxh3::xxh3_64(&bytes), image: bytes, behind })
}

/// The ELF image: its section headers are the last of it (elf(5)). All of it where that is not so.
fn image(bytes: &[u8]) -> &[u8] {
    let word = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(u64::from(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?)));
    // e_shoff, e_shentsize, e_shnum.
    let end = || word(40)?.checked_add(half(58)? * half(60)?);
    let end = end().and_then(|end| usize::try_from(end).ok()).filter(|&end| end > 64 && end <= bytes.len());
    &bytes[..end.unwrap_or(bytes.len())]
}

/// This kernel's own.
///
/// # Errors
/// It cannot be read, or there is none.
pub fn own() -> io::Result<Shown> {
    let maps = super::vma::parse(&std::fs::read_to_string("/proc/self/maps")?)?;
    let range = find(&maps).ok_or_else(|| io::Error::other("this kernel gives processes no vdso"))?;
    look(Pid::this(), &range)
}

/// Gives the skeleton the vdso that the program expects, by way of a free range at `spare`: its own is moved there, or
/// something stands in for that of another kernel. Returns where its own lies.
///
/// # Errors
/// InvalidData when the image holds none that can be had here.
pub fn rebuild(
    remote: &mut Remote,
    present: &[Raw],
    wanted: &[Vma],
    made_on: &Machine,
    spare: u64,
) -> io::Result<Range<u64>> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut present: Vec<&Raw> = present.iter().filter(|m| kind(&m.name).is_some()).collect();
    present.sort_by_key(|raw| raw.start);
    let (Some(first), Some(last)) = (present.first(), present.last()) else {
        return Err(invalid("this kernel gives processes no vdso".to_owned()));
    };
    let of_image: Vec<&Vma> = wanted.iter().filter(|v| matches!(v.kind(), Kind::Vdso | Kind::Vvar)).collect();
    let own = own()?;
    let is_ours = own.fingerprint == made_on.vdso;
    let homes: Vec<u64> = if is_ours {
        let is_alike =
            |(p, w): (&&Raw, &&Vma)| kind(&p.name) == Some(w.kind()) && p.end - p.start == w.end - w.start;
        if present.len() != of_image.len() || !present.iter().zip(&of_image).all(is_alike) {
            return Err(invalid("the data of the vdso in the image has another shape than here".to_owned()));
        }
        of_image.iter().map(|vma| vma.start).collect()
    } else {
        let home = stand_in::home(wanted, last.end - first.start);
        let home = home.ok_or_else(|| invalid("there is no room for this kernel's vdso".to_owned()))?;
        present.iter().map(|raw| home + (raw.start - first.start)).collect()
    };
    place(remote, &present, &homes, spare)?;
    let find =
        |(raw, &home): (&&Raw, &u64)| (raw.name == "[vdso]").then(|| home..home + (raw.end - raw.start));
    let vdso = present.iter().zip(&homes).find_map(find);
    let vdso = vdso.ok_or_else(|| invalid("this kernel gives processes no vdso".to_owned()))?;
    if !is_ours {
        for old in of_image.iter().filter(|v| v.kind() == Kind::Vdso) {
            let bytes = stand_in::make(&made_on.vdso_image, &own.image, vdso.start).map_err(invalid)?;
            put(remote, old, &bytes)?;
        }
    }
    Ok(vdso)
}

/// Moves each of `present` to its home.
fn place(remote: &mut Remote, present: &[&Raw], homes: &[u64], spare: u64) -> io::Result<()> {
    let Some(base) = present.first().map(|m| m.start) else { return Ok(()) };
    if present.iter().zip(homes).all(|(raw, &home)| raw.start == home) {
        return Ok(());
    }
    // All aside first: a new place may overlap an old one.
    let aside = present.iter().map(|raw| (raw.start, spare + (raw.start - base), raw.end - raw.start));
    let home =
        present.iter().zip(homes).map(|(raw, &home)| (spare + (raw.start - base), home, raw.end - raw.start));
    for (from, to, len) in aside.chain(home) {
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let got = remote.run(&[Call::new(libc::SYS_mremap, &[from, len, len, flags, to])])?[0];
        if got as u64 != to {
            return Err(io::Error::from_raw_os_error(-got as i32));
        }
    }
    Ok(())
}

/// Maps ordinary memory where the other kernel's vdso was.
fn put(remote: &mut Remote, at: &Vma, bytes: &[u8]) -> io::Result<()> {
    let len = at.end - at.start;
    if bytes.len() as u64 > len {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the image's vdso is larger than its mapping",
        ));
    }
    let protection = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
    remote.call(libc::SYS_mmap, &[at.start, len, protection, flags, u64::MAX, 0])?;
    Forced::open(remote.pid())?.write(at.start, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_behind_the_image_changes_no_fingerprint() {
        let maps = super::super::vma::parse(&std::fs::read_to_string("/proc/self/maps").unwrap()).unwrap();
        let range = find(&maps).unwrap();
        let mut bytes = vec![0; (range.end - range.start) as usize];
        crate::sys::mem::read(Pid::this(), range.start, &mut bytes).unwrap();
        let length = image(&bytes).len();
        let used = bytes.iter().rposition(|&b| b != 0).unwrap() + 1;
        assert!((used..used + 64).contains(&length), "{length} bytes, {used} of them used");
        let left = length.next_multiple_of(16) + 16;
        bytes[left..left + 128].fill(0xcc);
        assert_eq!(image(&bytes).len(), length);
    }

    #[test]
    fn what_is_no_elf_image_is_all_of_it() {
        for bytes in [vec![0; 8192], vec![0xff; 8192], vec![1; 50], Vec::new()] {
            assert_eq!(image(&bytes).len(), bytes.len());
        }
    }
}
