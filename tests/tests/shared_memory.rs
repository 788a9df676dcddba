//! Memory that processes share, and mappings of every kind.

use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::victim_cmd;

#[test]
fn every_kind_of_mapping() {
    survive(&Survival::of("maps", victim_cmd("maps").args([".", "2000", "3000"])));
}
