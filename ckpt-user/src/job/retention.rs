//! When old generations are merged and deleted. Pure; which ones, and how, is `image::prune`'s.
//!
//! A prune rewrites the oldest generation that stays as a full one: done after each checkpoint it would write the
//! whole memory each time. Never done, the directory and the chain that a restart reads grow without bound. So
//! it waits until the deltas that it would save are as many bytes as the full one that it must write (what is
//! written at most doubles, and so does what is stored), or until the chain is long.

/// How many restartable generations stay when nothing else is said.
pub const KEEP: usize = 3;
/// A restart opens one file a generation, and looks a page up in as many indexes: beyond this it is felt.
pub const LONGEST_SURPLUS: usize = 16;

/// Whether it is time to prune: `stored` has the bytes of each generation on the newest chain, oldest (the full
/// one) first; the `keep` newest of them stay.
pub fn is_due(stored: &[u64], keep: usize) -> bool {
    let surplus = stored.len().saturating_sub(keep.max(1));
    let (Some(&full), Some(deltas)) = (stored.first(), stored.get(1..=surplus)) else { return false };
    surplus > 0
        && (surplus >= LONGEST_SURPLUS
            || deltas.iter().fold(0, |sum: u64, one| sum.saturating_add(*one)) >= full)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn not_while_there_is_little_to_gain() {
        assert!(!is_due(&[], 3));
        assert!(!is_due(&[100], 1));
        assert!(!is_due(&[100, 100, 100], 3));
        assert!(!is_due(&[100, 10, 10, 10], 3));
        assert!(is_due(&[100, 60, 60, 10, 10], 3));
        assert!(is_due(&[100, 100], 0));
    }

    #[test]
    fn a_long_chain_is_shortened_however_small_its_deltas() {
        assert!(!is_due(&[100; 1].iter().chain(&[0; 17]).copied().collect::<Vec<_>>(), 3));
        assert!(is_due(&[100; 1].iter().chain(&[0; 18]).copied().collect::<Vec<_>>(), 3));
    }

    proptest! {
        /// A job that prunes when it is due: neither what it writes nor what it stores runs away.
        #[test]
        fn writing_and_storing_stay_bounded(
            deltas in proptest::collection::vec(1u64..=1000, 1..200), keep in 1usize..6,
        ) {
            const FULL: u64 = 1000;
            let (mut stored, mut merged, mut since) = (vec![FULL], 0u64, 0u64);
            for delta in deltas {
                stored.push(delta);
                since += 1;
                if is_due(&stored, keep) {
                    prop_assert!(stored.len() - keep <= LONGEST_SURPLUS);
                    // Paid for by the deltas it replaces, or rare.
                    let saved: u64 = stored[1..=stored.len() - keep].iter().sum();
                    prop_assert!(saved >= FULL || since >= LONGEST_SURPLUS as u64);
                    let kept = stored.split_off(stored.len() - keep);
                    stored = kept;
                    stored[0] = FULL;
                    (merged, since) = (merged + 1, 0);
                }
                prop_assert!(stored.len() < keep + LONGEST_SURPLUS);
                prop_assert!(stored.iter().sum::<u64>() <= FULL * (2 + keep as u64));
            }
        }
    }
}
