//! Random operations under random checkpoints, kills and restarts: `tests/victims/randops.c`, several seeds in one job.
//!
//! ```text
//! launch ─▶ checkpoints at gates ─▶ kill -9 ─▶ restart ─▶ checkpoints at gates ─▶ kill -9 ─▶ restart ─▶ … ─▶ the end
//! ```
//! A *gate* is a step that the programs do not take while there is a file of its name. At each, either the programs stand
//! still while the checkpoint is taken, or they are let go right before. Everything but that race follows from the seeds.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::scenario::{Job, Mode, Tool, verb};
use crate::{Cmd, Random, Sandbox, assert_same, victim, victim_cmd};

/// Operations of a seed.
const STEPS: u64 = 90;
/// What bugs are called, here and in ckptbpf's `planted.rs`.
pub const BUGS: &[&str] =
    &["skipped-page", "lost-zero", "lost-back-to-file", "dropped-signal", "unarmed-mapping"];

/// For the way to the next gate.
const PATIENCE: Duration = Duration::from_secs(60);

/// Refusals that have an end by themselves: a program looks into /proc, or waits in the kernel for the machine.
const PASSING: &[&str] = &["files of a process in /proc cannot be opened again", "does not stop"];

/// What happens at a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// `held`: the programs stand still meanwhile.
    Checkpoint { held: bool },
    /// Kill and restart: `from` so many checkpoints before the newest, with the background fill held until the next
    /// checkpoint but one.
    Restart { held: bool, mode: Mode, hold_fill: bool, back: u64 },
    /// The background fill goes on.
    LetFill,
}

/// Gates in the order of their steps.
fn plan(random: &mut Random) -> Vec<(u64, Deed)> {
    let is = |random: &mut Random, percent| random.below(100) < percent;
    let mut deeds = Vec::new();
    let lazy_first = random.below(2);
    for life in 0..3 {
        if life > 0 {
            let mode = if life % 2 == lazy_first { Mode::Lazy } else { Mode::Eager };
            let hold_fill = mode == Mode::Lazy && is(random, 60);
            let back = if is(random, 20) { 1 } else { 0 };
            deeds.push(Deed::Restart { held: is(random, 50), mode, hold_fill, back });
            if hold_fill && is(random, 40) {
                deeds.push(Deed::LetFill);
            }
        }
        let checkpoints = if life == 2 { random.below(2) } else { 1 + random.below(3) };
        for _ in 0..checkpoints {
            deeds.push(Deed::Checkpoint { held: is(random, 60) });
        }
    }
    let mut steps: Vec<u64> = Vec::new();
    while steps.len() < deeds.len() {
        let step = 4 + random.below(STEPS - 6);
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
    steps.sort_unstable();
    steps.into_iter().zip(deeds).collect()
}

/// Whether the program finds what `bug` would have done to it, without ckptbpf: then it ends with 3.
pub fn notices(sandbox: &Sandbox, seed: u64, bug: &str) -> bool {
    let steps = STEPS.to_string();
    let program = victim_cmd("randops").args([&seed.to_string(), &steps, bug]);
    let running = sandbox.spawn(program);
    sandbox.wait_for("the end or a word", PATIENCE, || {
        running.has_ended() || running.stderr().contains("victim: ")
    });
    let noticed = running.stderr().contains("victim: ");
    // What finds it may be a process that the first one waits for.
    sandbox.wait_for("the end of all", PATIENCE, || {
        let left = sandbox.ps();
        for process in &left {
            let _ = sandbox.kill(process.pid, Signal::SIGKILL as i32);
        }
        left.is_empty()
    });
    running.wait(PATIENCE);
    noticed
}

/// Seeds that run as one job, each in a folder of its own.
struct Batch<'b> {
    sandbox: &'b Sandbox,
    seeds: Vec<u64>,
    gates: Vec<(u64, Deed)>,
    /// Of launch and restart.
    options: &'static [&'static str],
}

/// Of so many batches, one is without eBPF.
const ONE_WITHOUT_BPF: u64 = 4;

