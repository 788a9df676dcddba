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

/// Some eighty seconds: the first job has not come to the end at its limit, and the second one comes to it.
const COUNT: [&str; 2] = ["3200", "25000"];

/// Of a counter that is not disturbed.
static EXPECTED: OnceLock<Expected> = OnceLock::new();

const SCENARIOS: &[Scenario] = &[
    ("time limits", a_script_that_is_killed_at_its_time_limit_and_one_that_restarts),
    ("checkpoints that are the end", a_coordinator_that_ends_the_job_with_its_checkpoint),
];

#[test]
fn scripts_of_dmtcp_in_slurm() {
    let sandbox = Sandbox::with_limit("slurm_dmtcp", Duration::from_secs(290)).kept_if_it_fails();
    let Some(slurm) = Slurm::begin(&sandbox) else {
        return skip::skip("scripts_of_dmtcp_in_slurm", "there is no Slurm here: cargo xtask setup has it");
    };
    EXPECTED.get_or_init(|| {
        Expected::of(&sandbox, &victim_cmd("count_static").args(["numbers", COUNT[0], "0"]), Some("numbers"))
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
    let (hold, count) = (folder.join("let-go"), COUNT.join(" "));
    let line = format!(
        "#!/bin/sh\nexport {HELD_BY}={}\nexec {} numbers {count}\n",
        hold.display(),
        program.display()
    );
    std::fs::write(folder.join("count"), line).unwrap();
    std::fs::set_permissions(folder.join("count"), PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// Runs a script until its job is in one of these states; what it has printed, and the most memory that it was seen with.
fn runs(slurm: &Slurm<'_>, folder: &Path, script: &str, ends: &str) -> Vec<u8> {
    let job = slurm.submit_as_it_is(&slurm.user, folder, &format!("{HEADER}{script}"));
    let (mut most, mut killed) = (0, 0);
    job.wait_for(ends, TIME_LIMIT, || {
        if let Some((peak, dead)) = job.memory() {
            (most, killed) = (most.max(peak), killed.max(dead));
        }
        job.state() == ends
    });
    let said = printed(&job, "err");
    println!("slurm: {most} bytes at most in job {}", job.name);
    assert!(most <= 10 << 20 && killed == 0, "{most} bytes, {killed} killed for want of more: {said:?}");
    assert!(most > 0 || !Path::new("/sys/fs/cgroup/memory").is_dir(), "nobody has seen its memory");
    printed(&job, "out")
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

/// The last of several runs goes on to the end: its output is the end of an undisturbed one's.
fn ends(slurm: &Slurm<'_>, folder: &Path, script: &str, before: usize) {
    std::fs::write(folder.join("let-go"), "").unwrap();
    let last = runs(slurm, folder, script, "COMPLETED");
    let expected = EXPECTED.get().unwrap();
    let from = expected.stdout.len().saturating_sub(last.len());
    assert_same("the end of the output", &expected.stdout[from..], &last);
    assert!(from > 0 && from <= before, "it has gone on from {from}, and there were {before}");
    assert_eq!(agrees(folder), expected.file.len());
}

fn a_script_that_is_killed_at_its_time_limit_and_one_that_restarts(slurm: &Slurm<'_>) {
    let folder = folder(slurm, "limit");
    let first = runs(slurm, &folder, LAUNCH, "TIMEOUT");
    let before = agrees(&folder);
    assert_same("the output", &EXPECTED.get().unwrap().stdout[..first.len()], &first);
    ends(slurm, &folder, RESTART, before);
}

/// Output and file end with the checkpoint: nothing was done after it that is done again.
fn a_coordinator_that_ends_the_job_with_its_checkpoint(slurm: &Slurm<'_>) {
    let folder = folder(slurm, "coordinator");
    let first = runs(slurm, &folder, LAUNCH_TO_ITS_CHECKPOINT, "COMPLETED");
    let before = agrees(&folder);
    assert_same("the output", &EXPECTED.get().unwrap().stdout[..first.len()], &first);
    assert_eq!(before, first.len(), "memory and disk agree");
    std::fs::write(folder.join("let-go"), "").unwrap();
    let last = runs(slurm, &folder, RESTART_AFTER_IT, "COMPLETED");
    assert_same("both outputs", &EXPECTED.get().unwrap().stdout, &[first, last].concat());
    assert_eq!(agrees(&folder), EXPECTED.get().unwrap().file.len());
}
