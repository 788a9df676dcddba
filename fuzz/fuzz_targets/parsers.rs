//! One binary for all targets: the variable `CKPTBPF_FUZZ` names the one (`list`: shows them), `CKPTBPF_SEEDS` a directory
//! for its seeds.
#![no_main]

use ckptbpf::fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::OnceLock;

static TARGET: OnceLock<&Target> = OnceLock::new();

fn chosen() -> &'static Target {
    TARGET.get_or_init(|| {
        let name = std::env::var("CKPTBPF_FUZZ").unwrap_or_default();
        let found = TARGETS.iter().find(|target| target.name == name);
        found.unwrap_or_else(|| {
            TARGETS.iter().for_each(|target| println!("{}", target.name));
            std::process::exit(i32::from(name != "list"))
        })
    })
}

fuzz_target!(
    init: {
        let target = chosen();
        if let Some(dir) = std::env::var_os("CKPTBPF_SEEDS").map(PathBuf::from) {
            for (number, seed) in (target.seeds)().iter().enumerate() {
                std::fs::write(dir.join(format!("seed-{number}")), seed).expect("the directory of seeds");
            }
        }
    },
    |bytes: &[u8]| (chosen().run)(bytes)
);
