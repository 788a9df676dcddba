//! System calls that are handed back to the thread (PR_SET_SYSCALL_USER_DISPATCH), as ptrace(2) tells and sets it.

use crate::sys::ptrace::Stopped;
use std::io;

/// Where system calls are made that are not handed back, and which byte of memory decides about the others.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Dispatch {
    /// Address of the byte, 0 for none: all others are handed back.
    #[prost(uint64, tag = "1")]
    pub selector: u64,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// Bytes; the range may go on from the highest address to the lowest.
    #[prost(uint64, tag = "3")]
    pub len: u64,
}

const OFF: u64 = 0;
/// All but a range.
const EXCLUSIVE: u64 = 1;
/// A range alone; the kernel keeps and tells the rest, which wraps.
const INCLUSIVE: u64 = 2;

pub fn capture(thread: &Stopped) -> io::Result<Option<Dispatch>> {
    let words = thread.dispatch()?.filter(|words| words[0] != OFF);
    Ok(words.map(|[_, selector, offset, len]| Dispatch { selector, offset, len }))
}

/// From here on no system call can be made by the thread for us.
pub fn rebuild(wanted: &Dispatch, thread: &Stopped) -> io::Result<()> {
    let set = thread.set_dispatch(words(wanted));
    set.map_err(|e| io::Error::new(e.kind(), format!("PR_SET_SYSCALL_USER_DISPATCH: {e}")))
}

fn words(wanted: &Dispatch) -> [u64; 4] {
    let Dispatch { selector, offset, len } = *wanted;
    let end = offset.wrapping_add(len);
    if offset != 0 && end <= offset {
        [INCLUSIVE, selector, end, len.wrapping_neg()]
    } else {
        [EXCLUSIVE, selector, offset, len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_wraps_is_the_rest_of_one_that_does_not() {
        let all = Dispatch { selector: 5, ..Dispatch::default() };
        assert_eq!(words(&all), [EXCLUSIVE, 5, 0, 0]);
        assert_eq!(words(&Dispatch { offset: 4096, len: 8192, ..all }), [EXCLUSIVE, 5, 4096, 8192]);
        // PR_SYS_DISPATCH_INCLUSIVE_ON of 4096 bytes at 8192: offset + len and -len are kept.
        let rest = Dispatch { offset: 12288, len: 4096u64.wrapping_neg(), ..all };
        assert_eq!(words(&rest), [INCLUSIVE, 5, 8192, 4096]);
    }
}
