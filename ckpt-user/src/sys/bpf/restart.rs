//! What an interrupted system call would go on with (`struct restart_block`).
//!
//! The kernel fills it in when a sleep is interrupted (stopped, or a signal without a handler) and leaves it as it is
//! afterwards: it means something only for a thread that is stopped with `-ERESTART_RESTARTBLOCK` (-516) in rax, or
//! in restart_syscall(2).
use std::{
    fs::File,
    io::{self, BufReader},
};

use ckpt_common::RestartBlock;

use super::{BpfError, Offsets};

pub(super) const KALLSYMS: &str = "/proc/kallsyms";

/// The functions that a restart block may hold.
const FUNCTIONS: &[(&str, Kind)] = &[
    ("do_no_restart_syscall", Kind::Nothing),
    ("hrtimer_nanosleep_restart", Kind::Nanosleep),
    ("posix_cpu_nsleep_restart", Kind::Nanosleep),
    ("alarm_timer_nsleep_restart", Kind::Nanosleep),
    ("futex_wait_restart", Kind::Futex),
    ("do_restart_poll", Kind::Poll),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nothing,
    Nanosleep,
    Futex,
    Poll,
}

/// A decoded restart block. Times are of the host: subtract the offsets of the task's time namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Nothing to go on with: restart_syscall(2) gives EINTR.
    Nothing,
    /// nanosleep(2), clock_nanosleep(2).
    Nanosleep {
        /// `CLOCK_*`.
        clock: i32,
        /// Address that the remaining time goes to, 0 for none.
        remaining: u64,
        /// When it ends on that clock, nanoseconds.
        expires: u64,
    },
    /// futex(2), FUTEX_WAIT with a timeout.
    Futex {
        /// The futex's address.
        address: u64,
        /// Expected value.
        value: u32,
        /// The kernel's own flags (`FLAGS_SHARED`, `FLAGS_CLOCKRT` …), not those of the system call.
        flags: u32,
        /// Bit set.
        bitset: u32,
        /// When it ends, nanoseconds.
        expires: u64,
    },
    /// poll(2).
    Poll {
        /// Address of the pollfds.
        descriptors: u64,
        /// How many.
        count: u32,
        /// When it ends on `CLOCK_MONOTONIC`, nanoseconds; `None`: never.
        expires: Option<u64>,
    },
    /// A function that we do not know, or whose name this kernel hides (`kptr_restrict`).
    Unknown {
        /// Its address.
        function: u64,
    },
}

impl Restart {
    /// For those who do not know where this kernel's functions and fields are: a number for what it is in the place of the
    /// function, and what it holds, word by word.
    #[must_use]
    pub fn to_block(&self) -> RestartBlock {
        let (what, words) = match *self {
            Self::Nothing => (1, [0; 5]),
            Self::Nanosleep { clock, remaining, expires } => {
                (2, [u64::from(clock.cast_unsigned()), remaining, expires, 0, 0])
            }
            Self::Futex { address, value, flags, bitset, expires } => {
                (3, [address, value.into(), flags.into(), bitset.into(), expires])
            }
            Self::Poll { descriptors, count, expires } => {
                (4, [descriptors, count.into(), expires.is_some().into(), expires.unwrap_or(0), 0])
            }
            Self::Unknown { .. } => (5, [0; 5]),
        };
        let mut block = RestartBlock { function: what, data: [0; 40] };
        for (place, word) in block.data.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        block
    }

    /// What [`Self::to_block`] has made; `None` of anything else.
    #[must_use]
    pub fn of_block(block: &RestartBlock) -> Option<Self> {
        let mut words = [0; 5];
        for (word, bytes) in words.iter_mut().zip(block.data.chunks_exact(8)) {
            *word = u64::from_le_bytes(*bytes.first_chunk()?);
        }
        let [a, b, c, d, e] = words;
        let short = |word: u64| u32::try_from(word).ok();
        Some(match block.function {
            1 => Self::Nothing,
            2 => Self::Nanosleep { clock: short(a)?.cast_signed(), remaining: b, expires: c },
            3 => {
                Self::Futex { address: a, value: short(b)?, flags: short(c)?, bitset: short(d)?, expires: e }
            }
            4 => Self::Poll { descriptors: a, count: short(b)?, expires: (c != 0).then_some(d) },
            5 => Self::Unknown { function: 0 },
            _ => return None,
        })
    }
}

/// Decodes restart blocks of the running kernel.
#[derive(Clone, Debug)]
pub struct RestartDecoder {
    functions: Vec<(u64, Kind)>,
    offsets: Offsets,
}

