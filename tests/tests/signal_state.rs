//! What a process holds about signals: actions, masks, alternate stack, pending ones with their values, interval timer.

use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::victim_cmd;

#[test]
fn everything_about_signals() {
    let program = victim_cmd("signals").args(["800", "3000"]);
    survive(&Survival { rounds: 4, ..Survival::of("signal_state", program) });
}

#[test]
fn the_same_by_injected_calls() {
    let program = victim_cmd("signals").args(["600", "3000"]);
    let options = &["--no-bpf"];
    survive(&Survival { rounds: 2, options, ..Survival::of("signal_state_injected", program) });
}
