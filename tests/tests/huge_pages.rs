//! Memory in huge pages of a pool of the machine (hugetlb). The tests set the pool, and are alone with it.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use ckpt_tests::huge_pages::HugePages;
use ckpt_tests::scenario::{Mode, Survival, held, let_go, survive, verb};
use ckpt_tests::{Job, Sandbox, skip, victim_cmd};

/// What the victim's case `huge` needs at a time.
const NEEDED: u64 = 16;
const SOON: Duration = Duration::from_secs(60);

/// Private and read-only, set aside and not, shared over fork and copied by it, of memfd_create(2) shared and private, of System V.
#[test]
fn memory_in_huge_pages() {
    let _pool = match HugePages::take(2048, 2 * NEEDED) {
        Ok(pool) => pool,
        Err(why) => return skip::skip("memory_in_huge_pages", &why),
    };
    survive(&Survival {
        rounds: 4,
        ..Survival::of("huge", victim_cmd("memkinds").args(["huge", "1500", "3000"]))
    });
}

#[test]
fn memory_in_huge_pages_of_a_gibibyte() {
    let _pool = match HugePages::take(1 << 20, 1) {
        Ok(pool) => pool,
        Err(why) => return skip::skip("memory_in_huge_pages_of_a_gibibyte", &why),
    };
    let program = victim_cmd("memkinds").args(["gib", "1500", "3000"]);
    survive(&Survival { rounds: 2, ..Survival::of("gib", program) });
}

/// And a delta holds small pages, as many as have changed.
#[test]
fn too_few_huge_pages_are_named_with_their_number_before_anything_is_made() {
    let pool = match HugePages::take(2048, NEEDED + 2) {
        Ok(pool) => pool,
        Err(why) => {
            return skip::skip(
                "too_few_huge_pages_are_named_with_their_number_before_anything_is_made",
                &why,
            );
        }
    };
    let sandbox = Sandbox::new("huge-few");
    let program = victim_cmd("memkinds").args(["huge", "60", "3000"]);
    let mut job = Job::launch(&sandbox, &[], &held(&sandbox, program));
    job.running().wait_for_output("\n3 ", SOON);
    job.checkpoint();
    let delta = job.checkpoint();
    assert!(delta.kind == "delta" && delta.pages < 300, "{delta:?}");
    job.kill_all();
    let there = pool.set(NEEDED - 1).unwrap();
    assert!(there < NEEDED, "somebody else has {there}");
    for mode in [&[][..], &["--lazy"]] {
        let said = sandbox.run(verb("restart", mode).arg(job.dir())).expect_code(125).stderr_text();
        assert!(
            said.contains(&format!("needs {NEEDED} huge pages of 2048 kB, and {there} are free")),
            "{said}"
        );
        assert!(said.contains("nr_hugepages"), "{said}");
    }
    pool.set(NEEDED).unwrap();
    job.restart(Mode::Lazy, &[]);
    let_go(&sandbox);
    job.wait(SOON).success();
}
