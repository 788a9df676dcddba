//! Writing and committing: what is there afterwards, and what is not when it fails.

use super::super::publish::link_new;
use super::super::{ImageError, Kind, Source, clean_temporaries, file_name, list, missing, next_id, verify};
use super::*;
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_committed_generation_is_listed_readable_only_by_its_owner() {
    let dir = scratch();
    let mut writer = writer(dir.path(), 1, 0);
    writer.put_pages(SPACE, 5, &pages([1, 0, 0, 2])).unwrap();
    writer.put_pages(SPACE, 5, &pages([3])).unwrap();
    writer.put_back_to_file(SPACE, 20, 4).unwrap();
    let summary =
        Summary { time_unix_ns: 5, freeze_us: 900, tasks: 2, program: "count".into(), ..Default::default() };
    let committed = writer.commit(b"meta", summary, || Ok(())).unwrap();
    assert_eq!(committed.path, dir.path().join("000001.ckpt"));
    assert_eq!(names(dir.path()), ["000001.ckpt"]);
    let file = std::fs::metadata(&committed.path).unwrap();
    assert_eq!(file.permissions().mode() & 0o7777, 0o600);
    let listed = list(dir.path()).unwrap();
    let found = listed[0].summary.as_ref().unwrap();
    assert_eq!(*found, committed.summary);
    assert_eq!((found.pages, found.zero_pages, found.back_to_file_pages, found.dead_pages), (2, 2, 4, 1));
    assert_eq!((found.kind(), found.bytes_stored, found.freeze_us), (Kind::Full, file.len(), 900));
    assert!(listed[0].complete && listed[0].damage.is_none());
    let json = serde_json::to_value(found).unwrap();
    assert_eq!(
        (json["kind"].as_str(), json["time"].as_str()),
        (Some("full"), Some("1970-01-01T00:00:00.000Z"))
    );
    let chain = Chain::open(dir.path(), None).unwrap().chain;
    assert_eq!(chain.newest().metadata(), b"meta");
    assert_eq!(read_page(&chain, SPACE, 5).unwrap(), page(3));
    assert_eq!(read_page(&chain, SPACE, 6).unwrap(), page(0));
    assert_eq!(read_page(&chain, SPACE, 8).unwrap(), page(2));
    assert_eq!(chain.pages(SPACE).get(20), Some(Source::BackToFile));
    assert_eq!(chain.pages(SPACE).get(9), None);
    assert_eq!(chain.spaces(), [SPACE]);
    assert_eq!(next_id(dir.path(), None).unwrap(), GenerationId(2));
    assert_eq!(next_id(dir.path(), Some(GenerationId(7))).unwrap(), GenerationId(8));
    assert_eq!(Chain::open_file(&committed.path).unwrap().generations().len(), 1);
}

#[test]
fn many_chunks_through_any_number_of_threads_read_back() {
    for (workers, codec) in [(0, Codec::Lz4), (1, Codec::Lz4), (3, Codec::Lz4), (2, Codec::None)] {
        let dir = scratch();
        let mut writer = GenerationWriter::create(dir.path(), header(1, 0), codec, workers).unwrap();
        for part in 0..40 {
            writer.put_pages(SPACE, part * 64, &pages((1..65).map(|seed| seed + part))).unwrap();
        }
        commit(writer).unwrap();
        let opened = Chain::open_checked(dir.path(), None, |done, total| assert!(done <= total)).unwrap();
        let map = opened.chain.pages(SPACE);
        assert_eq!(map.stored_pages(), 40 * 64);
        assert_eq!(map.stored_in(0..1), map);
        assert_eq!(map.stored_in(1..9).stored_pages(), 0);
        let mut reader = opened.chain.reader();
        let mut out = vec![0; PAGE_SIZE];
        for number in 0..40 * 64 {
            reader.read(&map.get(number).unwrap(), 1, &mut out).unwrap();
            assert_eq!(out, page(1 + number % 64 + number / 64), "page {number}, {workers} workers");
        }
        assert!(map.iter_range(30, 4).all(|run| run.first_page >= 30 && run.pages().end <= 34));
    }
}

