//! Modules, in the order in which they were packed: each after those that it needs.

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use std::fs::{self, File};

const LIST: &str = "/vm-test/modules";

pub fn load() -> Result<()> {
    let list = fs::read_to_string(LIST).context(LIST)?;
    for path in list.lines() {
        let file = File::open(path).with_context(|| path.to_owned())?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => println!("{path}: {error}"),
        }
    }
    Ok(())
}
