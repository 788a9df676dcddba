//! Process ids of a client's choice, where only root may choose any and a user can have no namespace to be root in: the core has the
//! kernel go on right before the id, and the client forks by itself.
//!
//! ```text
//! client ── NextId{id} ──▶ core: ns_last_pid = id - 1 ──▶ Done
//!           fork(2): it looks which id that got, and tries again where somebody else was quicker
//!        ── NextId{0} ───▶ core: ns_last_pid as it was
//! ```
//! That makes nobody a process, and gives no id that somebody has. Nor does it give one that its user could not have without: forking
//! and ending goes through all free ids from [`RESERVED`] on, 100 000 in a second (the kernel's commit 124ea650d307, which made
//! CAP_CHECKPOINT_RESTORE, names that as what people do). So no id below that is given, which the kernel gives to nobody by itself; a user
//! has one id at a time, and no more than [`PAUSE`] allows; and others fork on where they were, but for what they fork in between.

use crate::rebuild::taken;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where the kernel goes on when it has been through all ids (`RESERVED_PIDS` of kernel/pid.c).
pub const RESERVED: i32 = 300;

/// How long a client may take from the answer to its fork, in milliseconds.
pub const HELD: u16 = 20;

/// How long others have the ids at least before the same user has one again.
const PAUSE: Duration = Duration::from_millis(1);

/// Where the kernel goes on: of one client at a time.
#[derive(Debug, Default)]
pub struct Ids(Mutex<()>);

impl Ids {
    /// The kernel goes on with `id` while `used` lasts, which is told whether it does. Returns when others have had as much of the
    /// ids: for a client whose user has no other one in here.
    pub fn next(&self, id: i32, used: impl FnOnce(io::Result<()>)) {
        let one_at_a_time = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        match go_before(id) {
            Ok(moved) => {
                used(Ok(()));
                drop(moved);
            }
            Err(error) => used(Err(error)),
        }
        drop(one_at_a_time);
        std::thread::sleep(began.elapsed().max(PAUSE));
    }
}

/// The kernel goes on at another place until this is dropped.
#[derive(Debug)]
struct Moved {
    back: i32,
}

fn go_before(id: i32) -> io::Result<Moved> {
    if id < RESERVED {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let back = taken::last()?;
    taken::go_on_after(id - 1)?;
    Ok(Moved { back })
}

impl Drop for Moved {
    fn drop(&mut self) {
        if let Err(error) = taken::go_on_after_surely(self.back) {
            log::warn!("process ids cannot go on after {}: {error}", self.back);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_nobody_gets_by_forking_is_refused() {
        for id in [i32::MIN, -1, 0, 1, RESERVED - 1] {
            assert_eq!(go_before(id).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{id}");
        }
    }

    #[test]
    fn who_is_refused_waits_as_well() {
        let (ids, began) = (Ids::default(), Instant::now());
        let mut told = Vec::new();
        (0..3).for_each(|_| ids.next(1, |done| told.push(done.is_err())));
        assert_eq!(told, [true; 3]);
        assert!(began.elapsed() >= 3 * PAUSE);
    }
}
