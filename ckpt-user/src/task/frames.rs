//! Frames of signal handlers: what a thread goes back to when its handler returns has its extended state in its memory, as the
//! kernel has put it there (arch/x86/kernel/fpu/signal.c, struct _fpx_sw_bytes of asm/sigcontext.h).
//!
//! A kernel takes it back as far as the area has the size and the layout that its own have. So between processors whose areas
//! differ, registers of a thread in a handler would be lost, or taken from what lies behind the frame.

use crate::image::{Chain, ImageError, PAGE_SIZE, Source, SpaceId};
use crate::record::{Image, Process, Thread};
use std::ops::Range;

/// FP_XSTATE_MAGIC1, and where it lies in the area: at 64 bytes' alignment, 464 bytes on.
const MAGIC: u32 = 0x4650_5853;
const LINE: usize = 64;
const IN_LINE: usize = 464 % LINE;
/// Of `xstate_size`, behind the magic number.
const SIZE: usize = IN_LINE + 16;
/// Below the stack pointer a function may keep what it likes, and a frame is put below that.
const RED_ZONE: u64 = 128;

/// A thread with an area of `size` bytes in its stacks: what a handler returns to, or is left of one.
///
/// # Errors
/// Of the memory that is looked into.
pub fn find(image: &Image, chain: &Chain, size: usize) -> Result<Option<i32>, ImageError> {
    for process in &image.processes {
        for thread in process.threads.iter().filter(|thread| thread.ended.is_none()) {
            for pages in stacks(process, thread) {
                if has_frame(chain, SpaceId(process.space), &pages, size)? {
                    return Ok(Some(thread.tid));
                }
            }
        }
    }
    Ok(None)
}

/// Pages from its stack pointer to the end of the mapping, and its alternate stack.
fn stacks(process: &Process, thread: &Thread) -> Vec<Range<u64>> {
    let page = |address: u64| address / PAGE_SIZE as u64;
    let regs = thread.registers.as_ref().and_then(|registers| registers.regs().ok());
    let pointer = regs.map(|regs| regs.rsp.saturating_sub(RED_ZONE));
    let within = |address: u64| process.mappings.iter().find(|v| (v.start..v.end).contains(&address));
    let used = pointer.and_then(|pointer| Some(page(pointer)..page(within(pointer + RED_ZONE)?.end)));
    let own = thread.signals.as_ref().filter(|signals| signals.altstack_size > 0);
    let alternate = own.map(|s| page(s.altstack)..page(s.altstack.saturating_add(s.altstack_size)) + 1);
    used.into_iter().chain(alternate).collect()
}

fn has_frame(chain: &Chain, space: SpaceId, pages: &Range<u64>, size: usize) -> Result<bool, ImageError> {
    let (map, mut reader) = (chain.pages(space), chain.reader());
    let mut bytes = Vec::new();
    let stored = map.runs().iter().filter_map(|run| run.clip(pages));
    for run in stored.filter(|run| matches!(run.source, Source::Stored { .. })) {
        bytes.resize(run.count as usize * PAGE_SIZE, 0);
        reader.read_run(&run, &mut bytes)?;
        if bytes.chunks_exact(LINE).any(|line| is_frame(line, size)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_frame(line: &[u8], size: usize) -> bool {
    let word =
        |at: usize| line.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    word(IN_LINE) == Some(MAGIC) && word(SIZE) == u32::try_from(size).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_number_and_the_size() {
        let mut area = vec![0; 2696];
        area[464..468].copy_from_slice(&MAGIC.to_le_bytes());
        area[480..484].copy_from_slice(&2696u32.to_le_bytes());
        let found = |size| area.chunks_exact(LINE).filter(|line| is_frame(line, size)).count();
        assert_eq!((found(2696), found(832)), (1, 0));
        area[464] ^= 1;
        assert!(!area.chunks_exact(LINE).any(|line| is_frame(line, 2696)));
        assert!(!is_frame(&area[..20], 2696));
    }
}
