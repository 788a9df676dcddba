//! Options back to the words that stand for them: for a worker that is asked for something else than a person has typed.

use std::ffi::{OsStr, OsString};

use crate::job::options::{ClocksPolicy, Codec, FilesPolicy, JobOptions, LaunchOptions, RestartOptions};
use crate::machine::Baseline;
use crate::track::backend::Backend;
use crate::track::reconcile::Lie;

/// `ckptbpf launch …`, as a shell would take it apart.
pub fn of_launch(options: &LaunchOptions) -> Vec<OsString> {
    let LaunchOptions { job, new, user, cpu_baseline, detach: _, program } = options;
    let mut words = Words::of("launch");
    words.job(job);
    words.flag("--new", *new);
    words.value("--user", user.as_ref());
    words.value("--cpu-baseline", cpu_baseline.map(Baseline::name));
    words.ending_with(program)
}

/// `ckptbpf restart …`.
pub fn of_restart(options: &RestartOptions) -> Vec<OsString> {
    let RestartOptions { job, lazy, at, files, clocks, detach, json, source, .. } = options;
    let RestartOptions { hold_fill, foreign_vdso, foreign_xsave, .. } = options;
    let mut words = Words::of("restart");
    words.job(job);
    words.flag("--lazy", *lazy);
    words.value("--at", at.map(|id| id.to_string()));
    let files = match files {
        FilesPolicy::Rollback => "rollback",
        FilesPolicy::Keep => "keep",
        FilesPolicy::Check => "check",
    };
    words.value("--files", Some(files));
    let clocks = match clocks {
        ClocksPolicy::GoOn => "go-on",
        ClocksPolicy::Jump => "jump",
    };
    words.value("--clocks", Some(clocks));
    words.flag("--detach", *detach);
    words.flag("--json", *json);
    words.value("--hold-fill", hold_fill.as_ref());
    words.flag("--foreign-vdso", *foreign_vdso);
    words.flag("--foreign-xsave", *foreign_xsave);
    words.ending_with(&[source.clone().into_os_string()])
}

struct Words(Vec<OsString>);

impl Words {
    fn of(verb: &str) -> Self {
        Self(vec!["ckptbpf".into(), verb.into()])
    }

    fn flag(&mut self, name: &str, is_set: bool) {
        self.0.extend(is_set.then(|| OsString::from(name)));
    }

    /// In one word: a value may begin as an option does.
    fn value(&mut self, name: &str, value: Option<impl AsRef<OsStr>>) {
        self.0.extend(value.map(|value| {
            let mut word = OsString::from(name);
            word.push("=");
            word.push(value);
            word
        }));
    }

    fn job(&mut self, options: &JobOptions) {
        let JobOptions { interval, dir, keep, exit_after_ckpt, ckpt_signal, term_ends, dmtcp, .. } = options;
        let JobOptions { compress, verbose, take_over, no_bpf, track, ring_bytes, fault_log, .. } = options;
        self.value("--interval", interval.map(|interval| interval.as_secs_f64().to_string()));
        self.value("--dir", dir.as_ref());
        self.value("--keep", keep.map(|keep| keep.to_string()));
        self.flag("--exit-after-ckpt", *exit_after_ckpt);
        self.value("--ckpt-signal", ckpt_signal.map(|signal| signal.to_string()));
        self.flag("--term-ends", *term_ends);
        let compress = compress.map(|codec| match codec {
            Codec::Lz4 => "lz4",
            Codec::None => "none",
        });
        self.value("--compress", compress);
        (0..*verbose).for_each(|_| self.flag("--verbose", true));
        self.flag("--take-over", *take_over);
        self.value("--dmtcp", dmtcp.as_ref());
        self.flag("--no-bpf", *no_bpf);
        let track = track.map(|track| match track {
            Backend::PagemapScan => "pagemap-scan",
            Backend::SoftDirty => "soft-dirty",
            Backend::Full => "full",
        });
        self.value("--track", track);
        self.value("--ring-bytes", ring_bytes.map(|bytes| bytes.to_string()));
        let fault_log = fault_log.map(|lie| match lie {
            Lie::Silent => "silent",
            Lie::Wild => "wild",
        });
        self.value("--fault-log", fault_log);
    }

