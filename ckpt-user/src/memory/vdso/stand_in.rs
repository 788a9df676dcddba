//! The vdso of another kernel: a program that was started with it goes on under this one.
//!
//! A program calls the vdso's functions by addresses that its C library has found out at the start, and whoever unwinds its
//! stack reads the vdso's headers. So what was there stays there, as ordinary memory, and each function in it begins with a
//! jump:
//!
//! ```text
//!  where it was:  the other kernel's image     clock_gettime:  movabs rax, NEW; jmp rax
//!  at its home:   this kernel's vdso and data                  └──▶ clock_gettime
//! ```
//! A function that this kernel's vdso has not makes the system call. The next checkpoint has the stand-in like any other
//! memory, so one of yet another kernel leads here by two jumps.
//!
//! Who was in the midst of a function at the checkpoint would read the data of the other kernel in this one's: such an image is
//! restarted under a kernel with the same vdso only.

use crate::memory::vma::{Kind, Vma};
use crate::record::{Image, Machine};
use object::elf::{FileHeader64, STT_FUNC};
use object::read::elf::ElfFile;
use object::{Endianness, Object, ObjectSymbol};
use std::collections::BTreeMap;
use std::ops::Range;

/// Larger than any vdso: what an image has of one is not believed beyond this.
pub const MOST: usize = 64 << 10;

/// Where user addresses end (Documentation/arch/x86/x86_64/mm.rst), but for the last page.
const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// `movabs rax, ADDRESS; jmp rax`: no function of the vdso takes anything in rax.
const JUMP: usize = 12;

/// Functions, and the system calls that do the same (arch/x86/entry/syscalls/syscall_64.tbl).
const CALLS: &[(&str, i64)] = &[
    ("clock_gettime", libc::SYS_clock_gettime),
    ("clock_getres", libc::SYS_clock_getres),
    ("gettimeofday", libc::SYS_gettimeofday),
    ("time", libc::SYS_time),
    ("getcpu", libc::SYS_getcpu),
    ("getrandom", libc::SYS_getrandom),
];

/// Of an enclave: whoever has one has memory that is refused.
const ENCLAVE: &str = "sgx_enter_enclave";

/// Where functions lie in the image, and how long they are, by their names without a prefix.
fn functions(image: &[u8]) -> Result<BTreeMap<String, Range<usize>>, String> {
    let file = ElfFile::<FileHeader64<Endianness>>::parse(image).map_err(|error| error.to_string())?;
    let mut found = BTreeMap::new();
    for symbol in file.dynamic_symbols().filter(ObjectSymbol::is_definition) {
        if symbol.elf_symbol().st_type() != STT_FUNC {
            continue;
        }
        let name = symbol.name().map_err(|error| error.to_string())?;
        let range = || {
            let start = usize::try_from(symbol.address()).ok()?;
            let end = start.checked_add(usize::try_from(symbol.size()).ok()?)?;
            (end <= image.len()).then_some(start..end)
        };
        let range = range().ok_or_else(|| format!("{name} lies outside of it"))?;
        found.insert(name.strip_prefix("__vdso_").unwrap_or(name).to_owned(), range);
    }
    Ok(found)
}

/// The code that a function of the other vdso is replaced with.
fn code(name: &str, here: Option<u64>) -> Result<Vec<u8>, String> {
    let with = |before: &[u8], number: &[u8], after: &[u8]| [before, number, after].concat();
    if let Some(address) = here {
        return Ok(with(&[0x48, 0xb8], &address.to_le_bytes(), &[0xff, 0xe0]));
    }
    let constant = |number: i64| (number as u32).to_le_bytes();
    // mov eax, NUMBER; syscall; ret
    let call = CALLS.iter().find(|(known, _)| *known == name);
    let call = call.map(|(_, number)| with(&[0xb8], &constant(*number), &[0x0f, 0x05, 0xc3]));
    // mov eax, -ENOSYS; ret
    let without = || (name == ENCLAVE).then(|| with(&[0xb8], &constant(-i64::from(libc::ENOSYS)), &[0xc3]));
    call.or_else(without).ok_or_else(|| format!("this kernel has nothing like its function {name}"))
}

/// `old`, with each function leading to that of `new`, which lies at `at`.
///
/// # Errors
/// Why not, of this kernel or of the image.
pub fn make(old: &[u8], new: &[u8], at: u64) -> Result<Vec<u8>, String> {
    let here = functions(new).map_err(|why| format!("this kernel's vdso: {why}"))?;
    let there = functions(old).map_err(|why| format!("the vdso in the image: {why}"))?;
    if old.len() > MOST || there.is_empty() {
        return Err("the image holds no vdso".to_owned());
    }
    let mut bytes = old.to_vec();
    let mut taken: Vec<Range<usize>> = Vec::new();
    for (name, range) in there {
        let code = code(&name, here.get(&name).map(|new| at + new.start as u64))?;
        if range.len() < code.len().max(JUMP)
            || taken.iter().any(|t| t.start < range.end && range.start < t.end)
        {
            return Err(format!("the vdso in the image: its function {name} leaves no room"));
        }
        bytes[range.start..range.start + code.len()].copy_from_slice(&code);
        taken.push(range);
    }
    Ok(bytes)
}

