//! Pruning beside readers, with damage, with a lost lease.

use super::super::{Generation, ImageError, Unsound, prune, prune_while, verify};
use super::*;
use std::cell::Cell;
use std::collections::BTreeMap;

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_merged_generation_is_full_smaller_than_its_parts_and_reads_the_same() {
    let dir = scratch();
    three_generations(dir.path());
    let before = Chain::open(dir.path(), None).unwrap().chain;
    let map = before.pages(SPACE);
    let parts: u64 = before.generations().iter().map(Generation::file_length).sum();
    let expected: Vec<_> = (0..60).map(|number| read_page(&before, SPACE, number)).collect();
    let held = prune(dir.path(), 1, &[], || Ok(())).unwrap();
    assert_eq!((held.merged, held.deleted.len(), held.in_use.len()), (None, 0, 3), "all in use");
    drop(before);
    let report = prune(dir.path(), 1, &[], || Ok(())).unwrap();
    assert_eq!((report.merged, report.deleted.len()), (Some(GenerationId(3)), 2));
    assert_eq!(names(dir.path()), ["000003.ckpt"]);
    let after = Chain::open_checked(dir.path(), None, |_, _| ()).unwrap().chain;
    assert_eq!(after.newest().header().parent, None);
    assert_eq!(after.newest().metadata(), b"metadata of the tasks");
    assert_eq!(after.newest().summary().dead_pages, 0);
    assert_eq!(report.bytes_freed, (parts - after.newest().file_length()).cast_signed());
    assert_eq!(after.pages(SPACE).stored_pages(), map.stored_pages());
    let found: Vec<_> = (0..60).map(|number| read_page(&after, SPACE, number)).collect();
    assert!(found == expected);
}

#[test]
fn a_reader_that_came_before_the_merge_goes_on_reading() {
    let dir = scratch();
    three_generations(dir.path());
    let old = Chain::open(dir.path(), Some(GenerationId(1))).unwrap().chain;
    let expected = read_page(&old, SPACE, 12).unwrap();
    let mut reader = old.reader();
    let source = old.pages(SPACE).get(12).unwrap();
    drop(old);
    let report = prune(dir.path(), 1, &[], || Ok(())).unwrap();
    assert_eq!(
        (report.merged, report.in_use),
        (Some(GenerationId(3)), vec![GenerationId(1)]),
        "the reader holds 1"
    );
    assert_eq!(report.deleted, [GenerationId(2)]);
    let mut out = [0; PAGE_SIZE];
    reader.read(&source, 1, &mut out).unwrap();
    assert!(out[..] == expected);
    drop(reader);
    assert_eq!(prune(dir.path(), 1, &[], || Ok(())).unwrap().deleted, [GenerationId(1)]);
}

#[test]
fn damage_met_while_merging_leaves_everything_as_it_was() {
    let dir = scratch();
    three_generations(dir.path());
    // In the first block of the first generation.
    flip(&dir.path().join("000001.ckpt"), 200);
    let before = names(dir.path());
    let error = prune(dir.path(), 1, &[], || Ok(())).unwrap_err();
    assert!(error.to_string().contains("000001.ckpt: damaged page block"), "{error}");
    assert_eq!(names(dir.path()), before);
}

