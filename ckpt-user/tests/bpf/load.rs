//! The object loads on this kernel, and the record beside it is about it.
use ckptbpf::sys::bpf::{BpfError, Kernel, Options, Program, built_from};

/// The object that is compiled in, or the one that `cargo xtask build-ebpf --check` has just built.
#[test]
fn every_program_loads_but_for_those_that_some_kernels_refuse() {
    let options = Options { probes: true, ..Options::default() };
    let bpf = match std::env::var_os("CKPTBPF_TEST_OBJECT") {
        Some(path) => Kernel::load_object(&std::fs::read(path).unwrap(), options),
        None => Kernel::load_with(options),
    }
    .unwrap();
    for fallback in bpf.fallbacks() {
        assert!(fallback.program.probe_only(), "{fallback:?}");
        assert!(!fallback.reason.is_empty());
    }
    assert!(bpf.has(Program::Tasks));
    assert!(!Kernel::load().unwrap().has(Program::ProbeLsm), "only loaded when asked for");
}

#[test]
fn what_is_not_loaded_is_an_error_that_names_it() {
    let bpf = Kernel::load_object(b"not an object", Options::default());
    let Err(BpfError::Load { reason }) = bpf else { panic!("loaded") };
    assert!(reason.contains("ELF"), "{reason}");
}

#[test]
fn the_record_names_the_compiler() {
    let record: serde_json::Value = serde_json::from_str(built_from()).unwrap();
    assert!(record["tools"]["rustc"].as_str().unwrap().starts_with("rustc "));
}
