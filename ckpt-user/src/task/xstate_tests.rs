use super::*;
use crate::task::registers::Registers;

const fn at(number: u32, offset: u32, size: u32) -> Component {
    Component { number, offset, size }
}

/// AVX, AVX-512 and protection keys where one maker has them, and where another has.
fn first() -> Layout {
    let components =
        vec![at(2, 576, 256), at(5, 1088, 64), at(6, 1152, 512), at(7, 1664, 1024), at(9, 2688, 8)];
    Layout { components, size: 2696 }
}

fn second() -> Layout {
    let components =
        vec![at(2, 576, 256), at(5, 832, 64), at(6, 896, 512), at(7, 1408, 1024), at(9, 2432, 8)];
    Layout { components, size: 2440 }
}

fn without(layout: &Layout, numbers: &[u32], size: usize) -> Layout {
    let mut components = layout.components.clone();
    components.retain(|component| !numbers.contains(&component.number));
    Layout { components, size }
}

fn old() -> Layout {
    Layout { components: Vec::new(), size: LEGACY }
}

/// An area in which each byte of the components in `used` is their number, and all are said to be in use.
fn area(layout: &Layout, used: &[u32]) -> Vec<u8> {
    let mut area = vec![0; layout.size];
    area[..PRESENT.start].fill(0x11);
    if !layout.has_xsave() {
        return area;
    }
    area[PRESENT].copy_from_slice(&layout.present().to_le_bytes());
    area[IN_USE].copy_from_slice(&layout.present().to_le_bytes());
    for component in layout.components.iter().filter(|component| used.contains(&component.number)) {
        area[component.range()].fill(component.number as u8);
    }
    area
}

fn content(area: &[u8], layout: &Layout, number: u32) -> Vec<u8> {
    area[layout.find(number).unwrap().range()].to_vec()
}

#[test]
fn each_component_goes_to_its_place() {
    let (there, here) = (first(), second());
    let moved = moved(&area(&there, &[2, 6, 9]), &there.components, &here).unwrap();
    assert_eq!(moved.len(), 2440);
    assert_eq!(moved[..464], [0x11; 464]);
    for (number, size) in [(2, 256), (6, 512), (9, 8)] {
        let byte = if number == 9 { vec![9, 9, 9, 9, 0, 0, 0, 0] } else { vec![number as u8; size] };
        assert_eq!(content(&moved, &here, number), byte, "{number}");
    }
    assert_eq!(word(&moved, IN_USE), Some(0b10_0100_0111), "what is all zeros is in its first state");
    assert_eq!(word(&moved, PRESENT), Some(0b10_1110_0111));
}

#[test]
fn what_a_thread_computes_with_is_never_left_out() {
    let (there, here) = (first(), without(&first(), &[5, 6, 7], 2696));
    assert!(moved(&area(&there, &[2]), &there.components, &here).is_ok());
    assert_eq!(moved(&area(&there, &[2, 7]), &there.components, &here).unwrap_err().name(), "AVX-512");
    let mut unused = area(&there, &[2, 7]);
    unused[IN_USE].copy_from_slice(&0b111u64.to_le_bytes());
    assert!(moved(&unused, &there.components, &here).is_ok(), "it is said to be in its first state");
    assert_eq!(moved(&area(&there, &[2]), &there.components, &old()).unwrap_err().name(), "AVX");
}

#[test]
fn processors_without_xsave_and_back() {
    let there = first();
    let short = moved(&area(&there, &[9]), &there.components, &old()).unwrap();
    assert_eq!((short.len(), &short[..464], &short[464..]), (512, &[0x11; 464][..], &[0; 48][..]));
    let back = moved(&short, &[], &there).unwrap();
    assert_eq!((word(&back, IN_USE), back.len()), (Some(0b10_0000_0011), 2696));
    assert_eq!(content(&back, &there, 9)[..4], NO_KEYS.to_le_bytes());
    assert_eq!(back[..464], [0x11; 464]);
}

#[test]
fn what_an_image_says_of_places_is_not_believed() {
    let wrong = [at(2, u32::MAX, u32::MAX), at(70, 0, 8), at(5, 1088, 64)];
    let out = moved(&area(&first(), &[2, 5]), &wrong, &second()).unwrap();
    assert_eq!(content(&out, &second(), 2), [0; 256]);
    assert_eq!(content(&out, &second(), 5), [5; 64]);
    for length in [0, 100, 512, 515, 600] {
        let _ = moved(&area(&first(), &[2])[..length], &first().components, &second());
    }
}