#[test]
fn what_was_unmapped_in_between_does_not_come_back() {
    let dir = scratch();
    let generations = [(vec![0..10], Some(1)), (vec![0..4, 6..10], None), (vec![0..10], None)];
    for (id, (live, seed)) in (1..).zip(generations) {
        let mut writer = writer(dir.path(), id, id - 1);
        if let Some(seed) = seed {
            writer.put_pages(SPACE, 0, &pages([seed; 10])).unwrap();
        }
        writer.set_spaces(&[(SPACE, live)]).unwrap();
        commit(writer).unwrap();
    }
    let chain = Chain::open(dir.path(), None).unwrap().chain;
    let found: Vec<bool> = (0..10).map(|number| chain.pages(SPACE).get(number).is_some()).collect();
    assert_eq!(found, [true, true, true, true, false, false, true, true, true, true]);
}

#[test]
fn of_two_writers_of_one_id_the_second_fails_and_harms_nothing() {
    let dir = scratch();
    let (mut first, mut second) = (writer(dir.path(), 1, 0), writer(dir.path(), 1, 0));
    first.put_pages(SPACE, 0, &page(1)).unwrap();
    second.put_pages(SPACE, 0, &page(2)).unwrap();
    commit(first).unwrap();
    assert!(matches!(commit(second), Err(ImageError::Exists { .. })));
    assert_eq!(names(dir.path()), ["000001.ckpt"]);
    assert_eq!(read_page(&Chain::open(dir.path(), None).unwrap().chain, SPACE, 0).unwrap(), page(1));
}

#[test]
fn a_lost_lease_or_a_drop_leaves_nothing() {
    let dir = scratch();
    three_generations(dir.path());
    let refused = writer(dir.path(), 4, 3).commit(b"", Summary::default(), || Err("node b has it".into()));
    assert!(refused.unwrap_err().to_string().contains("node b has it"));
    drop(writer(dir.path(), 4, 3));
    assert_eq!(names(dir.path()), ["000001.ckpt", "000002.ckpt", "000003.ckpt"]);
}

#[test]
fn the_first_ancestor_that_is_gone_is_named() {
    let dir = scratch();
    three_generations(dir.path());
    let [one, two, three] = [1, 2, 3].map(GenerationId);
    assert_eq!(missing(dir.path(), three), None);
    assert_eq!(missing(dir.path(), GenerationId(4)), Some(GenerationId(4)));
    std::fs::remove_file(dir.path().join(file_name(one))).unwrap();
    assert_eq!(missing(dir.path(), three), Some(one));
    std::fs::copy(dir.path().join(file_name(three)), dir.path().join(file_name(two))).unwrap();
    assert_eq!(missing(dir.path(), three), Some(two), "another one has its name");
}

#[test]
fn only_temporaries_of_dead_writers_are_cleaned() {
    let dir = scratch();
    let alive = writer(dir.path(), 1, 0);
    let dead = format!(".{}.0-0.tmp", file_name(GenerationId(7)));
    std::fs::write(dir.path().join(&dead), b"half").unwrap();
    for name in [".mine.ckpt.1-1.tmp", ".mine.tmp"] {
        std::fs::write(dir.path().join(name), b"not ours").unwrap();
    }
    assert_eq!(clean_temporaries(dir.path()).unwrap(), 4);
    assert!(!names(dir.path()).contains(&dead));
    commit(alive).unwrap();
    assert_eq!(names(dir.path()), [".mine.ckpt.1-1.tmp", ".mine.tmp", "000001.ckpt"]);
}

