//! Programs of several processes that talk through pipes, and the interpreters that start them.

use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::skip::skip;
use ckpt_tests::victim::BUSYBOX;
use ckpt_tests::victim_cmd;

#[test]
fn a_shell_pipeline() {
    survive(&Survival::of("pipeline.sh", victim_cmd("pipeline.sh").args(["800", "0.004"])));
}

#[test]
fn count_in_bash() {
    survive(&Survival::of("count.sh", victim_cmd("count.sh").args(["f", "1000", "0.003"])).writing("f"));
}

#[test]
fn count_in_busybox() {
    if !std::path::Path::new(BUSYBOX).exists() {
        return skip("the shell of busybox", "there is no /bin/busybox");
    }
    let period = ["f", "300", "0.003"];
    survive(&Survival::of("count.ash", victim_cmd("count.ash").args(period)).writing("f"));
}

#[test]
fn count_in_python() {
    survive(&Survival::of("count.py", victim_cmd("count.py").args(["f", "1100", "3000"])).writing("f"));
}

#[test]
fn numpy() {
    survive(&Survival::of("matrix.py", victim_cmd("matrix.py").args(["800", "3000"])));
}
