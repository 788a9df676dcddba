//! The vdso and its data pages: found in a process, compared, moved to where the restored program expects them.

use super::vma::{Kind, Raw, Vma};
use crate::sys::inject::Call;
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
    /// XXH3 of its ELF image; equal ones mean that one can stand for the other.
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
    let image = image(&bytes);
    let behind = range.start + image.len() as u64..range.end;
    Ok(Shown { fingerprint: xxhash_rust::xxh3::xxh3_64(image), behind })
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

/// Moves the skeleton's vdso and data pages to the places in `wanted`, by way of a free range at `spare`.
///
/// # Errors
/// InvalidData when their number or sizes differ: this kernel's vdso is another one.
pub fn rebuild(remote: &mut Remote, present: &[Raw], wanted: &[Vma], spare: u64) -> io::Result<()> {
    let present: Vec<&Raw> = present.iter().filter(|m| kind(&m.name).is_some()).collect();
    let wanted: Vec<&Vma> = wanted.iter().filter(|v| matches!(v.kind(), Kind::Vdso | Kind::Vvar)).collect();
    let same = present.len() == wanted.len()
        && present
            .iter()
            .zip(&wanted)
            .all(|(p, w)| kind(&p.name) == Some(w.kind()) && p.end - p.start == w.end - w.start);
    if !same {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "this kernel's vdso has another shape than the one the program was started with",
        ));
    }
    let Some(base) = present.first().map(|m| m.start) else { return Ok(()) };
    let moves: Vec<(u64, u64, u64)> =
        present.iter().zip(&wanted).map(|(p, w)| (p.start, spare + (p.start - base), w.start)).collect();
    if moves.iter().all(|&(from, _, to)| from == to) {
        return Ok(());
    }
    // All aside first: a new place may overlap an old one.
    let lens: Vec<u64> = present.iter().map(|p| p.end - p.start).collect();
    let aside = moves.iter().zip(&lens).map(|(&(from, aside, _), &len)| (from, aside, len));
    let home = moves.iter().zip(&lens).map(|(&(_, aside, to), &len)| (aside, to, len));
    for (from, to, len) in aside.chain(home) {
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let got = remote.run(&[Call::new(libc::SYS_mremap, &[from, len, len, flags, to])])?[0];
        if got as u64 != to {
            return Err(io::Error::from_raw_os_error(-got as i32));
        }
    }
    Ok(())
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
