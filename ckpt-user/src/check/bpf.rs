//! The eBPF programs: each is loaded, and none attached.
use super::Feature;
use crate::sys::bpf::{Bpf, BpfError, Kernel, Layout, Options, Program};

const INSTEAD: &str = "system calls run inside the program are used instead";
const ALLOW: &str = "run it as root; in a container add CAP_BPF and CAP_PERFMON";

pub(super) fn probe() -> Vec<Feature> {
    let btf = Feature::new("BTF", "where the kernel's structures have their fields");
    let btf = match Layout::of_kernel() {
        Ok(_) => btf,
        Err(e) => btf.fallback(format!("{e}; {INSTEAD}"), "use a kernel with CONFIG_DEBUG_INFO_BTF"),
    };
    let loaded = Kernel::load_with(Options { probes: true, ..Options::default() });
    let mut features = vec![btf];
    features.extend(Program::ALL.iter().map(|&program| feature(program, &loaded)));
    features
}

fn feature(program: Program, loaded: &Result<Bpf, BpfError>) -> Feature {
    let feature = Feature::new(program.label(), program.purpose());
    let reason = match loaded {
        Ok(bpf) => match bpf.fallbacks().iter().find(|fallback| fallback.program == program) {
            None => return feature,
            Some(fallback) => fallback.reason.clone(),
        },
        Err(e) => e.to_string(),
    };
    if program.probe_only() {
        return feature.fallback(format!("{reason}; nothing needs it"), "");
    }
    feature.fallback(format!("{reason}; {INSTEAD}"), ALLOW)
}
