//! Extended state (x87, SSE, AVX, …) on its way between processors: the same registers, where each of them saves them.
//!
//! ```text
//!  0            512      576                       offsets and sizes by CPUID leaf 13, which differ between processors
//!  ┌────────────┬────────┬───────────┬─ ─ ─┬──────────┐
//!  │ x87, SSE   │ header │ AVX       │     │ PKRU …   │   Intel SDM volume 1, 13.4; a processor without XSAVE has the
//!  └────────────┴────────┴───────────┴─ ─ ─┴──────────┘   first 512 bytes only
//! ```

use crate::record::{Image, Machine};
use crate::sys::xsave::{self, LEGACY};
use std::ops::Range;

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
    /// Of this one.
    pub fn own() -> Self {
        let component = |(number, offset, size)| Component { number, offset, size };
        Self { components: xsave::components().into_iter().map(component).collect(), size: xsave::size() }
    }

    fn find(&self, number: u32) -> Option<&Component> {
        self.components.iter().find(|component| component.number == number)
    }
}

/// Gives the registers of an image's threads the places that this processor has for them.
///
/// # Errors
/// Names what a thread computes with and this processor has not, or what of the program relies on the other places.
pub fn fit(image: &mut Image) -> Result<(), String> {
    let (Some(made_on), here) = (image.machine.clone(), Layout::own()) else { return Ok(()) };
    if made_on.xsave == here.components {
        return Ok(());
    }
    check(&made_on, &here)?;
    for process in &mut image.processes {
        for thread in &mut process.threads {
            let Some(registers) = &mut thread.registers else { continue };
            registers.xstate = moved(&registers.xstate, &made_on.xsave, &here).map_err(|lost| {
                let name = lost.name();
                format!("thread {} computes with {name} registers, which this CPU has not", thread.tid)
            })?;
        }
    }
    Ok(())
}

/// What a program may have in its memory: frames of signal handlers, and room for registers that its linker has found out once. A
/// program with a baseline has been told to rely on neither.
fn check(made_on: &Machine, here: &Layout) -> Result<(), String> {
    if made_on.baseline().is_some() || made_on.xsave.is_empty() || here.components.is_empty() {
        return Ok(());
    }
    let elsewhere = |there: &&Component| here.find(there.number).is_some_and(|own| own != *there);
    if let Some(component) = made_on.xsave.iter().find(elsewhere) {
        return Err(format!(
            "this CPU saves the registers of {} in another place of its XSAVE area, where signal handlers of the program would \
             look for them in vain; {ADVICE}",
            component.name()
        ));
    }
    let has = |feature: &str| made_on.cpu_features.iter().any(|one| one == feature);
    let is_new = |number: &&u32| made_on.xsave.iter().all(|there| there.number != **number);
    let new = OF_THE_LINKER.iter().filter(is_new).find_map(|number| here.find(*number));
    match new {
        Some(component) if has("xsave") && !has("xsavec") => Err(format!(
            "this CPU has {} registers, which XSAVE would write where the program's dynamic linker has left no room for them; \
             {ADVICE}",
            component.name()
        )),
        _ => Ok(()),
    }
}

const ADVICE: &str = "launch it with --cpu-baseline to move it between such CPUs";

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
    if !here.components.is_empty() {
        let present = here.components.iter().fold(X87_AND_SSE, |all, component| all | 1 << component.number);
        out[PRESENT].copy_from_slice(&present.to_le_bytes());
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
