//! The system call that a thread waits in: /proc/PID/task/TID/syscall (proc_pid_syscall(5)).

/// A call, its arguments, and the stack pointer, as the registers hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InCall {
    pub number: i64,
    pub arguments: [u64; 6],
    pub stack_pointer: u64,
}

/// `text`: `56 0x11 0x0 …` in a call, `-1 0x…` in none, `running` of a thread that is not asleep (fs/proc/base.c).
pub fn parse(text: &str) -> Option<InCall> {
    let mut words = text.split_ascii_whitespace();
    let number = words.next()?.parse().ok().filter(|number| *number >= 0)?;
    let mut values = [0; 7];
    for value in &mut values {
        *value = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    let [arguments @ .., stack_pointer] = values;
    Some(InCall { number, arguments, stack_pointer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_told_from_none() {
        let call = parse("0 0x3 0x7f0000001000 0x8000 0x64000 0x0 0xffffffffffffffff 0x7ffc0 0x7f11\n");
        let arguments = [3, 0x7f00_0000_1000, 0x8000, 0x64000, 0, u64::MAX];
        assert_eq!(call, Some(InCall { number: 0, arguments, stack_pointer: 0x7_ffc0 }));
        for none in ["", "running\n", "-1 0x7ffe17f8d78 0x7f8b5de8f2ad\n", "0 0x3 0x7f", "0 1 2 3 4 5 6 7 8"]
        {
            assert_eq!(parse(none), None, "{none}");
        }
    }
}
