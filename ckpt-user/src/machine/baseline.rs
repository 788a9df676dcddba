//! `--cpu-baseline`: what a program is told that its processor has, so that it goes on where there is no more.

use std::ffi::{OsStr, OsString};

/// A level of the x86-64 psABI, section 3.1.1; each has all that the ones before have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Baseline {
    /// Every processor of 64 bits.
    #[value(name = "x86-64")]
    V1,
    /// SSE4.2 (since 2009).
    #[value(name = "x86-64-v2")]
    V2,
    /// AVX2 (since 2013).
    #[value(name = "x86-64-v3")]
    V3,
    /// AVX-512.
    #[value(name = "x86-64-v4")]
    V4,
}

/// By level: flags of /proc/cpuinfo, and the names that glibc has for what it is not to use below (sysdeps/x86/cpu-tunables.c); those
/// that end in `Usable` before 2.33. It passes over names that it does not know.
const LEVELS: &[(Baseline, &[&str], &[&str])] = &[
    (Baseline::V1, &["cmov", "cx8", "fpu", "fxsr", "mmx", "sse", "sse2"], &[]),
    (
        Baseline::V2,
        &["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"],
        &["SSSE3", "SSE4_1", "SSE4_2", "POPCNT"],
    ),
    (
        Baseline::V3,
        &["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave", "xsavec"],
        &[
            "AVX",
            "AVX2",
            "BMI1",
            "BMI2",
            "FMA",
            "LZCNT",
            "MOVBE",
            "OSXSAVE",
            "XSAVE",
            "XSAVEC",
            "AVX_Fast_Unaligned_Load",
            "AVX_Usable",
            "AVX2_Usable",
            "FMA_Usable",
            "XSAVEC_Usable",
        ],
    ),
    (
        Baseline::V4,
        &["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"],
        &["AVX512F", "AVX512BW", "AVX512CD", "AVX512DQ", "AVX512VL", "AVX512F_Usable", "AVX512DQ_Usable"],
    ),
];
/// No level has them.
const OF_NO_LEVEL: &[&str] = &["RTM", "FMA4", "FMA4_Usable"];

/// The variable of them.
pub const TUNABLES: &str = "GLIBC_TUNABLES";
/// Since glibc 2.29, and in 2.26 to 2.28.
const HWCAPS: &[&str] = &["glibc.cpu.hwcaps=", "glibc.tune.hwcaps="];

impl Baseline {
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "x86-64",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }

    pub fn of(name: &str) -> Option<Self> {
        LEVELS.iter().map(|level| level.0).find(|level| level.name() == name)
    }

    /// Whether a program that is told of this level only may rely on a flag of /proc/cpuinfo.
    pub fn has(self, flag: &str) -> bool {
        LEVELS.iter().take_while(|level| level.0 <= self).any(|level| level.1.contains(&flag))
    }

    /// Variables that have the C library use nothing beyond (tunables of glibc, ld.so(8)), added to those that there are: its
    /// functions, its choice of libraries, and the registers that are saved around the first call of a function.
    pub fn environment(self, tunables: Option<&OsStr>) -> Vec<(OsString, OsString)> {
        let beyond = LEVELS.iter().skip_while(|level| level.0 <= self).flat_map(|level| level.2);
        let off: Vec<String> = beyond.chain(OF_NO_LEVEL).map(|name| format!("-{name}")).collect();
        let off = off.join(",");
        let old = tunables.map(OsStr::to_string_lossy).unwrap_or_default();
        let mut words: Vec<String> =
            old.split(':').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        for name in HWCAPS {
            // Of several the last one counts.
            match words.iter_mut().rfind(|word| word.starts_with(name)) {
                Some(word) => *word += &format!(",{off}"),
                None => words.push(format!("{name}{off}")),
            }
        }
        let mut all = vec![(TUNABLES.into(), words.join(":").into())];
        if self < Self::V3 {
            // An older linker would save registers that there may not be.
            all.push(("LD_BIND_NOW".into(), "1".into()));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_has_what_the_ones_before_have() {
        assert!(Baseline::V2.has("sse2") && Baseline::V2.has("sse4_2") && !Baseline::V2.has("avx"));
        assert!(Baseline::V4.has("avx512f") && !Baseline::V3.has("avx512f") && !Baseline::V4.has("sha_ni"));
        assert!(LEVELS.iter().all(|level| Baseline::of(level.0.name()) == Some(level.0)));
        assert_eq!(Baseline::of("x86-64-v5"), None);
    }

    #[test]
    fn tunables_are_added_to() {
        let tunables = |level: Baseline, old: Option<&str>| {
            let (name, value) = level.environment(old.map(OsStr::new)).remove(0);
            assert_eq!(name, "GLIBC_TUNABLES");
            value.into_string().unwrap()
        };
        let v4 = "-RTM,-FMA4,-FMA4_Usable";
        assert_eq!(tunables(Baseline::V4, None), format!("glibc.cpu.hwcaps={v4}:glibc.tune.hwcaps={v4}"));
        assert!(tunables(Baseline::V2, None).contains("=-AVX,-AVX2,"));
        assert!(!tunables(Baseline::V2, None).contains("SSE4_2"));
        let old = Some("glibc.malloc.check=1:glibc.cpu.hwcaps=-A:glibc.cpu.hwcaps=-ERMS:glibc.rtld.nns=2");
        let all = tunables(Baseline::V4, old);
        let before = "glibc.malloc.check=1:glibc.cpu.hwcaps=-A:glibc.cpu.hwcaps=-ERMS";
        assert_eq!(all, format!("{before},{v4}:glibc.rtld.nns=2:glibc.tune.hwcaps={v4}"));
        assert_eq!((Baseline::V2.environment(None).len(), Baseline::V3.environment(None).len()), (2, 1));
    }
}
