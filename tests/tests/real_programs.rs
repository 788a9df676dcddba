//! Programs that people run, as they are packaged: they end as if nothing had been. In `cargo xtask soak`'s first round,
//! which installs them.

use std::time::Duration;

use ckpt_tests::sandbox::let_pass;
use ckpt_tests::scenario::{MODES, verb};
use ckpt_tests::skip::skip;
use ckpt_tests::{Cmd, Job, Random, Sandbox, assert_same, victim};

const PATIENCE: Duration = Duration::from_secs(300);

/// A program and how it is tried; all lines are bash's, and run in the program's folder.
struct Program<'a> {
    name: &'a str,
    /// Before it starts; `$programs` are the folder of this repository's scripts.
    prepare: &'a str,
    line: &'a str,
    /// True from the moment on when a checkpoint is wanted; each is followed by a kill and a restart.
    moments: &'a [&'a str],
    kill: Kill,
    /// Prints what is to be as after an undisturbed run.
    result: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    /// kill -9 of everything, up to 0.2 s after the checkpoint.
    After,
    /// `checkpoint --kill`: of programs that remove what they had open, or write over it, all the time.
    Within,
}

fn is_wanted(name: &str) -> bool {
    let wanted = std::env::var_os("CKPTBPF_PROGRAMS").is_some();
    if !wanted {
        skip(name, "real programs run in the first round of cargo xtask soak (CKPTBPF_PROGRAMS)");
    }
    wanted
}

fn bash(line: &str) -> Cmd {
    let programs = victim("programs/loop.R");
    let programs = programs.parent().and_then(|p| p.to_str()).unwrap_or_default();
    Cmd::sh(line)
        .env("programs", programs)
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
}

fn survives(program: &Program<'_>) {
    let Program { name, prepare, line, moments, kill, result } = program;
    if !is_wanted(name) {
        return;
    }
    let sandbox = Sandbox::with_limit(name, PATIENCE * 2).kept_if_it_fails();
    let mut random = Random::for_test(name);
    let folder = sandbox.dir().join("undisturbed");
    sandbox.run(Cmd::new("mkdir").arg(&folder)).success();
    sandbox.run(bash(prepare).cwd(&folder)).success();
    sandbox.spawn(bash(line).cwd(&folder)).wait(PATIENCE).success();
    let expected = sandbox.run(bash(result).cwd(&folder)).success().stdout;
    assert!(!expected.is_empty(), "{name}: nothing is compared");
    sandbox.run(bash(prepare)).success();
    let mut job = Job::launch(&sandbox, &[], &bash(line));
    job.program();
    for (moment, mode) in moments.iter().zip(MODES.iter().cycle()) {
        sandbox.wait_for(moment, PATIENCE, || {
            assert!(
                !job.running().has_ended(),
                "{name} has ended before {moment}: {}",
                job.running().stderr()
            );
            sandbox.run(bash(moment)).code() == 0
        });
        if *kill == Kill::Within {
            job.checkpoint_and_end();
        } else {
            job.checkpoint();
            let_pass(random.moment(Duration::from_millis(200)));
            assert!(!job.running().has_ended(), "{name} has ended right after {moment}: it is too short");
            job.kill_all();
        }
        sandbox.run(verb("verify", [job.dir()])).success();
        job.restart(*mode, &[]);
    }
    job.wait(PATIENCE).success();
    let found = sandbox.run(bash(result)).success().stdout;
    assert_same(&format!("{name}: what it has written"), &expected, &found);
}

/// It says why no checkpoint can be taken of it, in these words, and goes on.
fn is_refused(name: &str, line: &str, ready: &str, words: &[&str]) {
    if !is_wanted(name) {
        return;
    }
    let sandbox = Sandbox::with_limit(name, PATIENCE);
    let mut job = Job::launch(&sandbox, &[], &bash(line));
    job.program();
    sandbox.wait_for(ready, PATIENCE, || sandbox.run(bash(ready)).code() == 0);
    let refused = job.try_checkpoint().expect_code(125).stderr_text();
    for word in words {
        assert!(refused.contains(word), "{name}: no {word:?} in: {refused}");
    }
    assert!(!job.running().has_ended(), "{name}: {}", job.running().stderr());
    job.kill_all();
}

const LINES: &[&str] = &[
    "test $(wc -l < out) -ge 3",
    "test $(wc -l < out) -ge 20",
    "test $(wc -l < out) -ge 30",
    "test $(wc -l < out) -ge 45",
];

#[test]
fn r() {
    survives(&Program {
        name: "r",
        prepare: "cp $programs/loop.R .",
        line: "exec Rscript --vanilla loop.R > out",
        moments: LINES,
        kill: Kill::After,
        result: "cat out",
    });
}

/// Compiled at first use, collected by several threads; from the first moments of its life on.
#[test]
fn java() {
    survives(&Program {
        name: "java",
        prepare: "javac -d . $programs/Grow.java",
        line: "exec java -Xmx256m Grow",
        moments: &[&["test -e out"], LINES].concat(),
        kill: Kill::After,
        result: "cat out",
    });
}

