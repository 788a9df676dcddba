//! What surrounds a program besides memory and descriptors comes back: limits, scheduling, names, umask, directory.

use ckpt_tests::scenario::{Survival, survive};
use ckpt_tests::{Sandbox, skip, victim_cmd};

#[test]
fn limits_scheduling_names_umask_and_directory() {
    let sandbox = Sandbox::new("settings_undisturbed");
    let looked = sandbox.run(victim_cmd("settings").args(["2", "1"])).success();
    if looked.stderr_text().contains("no real-time") {
        skip::skip("limits_scheduling_names_umask_and_directory", "real-time classes are not allowed here");
    }
    drop(sandbox);
    survive(&Survival::of("settings", victim_cmd("settings").args(["600", "3000"])));
}
