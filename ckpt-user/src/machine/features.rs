//! What a program may have found out about its processor, and rely on.

use std::sync::OnceLock;

/// Flags of /proc/cpuinfo that speak of the kernel's own business: of virtual memory, interrupts, power, virtualization,
/// measuring, and of leaks of the processor (arch/x86/include/asm/cpufeatures.h). No instruction of a program does anything
/// else without them, and kernels differ in which of them they show. Whatever is not named here counts.
const THE_KERNELS: &[&str] = &[
    // Paging, protection, modes.
    "vme",
    "de",
    "pse",
    "pse36",
    "pae",
    "pge",
    "pat",
    "mtrr",
    "nx",
    "pdpe1gb",
    "pcid",
    "invpcid",
    "invpcid_single",
    "smep",
    "smap",
    "umip",
    "la57",
    "lm",
    "syscall",
    "sep",
    "up",
    "cr8_legacy",
    "xsaves",
    "tce",
    "lass",
    "fred",
    "lkgs",
    "wrmsrns",
    "k6_mtrr",
    "cyrix_arr",
    "centaur_mcr",
    "invlpgb",
    "bus_lock_detect",
    "split_lock_detect",
    "pks",
    // Interrupts, clocks of the kernel, power and heat.
    "msr",
    "apic",
    "x2apic",
    "extapic",
    "extd_apicid",
    "acpi",
    "tm",
    "tm2",
    "est",
    "ida",
    "arat",
    "epb",
    "pln",
    "pts",
    "dtherm",
    "hwp",
    "hwp_notify",
    "hwp_act_window",
    "hwp_epp",
    "hwp_pkg_req",
    "hfi",
    "cpb",
    "hw_pstate",
    "cppc",
    "proc_feedback",
    "aperfmperf",
    "constant_tsc",
    "nonstop_tsc",
    "nonstop_tsc_s3",
    "tsc_reliable",
    "tsc_known_freq",
    "tsc_adjust",
    "tsc_deadline_timer",
    "tsc_scale",
    "art",
    "acc_power",
    "rapl",
    "monitor",
    "fast_cppc",
    // Machine checks, debugging, measuring.
    "mce",
    "mca",
    "dts",
    "dtes64",
    "ds_cpl",
    "pbe",
    "xtpr",
    "pdcm",
    "sdbg",
    "pebs",
    "bts",
    "arch_perfmon",
    "arch_lbr",
    "intel_pt",
    "perfctr_core",
    "perfctr_nb",
    "perfctr_llc",
    "perfmon_v2",
    "bpext",
    "ibs",
    "ptsc",
    "wdt",
    "osvw",
    "nodeid_msr",
    "overflow_recov",
    "succor",
    "smca",
    "amd_lbr_v2",
    "amd_lbr_pmc_freeze",
    "mca_recovery",
    // Caches, bandwidth, topology.
    "ss",
    "ht",
    "cid",
    "dca",
    "cqm",
    "cqm_llc",
    "cqm_occup_llc",
    "cqm_mbm_total",
    "cqm_mbm_local",
    "rdt_a",
    "cat_l3",
    "cat_l2",
    "cdp_l3",
    "cdp_l2",
    "mba",
    "bmec",
    "smba",
    "abmc",
    "topoext",
    "xtopology",
    "cmp_legacy",
    "amd_dcm",
    "intel_ppin",
    "amd_ppin",
    "amd_htr_cores",
    "wbnoinvd",
    "pconfig",
    "nopl",
    "rep_good",
    "cpuid",
    "cpuid_fault",
    // Virtualization and encrypted memory.
    "hypervisor",
    "vmx",
    "smx",
    "svm",
    "skinit",
    "tpr_shadow",
    "flexpriority",
    "vnmi",
    "ept",
    "ept_ad",
    "vpid",
    "vmmcall",
    "vmcall",
    "pvunlock",
    "vcpupreempt",
    "xenpv",
    "tdx_guest",
    "tdx_host_platform",
    "sme",
    "sev",
    "sev_es",
    "sev_snp",
    "debug_swap",
    "svsm",
    "npt",
    "lbrv",
    "svm_lock",
    "nrip_save",
    "vmcb_clean",
    "flushbyasid",
    "decodeassists",
    "pausefilter",
    "pfthreshold",
    "avic",
    "v_vmsave_vmload",
    "vgif",
    "x2avic",
    "v_spec_ctrl",
    "vnmi_amd",
    "svme_addr_chk",
    // What processors leak, and what kernels do about it.
    "pti",
    "ssbd",
    "virt_ssbd",
    "amd_ssb_no",
    "ssbs",
    "ibrs",
    "ibpb",
    "stibp",
    "ibrs_enhanced",
    "ibpb_brtype",
    "ibpb_ret",
    "sbpb",
    "spec_ctrl",
    "spec_ctrl_ssbd",
    "amd_ibpb",
    "amd_ibrs",
    "amd_stibp",
    "amd_stibp_always_on",
    "amd_ibrs_same_mode",
    "md_clear",
    "flush_l1d",
    "arch_capabilities",
    "core_capabilities",
    "tsx_force_abort",
    "rtm_always_abort",
    "amd_ssbd",
    "no_nested_data_bp",
    "lfence_rdtsc",
    "null_sel_clr_base",
    "auto_ibrs",
    "btc_no",
    "amd_psfd",
    "bhi_ctrl",
    "srso_no",
    "verw_clear",
    "tsa_sq_no",
    "tsa_l1_no",
    "irperf",
    "xsaveerptr",
];

/// Those of `made_on` that a program may rely on and that `here` has not.
pub fn missing<'a>(made_on: &'a [String], here: &[String]) -> Vec<&'a str> {
    let counts = |flag: &&String| !THE_KERNELS.contains(&flag.as_str()) && !here.contains(*flag);
    made_on.iter().filter(counts).map(String::as_str).collect()
}

/// The `flags` line of /proc/cpuinfo, sorted. Read once: on some machines that asks every processor for its speed.
pub fn cpu_features() -> Vec<String> {
    static FEATURES: OnceLock<Vec<String>> = OnceLock::new();
    FEATURES.get_or_init(|| features(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())).clone()
}

pub(crate) fn features(text: &str) -> Vec<String> {
    let line = text.lines().find_map(|l| l.strip_prefix("flags")?.split_once(':').map(|(_, f)| f));
    let mut flags: Vec<String> =
        line.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect();
    flags.sort_unstable();
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(text: &str) -> Vec<String> {
        features(&format!("processor: 0\nflags\t: {text}\n"))
    }

    #[test]
    fn what_instructions_do_counts_and_nothing_else() {
        let made_on = flags("fpu avx2 constant_tsc ibrs something_new fsgsbase");
        assert_eq!(missing(&made_on, &flags("fpu avx2 fsgsbase something_new")), Vec::<&str>::new());
        assert_eq!(missing(&made_on, &flags("fpu")), ["avx2", "fsgsbase", "something_new"]);
    }

    #[test]
    fn none_is_named_twice() {
        let names: std::collections::BTreeSet<_> = THE_KERNELS.iter().collect();
        assert_eq!(names.len(), THE_KERNELS.len());
    }
}
