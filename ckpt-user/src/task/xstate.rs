//! Extended state (x87, SSE, AVX, …) on its way between processors: the same registers, where each of them saves them.
//!
//! ```text
//!  0            512      576                       offsets and sizes by CPUID leaf 13, which differ between processors
//!  ┌────────────┬────────┬───────────┬─ ─ ─┬──────────┐
//!  │ x87, SSE   │ header │ AVX       │     │ PKRU …   │   Intel SDM volume 1, 13.4; a processor without XSAVE has the
//!  └────────────┴────────┴───────────┴─ ─ ─┴──────────┘   first 512 bytes only
//! ```

use super::frames;
use crate::image::{Chain, ImageError};
use crate::machine::Baseline;
use crate::record::{Image, Machine};
use crate::sys::xsave::{self, LEGACY, frame_size};
use std::ops::Range;
use std::sync::OnceLock;

/// Where a processor saves one component.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Component {
    /// Bit in XCR0.
    #[prost(uint32, tag = "1")]
    pub number: u32,
    /// In bytes, from the beginning of the area.
    #[prost(uint32, tag = "2")]
    pub offset: u32,
    #[prost(uint32, tag = "3")]
    pub size: u32,
}

/// XSTATE_BV of the header, and of its software bytes the one that says which components the area has (`xstate_fx_sw_bytes`).
const IN_USE: Range<usize> = LEGACY..LEGACY + 8;
const PRESENT: Range<usize> = 464..472;
const X87_AND_SSE: u64 = 3;
/// Rights to protection keys: they count whether their bit is set or not, as the kernel keeps them elsewhere.
const PKRU: u32 = 9;
/// Of a program that has been executed and has asked for no key (`init_pkru_value`).
const NO_KEYS: u32 = 0x5555_5554;
/// What glibc's dynamic linker saves around the first call of a function (STATE_SAVE_MASK of sysdeps/x86/sysdep.h).
const OF_THE_LINKER: &[u32] = &[2, 3, 5, 6, 7, 19];

impl Component {
    const fn range(&self) -> Range<usize> {
        self.offset as usize..self.offset as usize + self.size as usize
    }

    const fn name(&self) -> &'static str {
        match self.number {
            2 => "AVX",
            3 | 4 => "MPX",
            5..=7 => "AVX-512",
            PKRU => "protection keys",
            17 | 18 => "AMX",
            19 => "APX",
            _ => "unknown",
        }
    }
}

/// Of a processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub components: Vec<Component>,
    /// Of the whole area, in bytes.
    size: usize,
}

impl Layout {
    /// Of this one. Asked once: each question leaves a virtual machine (CPUID), and a checkpoint has the answer in its freeze.
    pub fn own() -> &'static Self {
        static OWN: OnceLock<Layout> = OnceLock::new();
        OWN.get_or_init(|| {
            let component = |(number, offset, size)| Component { number, offset, size };
            Self { components: xsave::components().into_iter().map(component).collect(), size: xsave::size() }
        })
    }

    const fn has_xsave(&self) -> bool {
        self.size > LEGACY
    }

    /// Bits of all that the area has.
    fn present(&self) -> u64 {
        let bits = self.components.iter().filter(|component| component.number < 64);
        bits.fold(X87_AND_SSE, |all, component| all | 1 << component.number)
    }

    fn find(&self, number: u32) -> Option<&Component> {
        self.components.iter().find(|component| component.number == number)
    }
}

/// Gives the registers of an image's threads the places that this processor has for them. `is_foreign`: though they are there.
///
/// # Errors
/// Names what a thread computes with and this processor has not, or what of the program relies on the other places; damage.
pub fn fit(image: &mut Image, chain: &Chain, is_foreign: bool) -> Result<(), Unfit> {
    let (Some(made_on), here) = (image.machine.clone(), Layout::own()) else { return Ok(()) };
    let there = layout(image, &made_on)?;
    if there == *here && !is_foreign {
        return Ok(());
    }
    check(&made_on, &there, here)?;
    let both_have = there.has_xsave() && here.has_xsave();
    if both_have && let Some(tid) = frames::find(image, chain, there.size)? {
        return Err(Unfit::Refused(format!(
            "thread {tid} may be in a signal handler, and what that returns to has its registers as another CPU lays them out; \
             take another checkpoint (--at ID)"
        )));
    }
    if here.size > there.size {
        alternate_stacks(image, frame_size())?;
    }
    for process in &mut image.processes {
        for thread in &mut process.threads {
            let Some(registers) = &mut thread.registers else { continue };
            registers.xstate = moved(&registers.xstate, &there.components, here).map_err(|lost| {
                let name = lost.name();
                format!("thread {} computes with {name} registers, which this CPU has not", thread.tid)
            })?;
        }
    }
    Ok(())
}