/// Runs each seed undisturbed, and all of them through checkpoints, kills and restarts; then compares.
///
/// # Panics
/// When a program finds something wrong, or its output or files differ from those of the undisturbed run. The folder is kept
/// then, if `keeps`.
pub fn run(name: &str, tool: Tool, seeds: &[u64], keeps: bool) {
    let sandbox = Sandbox::with_limit(name, Duration::from_secs(150));
    let sandbox = if keeps { sandbox.kept_if_it_fails() } else { sandbox };
    let first = *seeds.first().expect("a seed");
    let mut random = Random::of(first);
    let gates = plan(&mut random);
    let is_bare = first / seeds.len() as u64 % ONE_WITHOUT_BPF == 3;
    let options: &[&str] = if is_bare { &["--no-bpf"] } else { &[] };
    let batch = Batch { sandbox: &sandbox, seeds: seeds.to_vec(), gates, options };
    let undisturbed = batch.undisturbed();
    let mut job = batch.launch(tool);
    for &(step, deed) in &batch.gates {
        batch.wait_for(&job, step);
        batch.act(&mut job, step, deed);
    }
    batch.finish(job);
    batch.compare(&undisturbed);
}

impl Batch<'_> {
    fn folder(&self, seed: u64) -> PathBuf {
        self.sandbox.dir().join(seed.to_string())
    }

    /// One line of bash that runs every seed in its folder below `base`.
    fn program(&self, base: &Path) -> Cmd {
        let mut line = String::new();
        for seed in &self.seeds {
            let _ = write!(
                line,
                "(cd {seed} && exec {} {seed} {STEPS} >out 2>err) & ",
                victim("randops").display()
            );
            std::fs::create_dir_all(base.join(seed.to_string())).expect("a folder for a seed");
        }
        line.push_str("wait");
        Cmd::sh(&line).cwd(base)
    }

    fn undisturbed(&self) -> PathBuf {
        let base = self.sandbox.dir().join("undisturbed");
        std::fs::create_dir_all(&base).expect("a folder for the undisturbed run");
        self.sandbox.run(self.program(&base)).success();
        for &seed in &self.seeds {
            let read =
                |file| std::fs::read_to_string(base.join(seed.to_string()).join(file)).unwrap_or_default();
            let all_right = read("err").is_empty() && read("out").ends_with("all right\n");
            assert!(all_right, "seed {seed}, undisturbed: {}", read("err"));
        }
        base
    }

    fn launch(&self, tool: Tool) -> Job<'_> {
        let program = self.program(&self.sandbox.dir());
        for &seed in &self.seeds {
            // One more before the end, so that there is one until the last deed is done.
            for step in self.gates.iter().map(|gate| gate.0).chain([STEPS + 1]) {
                std::fs::write(self.stop(seed, step), "").expect("a gate");
            }
        }
        let (images, options) =
            (self.sandbox.dir().join("images"), [&["--keep", "3"], self.options].concat());
        let job = Job::launch_by(self.sandbox, tool, images, &options, &program);
        job.program();
        job
    }

    fn stop(&self, seed: u64, step: u64) -> PathBuf {
        self.folder(seed).join(format!("stop-{step}"))
    }

    fn open_gate(&self, step: u64) {
        for &seed in &self.seeds {
            std::fs::remove_file(self.stop(seed, step)).expect("a gate that is shut");
        }
    }

    /// Waits until every seed is at the gate before `step`.
    fn wait_for(&self, job: &Job, step: u64) {
        let line = format!("\n{} ", step - 1);
        let is_there = |seed| {
            let printed = std::fs::read_to_string(self.folder(seed).join("out")).unwrap_or_default();
            printed.contains(&line)
        };
        self.sandbox.wait_for(&format!("all of seeds {:?} at step {step}", self.seeds), PATIENCE, || {
            self.assert_well(job, step);
            self.seeds.iter().all(|&seed| is_there(seed))
        });
    }

    /// Nobody has found anything wrong, and the job goes on.
    fn assert_well(&self, job: &Job, step: u64) {
        self.assert_right(step);
        assert!(!job.running().has_ended(), "the job ended before step {step}: {}", job.running().stderr());
    }

    fn assert_right(&self, step: u64) {
        for &seed in &self.seeds {
            let said = std::fs::read_to_string(self.folder(seed).join("err")).unwrap_or_default();
            assert!(said.is_empty(), "{}before step {step}: {said}", self.how_to_repeat(seed));
        }
    }

    fn how_to_repeat(&self, seed: u64) -> String {
        let with = self.seeds[0];
        format!(
            "seed {seed} (in the job of seed {with}, gates {:?}): CKPTBPF_RANDOM_SEED={with} cargo xtask test \
             random_operations\n",
            self.gates
        )
    }

    fn hold(&self) -> PathBuf {
        self.sandbox.dir().join("hold")
    }

    fn act(&self, job: &mut Job, step: u64, deed: Deed) {
        match deed {
            Deed::Checkpoint { held } => {
                if !held {
                    self.open_gate(step);
                }
                self.checkpoint(job, step);
                if held {
                    self.open_gate(step);
                }
            }
            Deed::Restart { held, mode, hold_fill, back } => {
                if !held {
                    self.open_gate(step);
                }
                job.kill_all();
                if held {
                    self.open_gate(step);
                }
                let complete = job.checkpoints().into_iter().filter(|one| one.complete).map(|one| one.id);
                let complete: Vec<u64> = complete.filter(|&id| !self.has_passing_name(job, id)).collect();
                let from =
                    complete[complete.len() - 1 - usize::try_from(back).unwrap_or(0).min(complete.len() - 1)];
                let hold = self.hold();
                let hold = hold.to_str().expect("a UTF-8 path");
                let options: &[&str] = if hold_fill {
                    std::fs::write(self.hold(), "").expect("what holds the fill");
                    &["--hold-fill", hold]
                } else {
                    &[]
                };
                job.restart_at(from, mode, &[options, self.options].concat());
                job.program();
            }
            Deed::LetFill => {
                let _ = std::fs::remove_file(self.hold());
                self.open_gate(step);
            }
        }
    }

    /// Asks until nothing stands against it that is over in a moment.
    fn checkpoint(&self, job: &Job, step: u64) {
        self.sandbox.wait_for("a checkpoint", PATIENCE, || {
            self.assert_well(job, step);
            let asked = job.try_checkpoint();
            let said = asked.stderr_text();
            let is_passing = PASSING.iter().any(|reason| said.contains(reason));
            assert!(asked.code() == 0 || is_passing, "{}{said}", self.how_to_repeat(self.seeds[0]));
            asked.code() == 0 && !self.has_passing_name(job, job.newest())
        });
    }

    /// Whether a program was in the midst of removing a file that it had just made (`NEW_UNLINKED`): a restart finds it gone,
    /// and refuses.
    fn has_passing_name(&self, job: &Job, id: u64) -> bool {
        let shown = self.sandbox.run(verb("inspect", ["--json"]).arg(job.image(id))).success().stdout_text();
        let image: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        let open = image["files"].as_array().expect("the image's open files");
        open.iter()
            .any(|one| one["kind"] == "file" && one["path"].as_str().is_some_and(|p| p.contains("/gone")))
    }

    fn finish(&self, mut job: Job) {
        self.open_gate(STEPS + 1);
        self.sandbox.wait_for(&format!("the end of seeds {:?}", self.seeds), PATIENCE, || {
            self.assert_right(STEPS + 1);
            job.running().has_ended()
        });
        job.wait(PATIENCE).success();
    }

    fn compare(&self, undisturbed: &Path) {
        for &seed in &self.seeds {
            for file in ["err", "out", "file0", "file1", "file2", "file3"] {
                let read =
                    |base: &Path| std::fs::read(base.join(seed.to_string()).join(file)).unwrap_or_default();
                let what = format!("{}{file}", self.how_to_repeat(seed));
                assert_same(&what, &read(undisturbed), &read(&self.sandbox.dir()));
            }
        }
    }
}