#[test]
fn java_with_its_parallel_collector() {
    survives(&Program {
        name: "java-parallel",
        prepare: "javac -d . $programs/Grow.java",
        line: "exec java -Xmx256m -XX:+UseParallelGC -XX:ParallelGCThreads=4 Grow",
        moments: LINES,
        kill: Kill::After,
        result: "cat out",
    });
}

#[test]
fn gromacs() {
    survives(&Program {
        name: "gromacs",
        prepare: "cp $programs/md.mdp $programs/topol.top . &&
            gmx grompp -maxwarn 5 -f md.mdp -p topol.top -c $(dpkg -L gromacs-data | grep /spc216.gro) 2> grompp",
        line: "exec gmx mdrun -reprod -ntmpi 1 -ntomp 2 -pin off -s topol.tpr > out 2>&1",
        moments: &[
            "grep -q Step md.log",
            "test $(grep -c Step md.log) -ge 4",
            "test $(grep -c Step md.log) -ge 8",
            "test $(grep -c Step md.log) -ge 12",
        ],
        kill: Kill::After,
        result: "cat confout.gro traj_comp.xtc ener.edr; grep -A8 'Step ' md.log | grep -v Writing",
    });
}

/// Python's own tests, of some of its modules; not those of commands that they start in folders with random names.
#[test]
fn the_tests_of_python() {
    survives(&Program {
        name: "python-tests",
        prepare: "true",
        line: "exec /usr/bin/python3 -m test -v -i 'test.test_json.test_tool.*' test_bisect test_json test_re test_heapq test_statistics \
               test_datetime test_random test_fractions test_difflib test_threading_local test_queue test_deque test_long test_cmath \
               > out 2>&1",
        moments: &[
            "test $(wc -l < out) -ge 20",
            "test $(wc -l < out) -ge 150",
            "test $(wc -l < out) -ge 400",
            "test $(wc -l < out) -ge 900",
            "test $(wc -l < out) -ge 1400",
        ],
        kill: Kill::After,
        result: "grep -E ' \\.\\.\\. |^All |^Tests result' out",
    });
}

#[test]
fn perl() {
    survives(&Program {
        name: "perl",
        prepare: "true",
        line: "PERL_HASH_SEED=0 exec perl $programs/words.pl > out",
        moments: LINES,
        kill: Kill::After,
        result: "cat out",
    });
}

#[test]
fn awks() {
    for awk in ["gawk -v work=50000", "mawk -Wrandom=7 -v work=400000"] {
        survives(&Program {
            name: awk.split(' ').next().unwrap_or(awk),
            prepare: "true",
            line: &format!("exec {awk} -f $programs/sums.awk > out"),
            moments: LINES,
            kill: Kill::After,
            result: "cat out sorted",
        });
    }
}

#[test]
fn compressors_in_a_pipeline() {
    for (name, millions, compress) in [("xz", 6, "xz -T2 --block-size=1MiB -5"), ("gzip", 40, "gzip -9")] {
        survives(&Program {
            name,
            prepare: "true",
            line: &format!("seq 1 {millions}000000 | {compress} | tee out | sha256sum > sum"),
            moments: &[
                "test $(stat -c %s out) -ge 1",
                "test $(stat -c %s out) -ge 100000",
                "test $(stat -c %s out) -ge 300000",
            ],
            kill: Kill::After,
            result: "cat sum; sha256sum < out",
        });
    }
}

#[test]
fn gcc() {
    survives(&Program {
        name: "gcc",
        prepare: "bash $programs/tree.sh 1 900",
        line: "gcc -O2 -pipe -c -o part.o part1.c && gcc -O2 -c -o again.o part1.c",
        moments: &["pgrep -x cc1", "pgrep -x as", "test -e part.o", "pgrep -x cc1"],
        kill: Kill::Within,
        result: "cat part.o again.o | sha256sum",
    });
}

#[test]
fn make() {
    survives(&Program {
        name: "make",
        prepare: "bash $programs/tree.sh 14 150",
        line: "exec make -s -j2",
        moments: &[
            "test -s out",
            "test $(wc -l < out) -ge 4",
            "test $(wc -l < out) -ge 7",
            "test $(wc -l < out) -ge 10",
        ],
        kill: Kill::Within,
        result: "sort out; cat *.o | sha256sum; ./program",
    });
}

#[test]
fn terminals_inside_terminals_are_refused() {
    is_refused(
        "tmux",
        "exec tmux -D -S socket",
        "pgrep -x sleep || { tmux -S socket new-session -d 'exec sleep 1000'; false; }",
        &["(tmux: server)"],
    );
    is_refused("screen", "SCREENDIR=$PWD/s exec screen -D -m sleep 1000", "pgrep -x sleep", &["(screen)"]);
}

#[test]
fn a_debugger_is_refused() {
    is_refused(
        "gdb",
        "exec gdb -batch -ex run --args sleep 1000",
        "pgrep -x sleep",
        &["(sleep) is being traced by", "(gdb)"],
    );
}

#[test]
fn mpi_is_refused() {
    is_refused(
        "mpirun",
        "exec mpirun --oversubscribe -n 2 sleep 1000",
        "test $(pgrep -x sleep | wc -l) -eq 2",
        &["(mpirun)"],
    );
}
