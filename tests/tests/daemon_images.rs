//! Images that a daemon's worker is given to restart: made up, of others, or behind links to what is closed to its user.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::{chown, symlink};
use std::time::Duration;

use ckpt_tests::scenario::{Daemon, Tool};
use ckpt_tests::user::UID;
use ckpt_tests::{Job, Sandbox, victim_cmd};

const SOON: Duration = Duration::from_secs(30);

/// Whatever stands in an image, and wherever a link leads: a worker reads what its user may read, and makes what its user may make.
#[test]
fn images_of_root_s_are_nothing_to_a_user_s_worker() {
    let sandbox = Sandbox::new("daemon_images");
    let mut job = Job::launch(&sandbox, &[], &victim_cmd("count_static").args(["f", "100000", "1000"]));
    job.running().wait_for_output("\n5 ", SOON);
    let taken = job.checkpoint().id;
    job.kill_all();
    let written = std::fs::read(sandbox.dir().join("f")).unwrap();
    let daemon = Daemon::begin(&sandbox, &[]);
    let tool = daemon.serves(Tool::of_user(&sandbox));
    let home = tool.user.clone().unwrap().home().to_owned();
    // Its metadata says uid 0; its owner is the user.
    let [crafted, linked, link] = ["crafted", "linked", "link"].map(|name| home.join(name));
    for folder in [&crafted, &linked] {
        std::fs::create_dir(folder).unwrap();
        chown(folder, Some(UID), Some(UID)).unwrap();
    }
    let image = job.image(taken);
    let name = image.file_name().unwrap();
    std::fs::copy(&image, crafted.join(name)).unwrap();
    chown(crafted.join(name), Some(UID), Some(UID)).unwrap();
    symlink(&image, linked.join(name)).unwrap();
    symlink(job.dir(), &link).unwrap();
    for (what, words) in
        [(crafted.clone(), "root"), (crafted.join(name), "root"), (linked, ""), (link, "denied")]
    {
        let restart = tool.verb("restart", ["-d", "own"]).arg(&what);
        let refused = sandbox.run(restart).expect_code(125);
        let said = refused.stderr_text();
        assert!(said.contains(words) && !said.contains("done without"), "{}: {said}", what.display());
        assert!(refused.stdout.is_empty(), "{}", what.display());
        sandbox.wait_for("nothing of it to be left", SOON, || sandbox.ps().len() == 1);
    }
    let begun = || daemon.log().matches(" for process ").count();
    sandbox.wait_for("word of a worker for each", SOON, || begun() == 4);
    assert_eq!(std::fs::read(sandbox.dir().join("f")).unwrap(), written);
    daemon.end();
}
