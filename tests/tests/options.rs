//! Every option of the verbs that supervise a program does what docs/cli.md says, whichever verb has it.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::scenario::{stepper, verb, walk, walk_through};
use ckpt_tests::{Cmd, Running, Sandbox, victim_cmd};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// Counts for longer than any test lasts.
fn count() -> Cmd {
    victim_cmd("count_static").args(["f", "1000000", "1000"])
}

fn record(sandbox: &Sandbox) -> Value {
    serde_json::from_slice(&std::fs::read(sandbox.dir().join("images/job.json")).unwrap()).unwrap()
}

/// The complete checkpoints in `images`.
fn listed(sandbox: &Sandbox) -> Vec<Value> {
    let listed = sandbox.run(verb("list", ["--json", "images"]));
    if listed.code() == 0 { serde_json::from_slice(&listed.stdout).unwrap() } else { Vec::new() }
}

/// One checkpoint of a counter that has ended with it.
fn stopped_job(sandbox: &Sandbox) {
    let launched = sandbox.spawn(verb("launch", ["-d", "images", "--"]).program(&count()));
    launched.wait_for_output("\n5 ", SOON);
    sandbox.run(verb("checkpoint", ["--kill", "images"])).success();
    launched.wait(SOON).expect_code(85);
}

/// Starts `name` over a counter; a bare one runs beside it for `attach`.
fn supervise<'b>(sandbox: &'b Sandbox, name: &str, options: &[&str]) -> (Running<'b>, Option<Running<'b>>) {
    match name {
        "launch" | "run" => {
            let cmd = verb(name, ["--dir", "images"]).args(options).arg("--").program(&count());
            (sandbox.spawn(cmd), None)
        }
        "restart" => {
            stopped_job(sandbox);
            (sandbox.spawn(verb(name, options).arg("images")), None)
        }
        _ => {
            let bare = sandbox.spawn(count());
            let cmd = verb(name, ["-d", "images"]).args(options).arg(bare.pid.to_string());
            (sandbox.spawn(cmd), Some(bare))
        }
    }
}

/// Interval, keep, compression, signal, end with the checkpoint, verbosity.
fn the_shared_options(name: &str) {
    let sandbox = Sandbox::new(&format!("options_{name}"));
    let options = [
        &["--interval", "0.05", "--keep", "2", "--compress", "none", "--ckpt-signal", "USR2"][..],
        &["--exit-after-ckpt", "--verbose"],
    ]
    .concat();
    let (running, bare) = supervise(&sandbox, name, &options);
    // Enough checkpoints that old ones are merged: the first is gone.
    sandbox.wait_for("merging", SOON, || {
        assert!(!running.has_ended(), "{}", running.stderr());
        listed(&sandbox).first().is_some_and(|one| one["id"].as_u64() > Some(1))
    });
    let wanted = serde_json::json!({
        "interval_us": 50_000, "keep": 2, "compress": "none", "ckpt_signal": Signal::SIGUSR2 as i32,
    });
    assert_eq!(record(&sandbox)["options"], wanted);
    running.kill(Signal::SIGUSR2);
    let told = running.wait(SOON).expect_code(85).stderr_text();
    assert!(told.contains("checkpoint every 50 ms in images") && told.contains("(delta): "), "{told}");
    let newest = listed(&sandbox).pop().unwrap();
    let (pages, stored) = (newest["pages"].as_u64().unwrap(), newest["bytes_stored"].as_u64().unwrap());
    assert!(stored >= 4096 * (pages - newest["zero_pages"].as_u64().unwrap()), "compressed: {newest}");
    if let Some(bare) = bare {
        bare.wait(SOON).expect_code(137);
    }
    sandbox.run(verb("verify", ["images"])).success();
}

#[test]
fn shared_options_of_launch() {
    the_shared_options("launch");
}

#[test]
fn shared_options_of_restart() {
    the_shared_options("restart");
}

#[test]
fn shared_options_of_run() {
    the_shared_options("run");
}

#[test]
fn shared_options_of_attach() {
    the_shared_options("attach");
}

