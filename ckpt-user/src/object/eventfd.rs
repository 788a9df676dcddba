//! eventfd(2): a counter. fdinfo shows all there is to it (fs/eventfd.c).

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

/// # Errors
/// The reason why it cannot be saved.
pub fn capture(info: &str) -> Result<Object, String> {
    let field = |name: &str| info.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let count = field("eventfd-count:").and_then(|v| u64::from_str_radix(v, 16).ok());
    let count = count.ok_or("this kernel does not show an eventfd's count")?;
    let semaphore = field("eventfd-semaphore:");
    let semaphore = semaphore.ok_or("needs Linux 6.5, which shows whether an eventfd is a semaphore")?;
    Ok(Object::Event(EventRecord { count, semaphore: semaphore != "0" }))
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
        assert_eq!(capture(info), Ok(Object::Event(EventRecord { count: 0x1f, semaphore: true })));
        assert!(capture("eventfd-count: 1\n").is_err());
    }

    #[test]
    fn a_count_survives() {
        let event = rebuild(&EventRecord { count: 1 << 40, semaphore: false }, 0).unwrap();
        let mut bytes = [0; 8];
        nix::unistd::read(&event, &mut bytes).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 1 << 40);
    }
}