    fn ending_with(mut self, rest: &[OsString]) -> Vec<OsString> {
        self.0.push("--".into());
        self.0.extend_from_slice(rest);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Verb};
    use super::*;
    use clap::Parser;
    use proptest::prelude::*;
    use std::time::Duration;

    fn job() -> impl Strategy<Value = JobOptions> {
        let some = (
            proptest::option::of(0u64..100_000_000),
            proptest::option::of("[a-z./ -]{1,12}"),
            proptest::option::of(1usize..1000),
            proptest::option::of(1i32..9),
            proptest::option::of(prop_oneof![Just(Codec::Lz4), Just(Codec::None)]),
        );
        let others = (
            any::<[bool; 4]>(),
            0u8..4,
            proptest::option::of(prop_oneof![
                Just(Backend::PagemapScan),
                Just(Backend::SoftDirty),
                Just(Backend::Full)
            ]),
            proptest::option::of(any::<u32>()),
            proptest::option::of(prop_oneof![Just(Lie::Silent), Just(Lie::Wild)]),
        );
        (some, others).prop_map(|(some, others)| {
            let (interval, dir, keep, ckpt_signal, compress) = some;
            let ([exit_after_ckpt, term_ends, take_over, no_bpf], verbose, track, ring_bytes, fault_log) =
                others;
            // Faults are no signals to ask with.
            let ckpt_signal = ckpt_signal.filter(|signal| ![4, 7, 8].contains(signal));
            JobOptions {
                interval: interval.map(Duration::from_millis),
                dir: dir.map(Into::into),
                keep,
                exit_after_ckpt,
                ckpt_signal,
                term_ends,
                compress,
                verbose,
                take_over,
                dmtcp: no_bpf.then(|| "7779.41".to_owned()),
                no_bpf,
                track,
                ring_bytes,
                fault_log,
            }
        })
    }

    fn program() -> impl Strategy<Value = Vec<OsString>> {
        proptest::collection::vec("[a-z -]{1,6}".prop_map(OsString::from), 1..4)
    }

    proptest! {
        #[test]
        fn a_launch_comes_back(job in job(), program in program(), new in any::<bool>(), level in any::<bool>()) {
            let cpu_baseline = level.then_some(Baseline::V3);
            let user = new.then(|| "me".to_owned());
            let options = LaunchOptions { job, new, user, cpu_baseline, detach: false, program };
            let Ok(Cli { verb: Verb::Launch(parsed) }) = Cli::try_parse_from(of_launch(&options)) else {
                return Err(TestCaseError::fail(format!("{:?}", of_launch(&options))));
            };
            prop_assert_eq!(parsed.options(), options);
        }

        #[test]
        fn a_restart_comes_back(
            job in job(), source in "[a-z./ -]{1,12}", at in proptest::option::of(1u64..), flags in any::<[bool; 5]>(),
            files in prop_oneof![Just(FilesPolicy::Rollback), Just(FilesPolicy::Keep), Just(FilesPolicy::Check)],
        ) {
            let [lazy, detach, json, foreign_vdso, foreign_xsave] = flags;
            let clocks = if json { ClocksPolicy::Jump } else { ClocksPolicy::GoOn };
            let hold_fill = lazy.then(|| "hold".into());
            let source = source.into();
            let options = RestartOptions {
                job, lazy, at, files, clocks, detach, json, source, hold_fill, foreign_vdso, foreign_xsave,
            };
            let Ok(Cli { verb: Verb::Restart(parsed) }) = Cli::try_parse_from(of_restart(&options)) else {
                return Err(TestCaseError::fail(format!("{:?}", of_restart(&options))));
            };
            prop_assert_eq!(parsed.options(), options);
        }
    }
}
