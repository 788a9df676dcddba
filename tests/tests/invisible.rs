//! What a program can find out about itself is the same after a checkpoint, and after restarts, but for what
//! docs/invisible.md lists: the test reads the lists there.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ckpt_tests::scenario::Mode;
use ckpt_tests::{Job, Sandbox, victim_cmd};

const SOON: Duration = Duration::from_secs(30);

/// What the program has told: by place (`smaps 7f…-7f…:Rss`), the value there.
type Told = BTreeMap<Place, String>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// As docs/invisible.md has it: `smaps:Rss`.
    kind: String,
    /// Which thread, mapping, descriptor or timer, and which line of those that are called the same.
    which: String,
}

/// Names of the fields of /proc/PID/stat from the third on (proc_pid_stat(5)).
const STAT: &str = "state ppid pgrp session tty_nr tpgid flags minflt cminflt majflt cmajflt utime stime cutime cstime \
    priority nice num_threads itrealvalue starttime vsize rss rsslim startcode endcode startstack kstkesp kstkeip signal \
    blocked sigignore sigcatch wchan nswap cnswap exit_signal processor rt_priority policy delayacct_blkio_ticks guest_time \
    cguest_time start_data end_data start_brk arg_start arg_end env_start env_end exit_code";
const STATM: &str = "size resident shared text lib data dt";
const MAPS: &str = "bounds permissions offset device inode name";
/// Files of lines `name: value`; others are one value.
const BY_LINE: [&str; 10] =
    ["arch_status", "call", "fd", "fdinfo", "io", "ksm_stat", "sched", "smaps", "status", "timers"];

/// What O_TMPFILE (open(2)) leaves in the flags of a description.
const TMPFILE: u64 = 0o20_200_000;

/// PF_FORKNOEXEC and PF_SUPERPRIV of include/linux/sched.h.
const OF_A_FORK: u64 = 0x140;

fn place(kind: &str, which: &str) -> Place {
    Place { kind: kind.to_owned(), which: which.to_owned() }
}

fn parse(text: &str) -> Told {
    let mut told = Told::new();
    for section in text.split("== ").skip(1) {
        let (name, body) = section.split_once('\n').unwrap();
        let parts: Vec<&str> = name.split('/').collect();
        let (file, mut which) = match parts[..] {
            ["task", thread, file] => (file, format!("thread {thread}")),
            [folder @ ("fd" | "fdinfo"), number] => (folder, format!("descriptor {number}")),
            _ => (name, String::new()),
        };
        let mut put = |field: &str, which: &str, value: &str| {
            let kind = if field.is_empty() { file.to_owned() } else { format!("{file}:{field}") };
            let mut place = Place { kind, which: which.to_owned() };
            while told.contains_key(&place) {
                place.which.push('+');
            }
            told.insert(place, value.trim().to_owned());
        };
        let mut columns = |names: &str, which: &str, line: &str| {
            for (name, value) in names.split_ascii_whitespace().zip(line.split_ascii_whitespace()) {
                if name != "-" {
                    put(name, which, value);
                }
            }
        };
        match file {
            "stat" => {
                let words = body.rsplit_once(") ").unwrap().1;
                columns(STAT, &which, words);
                // Said by itself: what the kernel notes of one that was forked and has executed nothing.
                let flags: u64 = told[&place("stat:flags", &which)].parse().unwrap();
                told.insert(place("stat:flags-of-a-fork", &which), format!("{:x}", flags & OF_A_FORK));
                told.insert(place("stat:flags", &which), format!("{:x}", flags & !OF_A_FORK));
            }
            "statm" => columns(STATM, &which, body),
            "maps" | "numa_maps" => {
                let names = if file == "maps" { MAPS } else { "start policy pages" };
                for line in body.lines() {
                    let (start, line) =
                        (line.split(['-', ' ']).next().unwrap(), line.replace(" (deleted)", "(deleted)"));
                    columns(names, start, &line);
                }
            }
            _ if BY_LINE.contains(&file) => {
                for line in body.lines() {
                    let Some((field, value)) = line.split_once(':') else { continue };
                    let is_mapping = file == "smaps" && field.contains(' ');
                    if is_mapping {
                        which = line.split('-').next().unwrap_or_default().to_owned();
                    } else if (file, field) == ("timers", "ID") {
                        which = format!("timer{value}");
                    } else if field == "VmFlags" {
                        // Said by itself: all mappings that ckptbpf watches have it.
                        let (watched, others): (Vec<&str>, Vec<&str>) =
                            value.split_ascii_whitespace().partition(|flag| *flag == "uw");
                        put(field, &which, &others.join(" "));
                        put("VmFlags uw", &which, &watched.join(" "));
                    } else if (file, field) == ("fdinfo", "flags") {
                        // Said by itself: how the file was made.
                        let flags = u64::from_str_radix(value.trim(), 8).unwrap();
                        let made = if flags & TMPFILE == TMPFILE { TMPFILE } else { 0 };
                        put(field, &which, &format!("{:o}", flags & !made));
                        put("flags O_TMPFILE", &which, &format!("{made:o}"));
                    } else {
                        put(field.trim(), &which, value);
                    }
                }
            }
            _ => put("", &which, body),
        }
    }
    let files: BTreeSet<String> =
        told.iter().filter(is_of_a_file).map(|(place, _)| place.which.clone()).collect();
    // Said by themselves: only what is made anew has other numbers, and only what has lost its name another one.
    let of_files = |mut place: Place, value: &str| {
        let is_numbered =
            ["fd:link", "fdinfo:ino", "maps:inode", "maps:device"].contains(&place.kind.as_str());
        if is_numbered && files.contains(&place.which) {
            place.kind += " of a file";
        } else if place.kind == "maps:name" && value.ends_with("(deleted)") && !is_memory(value) {
            place.kind += " of a deleted file";
        }
        place
    };
    told.into_iter().map(|(place, value)| (of_files(place, &value), value)).collect()
}