fn made_on(layout: &Layout, features: &str, baseline: &str) -> Machine {
    let cpu_features = features.split(' ').map(str::to_owned).collect();
    Machine {
        cpu_features,
        xsave: layout.components.clone(),
        cpu_baseline: baseline.into(),
        ..Machine::default()
    }
}

/// XSAVE, and nothing beyond x87 and SSE to save with it.
fn plain() -> Layout {
    Layout { components: Vec::new(), size: 576 }
}

#[test]
fn a_processor_with_xsave_and_without_avx_keeps_its_registers() {
    let there = first();
    let narrow = moved(&area(&there, &[]), &there.components, &plain()).unwrap();
    assert_eq!((narrow.len(), word(&narrow, IN_USE), word(&narrow, PRESENT)), (576, Some(3), Some(3)));
    assert_eq!(narrow[..464], [0x11; 464]);
    let back = moved(&narrow, &[], &there).unwrap();
    assert_eq!((word(&back, IN_USE), &back[..464]), (Some(0b10_0000_0011), &[0x11; 464][..]));
}

#[test]
fn a_program_that_relies_on_other_places_is_refused() {
    let narrow = without(&first(), &[5, 6, 7, 9], 832);
    let refused = |there: &Layout, features: &str, baseline: &str, here: &Layout| {
        check(&made_on(there, features, baseline), there, here).err().unwrap_or_default()
    };
    assert!(refused(&first(), "xsave xsavec", "", &second()).contains("AVX-512"));
    assert_eq!(refused(&first(), "xsave xsavec", "x86-64-v3", &second()), "");
    assert_eq!(refused(&narrow, "xsave xsavec", "", &first()), "");
    for baseline in ["", "x86-64-v3"] {
        assert!(refused(&narrow, "xsave", baseline, &first()).contains("no room"));
        assert!(refused(&plain(), "xsave", baseline, &narrow).contains("no room"));
        assert_eq!(refused(&first(), "xsave", baseline, &first()), "");
    }
    assert_eq!(refused(&narrow, "sse4_2", "x86-64-v2", &first()), "");
    assert_eq!(refused(&old(), "sse2", "", &first()), "");
}

#[test]
fn alternate_stacks_have_to_have_room_for_what_is_saved() {
    let mut image = image(&[Vec::new()]);
    for (altstack_size, fits) in [(0, true), (2048, false), (3631, false), (3632, true)] {
        let signals = crate::task::signals::ThreadSignals { altstack_size, ..Default::default() };
        image.processes[0].threads[0].signals = Some(signals);
        assert_eq!(alternate_stacks(&image, 3632).is_ok(), fits, "{altstack_size}");
    }
}

/// An image with a thread for each area.
fn image(areas: &[Vec<u8>]) -> Image {
    let thread = |xstate: &Vec<u8>| {
        let registers = Registers { words: vec![0; 27], xstate: xstate.clone(), rseq: None };
        crate::record::Thread { registers: Some(registers), ..Default::default() }
    };
    let process =
        crate::record::Process { threads: areas.iter().map(thread).collect(), ..Default::default() };
    Image { processes: vec![process], ..Default::default() }
}

#[test]
fn areas_that_are_not_what_the_image_says_are_refused() {
    let (wide, short) = (area(&first(), &[2]), area(&old(), &[]));
    let said = |layout: &Layout| made_on(layout, "", "");
    assert_eq!(layout(&image(&[wide.clone(), wide.clone()]), &said(&first())), Ok(first()));
    assert_eq!(layout(&image(std::slice::from_ref(&short)), &said(&old())), Ok(old()));
    // Nothing is said of what it has; something else is; threads of two processors; too short.
    assert!(layout(&image(std::slice::from_ref(&wide)), &said(&old())).is_err());
    assert!(layout(&image(std::slice::from_ref(&wide)), &said(&without(&first(), &[9], 2696))).is_err());
    assert!(layout(&image(&[wide, short]), &said(&first())).is_err());
    assert!(layout(&image(&[vec![0; 100]]), &said(&old())).is_err());
}