/// What can be known to fail before anything is made.
///
/// # Errors
/// Why the image cannot go on under this kernel, whose vdso is `new`.
pub fn check(image: &Image, machine: &Machine, new: &[u8]) -> Result<(), String> {
    let other = || format!("this kernel's vdso is not that of kernel {} on {}", machine.kernel, machine.host);
    make(&machine.vdso_image, new, 0).map_err(|why| format!("{}, and {why}", other()))?;
    for process in &image.processes {
        let vdso = process.mappings.iter().find(|v| v.kind() == Kind::Vdso);
        let inside = |thread: &&crate::record::Thread| {
            let at =
                thread.registers.as_ref().and_then(|registers| registers.regs().ok()).map(|regs| regs.rip);
            vdso.is_some_and(|vdso| at.is_some_and(|at| (vdso.start..vdso.end).contains(&at)))
        };
        if let Some(thread) = process.threads.iter().find(inside) {
            return Err(format!(
                "{}, and thread {} of process {} was reading a clock in it; restart an earlier checkpoint, \
                 or on a node with the same kernel",
                other(),
                thread.tid,
                process.pid
            ));
        }
    }
    Ok(())
}

/// Where `len` bytes of this kernel's vdso and data get their home: as high as may be, where no heap, stack or new mapping
/// grows.
pub fn home(mappings: &[Vma], len: u64) -> Option<u64> {
    let mut end = TASK_SIZE;
    for (vma, above) in
        mappings.iter().rev().zip(std::iter::once(None).chain(mappings.iter().rev().map(Some)))
    {
        let is_below_a_stack = above.is_some_and(|above| above.has("gd"));
        if !is_below_a_stack && end.checked_sub(vma.end).is_some_and(|room| room >= len + 2 * GAP) {
            return Some(end - GAP - len);
        }
        end = vma.start;
    }
    None
}

/// Kept free beside it.
const GAP: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::vma;

    fn own() -> Vec<u8> {
        let maps = vma::parse(&std::fs::read_to_string("/proc/self/maps").unwrap()).unwrap();
        let range = super::super::find(&maps).unwrap();
        super::super::look(nix::unistd::Pid::this(), &range).unwrap().image
    }

    #[test]
    fn each_function_leads_to_its_like() {
        let own = own();
        let known = functions(&own).unwrap();
        assert!(known.contains_key("clock_gettime") && known.contains_key("getcpu"), "{known:?}");
        let made = make(&own, &own, 0x7000_0000_0000).unwrap();
        assert_eq!(made.len(), own.len());
        for (name, range) in &known {
            let code = &made[range.start..][..JUMP];
            let address = u64::from_le_bytes(code[2..10].try_into().unwrap());
            assert_eq!((&code[..2], &code[10..]), (&[0x48, 0xb8][..], &[0xff, 0xe0][..]), "{name}");
            assert_eq!(address, 0x7000_0000_0000 + range.start as u64, "{name}");
        }
        // Still an ELF file with the same symbols.
        assert_eq!(functions(&made).unwrap(), known);
    }

    #[test]
    fn what_this_kernel_has_not_makes_the_system_call() {
        assert_eq!(code("time", None).unwrap(), [0xb8, 201, 0, 0, 0, 0x0f, 0x05, 0xc3]);
        assert!(code("unheard_of", None).unwrap_err().contains("unheard_of"));
        assert!(code(ENCLAVE, None).is_ok());
    }

    #[test]
    fn damaged_images_are_refused() {
        let own = own();
        for bytes in [&[][..], &own[..64], &[0xff; 4096]] {
            assert!(make(bytes, &own, 0).is_err());
        }
        let mut damaged = own.clone();
        for at in 0..damaged.len() {
            let kept = std::mem::replace(&mut damaged[at], !own[at]);
            let _ = make(&damaged, &own, 0);
            damaged[at] = kept;
        }
    }

    #[test]
    fn its_home_is_high_and_never_where_something_grows() {
        let vma = |start: u64, end: u64, flags: &[&str]| Vma {
            start,
            end,
            flags: flags.iter().map(|&flag| flag.into()).collect(),
            ..Vma::default()
        };
        let heap = vma(0x40_0000, 0x50_0000, &[]);
        let library = vma(0x7f00_0000_0000, 0x7f00_1000_0000, &[]);
        let stack = vma(0x7ffc_0000_0000, 0x7ffc_0010_0000, &["gd"]);
        let vdso = vma(TASK_SIZE - 0x3000, TASK_SIZE - 0x1000, &[]);
        let len = 0x6000;
        let all = [heap.clone(), library.clone(), stack.clone(), vdso];
        assert_eq!(home(&all, len), Some(TASK_SIZE - 0x3000 - GAP - len));
        let high_stack = vma(0x7ffc_0000_0000, TASK_SIZE - 0x1000, &["gd"]);
        assert_eq!(home(&[heap, library, high_stack], len), Some(0x7f00_0000_0000 - GAP - len));
        assert_eq!(home(&[vma(0x1000, TASK_SIZE, &[])], len), None);
    }
}
