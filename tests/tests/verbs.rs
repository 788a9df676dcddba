//! Every verb and every option has a test that exercises it for real: this table says which, and a new one without a
//! test turns it red.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use ckpt_tests::{Cmd, Sandbox, ckptbpf};

/// Verbs, their options, and the test: file and function, beside this one or in `ckpt-user/tests`.
const TESTED: &[(&[&str], &[&str], &str, &str)] = &[
    (
        &["launch", "restart", "run", "attach"],
        &["--interval", "--keep", "--exit-after-ckpt", "--ckpt-signal", "--compress", "--verbose"],
        "options.rs",
        "the_shared_options",
    ),
    (&["launch", "run", "attach"], &["--dir"], "options.rs", "supervise"),
    (
        &["launch", "restart", "run", "attach", "prune"],
        &["--take-over"],
        "options.rs",
        "a_directory_of_another_host",
    ),
    (&["launch", "run"], &["--user"], "options.rs", "another_user_s_program"),
    (&["launch", "run"], &["--cpu-baseline"], "options.rs", "a_program_is_told_of_its_baseline_and_no_more"),
    (&["launch"], &["--new"], "status.rs", "a_folder_with_checkpoints_is_not_launched_into"),
    (&["run"], &["--new", "--at"], "options.rs", "run_launches_first_and_restarts_then"),
    (&["restart"], &["--at"], "memory.rs", "restart_at_each"),
    (&["restart"], &["--dir"], "restart.rs", "a_branch_has_a_directory_of_its_own"),
    (&["restart", "run"], &["--files"], "restart.rs", "files_are_rolled_back_kept_or_compared"),
    (&["restart", "run"], &["--clocks"], "daemon_beside.rs", "clocks_beside_others"),
    (&["restart", "run"], &["--json"], "restart.rs", "json_tells_of_the_resume"),
    (&["restart"], &["--lazy"], "count.rs", "count_survives"),
    (&["run"], &["--lazy"], "restart.rs", "json_tells_of_the_resume"),
    (&["restart", "run"], &["--detach"], "restart.rs", "detached_it_returns"),
    (&["checkpoint"], &["--kill", "--dir", "--json"], "orphan.rs", "a_pid_that_nobody_supervises"),
    (&["status"], &["--json"], "orphan.rs", "status_clears_what_a_killed_supervisor_left"),
    (&["status"], &["--clear"], "held_up.rs", "root_waits_for_nobody_s_supervisor_and_an_epilog_asks_none"),
    (&["list"], &["--json"], "restart.rs", "a_branch_has_a_directory_of_its_own"),
    (&["inspect"], &["--json"], "count.rs", "count_survives"),
    (&["verify"], &[], "status.rs", "damage_is_found"),
    (&["prune"], &["--keep"], "memory.rs", "history"),
    (&["check"], &["--json"], "verbs.rs", "check_says_that_it_works_here"),
    (
        &["daemon"],
        &["--socket", "--pidfile", "--log", "--verbose", "--check"],
        "daemon_places.rs",
        "a_daemon_in_the_background",
    ),
    (
        &["daemon"],
        &["--worker-memory", "--worker-tasks"],
        "daemon_limits.rs",
        "who_has_used_up_their_memory_has_used_up_nobody_else_s",
    ),
    (&["daemon"], &["--job"], "daemon_places.rs", "a_daemon_of_one_job"),
    (&["daemon"], &["--jobs"], "daemon.rs", "who_is_held_back_goes_on_without"),
    (&["daemon"], &["--no-lazy"], "daemon.rs", "a_lazy_restart_by_daemon"),
    (&["daemon"], &["--uid"], "daemon_attacks.rs", "daemons_of_others"),
    (&["compat"], &[], "dmtcp_names.rs", "compat_makes_four_links_and_replaces_nothing_else"),
    (
        &["slurm run"],
        &["--interval", "--no-requeue", "--ckpt-signal"],
        "slurm_commands.rs",
        "signals_ask_for_the_end_by_root",
    ),
    (&["slurm run"], &["--from", "--dir"], "slurm_commands.rs", "a_new_job_goes_on_from_another_one"),
    (
        &["slurm run"],
        &["--take-over"],
        "slurm_commands.rs",
        "another_node_is_taken_over_from_by_a_later_run_alone",
    ),
    (
        &["slurm run"],
        &["--lazy", "--files", "--clocks", "--keep", "--compress", "--cpu-baseline", "--verbose"],
        "slurm_commands.rs",
        "options_of_launch_and_restart_are_passed_on",
    ),
];

/// Of a verb by its words; none: of all.
fn help(verb: &str) -> String {
    let words = verb.split(' ').filter(|word| !word.is_empty());
    let output = Command::new(ckptbpf()).args(words).arg("--help").output().unwrap();
    assert!(output.status.success(), "{verb:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The verbs that it lists.
fn verbs_in(help: &str) -> Vec<String> {
    let verb = |line: &str| -> Option<String> {
        let rest = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '))?;
        Some(rest.split(' ').next()?.into())
    };
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    lines.take_while(|line| !line.is_empty()).filter_map(verb).collect()
}

/// The words that begin a line below `heading`, by what `pick` takes of it.
fn below<'h>(help: &'h str, heading: &str, pick: fn(&'h str) -> Option<&'h str>) -> BTreeSet<&'h str> {
    let lines = help.lines().skip_while(|line| *line != heading).skip(1);
    lines.take_while(|line| line.is_empty() || line.starts_with(' ')).filter_map(pick).collect()
}

fn offered() -> BTreeSet<(String, String)> {
    let verbs = verbs_in(&help(""));
    assert!(verbs.len() > 10, "{verbs:?}");
    // One that has verbs itself is asked for those: `slurm run`.
    let with_those_below = verbs.into_iter().flat_map(|verb| {
        let below = verbs_in(&help(&verb));
        let all: Vec<String> = below.iter().map(|below| format!("{verb} {below}")).collect();
        if all.is_empty() { vec![verb] } else { all }
    });
    let mut offered = BTreeSet::new();
    for verb in with_those_below {
        let text = help(&verb);
        let option = |line| {
            let line: &str = line;
            let line = line.trim_start();
            let long =
                line.starts_with('-').then(|| line.split([' ', ',']).find(|word| word.starts_with("--")))?;
            long.map(|word| word.trim_end_matches('.')).filter(|word| *word != "--help")
        };
        offered.insert((verb.clone(), String::new()));
        offered.extend(below(&text, "Options:", option).into_iter().map(|one| (verb.clone(), one.into())));
    }
    offered
}

#[test]
fn every_verb_and_option_has_a_test() {
    let tested: BTreeSet<(String, String)> = TESTED
        .iter()
        .flat_map(|(verbs, options, ..)| {
            verbs.iter().flat_map(move |verb| {
                options.iter().chain([&""]).map(move |option| ((*verb).to_owned(), (*option).to_owned()))
            })
        })
        .collect();
    let offered = offered();
    let missing: Vec<_> = offered.difference(&tested).collect();
    let unknown: Vec<_> = tested.difference(&offered).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "without a test: {missing:?}; no longer there: {unknown:?}"
    );
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for (.., file, function) in TESTED {
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        assert!(text.contains(&format!("fn {function}")), "{file} has no test {function}");
    }
}

#[test]
fn check_says_that_it_works_here() {
    let sandbox = Sandbox::new("check");
    let report = sandbox.run(Cmd::new(ckptbpf()).args(["check", "--json"])).success();
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["works"], true, "{report}");
    assert!(sandbox.run(Cmd::new(ckptbpf()).arg("check")).success().stdout_text().lines().count() > 5);
}
