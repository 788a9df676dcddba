//! Damage anywhere: never a panic, always noticed, the generation before is taken.

use super::super::footer::FOOTER;
use super::super::{Fault, Generation, GenerationId, ImageError, Section, prune, verify};
use super::*;
use std::os::unix::fs::FileExt;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Where the sections of a good file begin and end: header, blocks, index, metadata, summary, footer.
fn boundaries(bytes: &[u8]) -> Vec<usize> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let footer = bytes.len() - FOOTER;
    let mut at = vec![0, word(footer + 8)];
    at.extend([24, 48, 72].map(|section| word(footer + section)));
    at.extend([footer, bytes.len()]);
    at
}

/// Every 97th byte, and each side of every boundary.
fn places(bytes: &[u8]) -> Vec<usize> {
    let edges = boundaries(bytes).into_iter().flat_map(|at| [at.saturating_sub(1), at]);
    edges.chain((0..bytes.len()).step_by(97)).filter(|at| *at < bytes.len()).collect()
}

fn expect_fallback(dir: &Path, context: &str) {
    let opened = Chain::open_checked(dir, None, |_, _| ()).unwrap();
    assert_eq!(opened.chain.newest().header().id, GenerationId(2), "{context}");
    assert_eq!(opened.warnings.len(), 1, "{context}");
    assert!(opened.warnings[0].contains("000003.ckpt"), "{}", opened.warnings[0]);
    assert!(opened.warnings[0].ends_with("taking checkpoint 2 instead"), "{}", opened.warnings[0]);
    assert!(Chain::open_checked(dir, Some(GenerationId(3)), |_, _| ()).is_err(), "{context}");
}

#[test]
fn a_file_cut_anywhere_is_incomplete_and_the_one_before_is_taken() {
    let dir = scratch();
    three_generations(dir.path());
    let path = dir.path().join("000003.ckpt");
    let good = std::fs::read(&path).unwrap();
    for length in places(&good) {
        std::fs::write(&path, &good[..length]).unwrap();
        let error = Generation::open(&path).unwrap_err();
        assert!(matches!(error, ImageError::Refused { .. }), "{length}: {error}");
        expect_fallback(dir.path(), &format!("cut to {length} bytes"));
    }
    std::fs::write(&path, [&good[..], b"more"].concat()).unwrap();
    expect_fallback(dir.path(), "longer");
}

#[test]
fn a_flipped_bit_anywhere_is_noticed_named_by_section_and_the_one_before_is_taken() {
    let dir = scratch();
    three_generations(dir.path());
    let path = dir.path().join("000003.ckpt");
    let good = std::fs::read(&path).unwrap();
    let edges = boundaries(&good);
    let sections = [
        Section::Header,
        Section::Block,
        Section::Index,
        Section::Metadata,
        Section::Summary,
        Section::Footer,
    ];
    for at in places(&good) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bad).unwrap();
        expect_fallback(dir.path(), &format!("byte {at}"));
        let section = sections[edges.iter().rposition(|edge| *edge <= at).unwrap()];
        let error =
            Generation::open(&path).and_then(|generation| generation.check_blocks(&mut |_| ())).unwrap_err();
        let ImageError::Refused { fault, .. } = error else { panic!("byte {at}: {error}") };
        match fault {
            Fault::Damaged { section: found, .. } => assert_eq!(found, section, "byte {at}"),
            // The first 16 bytes say what the file is and how long the header, the last 8 that it is whole.
            other => assert!(at < 16 || at >= good.len() - 8, "byte {at}: {other}"),
        }
        let report = verify(dir.path(), |_, _| ()).unwrap();
        let whole: Vec<bool> = report.generations.iter().map(|found| found.restartable).collect();
        assert_eq!(whole, [true, true, false], "byte {at}");
    }
}

#[test]
fn damage_in_the_first_generation_leaves_nothing_to_restart_from() {
    let dir = scratch();
    three_generations(dir.path());
    let path = dir.path().join("000001.ckpt");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = boundaries(&bytes)[1] + 100;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = Chain::open_checked(dir.path(), None, |_, _| ()).unwrap_err();
    let ImageError::AllDamaged { faults, .. } = &error else { panic!("{error}") };
    assert_eq!(faults.len(), 3);
    assert!(error.to_string().contains("000001.ckpt: damaged page block"), "{error}");
}

#[test]
fn after_a_restart_at_an_older_one_the_one_before_is_its_parent() {
    let dir = scratch();
    three_generations(dir.path());
    commit(writer(dir.path(), 4, 1)).unwrap();
    let path = dir.path().join("000004.ckpt");
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    let end = bad.len() - 150;
    bad[end] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let opened = Chain::open(dir.path(), None).unwrap();
    assert_eq!(opened.chain.newest().header().id, GenerationId(1));
    bad[20] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let opened = Chain::open(dir.path(), None).unwrap();
    assert_eq!(opened.chain.newest().header().id, GenerationId(3), "the parent cannot be known");
}