#[test]
fn a_damaged_newest_generation_is_told_and_left() {
    let dir = scratch();
    three_generations(dir.path());
    let path = dir.path().join("000003.ckpt");
    flip(&path, std::fs::metadata(&path).unwrap().len() as usize - 200);
    let report = prune(dir.path(), 1, &[], || Ok(())).unwrap();
    assert_eq!((report.kept, report.damaged.len()), (vec![GenerationId(2)], 1));
    assert_eq!(names(dir.path()), ["000002.ckpt", "000003.ckpt"]);
    let report = verify(dir.path(), |_, _| ()).unwrap();
    assert_eq!(report.generations.iter().map(|found| found.restartable).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn a_lease_lost_at_any_step_stops_the_prune_there() {
    for steps in 0..4 {
        let dir = scratch();
        three_generations(dir.path());
        let mut left = steps;
        let result = prune(dir.path(), 1, &[], || match left {
            0 => Err("node b has it".into()),
            _ => {
                left -= 1;
                Ok(())
            }
        });
        assert_eq!(matches!(result, Err(ImageError::Lease { .. })), steps < 3);
        assert_eq!(names(dir.path()).len(), [3, 3, 2, 1][steps]);
        assert!(verify(dir.path(), |_, _| ()).unwrap().all_restartable());
    }
}

#[test]
fn readers_beside_a_writer_that_prunes_always_find_a_whole_chain() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let dir = scratch();
    let newest = AtomicU64::new(0);
    let rounds = 120;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for id in 1..=rounds {
                let mut writer = writer(dir.path(), id, id - 1);
                writer.put_pages(SPACE, id % 7, &pages(id..id + 3)).unwrap();
                writer.put_pages(SPACE, 100, &page(id)).unwrap();
                commit(writer).unwrap();
                newest.store(id, Ordering::Release);
                prune(dir.path(), 2, &[], || Ok(())).unwrap();
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while newest.load(Ordering::Acquire) < rounds {
                    let least = newest.load(Ordering::Acquire);
                    if least == 0 {
                        continue;
                    }
                    let opened = Chain::open_checked(dir.path(), None, |_, _| ()).unwrap();
                    assert!(opened.warnings.is_empty(), "{:?}", opened.warnings);
                    let id = opened.chain.newest().header().id.0;
                    assert!(id >= least);
                    assert!(read_page(&opened.chain, SPACE, 100).unwrap() == page(id));
                    drop(opened);
                    // Or the two readers would between them hold every generation all the time.
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            });
        }
    });
    prune(dir.path(), 2, &[], || Ok(())).unwrap();
    assert_eq!(names(dir.path()).len(), 2);
}

#[test]
fn root_does_not_make_a_users_image_its_own() {
    use std::os::unix::fs::chown;
    if crate::skipped::without_root() {
        return;
    }
    let dir = scratch();
    three_generations(dir.path());
    chown(dir.path().join("000001.ckpt"), Some(4711), None).unwrap();
    let mixed = Chain::open(dir.path(), Some(GenerationId(2))).unwrap_err();
    assert!(matches!(mixed, ImageError::MixedOwners { found: 4711, expected: 0, .. }), "{mixed}");
    chown(dir.path().join("000002.ckpt"), Some(4711), None).unwrap();
    chown(dir.path().join("000003.ckpt"), Some(4711), None).unwrap();
    assert_eq!(Chain::open(dir.path(), None).unwrap().chain.owner_uid(), 4711);
    let error = prune(dir.path(), 1, &[], || Ok(())).unwrap_err();
    assert!(error.to_string().contains("sudo -u '#4711'"), "{error}");
    assert_eq!(names(dir.path()).len(), 3);
}

#[test]
fn a_merge_that_is_given_up_changes_nothing() {
    let all = |dir: &Path| {
        let read = |entry: std::fs::DirEntry| (entry.file_name(), std::fs::read(entry.path()).unwrap());
        std::fs::read_dir(dir).unwrap().map(|entry| read(entry.unwrap())).collect::<BTreeMap<_, _>>()
    };
    let dir = scratch();
    three_generations(dir.path());
    let before = all(dir.path());
    for looks in 0.. {
        let asked = Cell::new(0);
        let goes_on = |_, _| asked.replace(asked.get() + 1) < looks;
        let report = prune_while(dir.path(), 1, (&[], &Unsound::new()), || Ok(()), &goes_on).unwrap();
        if report.merged.is_some() {
            assert!(looks > 1, "it looks at each block");
            return;
        }
        assert!(report.deleted.is_empty());
        assert_eq!(all(dir.path()), before);
    }
}
