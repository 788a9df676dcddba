//! The first process of a virtual machine: mounts, loads modules, runs the plan, powers off with a verdict.
//!
//! ```text
//! /vm-test/modules   files of modules, in the order in which they are loaded
//! /vm-test/environment   NAME=VALUE
//! /vm-test/plan      NAME <tab> PROGRAM <tab> ARGUMENT …
//!      │
//!      └─▶ console:  VM-TEST began|ok|skipped|failed NAME …, and at the end VM-TEST verdict …
//!                    exit status of QEMU: 1 is a pass, other odd numbers a failure, anything else no verdict
//! ```
#![deny(unsafe_code)]

mod cable;
mod modules;
mod mounts;
mod plan;
mod run;
mod sys;

use std::process::exit;

/// What the verdict is called, by the number that is written to QEMU's debug port.
const PASSED: u8 = 0;
const FAILED: u8 = 1;

fn main() {
    if nix::unistd::getpid().as_raw() != 1 {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let done = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["send", to] => cable::send(to),
            ["receive", at] => cable::receive(at),
            ["verdict", "passed"] => sys::power_off(PASSED),
            ["verdict", _] => sys::power_off(FAILED),
            _ => Err(anyhow::anyhow!("the first process of a virtual machine: `cargo xtask vm-test`")),
        };
        if let Err(error) = done {
            eprintln!("vm-init: {error:#}");
            exit(2);
        }
        return;
    }
    let verdict = match tests() {
        Ok(0) => PASSED,
        Ok(_) => FAILED,
        Err(error) => {
            println!("VM-TEST error {error:#}");
            FAILED
        }
    };
    sys::power_off(verdict)
}

/// How many tests have failed.
fn tests() -> anyhow::Result<usize> {
    mounts::all()?;
    modules::load()?;
    mounts::disks()?;
    let plan = plan::read()?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("VM-TEST kernel {} tests {}", release.trim(), plan.tests.len());
    if let [only] = &plan.tests[..]
        && only.name == plan::INSTEAD
    {
        return Err(run::instead(only, &plan.environment));
    }
    let counts = run::all(&plan)?;
    println!(
        "VM-TEST verdict {} passed, {} failed, {} skipped",
        counts.passed, counts.failed, counts.skipped
    );
    Ok(counts.failed)
}