#[test]
fn calls_out_of_bounds_are_errors() {
    let dir = scratch();
    let mut open = writer(dir.path(), 1, 0);
    assert!(matches!(open.put_pages(SPACE, 0, &[1; 100]), Err(ImageError::Misuse(_))));
    assert!(matches!(open.put_pages(SPACE, u64::MAX, &page(1)), Err(ImageError::Misuse(_))));
    assert!(matches!(open.put_zero(SPACE, 1 << 51, 1 << 52), Err(ImageError::Misuse(_))));
    assert!(matches!(open.set_spaces(&[(SPACE, vec![0..u64::MAX])]), Err(ImageError::Misuse(_))));
    for (id, parent) in [(0, 0), (3, 3), (3, 4)] {
        assert!(GenerationWriter::create(dir.path(), header(id, parent), Codec::None, 0).is_err());
    }
    let mut unknown = header(1, 0);
    unknown.features.push("holograms".into());
    assert!(GenerationWriter::create(dir.path(), unknown, Codec::None, 0).is_err());
    three_generations(dir.path());
    let chain = Chain::open(dir.path(), None).unwrap().chain;
    let mut reader = chain.reader();
    let mut out = vec![0; 17 * PAGE_SIZE];
    let wrong = [
        Source::BackToFile,
        Source::Stored { generation: 3, block: 0, index: 0 },
        Source::Stored { generation: 0, block: 1, index: 0 },
        Source::Stored { generation: 0, block: chain.generations()[0].index.blocks[0].offset, index: 0 },
    ];
    for source in wrong {
        assert!(matches!(reader.read(&source, 17, &mut out), Err(ImageError::Misuse(_))), "{source:?}");
    }
    assert!(reader.read(&Source::Zero, 3, &mut out).is_err());
}

/// Mounted for one test.
struct Mount(tempfile::TempDir);

impl Mount {
    fn tmpfs(options: &str) -> Option<Mount> {
        use nix::mount::{MsFlags, mount};
        let dir = tempfile::tempdir().unwrap();
        match mount(Some("ckptbpf-test"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options)) {
            Ok(()) => Some(Mount(dir)),
            Err(error) => {
                let why = format!("a full and a read-only disk need a tmpfs of their own: {error}");
                crate::skipped::because(&why);
                None
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_and_a_read_only_disk_are_named_and_lose_nothing() {
    use nix::mount::{MsFlags, mount};
    let Some(disk) = Mount::tmpfs("size=1m") else { return };
    let dir = disk.0.path();
    three_generations(dir);
    let before = names(dir);
    let mut large = GenerationWriter::create(dir, header(4, 3), Codec::None, 2).unwrap();
    let put = large.put_pages(SPACE, 0, &pages(1..1000)).and_then(|()| commit(large));
    let error = put.unwrap_err();
    assert!(matches!(error, ImageError::Full { .. }), "{error}");
    assert!(error.to_string().contains("free some"), "{error}");
    assert_eq!(names(dir), before);
    assert!(verify(dir, |_, _| ()).unwrap().all_restartable());
    // Room for the next one, since the half one is gone.
    let mut small = writer(dir, 4, 3);
    small.put_pages(SPACE, 0, &page(9)).unwrap();
    commit(small).unwrap();
    mount(None::<&str>, dir, None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>).unwrap();
    let refused = GenerationWriter::create(dir, header(5, 4), Codec::None, 0);
    assert!(matches!(refused, Err(ImageError::ReadOnly { .. })));
    assert_eq!(Chain::open(dir, None).unwrap().chain.newest().header().id, GenerationId(4));
}

#[test]
fn limits_of_disk_quota_and_file_size_each_have_their_remedy() {
    let path = Path::new("000001.ckpt");
    let text = |number| ImageError::io("write", path, std::io::Error::from_raw_os_error(number)).full_text();
    assert!(text(libc::ENOSPC).contains("free some"));
    assert!(text(libc::EDQUOT).contains("quota -s"));
    assert!(text(libc::EROFS).contains("choose a directory"));
    assert!(text(libc::EFBIG).contains("ulimit -f"));
    assert!(text(libc::EIO).starts_with("cannot write 000001.ckpt: "));
}

#[test]
fn the_rename_for_file_systems_without_the_flag_does_not_replace_either() {
    let dir = scratch();
    let [first, second, name] = ["a", "b", "name"].map(|name| dir.path().join(name));
    std::fs::write(&first, "first").unwrap();
    std::fs::write(&second, "second").unwrap();
    link_new(&first, &name).unwrap();
    assert_eq!(link_new(&second, &name).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&name).unwrap(), "first");
    assert_eq!(names(dir.path()), ["b", "name"]);
}
