//! The rules, each from a file to lines `NUMBER: what is wrong`.

use super::Source;
use super::code::{code, has_word};

pub const ALL: &[fn(&Source) -> Vec<String>] = &[
    unsafe_has_its_place,
    files_are_short,
    images_know_no_process,
    nothing_is_left_undone,
    no_sleep_and_hope,
    no_skip_in_silence,
];

const MAX_LINES: usize = 500;

fn is_rust(source: &Source) -> bool {
    source.path.to_ascii_lowercase().ends_with(".rs")
}

/// Those lines whose code breaks a rule, with a word about it.
fn lines(source: &Source, what: &str, breaks: impl Fn(&str) -> bool) -> Vec<String> {
    let numbered = source.text.lines().enumerate();
    numbered.filter(|(_, line)| breaks(&code(line))).map(|(i, _)| format!("{}: {what}", i + 1)).collect()
}

/// Unsafe code only in ckpt-user/src/sys, ckpt-ebpf and files called sys.rs.
fn unsafe_has_its_place(source: &Source) -> Vec<String> {
    let path = &source.path;
    let its_place =
        path.starts_with("ckpt-user/src/sys/") || path.starts_with("ckpt-ebpf/") || path.ends_with("/sys.rs");
    if !is_rust(source) || its_place {
        return Vec::new();
    }
    lines(source, "unsafe outside of sys", |code| has_word(code, "unsafe"))
}

/// At most 500 lines, unless the module's header says `Long because …`.
fn files_are_short(source: &Source) -> Vec<String> {
    let count = source.text.lines().count();
    let mut header = source.text.lines().take_while(|line| line.starts_with("//!"));
    if !is_rust(source) || count <= MAX_LINES || header.any(|line| line.contains("Long because")) {
        return Vec::new();
    }
    vec![format!("{count}: more than {MAX_LINES} lines, and its header does not say `Long because …`")]
}

/// image/ and store/ work on any machine: no process, no tracing, no eBPF.
fn images_know_no_process(source: &Source) -> Vec<String> {
    let concerned =
        ["ckpt-user/src/image/", "ckpt-user/src/store/"].iter().any(|dir| source.path.starts_with(dir));
    if !is_rust(source) || !concerned {
        return Vec::new();
    }
    lines(source, "a process, tracing or eBPF in image or store", |code| {
        ["Pid", "ptrace", "aya"].iter().any(|word| has_word(code, word))
    })
}

/// No marks of unfinished work, in comments neither.
fn nothing_is_left_undone(source: &Source) -> Vec<String> {
    let code_like = [".rs", ".c", ".h", ".sh", ".py", ".toml", ".proto"];
    if !code_like.iter().any(|end| source.path.ends_with(end)) {
        return Vec::new();
    }
    // In two pieces, so that this file keeps its own rule.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"]].map(|parts| parts.concat());
    let calls = [["todo", "!("], ["#[", "ignore"], ["allow(", "dead_code"]].map(|parts| parts.concat());
    let breaks = |line: &str| {
        marks.iter().any(|mark| has_word(line, mark)) || calls.iter().any(|call| line.contains(call.as_str()))
    };
    let numbered = source.text.lines().enumerate();
    numbered.filter(|(_, line)| breaks(line)).map(|(i, _)| format!("{}: unfinished work", i + 1)).collect()
}

/// Tests wait for conditions: the box's wait helper alone sleeps.
fn no_sleep_and_hope(source: &Source) -> Vec<String> {
    let is_of_tests = source.path.starts_with("tests/") && !source.path.starts_with("tests/victims/");
    if !is_rust(source) || !is_of_tests || source.path == "tests/src/sandbox/wait.rs" {
        return Vec::new();
    }
    lines(source, "a sleep in a test: wait for a condition", |code| {
        has_word(code, "sleep") && code.contains("sleep(") && !code.contains("fn ")
    })
}

/// A test that takes root's rights says so where there are none.
fn no_skip_in_silence(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
    let is_one = |two: &[&str]| {
        two[0].starts_with("if !") && two[0].ends_with("geteuid().is_root() {") && two[1] == "return;"
    };
    if !is_rust(source) {
        return Vec::new();
    }
    let numbered = lines.windows(2).enumerate().filter(|(_, two)| is_one(two));
    numbered.map(|(i, _)| format!("{}: a test that is skipped in silence", i + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    #[test]
    fn unsafe_is_found_where_it_must_not_be() {
        let text = "#![deny(unsafe_code)]\n// unsafe\nlet x = unsafe { 1 };\n";
        assert_eq!(
            unsafe_has_its_place(&source("ckpt-user/src/job/mod.rs", text)),
            ["3: unsafe outside of sys"]
        );
        for path in
            ["ckpt-user/src/sys/ptrace.rs", "tests/src/sys.rs", "ckpt-ebpf/src/main.rs", "tests/victims/a.c"]
        {
            assert!(unsafe_has_its_place(&source(path, text)).is_empty(), "{path}");
        }
    }

    #[test]
    fn long_files_say_why() {
        let long = "x\n".repeat(MAX_LINES + 1);
        assert_eq!(files_are_short(&source("a.rs", &long)).len(), 1);
        let reasoned = format!("//! A table.\n//! Long because it is one.\n{long}");
        assert!(files_are_short(&source("a.rs", &reasoned)).is_empty());
    }

    #[test]
    fn an_image_with_a_process_is_found() {
        let text = "use nix::unistd::Pid;\nstruct Pidgin;\n";
        assert_eq!(images_know_no_process(&source("ckpt-user/src/image/chain.rs", text)).len(), 1);
        assert!(images_know_no_process(&source("ckpt-user/src/job/mod.rs", text)).is_empty());
    }

    #[test]
    fn unfinished_work_is_found() {
        let text = ["// TO", "DO: later\n#[ign", "ore]\n"].concat();
        assert_eq!(nothing_is_left_undone(&source("a.rs", &text)).len(), 2);
        assert!(nothing_is_left_undone(&source("README.md", &text)).is_empty());
    }

    #[test]
    fn a_skip_in_silence_is_found() {
        let silent = "fn a() {\n    if !nix::unistd::geteuid().is_root() {\n        return;\n    }\n}\n";
        let found = no_skip_in_silence(&source("ckpt-user/src/sys/ids.rs", silent));
        assert_eq!(found, ["2: a test that is skipped in silence"]);
        let named = silent.replace("!nix::unistd::geteuid().is_root()", "crate::skipped::without_root()");
        assert!(no_skip_in_silence(&source("ckpt-user/src/sys/ids.rs", &named)).is_empty());
    }

    #[test]
    fn a_sleep_in_a_test_is_found() {
        let text = "thread::sleep(SECOND);\nsandbox.run(\"sleep(1)\");\n";
        assert_eq!(no_sleep_and_hope(&source("tests/tests/count.rs", text)).len(), 1);
        assert!(no_sleep_and_hope(&source("tests/src/sandbox/wait.rs", text)).is_empty());
    }
}
