//! Interval timers of a process (setitimer(2)): real, virtual, profiling.

use crate::sys::inject::Call;
use crate::sys::remote::Remote;
use std::io;

/// One interval timer, nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Timer {
    /// 0: rings once.
    #[prost(uint64, tag = "1")]
    pub interval: u64,
    /// Time until it rings; 0: not armed, or it has rung and its signal waits to be taken.
    #[prost(uint64, tag = "2")]
    pub left: u64,
}

/// Arms the timers; the clocks of the process have begun to run. Its signals are all blocked.
pub fn rebuild(timers: &[Timer], remote: &mut Remote) -> io::Result<()> {
    for (which, timer) in timers.iter().enumerate().filter(|(_, t)| **t != Timer::default()) {
        // The kernel arms a periodic timer anew when its signal is taken; that signal waits again as well, so
        // that one which rings once more before it is taken adds nothing.
        let left = if timer.left == 0 { timer.interval } else { timer.left };
        let microseconds = |ns: u64| ns.div_ceil(1000);
        let (interval, left) = (microseconds(timer.interval), microseconds(left));
        let words = [interval / 1_000_000, interval % 1_000_000, left / 1_000_000, left % 1_000_000];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let at = remote.data(&bytes)?;
        remote
            .run(&[Call::new(libc::SYS_setitimer, &[which as u64, at, 0])])
            .and_then(|r| if r[0] < 0 { Err(io::Error::from_raw_os_error(-r[0] as i32)) } else { Ok(()) })?;
    }
    Ok(())
}
