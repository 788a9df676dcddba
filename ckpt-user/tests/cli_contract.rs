//! docs/cli.md and `--help` say the same; help, usage errors and exit statuses are as promised there.
// A test that cannot go on has failed: helpers may panic as the tests themselves do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};

/// In help but hidden: for tests only.
const HIDDEN: [&str; 7] =
    ["--no-bpf", "--track", "--ring-bytes", "--hold-fill", "--fault-log", "--foreign", "--term-ends"];

fn ckptbpf(args: &[&str]) -> Output {
    let runtime = env!("CARGO_TARGET_TMPDIR");
    Command::new(env!("CARGO_BIN_EXE_ckptbpf")).args(args).env("XDG_RUNTIME_DIR", runtime).output().unwrap()
}

fn status(args: &[&str]) -> i32 {
    ckptbpf(args).status.code().unwrap()
}

fn errors(args: &[&str]) -> String {
    String::from_utf8(ckptbpf(args).stderr).unwrap()
}

/// Verb ─▶ its options, in docs/cli.md.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let text = std::fs::read_to_string(page).unwrap();
    let mut verbs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut verb = None;
    for line in text.lines() {
        if line.starts_with('#') {
            verb = line.strip_prefix("### ckptbpf ").map(str::to_owned);
            if let Some(verb) = &verb {
                verbs.insert(verb.clone(), BTreeSet::new());
            }
        }
        let Some(options) = verb.as_ref().and_then(|verb| verbs.get_mut(verb)) else { continue };
        let Some(cell) = line.strip_prefix("| `") else { continue };
        let cell = cell.split(" | ").next().unwrap();
        let words = cell.split(['`', ' ', ',']).filter(|word| word.starts_with('-'));
        options.extend(words.map(str::to_owned));
    }
    verbs
}

/// Verb ─▶ its options, as clap has them; without help, which every verb has. Of one that has verbs itself, those: `slurm run`.
fn offered() -> BTreeMap<String, BTreeSet<String>> {
    let command = ckptbpf::cli::command();
    let options = |verb: &clap::Command| {
        let shown = verb.get_arguments().filter(|argument| !argument.is_hide_set());
        let names = shown.flat_map(|argument| {
            let long = argument.get_long().map(|long| format!("--{long}"));
            let short = argument.get_short().map(|short| format!("-{short}"));
            long.into_iter().chain(short)
        });
        names.filter(|name| name != "--help" && name != "-h").collect()
    };
    let mut offered = BTreeMap::new();
    for verb in command.get_subcommands() {
        let name = verb.get_name();
        if !verb.has_subcommands() {
            offered.insert(name.to_owned(), options(verb));
        }
        let below = verb.get_subcommands().filter(|below| below.get_name() != "help");
        offered.extend(below.map(|below| (format!("{name} {}", below.get_name()), options(below))));
    }
    offered
}

/// A verb's words and `more`.
fn words<'w>(verb: &'w str, more: &'w str) -> Vec<&'w str> {
    verb.split(' ').chain([more]).collect()
}

#[test]
fn the_page_and_the_help_name_the_same_verbs_and_options() {
    assert_eq!(documented(), offered());
}

#[test]
fn every_option_is_in_the_help_that_is_printed() {
    for (verb, options) in documented() {
        let help = ckptbpf(&words(&verb, "--help"));
        assert_eq!(help.status.code(), Some(0), "{verb}");
        let text = String::from_utf8(help.stdout).unwrap();
        for option in options {
            let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '-');
            assert!(words.any(|word| word == option), "{verb} {option}");
        }
        for hidden in HIDDEN {
            assert!(!text.contains(hidden), "{verb} {hidden}");
        }
    }
}

#[test]
fn every_verbs_help_ends_with_two_examples_that_parse() {
    let documented = documented();
    for verb in documented.keys().map(String::as_str).chain(["slurm"]) {
        for flag in ["--help", "-h"] {
            let text = String::from_utf8(ckptbpf(&words(verb, flag)).stdout).unwrap();
            let (_, examples) = text.rsplit_once("Examples:\n").unwrap_or_else(|| panic!("{verb}"));
            let examples: Vec<&str> = examples.trim_end().lines().collect();
            assert_eq!(examples.len(), 2, "{verb}");
            for example in examples {
                let line = example.split(" | ").next().unwrap().split(" && ").next().unwrap();
                let words: Vec<&str> = line.trim().trim_start_matches("sudo ").split(' ').collect();
                let begins = || ["ckptbpf"].into_iter().chain(verb.split(' '));
                assert!(begins().eq(words.iter().copied().take(begins().count())), "{example}");
                let words = words.iter().map(|word| word.replace("$(pidof", "4711").replace("count)", ""));
                let parsed =
                    ckptbpf::cli::command().try_get_matches_from(words.filter(|word| !word.is_empty()));
                assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
            }
        }
    }
}

