//! Monotonic clocks go on where they were: a time namespace, its offsets set before the first clone
//! (time_namespaces(7)).

use crate::record::Clocks;
use crate::sys::clone;
use nix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io;

/// What the image's clocks are ahead of this machine's: monotonic and since boot, in nanoseconds.
pub fn offsets(clocks: &Clocks) -> io::Result<(i64, i64)> {
    // What our own namespace adds is part of what clock_gettime says here.
    let own = crate::task::clock::own_offsets()?;
    let now = |clock| clock_gettime(clock).map(|t| t.tv_sec() * 1_000_000_000 + t.tv_nsec());
    // No clock of an image is far enough away to overflow (`Image::check`).
    let monotonic = clocks.monotonic - (now(ClockId::CLOCK_MONOTONIC)? - own.0);
    let boottime = clocks.boottime - (now(ClockId::CLOCK_BOOTTIME)? - own.1);
    Ok((monotonic, boottime))
}

/// Makes the next children be born with clocks that are so far ahead ([`offsets`]); returns the namespace to go back to with
/// [`leave`].
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ERANGE when a clock would run before 0.
pub fn enter((monotonic, boottime): (i64, i64)) -> io::Result<File> {
    let original = File::open("/proc/self/ns/time_for_children")?;
    clone::unshare_time()?;
    let line = |name: &str, ns: i64| {
        format!("{name} {} {}\n", ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
    };
    let text = line("monotonic", monotonic) + &line("boottime", boottime);
    std::fs::write("/proc/self/timens_offsets", text)?;
    Ok(original)
}

/// Later children are born in ckptbpf's own namespace again.
pub fn leave(original: Option<File>) -> io::Result<()> {
    use std::os::fd::AsFd;
    original.map_or(Ok(()), |file| clone::set_namespace(file.as_fd(), clone::NEWTIME))
}
