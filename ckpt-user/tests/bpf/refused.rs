//! What a kernel refuses: before Linux 5.12 more than what only some configurations refuse, which `load.rs` has.
use ckptbpf::{
    check::{self, Status},
    sys::bpf::{Kernel, Options, Program},
};

#[test]
fn each_program_is_loaded_or_named_with_the_reason() {
    let bpf = Kernel::load_with(Options { probes: true, ..Options::default() }).unwrap();
    let report = check::run();
    for &program in Program::ALL {
        let refused = bpf.fallbacks().iter().find(|fallback| fallback.program == program);
        assert_eq!(bpf.has(program), refused.is_none(), "{program:?}: {refused:?}");
        let told = report.feature(program.label()).unwrap();
        println!("{}: {:?} {}", program.label(), told.status, told.detail);
        if let Some(refused) = refused {
            assert!(!refused.reason.is_empty() && told.status == Status::Fallback, "{refused:?}: {told:?}");
        }
    }
    assert!(Program::ALL.iter().any(|&program| bpf.has(program)), "one that is refused costs no other one");
}
