//! Signals on the command line: by name, with or without SIG, or by number; real-time ones as RTMIN+N.

use nix::sys::signal::Signal;

/// Parses a signal that ckptbpf can keep for itself.
pub fn parse(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = number(name)
        .ok_or_else(|| format!("'{text}' is no signal; write USR1, SIGUSR1, RTMIN+3 or a number"))?;
    match number {
        libc::SIGKILL | libc::SIGSTOP => Err(format!("{text} cannot be caught; take USR1, USR2 or TERM")),
        libc::SIGCHLD => Err("CHLD tells ckptbpf of the program's end; take USR1, USR2 or TERM".into()),
        libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE => {
            Err(format!("{text} tells of a fault; take USR1, USR2 or TERM"))
        }
        _ => Ok(number),
    }
}

fn number(name: &str) -> Option<i32> {
    let in_range = |number: i32| (1..=libc::SIGRTMAX()).contains(&number).then_some(number);
    let digits = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<i32>().ok()).flatten()
    };
    if let Some(number) = digits(name) {
        return in_range(number);
    }
    if name == "RTMIN" {
        return Some(libc::SIGRTMIN());
    }
    if name == "RTMAX" {
        return Some(libc::SIGRTMAX());
    }
    let real_time = |number: i32| in_range(number).filter(|number| *number >= libc::SIGRTMIN());
    if let Some(offset) = name.strip_prefix("RTMIN+").and_then(digits) {
        return real_time(libc::SIGRTMIN().checked_add(offset)?);
    }
    if let Some(offset) = name.strip_prefix("RTMAX-").and_then(digits) {
        return real_time(libc::SIGRTMAX().checked_sub(offset)?);
    }
    format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_real_time_signals() {
        for text in ["USR1", "SIGUSR1", "usr1", "10"] {
            assert_eq!(parse(text), Ok(libc::SIGUSR1), "{text}");
        }
        assert_eq!(parse("RTMIN+3"), Ok(libc::SIGRTMIN() + 3));
        assert_eq!(parse("SIGRTMAX-1"), Ok(libc::SIGRTMAX() - 1));
        let wrong = [
            "KILL", "STOP", "CHLD", "SEGV", "0", "65", "-1", "", "SIG", "RTMIN+99", "RTMIN+", "RTMAX-99",
            "FOO",
        ];
        for text in wrong {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
