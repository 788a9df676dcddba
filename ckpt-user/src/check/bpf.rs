//! The eBPF programs: each is loaded, and none attached.
use super::Feature;
use crate::sys::bpf::{Bpf, BpfError, Kernel, Layout, Options, Program, RestartDecoder};

const INSTEAD: &str = "system calls run inside the program are used instead";
const ALLOW: &str = "run it as root; in a container add CAP_BPF and CAP_PERFMON";
const SHOW: &str = "have root set it: sysctl kernel.kptr_restrict=1";
const OTHERS: &str = "nothing needs to be done; please report this kernel's name";

pub(super) fn probe() -> Vec<Feature> {
    let btf = Feature::new("BTF", "where the kernel's structures have their fields");
    let btf = match Layout::of_kernel() {
        Ok(_) => btf,
        Err(e) => btf.fallback(format!("{e}; {INSTEAD}"), "use a kernel with CONFIG_DEBUG_INFO_BTF"),
    };
    let mut loaded = Kernel::load_with(Options { probes: true, ..Options::default() });
    loaded.iter_mut().for_each(Bpf::leave_out_long_walks);
    let object = Feature::new("eBPF", "the programs below");
    let object = match &loaded {
        Ok(_) => object,
        Err(BpfError::Load { reason }) => object.fallback(format!("{reason}; {INSTEAD}"), ALLOW),
        Err(e) => object.fallback(format!("{e}; {INSTEAD}"), ALLOW),
    };
    let addresses = Feature::new("kallsyms", "how long interrupted sleeps and waits still go");
    let addresses = match loaded.as_ref().map(|bpf| RestartDecoder::new(bpf.offsets())) {
        Ok(Ok(_)) => addresses,
        Ok(Err(e)) => addresses.fallback(format!("{e}; they begin anew"), SHOW),
        Err(_) => addresses.fallback("no eBPF here", ""),
    };
    let mut features = vec![btf, object, addresses];
    features.extend(Program::ALL.iter().map(|&program| feature(program, loaded.as_ref().ok())));
    features
}

fn feature(program: Program, loaded: Option<&Bpf>) -> Feature {
    let feature = Feature::new(program.label(), program.purpose());
    let Some(bpf) = loaded else { return feature.fallback("no eBPF here", "") };
    match bpf.fallbacks().iter().find(|fallback| fallback.program == program) {
        None => feature,
        Some(refused) if program.probe_only() => {
            feature.fallback(format!("{}; nothing needs it", refused.reason), "")
        }
        Some(refused) => feature.fallback(format!("{}; {INSTEAD}", refused.reason), OTHERS),
    }
}
