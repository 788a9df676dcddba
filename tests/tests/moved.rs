//! Files whose device has another number at the restart: of a file system that was mounted anew, as on another node.
// Helpers beside the tests may panic too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use ckpt_tests::scenario::{Tool, ckptbpf, verb};
use ckpt_tests::skip::skip;
use ckpt_tests::{Cmd, Job, Mode, Sandbox};

const SOON: Duration = Duration::from_secs(30);

/// Adds to `rows` and to its output, changes `page` through a mapping of it, and looks whether that is as it left it.
const PROGRAM: &str = "
import mmap, os, select
os.chdir('mounted')
rows = open('rows', 'wb', 0)
page = os.open('page', os.O_RDWR | os.O_CREAT)
os.ftruncate(page, 4096)
page = (mmap.mmap(page, 4096), os.close(page))[0]
for i in range(10 ** 8):
    assert page[:9] == (b'%9d' % (i - 1) if i else bytes(9)), (i, page[:9])
    rows.write(b'%9d' % i)
    page[:9] = b'%9d' % i
    print('%9d' % i, end='', flush=True)
    select.select([], [], [], 0.005)
";

/// What is mounted at `mounted` in the box's folder.
struct Mounted<'b> {
    sandbox: &'b Sandbox,
    line: &'static str,
}

const OVERLAY: &str =
    "mount -t overlay none -o lowerdir=$PWD/lower,upperdir=$PWD/upper,workdir=$PWD/work mounted";
const MEMORY: &str = "mount -t tmpfs none mounted";

impl<'b> Mounted<'b> {
    /// None where there is no such file system.
    fn of(sandbox: &'b Sandbox, line: &'static str) -> Option<Self> {
        let made = sandbox.run(&format!("mkdir lower upper work mounted taken; {line}")[..]);
        // Not made for nothing: its end unmounts.
        if made.code() == 0 { Some(Self { sandbox, line }) } else { None }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.sandbox.see(&self.sandbox.dir().join("mounted").join(name))
    }

    fn device(&self) -> u64 {
        self.file("").metadata().unwrap().dev()
    }

    /// The same once more, with another number: others take the one that it had.
    fn again(&self) {
        let before = self.device();
        let line = "set -e; old=$(stat -c %d mounted); umount mounted
            for i in $(seq 50); do
                mkdir -p taken/$i; mount -t tmpfs none taken/$i; eval \"$0\"
                [ $(stat -c %d mounted) = $old ] || exit 0
                umount mounted
            done; exit 1";
        self.sandbox.run(Cmd::sh(line).arg(self.line)).success();
        self.sandbox.run("umount taken/* && rmdir taken/*").success();
        assert_ne!(self.device(), before);
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.sandbox.run("umount mounted").success();
        }
    }
}

/// A ckptbpf whose program writes to a log beside its other files, as batch systems have it.
fn logging(sandbox: &Sandbox) -> Tool {
    let binary = sandbox.dir().join("logging");
    let path = ckptbpf();
    let line =
        format!("case $1 in launch|restart) exec >> mounted/log;; esac; exec {} \"$@\"", path.display());
    std::fs::write(&binary, format!("#!/bin/sh\n{line}\n")).unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    Tool { binary, ..Tool::default() }
}

#[test]
fn files_of_what_is_mounted_anew_are_the_same_files() {
    const NAME: &str = "moved";
    let sandbox = Sandbox::new(NAME);
    let Some(mounted) = Mounted::of(&sandbox, OVERLAY) else {
        return skip(NAME, "there is no overlayfs here");
    };
    let program = Cmd::new("/usr/bin/python3").args(["-c", PROGRAM]);
    let dir = sandbox.dir().join("images");
    let mut job = Job::launch_by(&sandbox, logging(&sandbox), dir, &[], &program);
    let steps = |job: &Job<'_>| {
        let size = || mounted.file("log").metadata().map_or(0, |found| found.len());
        let then = size();
        sandbox.wait_for("the program to go on", SOON, || {
            assert!(!job.running().has_ended(), "{}", job.running().stderr());
            size() > then + 30
        });
    };
    steps(&job);
    for mode in [Mode::Eager, Mode::Lazy] {
        job.checkpoint();
        // It has grown when it is killed, and is cut back.
        steps(&job);
        job.kill_all();
        mounted.again();
        job.restart(mode, &[]);
        steps(&job);
    }
    job.kill_all();
    for name in ["rows", "log"] {
        let text = String::from_utf8(std::fs::read(mounted.file(name)).unwrap()).unwrap();
        let count = text.len() / 9;
        let expected: String = (0..count).map(|i| format!("{i:9}")).collect();
        assert!(text == expected, "{name}: a number is missing, or there twice: {text}");
    }
}

#[test]
fn another_file_under_the_same_numbers_is_refused_by_name() {
    let sandbox = Sandbox::new("moved_not");
    let mounted = Mounted::of(&sandbox, MEMORY).expect("a tmpfs");
    let writer = "exec 7> mounted/rows 8<> <(:); for i in $(seq 100000); do echo $i >&7; echo $i; read -t 0.01 -u 8; done";
    let mut job = Job::launch(&sandbox, &[], &Cmd::sh(writer));
    job.running().wait_for_output("\n9\n", SOON);
    job.checkpoint();
    job.kill_all();
    let inode = mounted.file("rows").metadata().unwrap().ino();
    // Under another device number, and under the one that it had, where nobody else takes that meanwhile.
    let anew = || drop(sandbox.run(&format!("umount mounted; {MEMORY}")[..]).success());
    let ways: [&dyn Fn(); 2] = [&|| mounted.again(), &anew];
    for mount in ways {
        mount();
        std::fs::write(mounted.file("rows"), vec![7; 100_000]).unwrap();
        assert_eq!(
            mounted.file("rows").metadata().unwrap().ino(),
            inode,
            "the first file has another number"
        );
        for options in [&[][..], &["--lazy"], &["--files", "check"]] {
            let said = sandbox.run(verb("restart", options).arg(job.dir())).expect_code(125).stderr_text();
            assert!(said.contains("/mounted/rows: it is another file than at the checkpoint"), "{said}");
        }
        assert!(std::fs::read(mounted.file("rows")).unwrap() == vec![7; 100_000]);
    }
}
