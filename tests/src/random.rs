//! Random moments that can be had again: `CKPTBPF_SEED` replays a run, and without it every run is the same.

/// A stream of numbers; its seed is printed, so that a failed test shows how to repeat it.
pub struct Random(u64);

impl Random {
    /// The stream of the test `name`: tests with one seed still differ from each other.
    pub fn for_test(name: &str) -> Self {
        let seed = std::env::var("CKPTBPF_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1_u64);
        eprintln!("{name}: CKPTBPF_SEED={seed}");
        let named =
            name.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Self(named | 1)
    }

    /// The stream of one of many seeds.
    pub fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % end.max(1)
    }

    /// A time below `end`.
    pub fn moment(&mut self, end: std::time::Duration) -> std::time::Duration {
        std::time::Duration::from_micros(self.below(u64::try_from(end.as_micros()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_have_streams_of_their_own() {
        let numbers = |name| {
            let mut random = Random::for_test(name);
            [random.below(1 << 40), random.below(1 << 40)]
        };
        assert_eq!(numbers("a"), numbers("a"));
        assert_ne!(numbers("a"), numbers("b"));
    }
}
