//! Job scripts that were written for DMTCP, word for word, as jobs of Slurm with ten megabytes: ended at their time limit, or with the
//! checkpoint of their coordinator, and gone on with by the script that comes after.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use ckpt_tests::scenario::HELD_BY;
use ckpt_tests::slurm::{Batch, Scenario, Slurm, side_by_side};
use ckpt_tests::{Expected, Sandbox, assert_same, skip, victim, victim_cmd};

/// A time limit is a minute at least, and Slurm looks at it every half minute.
const TIME_LIMIT: Duration = Duration::from_secs(150);

const HEADER: &str = "#!/bin/bash --login
#SBATCH --job-name=count
#SBATCH --output=count.out.%J
#SBATCH --error=count.err.%J
#SBATCH --time=0-00:01
#SBATCH --mem-per-cpu=10
#SBATCH --ntasks=1
#SBATCH --nodes=1
";
const LAUNCH: &str = "rm *.dmtcp\nrm dmtcp_restart_script*.sh\ndmtcp_launch -i 10 ./count\n";
const RESTART: &str = "dmtcp_restart -i 10 ckpt_*.dmtcp\n";
const LAUNCH_TO_ITS_CHECKPOINT: &str = "rm *.dmtcp\nrm dmtcp_restart_script*.sh\n\
    dmtcp_coordinator --exit-after-ckpt --daemon\ndmtcp_launch -i 45 ./count\n";
const RESTART_AFTER_IT: &str = "dmtcp_restart -i 45 ckpt_*.dmtcp\n";

/// Microseconds from step to step of the counter.
const STEP: &str = "25000";

