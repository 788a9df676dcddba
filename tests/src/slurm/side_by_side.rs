//! Several things to see in one Slurm, at the same time: most of what jobs do there is wait.

use std::time::Instant;

use super::Slurm;

/// One thing to see, with the name under which it is told.
pub type Scenario = (&'static str, fn(&Slurm<'_>));

/// Runs them all, each in a thread of its own; fails with the names of those that have failed.
pub fn side_by_side(slurm: &Slurm<'_>, scenarios: &[Scenario]) {
    let run = |name: &str, scenario: fn(&Slurm<'_>)| {
        let begun = Instant::now();
        scenario(slurm);
        println!("slurm: {name}: as expected, after {:.0} s", begun.elapsed().as_secs_f64());
    };
    let run = &run;
    let failed: Vec<&str> = std::thread::scope(|scope| {
        let begin = |(name, scenario): &Scenario| {
            let (name, scenario) = (*name, *scenario);
            (name, scope.spawn(move || run(name, scenario)))
        };
        let all: Vec<_> = scenarios.iter().map(begin).collect();
        all.into_iter().filter_map(|(name, thread)| thread.join().is_err().then_some(name)).collect()
    });
    assert!(failed.is_empty(), "of what was to be seen in Slurm, these have failed: {failed:?}");
}