#[test]
fn a_directory_of_another_host_is_taken_over_only_when_told() {
    let sandbox = Sandbox::new("take_over");
    let supervised = ["launch", "run", "restart", "attach"];
    for name in supervised.into_iter().chain(["prune"]) {
        sandbox.run("rm -rf images").success();
        stopped_job(&sandbox);
        let mut there = record(&sandbox);
        there["host"] = "node9".into();
        there["boot_id"] = "another".into();
        there["ended"] = Value::Null;
        std::fs::write(sandbox.dir().join("images/job.json"), there.to_string()).unwrap();
        if matches!(name, "launch" | "attach") {
            sandbox.run("rm images/*.ckpt").success();
        }
        let bare = (name == "attach").then(|| sandbox.spawn(count()));
        let cmd = |options: &[&str]| match (name, &bare) {
            ("restart" | "prune", _) => verb(name, options).arg("images"),
            (_, Some(bare)) => verb(name, ["-d", "images"]).args(options).arg(bare.pid.to_string()),
            _ => verb(name, ["-d", "images"]).args(options).arg("--").program(&count()),
        };
        let refused = sandbox.run(cmd(&[])).expect_code(125).stderr_text();
        assert!(refused.contains("node9") && refused.contains("--take-over"), "{name}: {refused}");
        let (options, status) = match name {
            "prune" => (&["--take-over"][..], 0),
            _ => (&["--take-over", "-i", "0.01", "--exit-after-ckpt"][..], 85),
        };
        let taken = sandbox.run(cmd(options)).expect_code(status).stderr_text();
        assert!(taken.contains("taking images over from host node9"), "{name}: {taken}");
        if let Some(bare) = bare {
            bare.wait(SOON).expect_code(137);
        }
    }
}

#[test]
fn another_user_s_program() {
    let sandbox = Sandbox::new("other_user");
    sandbox.run("mkdir home && chown nobody home").success();
    for (name, option) in [("launch", "-u"), ("run", "--user")] {
        let folder = format!("home/{name}");
        let cmd = verb(name, [option, "nobody", "-d", &folder, "--", "/bin/sh", "-c", "id -un; echo $HOME"]);
        let ended = sandbox.run(cmd).success();
        assert!(ended.stdout_text().starts_with("nobody\n/nonexistent\n"), "{}", ended.stdout_text());
        let owner = sandbox.run(Cmd::sh("stat -c '%U %a' \"$0\"").arg(&folder)).success().stdout_text();
        assert_eq!(owner, "nobody 700\n");
    }
    let unknown = sandbox.run(verb("launch", ["-u", "no-such-user", "--", "true"])).expect_code(125);
    assert!(unknown.stderr_text().contains("no-such-user"), "{}", unknown.stderr_text());
}

#[test]
fn the_directory_is_said_or_known_or_made_up() {
    let sandbox = Sandbox::new("directory");
    sandbox.run(verb("launch", ["--", "true"])).success();
    sandbox.run(verb("launch", ["--", "true"]).env("CKPTBPF_DIR", "elsewhere")).success();
    sandbox.run(verb("launch", ["-d", "said", "--", "true"]).env("CKPTBPF_DIR", "elsewhere2")).success();
    let made = sandbox.run("echo */job.json; stat -c %a */ */job.json").success().stdout_text();
    assert_eq!(
        made.replace('\n', " "),
        "ckpt_true/job.json elsewhere/job.json said/job.json 700 700 700 600 600 600 "
    );
}

#[test]
fn run_launches_first_and_restarts_then() {
    let sandbox = Sandbox::new("run");
    let run = |options: &[&str]| verb("run", ["-d", "images"]).args(options).arg("--").program(&stepper(5));
    let first = sandbox.spawn(run(&[]));
    first.wait_for_output("0 ", SOON);
    sandbox.run(verb("checkpoint", ["--kill", "images"])).success();
    let begun = first.wait(SOON).expect_code(85).stdout_text();
    let rest = walk_through(&sandbox, run(&["--at", "1", "--json"])).success();
    let joined = begun + &rest.stdout_text();
    assert_eq!(joined.lines().count(), 6);
    assert!(rest.stderr_text().contains("resume_us"), "{}", rest.stderr_text());
    sandbox.run(run(&["--at", "9"])).expect_code(125);
    // Damage is no reason to begin anew; --new is.
    sandbox.run("echo > images/000001.ckpt").success();
    sandbox.run(run(&[])).expect_code(125);
    let anew = sandbox.spawn(run(&["--new"]));
    anew.wait_for_output("0 ", SOON);
    assert_eq!(walk(&sandbox, anew).success().stdout_text(), joined);
    assert!(sandbox.dir().join("images/old-1/000001.ckpt").exists());
}

