use super::*;
use proptest::prelude::*;

fn pointer() -> Pointer {
    Pointer {
        job: "01234567-89ab-cdef-0123-456789abcdef".into(),
        dir: Some("/scratch/me/.ckpt_count_0123456789abcdef".into()),
        program: "./count".into(),
        host: "n1".into(),
    }
}

#[test]
fn a_pointer_comes_back_and_part_of_one_is_none() {
    let text = pointer().text();
    assert_eq!(Pointer::parse(text.as_bytes()), Ok(pointer()));
    for cut in 0..text.len() {
        assert_eq!(Pointer::parse(&text.as_bytes()[..cut]), Err(NoPointer::Other), "{cut} bytes");
    }
    let nowhere = Pointer { dir: Some("/a\nb".into()), ..pointer() };
    assert_eq!(Pointer::parse(nowhere.text().as_bytes()).unwrap().dir, None);
    let relative = text.replace("dir=/", "dir=");
    assert_eq!(Pointer::parse(relative.as_bytes()).unwrap().dir, None);
}

#[test]
fn other_files_are_none_and_those_of_dmtcp_are_known() {
    assert_eq!(Pointer::parse(b"DMTCP_CHECKPOINT_IMAGE_v2.0\n"), Err(NoPointer::OfDmtcp));
    assert_eq!(Pointer::parse(&[0x1f, 0x8b, 8]), Err(NoPointer::OfDmtcp));
    let long = pointer().text() + &"\n".repeat(5000);
    for bytes in [&b""[..], b"\xff\xfe\n", b"ckptbpf pointer 1\njob=../..\n", long.as_bytes()] {
        assert_eq!(Pointer::parse(bytes), Err(NoPointer::Other));
    }
}

#[test]
fn names_are_those_of_dmtcp_and_fit_a_directory() {
    let names = Names::new(OsStr::new("/usr/bin/count"), "0123456789abcdef");
    assert_eq!(names.pointer(), "ckpt_count_0123456789abcdef.dmtcp");
    assert_eq!(names.dir(), ".ckpt_count_0123456789abcdef");
    assert_eq!(names.script(), "dmtcp_restart_script_0123456789abcdef.sh");
    assert_eq!(Names::of_dir(&Path::new("/x").join(names.dir())), Some(names));
    for other in ["/x/ckpt_count_1", "/x/.cache", "/", "/x/.ckpt_\n"] {
        assert_eq!(Names::of_dir(Path::new(other)), None, "{other}");
    }
    assert_eq!(new_id().unwrap().len(), ID_DIGITS);
}

#[test]
fn what_is_moved_together_or_renamed_is_found() {
    let moved = pointer().places(Path::new("/new/ckpt_count_0123456789abcdef.dmtcp"));
    let dir = pointer().dir.unwrap();
    assert_eq!(moved, [Path::new("/new/.ckpt_count_0123456789abcdef"), dir.as_path()]);
    let renamed = pointer().places(Path::new("last.dmtcp"));
    let beside = Path::new("./.ckpt_count_0123456789abcdef");
    assert_eq!(renamed, [Path::new("./.last"), beside, dir.as_path()]);
}

proptest! {
    #[test]
    fn whatever_a_program_is_called_its_files_have_names_and_its_pointer_is_read(
        program in "\\PC{0,300}|[\\x00-\\xff]{0,20}", dir in "/\\PC{0,400}", host in "\\PC{0,80}",
    ) {
        let names = Names::new(OsStr::new(&program), "0123456789abcdef");
        for name in [names.pointer(), names.dir(), names.temporary(), names.script()] {
            prop_assert!(name.len() <= 255 && !name.contains('/'), "{name}");
        }
        prop_assert_eq!(Names::of_dir(Path::new(&names.dir())), Some(names));
        let pointer = Pointer { dir: Some(dir.into()), program, host, ..pointer() };
        let text = pointer.text();
        prop_assert!(text.len() as u64 <= LIMIT);
        let read = Pointer::parse(text.as_bytes());
        prop_assert!(read.is_ok_and(|read| read.job == pointer.job));
    }

    #[test]
    fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Pointer::parse(&bytes);
    }
}