#[test]
fn the_version_names_the_image_format() {
    let version = ckptbpf(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    let text = String::from_utf8(version.stdout).unwrap();
    assert!(text.starts_with("ckptbpf ") && text.contains("image format 1"), "{text}");
}

#[test]
fn usage_errors_exit_with_125_and_say_ckptbpf() {
    let wrong: [&[&str]; 21] = [
        &[],
        &["no-such-verb"],
        &["launch"],
        &["launch", "--no-such-option", "true"],
        &["launch", "-i", "often", "true"],
        &["launch", "-i", "-1", "true"],
        &["launch", "--keep", "0", "true"],
        &["launch", "--ckpt-signal", "KILL", "true"],
        &["launch", "--compress", "zip", "true"],
        &["restart"],
        &["restart", "a", "b"],
        &["restart", "--at", "0", "d"],
        &["restart", "--files", "delete", "d"],
        &["restart", "tcp://node7:4000"],
        &["attach", "0"],
        &["attach", "count"],
        &["run", "--lazy"],
        &["verify"],
        &["slurm"],
        &["slurm", "run"],
        &["slurm", "run", "--from"],
    ];
    for args in wrong {
        assert_eq!(status(args), 125, "{args:?}");
        let text = errors(args);
        assert!(text.lines().all(|line| line.starts_with("ckptbpf: ")), "{args:?}: {text}");
        assert!(!text.is_empty(), "{args:?}");
    }
}

#[test]
fn what_follows_the_program_is_the_programs() {
    let parse = |line: &str| ckptbpf::cli::command().try_get_matches_from(line.split(' '));
    for line in [
        "ckptbpf launch -i 10 ./count --new -d x",
        "ckptbpf launch -- ./count --help",
        "ckptbpf run --lazy -i 5m ./count -h",
        "ckptbpf launch -vv --no-bpf --track soft-dirty --ring-bytes 4096 --fault-log wild ./count",
        "ckptbpf restart --hold-fill f --lazy d",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
    let matches = parse("ckptbpf launch -i 10 ./count --new -d x").unwrap();
    let (_, launch) = matches.subcommand().unwrap();
    assert!(!launch.get_flag("new"));
    let program: Vec<_> = launch.get_many::<std::ffi::OsString>("program").unwrap().collect();
    assert_eq!(program, ["./count", "--new", "-d", "x"]);
}

#[test]
fn reading_verbs_on_nothing_and_on_damage() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().to_str().unwrap();
    assert_eq!(status(&["list", "/no/such/place"]), 125);
    let list = ckptbpf(&["list", "--json", dir]);
    assert_eq!((list.status.code(), list.stdout.as_slice()), (Some(0), b"[]\n".as_slice()));
    for verb in ["verify", "inspect", "prune"] {
        assert_eq!(status(&[verb, dir]), 125, "{verb}");
    }
    std::fs::write(base.path().join("000001.ckpt"), b"garbage").unwrap();
    assert_eq!(status(&["verify", dir]), 1);
    assert_eq!(status(&["inspect", dir]), 125);
    let list = ckptbpf(&["list", "--json", dir]);
    let value: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let fields = [
        "id",
        "parent",
        "kind",
        "time",
        "freeze_us",
        "elapsed_us",
        "pages",
        "zero_pages",
        "bytes_memory",
        "bytes_stored",
        "tasks",
        "complete",
        "damage",
    ];
    for field in fields {
        assert!(value[0].get(field).is_some(), "{field}");
    }
    assert_eq!((&value[0]["id"], &value[0]["complete"]), (&1.into(), &false.into()));
}

#[test]
fn jobs_that_are_not_there() {
    assert_eq!(status(&["checkpoint", "/no/such/place"]), 125);
    assert!(errors(&["checkpoint", "/"]).contains("ckptbpf status"));
    assert_eq!(status(&["status", "/"]), 125);
    assert_eq!(status(&["status"]), 0);
    let all = ckptbpf(&["status", "--json"]);
    assert!(serde_json::from_slice::<serde_json::Value>(&all.stdout).unwrap().is_array());
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let shell = format!("{} --help | true; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_ckptbpf"));
    assert_eq!(Command::new("bash").args(["-c", &shell]).status().unwrap().code(), Some(0));
}

#[test]
fn check_says_whether_it_works_here() {
    let check = ckptbpf(&["check", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    let works = value["works"].as_bool().unwrap();
    assert_eq!(check.status.code(), Some(i32::from(!works)));
    assert!(value["features"].as_array().is_some_and(|features| !features.is_empty()));
}