impl RestartDecoder {
    /// Reads the functions' addresses from `/proc/kallsyms` (about 20 ms), before anything is frozen.
    ///
    /// # Errors
    /// It cannot be read, or shows no addresses.
    pub fn new(offsets: &Offsets) -> Result<Self, BpfError> {
        let proc = |source| BpfError::Proc { path: KALLSYMS, source };
        let symbols = File::open(KALLSYMS).map(BufReader::new).map_err(proc)?;
        let functions = functions(symbols, FUNCTIONS).map_err(proc)?;
        if functions.is_empty() {
            return Err(BpfError::Hidden);
        }
        Ok(Self { functions, offsets: offsets.clone() })
    }

    /// What the block says.
    #[must_use]
    pub fn decode(&self, block: &RestartBlock) -> Restart {
        let kind =
            self.functions.iter().find(|(address, _)| *address == block.function).map(|(_, kind)| *kind);
        kind.and_then(|kind| self.decode_as(kind, &block.data))
            .unwrap_or(Restart::Unknown { function: block.function })
    }

    fn decode_as(&self, kind: Kind, data: &[u8]) -> Option<Restart> {
        Some(match kind {
            Kind::Nothing => Restart::Nothing,
            Kind::Nanosleep => Restart::Nanosleep {
                clock: i32::from_le_bytes(self.bytes("nanosleep.clockid", data)?),
                remaining: u64::from_le_bytes(self.bytes("nanosleep.rmtp", data)?),
                expires: u64::from_le_bytes(self.bytes("nanosleep.expires", data)?),
            },
            Kind::Futex => Restart::Futex {
                address: u64::from_le_bytes(self.bytes("futex.uaddr", data)?),
                value: u32::from_le_bytes(self.bytes("futex.val", data)?),
                flags: u32::from_le_bytes(self.bytes("futex.flags", data)?),
                bitset: u32::from_le_bytes(self.bytes("futex.bitset", data)?),
                expires: u64::from_le_bytes(self.bytes("futex.time", data)?),
            },
            Kind::Poll => {
                let seconds = u64::from_le_bytes(self.bytes("poll.seconds", data)?);
                let nanoseconds = u64::from_le_bytes(self.bytes("poll.nanoseconds", data)?);
                let limited = u32::from_le_bytes(self.bytes("poll.has_timeout", data)?) != 0;
                Restart::Poll {
                    descriptors: u64::from_le_bytes(self.bytes("poll.ufds", data)?),
                    count: u32::from_le_bytes(self.bytes("poll.nfds", data)?),
                    expires: limited
                        .then(|| seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)),
                }
            }
        })
    }

    /// A field of the union.
    fn bytes<const N: usize>(&self, name: &str, data: &[u8]) -> Option<[u8; N]> {
        let at = usize::try_from(self.offsets.get(name)?.checked_sub(self.offsets.get("futex")?)?).ok()?;
        data.get(at..)?.first_chunk().copied()
    }
}

/// Addresses of the known functions; hidden ones read as 0 and are left out.
pub(super) fn functions<T: Copy>(
    symbols: impl io::BufRead,
    wanted: &[(&str, T)],
) -> io::Result<Vec<(u64, T)>> {
    let mut found = Vec::new();
    for line in symbols.lines() {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        let (Some(address), _, Some(name)) = (words.next(), words.next(), words.next()) else { continue };
        let Some((_, kind)) = wanted.iter().find(|(function, _)| *function == name) else { continue };
        if let Some(address) = u64::from_str_radix(address, 16).ok().filter(|&address| address != 0) {
            found.push((address, *kind));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_decoded_comes_out_of_its_words() {
        for restart in [
            Restart::Nothing,
            Restart::Nanosleep { clock: -6, remaining: u64::MAX, expires: 1 },
            Restart::Futex { address: 1, value: u32::MAX, flags: 2, bitset: 3, expires: 4 },
            Restart::Poll { descriptors: 1, count: 2, expires: Some(0) },
            Restart::Poll { descriptors: 1, count: 2, expires: None },
            Restart::Unknown { function: 0 },
        ] {
            assert_eq!(Restart::of_block(&restart.to_block()), Some(restart));
        }
        let hidden = Restart::Unknown { function: 0xffff_ffff_8100_0000 }.to_block();
        assert_eq!(Restart::of_block(&hidden), Some(Restart::Unknown { function: 0 }));
        assert_eq!(Restart::of_block(&RestartBlock { function: 0, data: [0; 40] }), None);
        assert_eq!(Restart::of_block(&RestartBlock { function: 3, data: [0xff; 40] }), None);
    }

    #[test]
    fn hidden_and_foreign_symbols_are_left_out() {
        let text = "ffffffff81000010 t futex_wait_restart\n0000000000000000 t do_restart_poll\n\
                    ffffffff81000020 T do_exit\nbroken\n";
        assert_eq!(functions(text.as_bytes(), FUNCTIONS).unwrap(), [(0xffff_ffff_8100_0010, Kind::Futex)]);
    }
}
