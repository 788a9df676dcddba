//! The box's user is a real one: it owns its home, and real sudo knows it.

use ckpt_tests::{Cmd, Sandbox, User, victim};

#[test]
fn the_user_is_no_root_and_sudo_makes_it_one() {
    let sandbox = Sandbox::new("user");
    let user = User::of(&sandbox);
    let who = Cmd::sh("id -u; id -un; id -G; pwd; echo ${SUDO_UID-none}");
    let bare = sandbox.run(user.runs(&who)).success().stdout_text();
    assert_eq!(bare, format!("4242\ntester\n4242\n{}\nnone\n", user.home().display()));
    let sudo = sandbox.run(user.runs_by_sudo(&who)).success().stdout_text();
    assert_eq!(sudo, format!("0\nroot\n0\n{}\n4242\n", user.home().display()));
    assert!(
        !std::fs::read_to_string("/etc/passwd").unwrap().contains("tester"),
        "the machine's own file is changed"
    );
}

#[test]
fn the_user_reaches_what_it_is_to_run() {
    let sandbox = Sandbox::new("reach");
    let user = User::of(&sandbox);
    let count = Cmd::new(user.copy_of(&victim("count_static"))).args(["numbers", "3", "1"]);
    let printed = sandbox.run(user.runs(&count)).success().stdout;
    assert_eq!(std::fs::read(user.home().join("numbers")).unwrap(), printed);
}
