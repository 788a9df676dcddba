//! Jobs of Slurm: time limits, signals, preemption, arrays, steps, and users who are in each other's way. All in one Slurm, side by
//! side, as most of what they do is wait.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use ckpt_tests::scenario::HELD_BY;
use ckpt_tests::slurm::{Batch, SOON, Scenario, Slurm, side_by_side};
use ckpt_tests::{Expected, Sandbox, assert_same, skip, victim, victim_cmd};
use nix::sys::signal::Signal;

/// Of a counter that is not disturbed.
static EXPECTED: OnceLock<Expected> = OnceLock::new();

/// The counter, where every user can run it: one copy, as jobs begin side by side.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

const COUNT: [&str; 2] = ["600", "2000"];

/// A time limit is a minute at least, and Slurm looks at it every half minute.
const TIME_LIMIT: Duration = Duration::from_secs(150);

const SCENARIOS: &[Scenario] = &[
    ("a job is killed at its time limit", a_job_that_is_killed_at_its_time_limit_is_gone_on_with_by_another),
    ("USR1, requeue, the other node", a_signal_has_a_job_queued_again_and_it_goes_on_on_the_other_node),
    ("without a daemon", a_job_without_a_daemon_is_queued_again_and_goes_on),
    ("an array of four", each_of_an_array_is_queued_again_and_goes_on),
    ("a step of two tasks", tasks_of_a_step_end_together_and_go_on),
    ("preemption", a_preempted_job_is_checkpointed_and_goes_on),
    ("scancel", a_cancelled_job_leaves_its_checkpoints_and_nothing_else),
    ("a daemon that is killed", a_job_whose_daemon_is_killed_has_another_one),
    ("other users, other jobs", other_users_and_other_jobs_get_nothing),
    ("ten megabytes", a_job_of_ten_megabytes_has_enough),
    ("the task prolog", a_job_is_told_where_its_daemon_is),
    ("the examples", each_example_is_a_job_that_comes_to_its_end),
];

#[test]
fn jobs_of_slurm() {
    let sandbox = Sandbox::with_limit("slurm", Duration::from_secs(280)).kept_if_it_fails();
    let Some(slurm) = Slurm::begin(&sandbox) else {
        let why = "there is no Slurm here: cargo xtask setup has slurm-wlm and munge";
        return skip::skip("jobs_of_slurm", why);
    };
    let program = victim_cmd("count_static").arg("numbers").args(COUNT);
    let expected = EXPECTED.get_or_init(|| Expected::of(&sandbox, &program, Some("numbers")));
    assert_eq!(expected.stdout, expected.file);
    side_by_side(&slurm, SCENARIOS);
}