/// xorshift64*: a seed gives the same damage everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

/// Makes every checksum right again, as somebody would who crafts an image.
fn sign(bytes: &mut [u8], good: &[u8]) {
    let edges = boundaries(good);
    let header = edges[1];
    let sum = xxh3_64(&bytes[..header - 8]);
    bytes[header - 8..header].copy_from_slice(&sum.to_le_bytes());
    let mut at = header;
    for number in 0.. {
        let word = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().unwrap()) as usize;
        if at >= edges[2] {
            break;
        }
        let end = at + 16 + word(at + 8);
        let sum = xxh3_64_with_seed(&bytes[at + 8..end], number);
        bytes[at..at + 8].copy_from_slice(&sum.to_le_bytes());
        at = end;
    }
    let footer = edges[5];
    let ranges = [0..header, edges[2]..edges[3], edges[3]..edges[4], edges[4]..footer];
    for (place, range) in (16..).step_by(24).zip(ranges) {
        let sum = xxh3_64(&bytes[range]);
        bytes[footer + place..footer + place + 8].copy_from_slice(&sum.to_le_bytes());
    }
    let sum = xxh3_64(&bytes[footer..footer + 112]);
    bytes[footer + 112..footer + 120].copy_from_slice(&sum.to_le_bytes());
}

/// Does with a directory all that a reader can.
fn exercise(dir: &Path) {
    let _ = verify(dir, |_, _| ());
    let _ = Chain::open_checked(dir, None, |_, _| ());
    let Ok(opened) = Chain::open(dir, None) else { return };
    let mut reader = opened.chain.reader();
    let mut out = vec![0; 16 * PAGE_SIZE];
    for space in opened.chain.spaces() {
        let map = opened.chain.pages(space);
        for run in map.runs().iter().filter(|run| run.count <= 16) {
            let _ = reader.read_run(run, &mut out[..run.count as usize * PAGE_SIZE]);
        }
        let _ = map.iter_range(5, u64::MAX).count();
    }
    drop((opened, reader));
    let _ = prune(dir, 1, &[], || Ok(()));
}

#[test]
fn two_thousand_mutated_images_cause_no_panic() {
    let dir = scratch();
    three_generations(dir.path());
    let path = dir.path().join("000003.ckpt");
    let good = std::fs::read(&path).unwrap();
    let edges = boundaries(&good);
    let mut random = Random(0x5eed);
    for round in 0..2000 {
        let mut bad = good.clone();
        // Most of the damage where the structure is; most of it signed, or checksums would hide the rest.
        let section = [0, 1, 2, 2, 2, 3, 4, 5][random.below(8)];
        for _ in 0..=random.below(4) {
            let at = edges[section] + random.below(edges[section + 1] - edges[section]);
            bad[at] = match random.below(4) {
                0 => 0,
                1 => 0xff,
                2 => bad[at] ^ 1 << random.below(8),
                _ => random.below(256) as u8,
            };
        }
        if round % 4 != 0 {
            sign(&mut bad, &good);
        }
        let copy = copy(dir.path());
        let file = std::fs::File::create(copy.path().join("000003.ckpt")).unwrap();
        file.write_all_at(&bad, 0).unwrap();
        drop(file);
        exercise(copy.path());
    }
}

#[test]
fn a_name_that_is_a_link_is_no_generation() {
    let (dir, elsewhere) = (scratch(), scratch());
    three_generations(dir.path());
    let path = dir.path().join("000003.ckpt");
    let moved = elsewhere.path().join("000003.ckpt");
    std::fs::rename(&path, &moved).unwrap();
    let good = std::fs::read(&moved).unwrap();
    std::os::unix::fs::symlink(&moved, &path).unwrap();
    expect_fallback(dir.path(), "a link");
    prune(dir.path(), 1, &[], || Ok(())).unwrap();
    assert_eq!(std::fs::read(&moved).unwrap(), good);
    assert!(Generation::open(&path).is_ok(), "who names the file itself means what it leads to");
}

#[test]
fn the_highest_number_has_no_next_one() {
    let dir = scratch();
    std::fs::write(dir.path().join(format!("{}.ckpt", u64::MAX)), "").unwrap();
    let error = super::super::next_id(dir.path(), None).unwrap_err();
    assert!(matches!(error, ImageError::NoIdLeft { .. }), "{error}");
}