/// Why registers do not go to this processor.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl From<String> for Unfit {
    fn from(reason: String) -> Self {
        Self::Refused(reason)
    }
}

/// Of the processor that the image was made on, which the area of each thread has to agree with.
fn layout(image: &Image, made_on: &Machine) -> Result<Layout, String> {
    let threads = image.processes.iter().flat_map(|process| &process.threads);
    let areas: Vec<&[u8]> =
        threads.filter_map(|thread| Some(&thread.registers.as_ref()?.xstate[..])).collect();
    let size = areas.first().map_or(LEGACY, |area| area.len());
    let there = Layout { components: made_on.xsave.clone(), size };
    let agrees = |area: &&[u8]| {
        let present = word(area, PRESENT).filter(|_| there.has_xsave());
        area.len() == size && present.is_none_or(|present| present == there.present())
    };
    if size < LEGACY || !areas.iter().all(agrees) {
        return Err("the registers in the image are not of the CPU that it names".to_owned());
    }
    Ok(there)
}

/// What a program has found out about its processor once, and keeps in its memory.
fn check(made_on: &Machine, there: &Layout, here: &Layout) -> Result<(), String> {
    let has = |feature: &str| made_on.cpu_features.iter().any(|one| one == feature);
    let baseline = made_on.baseline();
    let elsewhere = |component: &&Component| here.find(component.number).is_some_and(|own| own != *component);
    if baseline.is_none()
        && let Some(component) = there.components.iter().find(elsewhere)
    {
        return Err(format!(
            "this CPU saves the registers of {} in another place of its XSAVE area, which a program may know; {ADVICE}",
            component.name()
        ));
    }
    // Below, its linker does without XSAVE. With XSAVEC nothing is written for what is not in use.
    let saves_all =
        has("xsave") && !has("xsavec") && baseline.is_none_or(|baseline| baseline >= Baseline::V3);
    let is_new = |number: &&u32| there.find(**number).is_none();
    let new = OF_THE_LINKER.iter().filter(is_new).find_map(|number| here.find(*number));
    match new {
        Some(component) if saves_all => Err(format!(
            "this CPU has {} registers, which XSAVE would write where the program's dynamic linker has left no room for them; \
             launch it with --cpu-baseline x86-64-v2 to move it between such CPUs",
            component.name()
        )),
        _ => Ok(()),
    }
}

const ADVICE: &str = "launch it with --cpu-baseline to move it between such CPUs";

/// A frame that does not fit ends the program (SIGSEGV), so they have to have room for what this processor saves.
fn alternate_stacks(image: &Image, needed: u64) -> Result<(), String> {
    for thread in image.processes.iter().flat_map(|process| &process.threads) {
        let size = thread.signals.as_ref().map_or(0, |signals| signals.altstack_size);
        if size > 0 && size < needed {
            return Err(format!(
                "the alternate signal stack of thread {} has {size} bytes, and this CPU's registers need {needed}",
                thread.tid
            ));
        }
    }
    Ok(())
}

/// The same registers for another processor; what it has not is left out where nothing is in it.
fn moved(area: &[u8], made_with: &[Component], here: &Layout) -> Result<Vec<u8>, Component> {
    let mut out = vec![0; here.size.max(LEGACY)];
    let legacy = area.get(..PRESENT.start).unwrap_or_default();
    out[..legacy.len()].copy_from_slice(legacy);
    let mut in_use = X87_AND_SSE;
    let was_in_use = word(area, IN_USE).unwrap_or_default();
    for component in made_with.iter().filter(|component| component.number < 64) {
        let content = area.get(component.range()).unwrap_or_default();
        let has_any = was_in_use >> component.number & 1 != 0 && content.iter().any(|byte| *byte != 0);
        if component.number == PKRU || !has_any {
            continue;
        }
        let own = here.find(component.number).filter(|own| own.size == component.size);
        let room = own.and_then(|own| out.get_mut(own.range())).ok_or(*component)?;
        room.copy_from_slice(content);
        in_use |= 1 << component.number;
    }
    if let Some(room) = here.find(PKRU).and_then(|own| out.get_mut(own.range())?.first_chunk_mut()) {
        let own = made_with.iter().find(|component| component.number == PKRU);
        let rights = own.and_then(|own| area.get(own.range())?.first_chunk());
        *room = rights.copied().unwrap_or(NO_KEYS.to_le_bytes());
        in_use |= 1 << PKRU;
    }
    if here.has_xsave() {
        out[PRESENT].copy_from_slice(&here.present().to_le_bytes());
        out[IN_USE].copy_from_slice(&in_use.to_le_bytes());
    }
    Ok(out)
}

fn word(area: &[u8], at: Range<usize>) -> Option<u64> {
    Some(u64::from_le_bytes(area.get(at)?.try_into().ok()?))
}

#[cfg(test)]
#[path = "xstate_tests.rs"]
mod tests;
