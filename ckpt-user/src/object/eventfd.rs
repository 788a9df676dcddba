//! eventfd(2): a counter. fdinfo shows all there is to it since Linux 6.5 (fs/eventfd.c), and before that all but its kind.

use super::Object;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::OwnedFd;

#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct EventRecord {
    #[prost(uint64, tag = "1")]
    pub count: u64,
    /// EFD_SEMAPHORE: a read takes one.
    #[prost(bool, tag = "2")]
    pub semaphore: bool,
}

/// `flags`: EFD_*, where an iterator has read them.
///
/// # Errors
/// The reason why it cannot be saved.
pub fn capture(info: &str, flags: Option<u32>) -> Result<Object, String> {
    let field = |name: &str| info.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let count = field("eventfd-count:").and_then(|v| u64::from_str_radix(v, 16).ok());
    let count = count.ok_or("this kernel does not show an eventfd's count")?;
    let shown = field("eventfd-semaphore:").map(|shown| shown != "0");
    let semaphore = shown.or_else(|| flags.map(|flags| flags & libc::EFD_SEMAPHORE as u32 != 0));
    let semaphore = semaphore.ok_or(
        "needs Linux 6.5, or eBPF and a descriptor of it, to tell whether an eventfd is a semaphore",
    )?;
    Ok(Object::Event(EventRecord { count, semaphore }))
}

pub fn rebuild(record: &EventRecord, flags: u32) -> io::Result<OwnedFd> {
    let mut wanted = EfdFlags::EFD_CLOEXEC;
    wanted.set(EfdFlags::EFD_SEMAPHORE, record.semaphore);
    wanted.set(EfdFlags::EFD_NONBLOCK, flags & libc::O_NONBLOCK as u32 != 0);
    let event = EventFd::from_value_and_flags(0, wanted)?;
    if record.count != 0 {
        event.write(record.count)?;
    }
    Ok(event.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_hexadecimal() {
        let info =
            "pos:\t0\nflags:\t02\neventfd-count:               1f\neventfd-id: 3\neventfd-semaphore: 1\n";
        assert_eq!(capture(info, None), Ok(Object::Event(EventRecord { count: 0x1f, semaphore: true })));
    }

    #[test]
    fn its_kind_is_shown_or_read() {
        let older = "eventfd-count: 1\n";
        assert!(capture(older, None).is_err());
        for (flags, semaphore) in [(1, true), (0o2_000_001, true), (0o4000, false)] {
            let found = Object::Event(EventRecord { count: 1, semaphore });
            assert_eq!(capture(older, Some(flags)), Ok(found));
        }
        let shown = "eventfd-count: 1\neventfd-semaphore: 0\n";
        assert_eq!(capture(shown, Some(1)), Ok(Object::Event(EventRecord { count: 1, semaphore: false })));
    }

    #[test]
    fn a_count_survives() {
        let event = rebuild(&EventRecord { count: 1 << 40, semaphore: false }, 0).unwrap();
        let mut bytes = [0; 8];
        nix::unistd::read(&event, &mut bytes).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 1 << 40);
    }
}