/// How many jobs go on with the program at least until it has come to its end: one, and more in the soak.
fn relaunches() -> usize {
    std::env::var("CKPTBPF_RELAUNCHES").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// Steps of the counter. One relaunch: some eighty seconds, which the first job has not come to the end of at its limit, and the second
/// one comes to it. More of them: as much as Slurm may let each job before the last have, a minute and a half.
fn steps() -> String {
    let many = match relaunches() {
        1 => 3200,
        more => 3600 * more,
    };
    many.to_string()
}

/// Of a counter that is not disturbed.
static EXPECTED: OnceLock<Expected> = OnceLock::new();

const SCENARIOS: &[Scenario] = &[
    ("time limits", a_script_that_is_killed_at_its_time_limit_and_one_that_restarts),
    ("checkpoints that are the end", a_coordinator_that_ends_the_job_with_its_checkpoint),
];

#[test]
fn scripts_of_dmtcp_in_slurm() {
    let limit = Duration::from_secs(290) * u32::try_from(relaunches()).unwrap();
    let sandbox = Sandbox::with_limit("slurm_dmtcp", limit).kept_if_it_fails();
    let Some(slurm) = Slurm::begin(&sandbox) else {
        return skip::skip("scripts_of_dmtcp_in_slurm", "there is no Slurm here: cargo xtask setup has it");
    };
    EXPECTED.get_or_init(|| {
        Expected::of(&sandbox, &victim_cmd("count_static").args(["numbers", &steps(), "0"]), Some("numbers"))
    });
    // As an administrator has it who has put the names where everybody finds them; a login shell begins with a PATH of its own.
    let names = slurm.user.home().join("names");
    let tool = slurm.tool.to_str().unwrap();
    slurm.by(&slurm.user, slurm.user.home(), tool, ["compat", "install", names.to_str().unwrap()]).success();
    let profile = format!("PATH={}:$PATH\n", names.display());
    std::fs::write(slurm.user.home().join(".bash_profile"), profile).unwrap();
    // Made once, by nobody beside another one.
    slurm.user.copy_of(&victim("count_static"));
    side_by_side(&slurm, SCENARIOS);
}

/// A folder with `./count`, whose last step waits for a file.
fn folder(slurm: &Slurm<'_>, name: &str) -> PathBuf {
    let folder = slurm.folder(&slurm.user, name);
    let program = slurm.user.copy_of(&victim("count_static"));
    let (hold, count) = (folder.join("let-go"), steps());
    let line = format!(
        "#!/bin/sh\nexport {HELD_BY}={}\nexec {} numbers {count} {STEP}\n",
        hold.display(),
        program.display()
    );
    std::fs::write(folder.join("count"), line).unwrap();
    std::fs::set_permissions(folder.join("count"), PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// Runs a script until its job is in one of these states; which, and what it has printed.
fn runs(slurm: &Slurm<'_>, folder: &Path, script: &str, ends: &[&str]) -> (String, Vec<u8>) {
    let job = slurm.submit_as_it_is(&slurm.user, folder, &format!("{HEADER}{script}"));
    let (mut most, mut killed) = (0, 0);
    let mut state = String::new();
    job.wait_for(&ends.join(" or "), TIME_LIMIT, || {
        if let Some((peak, dead)) = job.memory() {
            (most, killed) = (most.max(peak), killed.max(dead));
        }
        state = job.state();
        ends.contains(&state.as_str())
    });
    let said = printed(&job, "err");
    println!("slurm: {most} bytes at most in job {}", job.name);
    assert!(most <= 10 << 20 && killed == 0, "{most} bytes, {killed} killed for want of more: {said:?}");
    assert!(most > 0 || !Path::new("/sys/fs/cgroup/memory").is_dir(), "nobody has seen its memory");
    (state, printed(&job, "out"))
}

/// `%J` is the job's number, or that of its step.
fn printed(job: &Batch, stream: &str) -> Vec<u8> {
    let begin = format!("count.{stream}.{}", job.number());
    let entries = std::fs::read_dir(&job.folder).unwrap().flatten();
    let mut of = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&begin));
    std::fs::read(of.next().expect("a file of the job's").path()).unwrap()
}

/// What the program has written is what it writes undisturbed, as far as it has come.
fn agrees(folder: &Path) -> usize {
    let (expected, written) = (&EXPECTED.get().unwrap().file, std::fs::read(folder.join("numbers")).unwrap());
    let most = written.len().min(expected.len());
    assert_same("the file", &expected[..most], &written);
    written.len()
}

/// Relaunches until the program has come to its end. Each goes on from where there was something, with the output that an undisturbed
/// run has there, and the last one with the end of it. From where the first one went on.
fn relaunched_to_the_end(slurm: &Slurm<'_>, folder: &Path, script: &str, before: usize) -> usize {
    std::fs::write(folder.join("let-go"), "").unwrap();
    let expected = EXPECTED.get().unwrap();
    let undisturbed = String::from_utf8_lossy(&expected.stdout);
    let (mut before, mut first) = (before, None);
    for number in 1..=6 * relaunches() {
        let (state, said) = runs(slurm, folder, script, &["TIMEOUT", "COMPLETED"]);
        let said_then = format!("\n{}", String::from_utf8_lossy(&said));
        let from = undisturbed.find(&said_then).expect("output of the program") + 1;
        assert!(from > 0 && from <= before, "it has gone on from {from}, and there were {before}");
        first.get_or_insert(from);
        before = agrees(folder);
        if state == "COMPLETED" {
            assert_same("the end of the output", &expected.stdout[from..], &said);
            assert!(number >= relaunches(), "after {number}");
            break;
        }
    }
    assert_eq!(before, expected.file.len(), "it has come to its end");
    first.unwrap()
}

fn a_script_that_is_killed_at_its_time_limit_and_one_that_restarts(slurm: &Slurm<'_>) {
    let folder = folder(slurm, "limit");
    let (_, first) = runs(slurm, &folder, LAUNCH, &["TIMEOUT"]);
    let before = agrees(&folder);
    assert_same("the output", &EXPECTED.get().unwrap().stdout[..first.len()], &first);
    relaunched_to_the_end(slurm, &folder, RESTART, before);
}

/// Output and file end with the checkpoint: nothing was done after it that is done again.
fn a_coordinator_that_ends_the_job_with_its_checkpoint(slurm: &Slurm<'_>) {
    let folder = folder(slurm, "coordinator");
    let (_, first) = runs(slurm, &folder, LAUNCH_TO_ITS_CHECKPOINT, &["COMPLETED"]);
    let before = agrees(&folder);
    assert_same("the output", &EXPECTED.get().unwrap().stdout[..first.len()], &first);
    assert_eq!(before, first.len(), "memory and disk agree");
    let from = relaunched_to_the_end(slurm, &folder, RESTART_AFTER_IT, before);
    assert_eq!(from, first.len(), "each line once");
}
