//! What the eBPF programs log arrives in the `log` crate.
use std::{process::Command, sync::Mutex};

use crate::support::{events_until, is};
use ckptbpf::sys::bpf::{Kernel, LifecycleKind};

struct Lines(Mutex<Vec<String>>);

impl ::log::Log for Lines {
    fn enabled(&self, _: &::log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &::log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }
    fn flush(&self) {}
}

static LINES: Lines = Lines(Mutex::new(Vec::new()));

#[test]
fn exec_and_exit_are_logged_at_debug() {
    ::log::set_logger(&LINES).unwrap();
    ::log::set_max_level(::log::LevelFilter::Debug);
    let mut bpf = Kernel::load().unwrap();
    let _attached = bpf.attach_lifecycle().unwrap();
    bpf.track(std::process::id()).unwrap();
    let mut child = Command::new("true").spawn().unwrap();
    let pid = child.id();
    events_until(&mut bpf, "the child exits", |e| is(e, LifecycleKind::GroupExit, pid));
    child.wait().unwrap();
    bpf.flush_log();
    let lines = LINES.0.lock().unwrap();
    assert!(lines.contains(&format!("exec of process {pid}")), "{lines:?}");
    assert!(lines.contains(&format!("exit of process {pid}")), "{lines:?}");
}
