//! Monotonic clocks go on where they were: a time namespace, its offsets set before the first clone
//! (time_namespaces(7)).

use crate::record::Clocks;
use crate::sys::clone;
use nix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io;

/// Makes the next children be born with the image's clocks; returns the namespace to go back to with
/// [`leave`]. Without clocks in the image nothing changes.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ERANGE when a clock would run before 0.
pub fn enter(clocks: Option<&Clocks>) -> io::Result<Option<File>> {
    let Some(clocks) = clocks else { return Ok(None) };
    let original = File::open("/proc/self/ns/time_for_children")?;
    // What our own namespace adds is part of what clock_gettime says here.
    let own = crate::task::clock::own_offsets()?;
    let now = |clock| clock_gettime(clock).map(|t| t.tv_sec() * 1_000_000_000 + t.tv_nsec());
    // No clock of an image is far enough away to overflow (`Image::check`).
    let monotonic = clocks.monotonic - (now(ClockId::CLOCK_MONOTONIC)? - own.0);
    let boottime = clocks.boottime - (now(ClockId::CLOCK_BOOTTIME)? - own.1);
    clone::unshare_time()?;
    let line = |name: &str, ns: i64| {
        format!("{name} {} {}\n", ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
    };
    let text = line("monotonic", monotonic) + &line("boottime", boottime);
    std::fs::write("/proc/self/timens_offsets", text)?;
    Ok(Some(original))
}

/// Later children are born in ckptbpf's own namespace again.
pub fn leave(original: Option<File>) -> io::Result<()> {
    use std::os::fd::AsFd;
    original.map_or(Ok(()), |file| clone::set_namespace(file.as_fd(), clone::NEWTIME))
}
