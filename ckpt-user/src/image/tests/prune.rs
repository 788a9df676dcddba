//! Pruning beside readers, with damage, with a lost lease.

use super::super::{Generation, ImageError, prune, verify};
use super::*;

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
