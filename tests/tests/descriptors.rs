//! Descriptors of every kind come back, with their contents, positions and sharing.

use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::victim_cmd;

#[test]
fn every_kind_of_descriptor() {
    survive(&Survival::of("fds", victim_cmd("fds").args([".", "1500", "1000"])));
}