/// Which levels the dynamic linker finds on its processor: `x86-64-v2 (supported, searched)` in its help.
fn levels(sandbox: &Sandbox, cmd: Cmd) -> Vec<String> {
    let help = sandbox.run(cmd).success().stdout_text();
    let level = |line: &str| line.trim().strip_suffix(" (supported, searched)").map(str::to_owned);
    help.lines().filter_map(level).filter(|level| level.starts_with("x86-64-v")).collect()
}

#[test]
fn a_program_is_told_of_its_baseline_and_no_more() {
    const LINKER: &str = "/lib64/ld-linux-x86-64.so.2";
    let sandbox = Sandbox::new("baseline");
    let all = levels(&sandbox, Cmd::new(LINKER).arg("--help"));
    let expected =
        |most: &str| all.iter().filter(|level| level.as_str() <= most).cloned().collect::<Vec<_>>();
    for (name, level) in
        [("launch", "x86-64"), ("run", "x86-64-v2"), ("launch", "x86-64-v3"), ("run", "x86-64-v4")]
    {
        let options = ["--cpu-baseline", level, "--new", "-d", "told", "--", LINKER, "--help"];
        assert_eq!(levels(&sandbox, verb(name, options)), expected(level), "{level} of {all:?}");
    }
    // Whatever else it chooses by: copies by AVX, and what it would save of registers.
    let options = ["--cpu-baseline", "x86-64-v2", "-d", "diagnosed", "--", LINKER, "--list-diagnostics"];
    let diagnosed = sandbox.run(verb("launch", options)).success().stdout_text();
    for nothing in ["preferred.AVX_Fast_Unaligned_Load=0x0", "cpu_features.xsave_state_size=0x0"] {
        assert!(diagnosed.contains(nothing), "{nothing}: {diagnosed}");
    }
    // Variables that are there are added to.
    let options = ["--cpu-baseline", "x86-64-v2", "-d", "own", "--", "/bin/sh", "-c", "echo $GLIBC_TUNABLES"];
    let own = verb("launch", options).env("GLIBC_TUNABLES", "glibc.malloc.check=1");
    let told = sandbox.run(own).success().stdout_text();
    assert!(told.starts_with("glibc.malloc.check=1:glibc.cpu.hwcaps=-AVX,"), "{told}");
    let machine = |id: u64| -> Value {
        let shown = sandbox.run(verb("inspect", ["--json", &format!("images/{id:06}.ckpt")])).success();
        serde_json::from_slice::<Value>(&shown.stdout).unwrap()["machine"].clone()
    };
    // The restart goes on with it, and without it there is more.
    let options = ["--cpu-baseline", "x86-64-v2", "-i", "0.05", "--exit-after-ckpt", "-d", "images", "--"];
    sandbox.run(verb("launch", options).program(&count())).expect_code(85);
    sandbox.run(verb("restart", ["-i", "0.05", "--exit-after-ckpt", "images"])).expect_code(85);
    for id in [1, 2] {
        let machine = machine(id);
        assert_eq!(machine["cpu_baseline"], "x86-64-v2", "{machine}");
        assert!((7..=14).contains(&machine["cpu_features"].as_u64().unwrap()), "{machine}");
    }
    sandbox.run("rm -r images").success();
    sandbox
        .run(verb("launch", ["-i", "0.05", "--exit-after-ckpt", "-d", "images", "--"]).program(&count()))
        .expect_code(85);
    assert!(
        machine(1)["cpu_baseline"].is_null() && machine(1)["cpu_features"].as_u64() > Some(14),
        "{}",
        machine(1)
    );
    let unknown = sandbox.run(verb("launch", ["--cpu-baseline", "pentium", "--", "true"])).expect_code(125);
    assert!(unknown.stderr_text().contains("x86-64-v3"), "{}", unknown.stderr_text());
}