/// Whether a mapping or descriptor of this name is of memory that has none in a file system.
fn is_memory(name: &str) -> bool {
    ["/memfd:", "/SYSV", "/dev/zero"].iter().any(|begin| name.starts_with(begin))
}

/// Of a descriptor's link, or of a mapping's name: whether that is a file that is there. Not of a standard stream.
fn is_of_a_file((place, value): &(&Place, &String)) -> bool {
    const STANDARD: [&str; 3] = ["descriptor 0", "descriptor 1", "descriptor 2"];
    let is_name =
        place.kind == "maps:name" || place.kind == "fd:link" && !STANDARD.contains(&place.which.as_str());
    let is_made = is_memory(value) || value.ends_with("(deleted)");
    is_name && value.starts_with('/') && !is_made
}

/// The kinds in the first column of the table below `heading`.
fn listed(heading: &str) -> BTreeSet<String> {
    let page = include_str!("../../docs/invisible.md");
    let section =
        page.split("\n## ").find(|s| s.starts_with(heading)).expect("a section of docs/invisible.md");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// Whether the list has it; a star there stands for the rest of a name.
fn has(list: &BTreeSet<String>, kind: &str) -> bool {
    let stands_for = |entry: &String| entry.strip_suffix('*').is_some_and(|begin| kind.starts_with(begin));
    list.contains(kind) || list.iter().any(stands_for)
}

/// Fails with all places that differ and are not listed, and with what is listed and is no kind at all.
fn compare(what: &str, before: &Told, after: &Told, list: &BTreeSet<String>) {
    let mut wrong = Vec::new();
    for place in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let (was, is) = (before.get(place), after.get(place));
        if was != is && !has(list, &place.kind) {
            wrong.push(format!("{} ({}): {was:?} is {is:?}", place.kind, place.which));
        }
    }
    let files: BTreeSet<&str> = before.keys().map(|p| p.kind.split(':').next().unwrap()).collect();
    for kind in list.iter().filter(|kind| files.contains(kind.split(':').next().unwrap())) {
        if !before.keys().any(|place| has(&BTreeSet::from([kind.clone()]), &place.kind)) {
            wrong.push(format!("{kind} is in docs/invisible.md, and nowhere else"));
        }
    }
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}

fn ask(sandbox: &Sandbox, job: &Job, number: u32) -> Told {
    let answer = sandbox.dir().join(format!("told-{number}"));
    std::fs::write(sandbox.dir().join(format!("ask-{number}")), "").unwrap();
    sandbox.wait_for("the program to tell", SOON, || {
        assert!(!job.running().has_ended(), "{}", job.running().stderr());
        answer.is_file()
    });
    parse(&std::fs::read_to_string(&answer).unwrap())
}

fn forget(sandbox: &Sandbox, number: u32) {
    for name in ["ask", "told"] {
        let _ = std::fs::remove_file(sandbox.dir().join(format!("{name}-{number}")));
    }
}

#[test]
fn what_a_program_sees_of_itself_is_the_same_but_for_a_list() {
    let (checkpoint, restart) = (listed("After a checkpoint"), listed("After a restart"));
    assert!(checkpoint.is_subset(&restart), "{:?}", checkpoint.difference(&restart));
    let sandbox = Sandbox::new("invisible");
    let mut job = Job::launch(&sandbox, &[], &victim_cmd("invisible"));
    let first = ask(&sandbox, &job, 1);
    assert!(first.len() > 1000, "{} places", first.len());
    for kind in ["fd:link of a file", "fdinfo:ino of a file", "maps:inode of a file"] {
        assert!(first.keys().any(|place| place.kind == kind), "nothing is a {kind}");
    }
    for kind in ["stat:cutime", "stat:cstime", "stat:cminflt"] {
        assert_ne!(first[&place(kind, "")], "0", "{kind}");
    }
    let is_unnamed =
        |(place, value): (&Place, &String)| place.kind == "fdinfo:flags O_TMPFILE" && value != "0";
    assert!(first.iter().any(is_unnamed), "nothing is a file of O_TMPFILE");
    job.checkpoint();
    compare("after the first checkpoint", &first, &ask(&sandbox, &job, 2), &checkpoint);
    let mut number = 2;
    for mode in [Mode::Eager, Mode::Lazy, Mode::Eager, Mode::Lazy] {
        job.kill_all();
        forget(&sandbox, number);
        job.restart(mode, &[]);
        let smaps = sandbox.root().join(format!("proc/{}/smaps", job.program()));
        sandbox.wait_for("all of its pages, and that nobody serves them any more", SOON, || {
            std::fs::read_to_string(&smaps)
                .is_ok_and(|text| text.contains("VmFlags") && !text.contains(" um "))
        });
        let then = ask(&sandbox, &job, number);
        compare(&format!("after restart {mode:?}"), &first, &then, &restart);
        job.checkpoint();
        number += 1;
        compare("after a checkpoint of a restarted one", &then, &ask(&sandbox, &job, number), &checkpoint);
    }
    std::fs::write(sandbox.dir().join("end"), "").unwrap();
    job.wait(SOON).success();
}
