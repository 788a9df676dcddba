//! What several measurements of one thing come to.

/// The middle of them, what one in a hundred is above, and the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    pub count: usize,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl Spread {
    /// None of nothing.
    pub fn of(values: impl IntoIterator<Item = u64>) -> Option<Self> {
        let mut sorted: Vec<u64> = values.into_iter().collect();
        sorted.sort_unstable();
        let max = *sorted.last()?;
        Some(Self { count: sorted.len(), p50: percentile(&sorted, 50), p99: percentile(&sorted, 99), max })
    }
}

/// The middle one.
pub fn median(values: impl IntoIterator<Item = u64>) -> Option<u64> {
    Spread::of(values).map(|spread| spread.p50)
}

/// The least of them that `percent` of all are not above (nearest rank).
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_spread() {
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn ranks_are_the_nearest_whatever_the_order() {
        assert_eq!(Spread::of([7]), Some(Spread { count: 1, p50: 7, p99: 7, max: 7 }));
        assert_eq!(Spread::of([4, 1, 3, 2]), Some(Spread { count: 4, p50: 2, p99: 4, max: 4 }));
        let spread = Spread::of((1..=200).rev());
        assert_eq!(spread, Some(Spread { count: 200, p50: 100, p99: 198, max: 200 }));
        assert_eq!(median([5, 1, 9]), Some(5));
    }
}
