//! Whether another round beside the running program is worth its while, or the freeze comes now.
//!
//! Each round scans, protects again and copies what was written since the one before. What it copied and the program
//! has written to again is a dead copy in the image. Pure: what is decided here costs time or room, never a page.

/// Without an outlook: after a round of fewer pages than this (16 MiB), the rest is left for the freeze: the program had
/// only some 20 ms to write more in, while they were copied and compressed.
pub const SMALL: u64 = 4096;
/// With one: a residue of fewer pages than this is left for the freeze (2 MiB are copied in less than a millisecond).
pub const FEW: u64 = 512;
/// Rounds at most.
pub const ROUNDS: usize = 4;
/// Later rounds copy at most so many times what the first one did (or [`SMALL`] pages, if that is more): they are
/// what makes dead copies.
pub const DEAD: u64 = 3;

/// What the write faults since the last scan say of the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    /// Pages that it would find.
    pub residue: u64,
    /// Of these, the ones first written to in the second half of the time since the scan.
    pub late: u64,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Round,
    Freeze,
}

/// After rounds that found so many pages each, and with what is known of the next one; without an outlook it is taken
/// to find as many pages as the last.
pub fn next(found: &[u64], outlook: Option<Outlook>) -> Next {
    let (Some(&first), Some(&last)) = (found.first(), found.last()) else { return Next::Round };
    let (residue, few) = outlook.map_or((last, SMALL), |o| (o.residue, FEW));
    let again: u64 = found.iter().skip(1).fold(residue, |sum, &round| sum.saturating_add(round));
    let bounded = found.len() < ROUNDS && again <= first.max(SMALL).saturating_mul(DEAD);
    if bounded && residue >= few && !outlook.is_some_and(|o| is_useless(found, last, o)) {
        Next::Round
    } else {
        Next::Freeze
    }
}

/// Whether the residue would be nearly as large after one more round: by less than a quarter smaller.
fn is_useless(found: &[u64], last: u64, outlook: Outlook) -> bool {
    let nearly = |part: u64, whole: u64| part.saturating_mul(4) >= whole.saturating_mul(3);
    // The same pages are written over and over: two rounds on end came to as many.
    let hot = found.len() > 1 && nearly(outlook.residue, last);
    // New pages are written as fast as they are copied. The first half does not count: a burst may be over.
    let outrun = nearly(outlook.late.saturating_mul(2), last);
    hot || outrun
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outlook() -> impl Strategy<Value = Option<Outlook>> {
        let some = (0u64..40_000, 0u64..40_000).prop_map(|(residue, late)| Outlook { residue, late });
        prop::option::of(some)
    }

    /// The rounds that a program comes to which gives each of them so many pages.
    fn rounds(program: &[u64], outlook: impl Fn(usize) -> Option<Outlook>) -> Vec<u64> {
        let mut found = Vec::new();
        while next(&found, outlook(found.len())) == Next::Round {
            found.push(program[found.len()]);
        }
        found
    }

    proptest! {
        /// Also when the log lies: what one round finds beyond what was expected is the last.
        #[test]
        fn rounds_and_dead_copies_are_bounded_whatever_the_log_says(
            program in prop::collection::vec(0u64..40_000, ROUNDS),
            log in prop::collection::vec(outlook(), ROUNDS + 1),
        ) {
            let found = rounds(&program, |round| log[round]);
            prop_assert!((1..=ROUNDS).contains(&found.len()));
            let before_last: u64 = found[1..].iter().rev().skip(1).sum();
            prop_assert!(before_last <= DEAD * found[0].max(SMALL));
        }

        #[test]
        fn with_a_log_that_is_right_no_round_is_small_and_dead_copies_keep_to_their_bound(
            program in prop::collection::vec(0u64..40_000, ROUNDS + 1),
            late in prop::collection::vec(0u64..40_000, ROUNDS + 1),
        ) {
            let log = |round: usize| Some(Outlook { residue: program[round], late: late[round] });
            let found = rounds(&program, log);
            prop_assert!(found[1..].iter().all(|&pages| pages >= FEW));
            prop_assert!(found[1..].iter().sum::<u64>() <= DEAD * found[0].max(SMALL));
        }

        #[test]
        fn without_a_log_the_rounds_go_on_until_one_is_small(
            mut program in prop::collection::vec(0u64..40_000, ROUNDS),
        ) {
            program.sort_unstable_by(|a, b| b.cmp(a));
            let enough = program.iter().position(|&pages| pages < SMALL).map_or(ROUNDS, |at| at + 1);
            prop_assert_eq!(rounds(&program, |_| None).len(), enough);
        }
    }

    #[test]
    fn what_is_known_to_be_little_but_not_few_is_copied_beside_the_program() {
        assert_eq!(next(&[3000], None), Next::Freeze);
        assert_eq!(next(&[3000], Some(Outlook { residue: 1000, late: 500 })), Next::Round);
        assert_eq!(next(&[3000], Some(Outlook { residue: 500, late: 250 })), Next::Freeze);
    }

    #[test]
    fn the_freeze_comes_at_once_when_nothing_was_written_meanwhile() {
        assert_eq!(next(&[262_144], Some(Outlook { residue: 0, late: 0 })), Next::Freeze);
        assert_eq!(next(&[262_144], None), Next::Round);
    }

    #[test]
    fn who_writes_new_pages_faster_than_they_are_copied_is_known_after_one_round() {
        assert_eq!(next(&[50_000], Some(Outlook { residue: 50_000, late: 25_000 })), Next::Freeze);
        assert_eq!(next(&[50_000], Some(Outlook { residue: 20_000, late: 10_000 })), Next::Round);
    }

    #[test]
    fn a_burst_is_copied_and_the_same_pages_twice_are_not_copied_a_third_time() {
        let same = |late| Some(Outlook { residue: 20_000, late });
        assert_eq!(next(&[20_000], same(0)), Next::Round);
        assert_eq!(next(&[20_000, 20_000], same(0)), Next::Freeze);
        assert_eq!(next(&[80_000, 40_000], same(0)), Next::Round);
    }
}