/// The counter.
fn program(slurm: &Slurm<'_>) -> &'static Path {
    PROGRAM.get_or_init(|| slurm.user.copy_of(&victim("count_static")))
}

/// `ckptbpf slurm run` of the counter, which writes to a file of this name; `hold` keeps it from its last step.
fn run(slurm: &Slurm<'_>, options: &str, file: &str, hold: &str) -> String {
    let program = program(slurm).display();
    let (tool, count) = (slurm.tool.display(), COUNT.join(" "));
    format!("export {HELD_BY}={hold}\nexec {tool} slurm run {options} -- {program} {file} {count}")
}

/// The same as a job of the user's, in a folder of its own.
fn count<'s, 'b>(
    slurm: &'s Slurm<'b>,
    name: &str,
    batch: &[&str],
    before: &str,
    options: &str,
) -> Batch<'s, 'b> {
    let folder = slurm.folder(&slurm.user, name);
    let hold = folder.join("let-go").display().to_string();
    slurm.submit(&slurm.user, &folder, batch, &format!("{before}\n{}", run(slurm, options, "numbers", &hold)))
}

fn let_go(job: &Batch) {
    std::fs::write(job.folder.join("let-go"), "").unwrap();
}

fn is_as_expected(job: &Batch, output: &[u8], file: &str) {
    let expected = EXPECTED.get().unwrap();
    assert_same(&format!("output of job {}", job.name), &expected.stdout, output);
    let written = std::fs::read(job.folder.join(file)).unwrap();
    assert_same(&format!("file of job {}", job.name), &expected.file, &written);
}

/// Lets it end, and compares with a run that was not disturbed.
fn ends_as_expected(job: &Batch) {
    let_go(job);
    job.wait_for_state("COMPLETED", SOON);
    is_as_expected(job, &job.output(), "numbers");
}

/// The job is too short for a last checkpoint in time: SIGTERM asks for one, and another job goes on from there.
fn a_job_that_is_killed_at_its_time_limit_is_gone_on_with_by_another(slurm: &Slurm<'_>) {
    let job = count(slurm, "limit", &["--time=1"], "", "-i 5");
    job.wait_for_state("TIMEOUT", TIME_LIMIT);
    let said = job.errors();
    assert!(said.contains("stopped with checkpoint "), "{said}");
    assert_eq!(job.field("Restarts"), "0", "{said}");
    let_go(&job);
    let hold = job.folder.join("let-go").display().to_string();
    let lines = run(slurm, &format!("--from {}", job.name), "numbers", &hold);
    let next = slurm.submit(&slurm.user, &job.folder, &[], &lines);
    next.wait_for_state("COMPLETED", SOON);
    is_as_expected(&next, &[job.output(), next.output()].concat(), "numbers");
}

fn a_signal_has_a_job_queued_again_and_it_goes_on_on_the_other_node(slurm: &Slurm<'_>) {
    let (first, second) = (slurm.node(0), slurm.node(1));
    let job = count(slurm, "signal", &["-w", first], "", "-i 0.5");
    job.wait_for_checkpoint();
    assert_eq!(job.node(), first);
    assert_eq!(job.record()["slurm"]["node"], first);
    // The prolog's daemon has served it, out of its limits.
    let log = std::fs::read_to_string(job.of_daemon(first, "log")).unwrap();
    assert!(log.contains(": worker "), "{log}");
    job.signal_script("USR1");
    // What was said after the checkpoint is taken back with the file that it is in, once that is gone on from.
    let queued = format!("job {} is queued again", job.name);
    job.wait_for("word of it", SOON, || job.errors().contains(&queued));
    job.begin_again(1, Some(second));
    job.wait_for("its record on the other node", SOON, || job.record()["slurm"]["node"] == second);
    assert_eq!(job.node(), second);
    ends_as_expected(&job);
    let said = job.errors();
    assert!(!said.contains("done without"), "{said}");
    job.wait_for("its daemons to be gone", SOON, || {
        let is_left = |node: &str| ["sock", "pid", "log"].iter().any(|end| job.of_daemon(node, end).exists());
        !is_left(first) && !is_left(second)
    });
}

fn a_job_without_a_daemon_is_queued_again_and_goes_on(slurm: &Slurm<'_>) {
    let job = count(slurm, "alone", &[], "export CKPTBPF_SOCKET=", "-i 0.5");
    job.wait_for_checkpoint();
    let node = job.node();
    let log = std::fs::read_to_string(job.of_daemon(&node, "log")).unwrap();
    assert!(!log.contains(": worker "), "{log}");
    job.signal_script("USR1");
    job.begin_again(1, None);
    ends_as_expected(&job);
    let said = job.errors();
    assert!(said.contains("the program runs in a user and pid namespace of its own"), "{said}");
}

fn each_of_an_array_is_queued_again_and_goes_on(slurm: &Slurm<'_>) {
    let folder = slurm.folder(&slurm.user, "array");
    let hold = folder.join("let-go").display().to_string();
    let lines = run(slurm, "-i 0.5", "numbers-$SLURM_ARRAY_TASK_ID", &hold);
    let array = slurm.submit(&slurm.user, &folder, &["--array=0-3"], &lines);
    let tasks: Vec<Batch> = (0..4).map(|number| array.task(number)).collect();
    tasks.iter().for_each(Batch::wait_for_checkpoint);
    tasks.iter().for_each(|task| task.signal_script("USR1"));
    tasks.iter().for_each(|task| task.begin_again(1, None));
    let_go(&array);
    for (number, task) in tasks.iter().enumerate() {
        task.wait_for_state("COMPLETED", SOON);
        is_as_expected(task, &task.output(), &format!("numbers-{number}"));
    }
}

fn tasks_of_a_step_end_together_and_go_on(slurm: &Slurm<'_>) {
    let folder = slurm.folder(&slurm.user, "step");
    let hold = folder.join("let-go").display().to_string();
    let task = run(slurm, "-i 0.5", "numbers-$SLURM_PROCID", &hold);
    let lines = format!(
        "srun --kill-on-bad-exit=0 sh -c '{task}'\nstatus=$?\n\
         [ $status = 85 ] && scontrol requeue $SLURM_JOB_ID && exit 0\nexit $status"
    );
    let job = slurm.submit(&slurm.user, &folder, &["-n", "2", "-N", "1"], &lines);
    let dirs = ["task_0", "task_1"].map(|task| job.dir().join(task));
    job.wait_for("checkpoints of both", SOON, || dirs.iter().all(|dir| dir.join("000001.ckpt").exists()));
    // To the tasks of its steps, and not to the script.
    slurm.root("scancel", ["-s", "USR1", job.name.as_str()]).success();
    job.begin_again(1, None);
    let_go(&job);
    job.wait_for_state("COMPLETED", SOON);
    let expected = EXPECTED.get().unwrap();
    for number in 0..2 {
        let written = std::fs::read(folder.join(format!("numbers-{number}"))).unwrap();
        assert_same(&format!("file of task {number}"), &expected.file, &written);
    }
}

/// Memory is what both want: more than half of the node's.
fn a_preempted_job_is_checkpointed_and_goes_on(slurm: &Slurm<'_>) {
    let large = ["--mem=90000", "-w", slurm.node(1)];
    let job = count(slurm, "preempted", &[&large[..], &["--partition=low"]].concat(), "", "-i 0.5");
    job.wait_for_checkpoint();
    let folder = slurm.folder(&slurm.user, "preempting");
    let waits = format!("while [ ! -e {}/let-go ]; do sleep 0.1; done", folder.display());
    let other = slurm.submit(&slurm.user, &folder, &[&large[..], &["--partition=high"]].concat(), &waits);
    job.wait_for("its end with a checkpoint", SOON, || job.errors().contains("stopped with checkpoint "));
    other.wait_for_state("RUNNING", SOON);
    let_go(&other);
    other.wait_for_state("COMPLETED", SOON);
    job.begin_again(1, None);
    ends_as_expected(&job);
}

/// By its user. It is not queued again, and what is left of it are files of the user's that can be gone on from.
fn a_cancelled_job_leaves_its_checkpoints_and_nothing_else(slurm: &Slurm<'_>) {
    let job = count(slurm, "cancelled", &[], "", "-i 0.5");
    job.wait_for_checkpoint();
    let node = job.node();
    slurm.by(&slurm.user, &job.folder, "scancel", [&job.name]).success();
    job.wait_for("its end", SOON, || job.state() == "CANCELLED" && !job.has_groups());
    job.wait_for("its daemon to be gone", SOON, || {
        ["sock", "sock.lock", "pid", "log"].iter().all(|end| !job.of_daemon(&node, end).exists())
    });
    assert_eq!((job.field("Restarts").as_str(), job.state().as_str()), ("0", "CANCELLED"));
    job.ckptbpf(&["verify", job.dir().to_str().unwrap()]).success();
}

/// By the task prolog: the script, and each task of its steps. What a person has set stays.
fn a_job_is_told_where_its_daemon_is(slurm: &Slurm<'_>) {
    let folder = slurm.folder(&slurm.user, "told");
    let lines = "echo \"script $CKPTBPF_SOCKET\"\nsrun -n 1 sh -c 'echo \"task $CKPTBPF_SOCKET\"'\n\
         CKPTBPF_SOCKET=/own srun -n 1 sh -c 'echo \"own $CKPTBPF_SOCKET\"'";
    let job = slurm.submit(&slurm.user, &folder, &["-w", slurm.node(0)], lines);
    job.wait_for_state("COMPLETED", SOON);
    let socket = format!("/run/ckptbpf/slurm/{}-{}.sock", slurm.node(0), job.number());
    let told = String::from_utf8(job.output()).unwrap();
    assert_eq!(told, format!("script {socket}\ntask {socket}\nown /own\n"), "{}", job.errors());
}

/// As `slurm/examples` has them, but for the folder of ckptbpf and the node, on which nobody takes another one's place.
fn each_example_is_a_job_that_comes_to_its_end(slurm: &Slurm<'_>) {
    let few = ["few", "100", "2000"];
    let expected = Expected::of(slurm.sandbox, &victim_cmd("count_static").args(few), Some("few")).file;
    let path = format!("PATH={}:$PATH\n", slurm.tool.parent().unwrap().display());
    let node = format!("#SBATCH --nodelist={}\n", slurm.node(0));
    let program = program(slurm);
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("slurm").join("examples");
    let submit = |example: PathBuf| {
        let name = example.file_stem().unwrap().to_str().unwrap().to_owned();
        let folder = slurm.folder(&slurm.user, &format!("example-{name}"));
        let count = format!("#!/bin/sh\nexec {} \"$1\" {} {}\n", program.display(), few[1], few[2]);
        std::fs::write(folder.join("count"), count).unwrap();
        std::fs::set_permissions(folder.join("count"), PermissionsExt::from_mode(0o755)).unwrap();
        let text = std::fs::read_to_string(example).unwrap();
        // Behind the comments, among which are the options of sbatch.
        let (comments, body): (Vec<&str>, Vec<&str>) =
            text.split_inclusive('\n').partition(|line| line.starts_with('#'));
        let script = format!("{}{node}{path}{}", comments.concat(), body.concat());
        (name, slurm.submit_as_it_is(&slurm.user, &folder, &script))
    };
    let entries = std::fs::read_dir(examples).unwrap().flatten();
    let jobs: Vec<(String, Batch)> = entries.map(|entry| submit(entry.path())).collect();
    assert_eq!(jobs.len(), 5);
    for (name, job) in &jobs {
        if name == "array" {
            (0..4).for_each(|number| job.task(number).wait_for_state("COMPLETED", SOON));
        } else {
            job.wait_for_state("COMPLETED", SOON);
        }
        let files: Vec<String> = match name.as_str() {
            "array" | "steps" => (0..4).map(|number| format!("count-{number}.txt")).collect(),
            _ => vec!["count.txt".to_owned()],
        };
        for file in files {
            let written = std::fs::read(job.folder.join(&file)).unwrap();
            assert_same(&format!("{file} of the example {name}"), &expected, &written);
        }
    }
}

fn a_job_whose_daemon_is_killed_has_another_one(slurm: &Slurm<'_>) {
    let job = count(slurm, "killed", &["-w", slurm.node(0)], "", "-i 0.5");
    job.wait_for_checkpoint();
    let pid = || std::fs::read_to_string(job.of_daemon(slurm.node(0), "pid")).unwrap();
    let killed = pid();
    slurm.sandbox.kill(killed.trim().parse().unwrap(), Signal::SIGKILL as i32).unwrap();
    // Its worker goes on.
    let dir = job.dir();
    job.ckptbpf(&["checkpoint", dir.to_str().unwrap()]).success();
    let settings = [("CKPTBPF_WORKER_MEMORY", "1G"), ("CKPTBPF_WORKER_TASKS", "512")];
    slurm.prolog(slurm.node(0), &job.number(), &settings);
    assert_ne!(pid(), killed);
    // What the administrator wants of it reaches it: what comes of that is for other tests.
    let log = std::fs::read_to_string(job.of_daemon(slurm.node(0), "log")).unwrap();
    assert!(log.contains(" limits of their own"), "{log}");
    job.ckptbpf(&["checkpoint", dir.to_str().unwrap()]).success();
    job.signal_script("USR1");
    job.begin_again(1, None);
    ends_as_expected(&job);
    assert!(!job.errors().contains("done without"), "{}", job.errors());
}

/// Somebody else's job, and another job of the same user's, on the same node: neither gets at a job's daemon, nor anybody else at its
/// checkpoints, processes and place in the queue.
fn other_users_and_other_jobs_get_nothing(slurm: &Slurm<'_>) {
    let node = slurm.node(0);
    let job = count(slurm, "attacked", &["-w", node], "", "-i 0.5");
    job.wait_for_checkpoint();
    let (dir, tool) = (job.dir().display().to_string(), slurm.tool.display());
    let status = job.ckptbpf(&["status", "--json", &dir]).success();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let (program, supervisor) = (&status["pid"], &status["supervisor_pid"]);
    let socket = format!("/run/ckptbpf/slurm/{node}-{}.sock", job.number());
    let asks = format!("CKPTBPF_SOCKET={socket} {tool} launch -d own -- /bin/true");
    let attacks = [
        format!("{tool} checkpoint --kill {dir}"),
        format!("{tool} checkpoint -d theirs {program}"),
        format!("{tool} attach -d theirs {program}"),
        format!("{tool} restart -d theirs {dir}"),
        format!("{tool} restart -d theirs {dir}/000001.ckpt"),
        format!("{tool} prune {dir}"),
        format!("cat {dir}/job.json"),
        format!("ls /run/ckptbpf/{}", ckpt_tests::user::UID),
        format!("kill -USR1 {program} {supervisor}"),
        format!("cat /proc/{supervisor}/environ"),
        format!("scancel {}", job.name),
        format!("scontrol requeue {}", job.name),
        "scancel -u tester".to_owned(),
    ];
    let tried: String = attacks.iter().map(|attack| format!("{attack} && echo 'done: {attack}'\n")).collect();
    let other = slurm.user.other();
    let folder = slurm.folder(&other, "attacks");
    let attacker = slurm.submit(&other, &folder, &["-w", node], &format!("{asks} || exit 1\n{tried}exit 0"));
    let second = slurm.submit(&slurm.user, &slurm.folder(&slurm.user, "second"), &["-w", node], &asks);
    attacker.wait_for_state("COMPLETED", SOON);
    // Who cancels nothing of theirs is told so with 0 by some versions: what counts is that the job runs.
    let done = String::from_utf8(attacker.output()).unwrap();
    let got: Vec<&str> = done.lines().filter(|line| !line.contains("scancel -u")).collect();
    assert!(got.is_empty(), "{got:?}: {}", attacker.errors());
    second.wait_for_state("COMPLETED", SOON);
    assert!(second.errors().contains("is done without: it is there for another job"), "{}", second.errors());
    assert_eq!((job.state().as_str(), job.field("Restarts").as_str()), ("RUNNING", "0"));
    ends_as_expected(&job);
}

/// Bytes that a job has had at most, and who was killed for want of more, on its standard error: of either version of control groups.
const TELL_MEMORY: &str = "of=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)
if [ -n \"$of\" ]; then group=/sys/fs/cgroup/memory$of; else group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup); fi
(cd \"$group\" && cat memory.max_usage_in_bytes memory.peak memory.oom_control memory.events) >&2 2>/dev/null";

/// A job with ten megabytes, which tells of them at its end, after this line.
fn of_ten_megabytes<'s, 'b>(slurm: &'s Slurm<'b>, folder: &Path, line: &str) -> Batch<'s, 'b> {
    let hold = folder.join("let-go").display().to_string();
    let lines = format!("export {HELD_BY}={hold}\n{line}\nstatus=$?\n{TELL_MEMORY}\nexit $status");
    slurm.submit(&slurm.user, folder, &["--mem-per-cpu=10"], &lines)
}

/// What it had at most, once it has ended as it should; none where nobody tells.
fn most_of(job: &Batch) -> Option<u64> {
    ends_as_expected(job);
    let said = job.errors();
    let peak = said.lines().find_map(|line| line.parse().ok())?;
    assert!(said.contains("oom_kill 0"), "{said}");
    Some(peak)
}

/// All of the job's memory, the shell of its script included, is ten megabytes, and nobody is killed for want of more. What ckptbpf has of
/// them is less than three: beside the same job without it.
fn a_job_of_ten_megabytes_has_enough(slurm: &Slurm<'_>) {
    let [folder, bare] = ["small", "bare"].map(|name| slurm.folder(&slurm.user, name));
    let counter = format!("{} numbers {}", program(slurm).display(), COUNT.join(" "));
    let line = format!("{} slurm run -i 0.3 -- {counter}", slurm.tool.display());
    let (job, bare) = (of_ten_megabytes(slurm, &folder, &line), of_ten_megabytes(slurm, &bare, &counter));
    job.wait_for_checkpoint();
    let (Some(peak), Some(alone)) = (most_of(&job), most_of(&bare)) else {
        assert!(!Path::new("/sys/fs/cgroup/memory").is_dir(), "{}", job.errors());
        let why = "control groups of the second version tell no maximum before Linux 5.19";
        return skip::skip_part("jobs_of_slurm, ten megabytes", why);
    };
    println!("slurm: {peak} bytes at most, {alone} without ckptbpf");
    assert!(peak <= 10 << 20 && peak < alone + (3 << 20), "{peak} bytes, {alone} without ckptbpf");
}
