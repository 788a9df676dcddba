use super::Program::{Command, Coordinator, Launch, Restart};
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

fn asked(program: Program, line: &str) -> Result<Asked, String> {
    let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    parse(program, &words)
}

#[test]
fn lines_of_job_scripts_are_understood() {
    let launch = asked(Launch, "-i 10 ./count -i 3").unwrap();
    assert_eq!((launch.interval, launch.rest.len()), (Some(10), 3));
    let glued = asked(Launch, "-i5 -p0 --port-file port --no-gzip -- ./count").unwrap();
    assert_eq!((glued.interval, glued.port, glued.is_compressed), (Some(5), Some(0), Some(false)));
    assert_eq!((glued.port_file, glued.rest), (Some("port".into()), vec!["./count".into()]));
    let restart = asked(Restart, "-i 10 -h node1 --coord-port 7779 ckpt_a.dmtcp ckpt_b.dmtcp").unwrap();
    assert_eq!((restart.host.as_deref(), restart.port, restart.rest.len()), (Some("node1"), Some(7779), 2));
    let coordinator = asked(Coordinator, "--exit-after-ckpt --daemon --exit-on-last -q -q").unwrap();
    assert!(coordinator.exit_after_checkpoint && coordinator.is_daemon && coordinator.exit_on_last);
    assert!(coordinator.is_quiet && coordinator.port.is_none());
    let coordinator = asked(Coordinator, "-c dir --daemon -p 4711 4712").unwrap();
    assert_eq!((coordinator.port, coordinator.rest.len()), (Some(4712), 0));
    assert_eq!(coordinator.in_vain, ["-c"]);
    let plugins =
        "--disable-ipc-plugin --disable-svipc-plugin --disable-timer-plugin --disable-pid-plugin ./a";
    assert_eq!(asked(Launch, plugins).unwrap().rest, ["./a"]);
    assert_eq!(asked(Launch, "-c dir ./a").unwrap().checkpoint_dir, Some("dir".into()));
    assert_eq!(asked(Restart, "-d dir a.dmtcp").unwrap().checkpoint_dir, Some("dir".into()));
    let in_vain = asked(Launch, "--rm --ckpt-signal 10 --ckpt-open-files ./a").unwrap();
    assert_eq!((in_vain.in_vain, in_vain.rest.len()), (vec!["--rm".into(), "--ckpt-signal".into()], 1));
    assert_eq!(asked(Launch, "-j ./a").unwrap().join, Join::Existing);
    assert_eq!(asked(Launch, "--new-coordinator ./a").unwrap().join, Join::New);
    assert_eq!(asked(Restart, "--version").unwrap().tell, Some(Tell::Version));
}

#[test]
fn orders_have_dashes_or_none() {
    let orders = |line| asked(Command, line).unwrap().orders;
    for line in ["-bc", "--bcheckpoint", "bc", "-c", "c", "checkpoint"] {
        assert_eq!(orders(line), [Order::Checkpoint], "{line}");
    }
    assert_eq!(orders("-q"), [Order::Quit]);
    assert_eq!(orders("-kc"), [Order::CheckpointAndKill]);
    assert_eq!(orders("-p 7779 -s -l k"), [Order::Status, Order::List, Order::Kill]);
    for line in ["-i 30", "i 30", "-i30"] {
        assert_eq!(orders(line), [Order::Interval(30)], "{line}");
    }
}

#[test]
fn what_is_not_to_be_had_is_an_error_by_name() {
    for (program, line, words) in [
        (Launch, "--with-plugin x.so ./a", "--with-plugin cannot be had"),
        (Launch, "--modify-env ./a", "--modify-env cannot be had"),
        (Launch, "--nonsense ./a", "--nonsense: there is no such option"),
        (Launch, "-i", "-i takes a value"),
        (Launch, "-i ten ./a", "-i: 'ten' should be a number"),
        (Launch, "-i -1 ./a", "-i: '-1' should be a number"),
        (Launch, "-p 70000 ./a", "-p: there is no port 70000"),
        (Command, "--gzip", "--gzip: there is no such option"),
        (Command, "dance", "dance: there is no such option"),
        (Coordinator, "--gzip", "--gzip: there is no such option"),
        (Coordinator, "70000", "PORT: there is no port 70000"),
    ] {
        let error = asked(program, line).unwrap_err();
        assert!(error.contains(words), "{line}: {error}");
    }
}

#[test]
fn no_name_means_two_things_to_one_program() {
    for program in PROGRAMS {
        let of = OPTIONS.iter().filter(|row| row.of.contains(&program));
        let mut names: Vec<&str> = of.flat_map(|row| row.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "{}", program.name());
        assert_eq!(Program::of(OsStr::new(&format!("/usr/bin/{}", program.name()))), Some(program));
    }
    assert_eq!(Program::of(OsStr::new("/usr/bin/ckptbpf")), None);
}

proptest! {
    #[test]
    fn whatever_comes_first_the_program_s_words_are_its_own(
        options in vec(select(vec!["-i 7", "-p9", "--rm", "-q"]), 0..5),
        program in "[a-z./]{1,9}", rest in vec("\\PC{0,9}", 0..5),
    ) {
        let words = options.iter().flat_map(|one| one.split(' ')).map(OsString::from);
        let own: Vec<OsString> = std::iter::once(&program).chain(&rest).map(OsString::from).collect();
        let words: Vec<OsString> = words.chain(own.iter().cloned()).collect();
        prop_assert_eq!(parse(Program::Launch, &words).map(|asked| asked.rest), Ok(own));
    }

    #[test]
    fn no_words_are_a_panic(words in vec("\\PC{0,12}|-[a-z0-9-]{0,4}", 0..6)) {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        for program in PROGRAMS {
            let _ = parse(program, &words);
        }
    }
}
