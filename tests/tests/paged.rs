//! Pages that the kernel has put away, in swap or merged with equal ones, are saved and restored as any others. The machine
//! is told to do so, and told otherwise at the end.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::panic::catch_unwind;
use std::path::PathBuf;
use std::process::Command;

use ckpt_tests::scenario::{Survival, Tool, ckptbpf, survive};
use ckpt_tests::{skip, victim_cmd};

fn survives(case: &str) {
    let program = victim_cmd("memkinds").args([case, "600", "3000"]);
    survive(&Survival { rounds: 4, ..Survival::of(case, program) });
}

/// A file that the machine swaps to, until this is dropped.
struct Swap(PathBuf);

impl Swap {
    /// Why not, where that is not to be had.
    fn on() -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("ckptbpf-swap-{}", std::process::id()));
        let script = "umask 077; dd if=/dev/zero of=$1 bs=1M count=16 && mkswap $1 && swapon $1";
        let made = Self(path);
        let made_it = Command::new("sh").args(["-c", script, "sh"]).arg(&made.0).output().unwrap();
        if made_it.status.success() {
            Ok(made)
        } else {
            Err(String::from_utf8_lossy(&made_it.stderr).lines().last().unwrap_or_default().to_owned())
        }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // Where it was never on, this fails.
        let _ = Command::new("swapoff").arg(&self.0).output();
        let _ = std::fs::remove_file(&self.0);
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
        assert!(!swaps.contains(self.0.to_str().unwrap()), "the swap file is left behind");
    }
}

#[test]
fn pages_in_swap() {
    match Swap::on() {
        Ok(_swap) => survives("swapped"),
        Err(why) => skip::skip("pages_in_swap", &why),
    }
}

/// Of shared memory that is read through its mappings, only smaps tells that there is any in swap.
#[test]
fn shared_pages_in_swap_alone() {
    let _swap = match Swap::on() {
        Ok(swap) => swap,
        Err(why) => return skip::skip("shared_pages_in_swap_alone", &why),
    };
    let program = victim_cmd("sharing").args(["600", "3000", "away"]);
    survive(&Survival { rounds: 4, by_user: true, ..Survival::of("alone_swapped", program) });
}

/// Bugs of `planted.rs` that few programs would show, each with one that does.
#[test]
fn planted_bugs_of_memory_are_found() {
    const NAME: &str = "planted_bugs_of_memory_are_found";
    if std::env::var_os("CKPTBPF_PLANTED").is_none() {
        return skip::skip(NAME, "needs ckptbpf built once more: cargo xtask soak");
    }
    let _swap = match Swap::on() {
        Ok(swap) => swap,
        Err(why) => return skip::skip(NAME, &why),
    };
    for (bug, case) in [("lost-swap", "swapped"), ("lost-mappings", "many"), ("stale-compared", "memfd")] {
        let tool = |bug: &str| Tool {
            binary: ckptbpf().with_file_name("ckptbpf-planted"),
            environment: vec![("CKPTBPF_PLANT".to_owned(), bug.to_owned())],
            ..Tool::default()
        };
        let run = |bug: &str| {
            let program = victim_cmd("memkinds").args([case, "1000", "3000"]);
            let name = format!("planted-{case}-{bug}");
            survive(&Survival { rounds: 2, tool: tool(bug), ..Survival::of(&name, program) });
        };
        run("none");
        assert!(catch_unwind(|| run(bug)).is_err(), "{bug} is not found");
    }
}

/// A setting of KSM, until this is dropped.
struct Ksm(&'static str, String);

impl Ksm {
    fn set(path: &'static str, value: &str) -> std::io::Result<Self> {
        let before = Self(path, std::fs::read_to_string(path)?);
        std::fs::write(path, value)?;
        Ok(before)
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        std::fs::write(self.0, &self.1).expect("the setting is as it was");
    }
}

#[test]
fn merged_pages() {
    let quick = Ksm::set("/sys/kernel/mm/ksm/pages_to_scan", "2000");
    match quick.and_then(|quick| Ok((quick, Ksm::set("/sys/kernel/mm/ksm/run", "1")?))) {
        Ok(_while_it_runs) => survives("merged"),
        Err(why) => skip::skip("merged_pages", &format!("no KSM: {why}")),
    }
}
