//! Files that are refused for a reason with a name.

use super::super::{Fault, Generation, ImageError, Section, verify};
use super::*;
use xxhash_rust::xxh3::xxh3_64;

fn one(dir: &Path) -> Vec<u8> {
    let mut writer = writer(dir, 1, 0);
    writer.put_pages(SPACE, 0, &pages(1..20)).unwrap();
    std::fs::read(commit(writer).unwrap().path).unwrap()
}

fn fault(bytes: &[u8]) -> Fault {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    match Generation::open(file.path()) {
        Err(ImageError::Refused { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

/// Changes the header and signs it again.
fn with_header(bytes: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    change(&mut bytes[..length - 8]);
    let checksum = xxh3_64(&bytes[..length - 8]);
    bytes[length - 8..length].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn text_mode_damage_is_called_that() {
    let dir = scratch();
    let bytes = one(dir.path());
    let unix =
        bytes.iter().enumerate().filter(|(at, byte)| !(**byte == b'\r' && bytes.get(at + 1) == Some(&b'\n')));
    assert_eq!(fault(&unix.map(|(_, byte)| *byte).collect::<Vec<_>>()), Fault::TextMode);
    let dos: Vec<u8> =
        bytes.iter().flat_map(|byte| if *byte == b'\n' { vec![b'\r', b'\n'] } else { vec![*byte] }).collect();
    assert_eq!(fault(&dos), Fault::TextMode);
    assert_eq!(fault(&bytes.iter().map(|byte| byte & 0x7f).collect::<Vec<_>>()), Fault::TextMode);
    assert_eq!(fault(String::from_utf8_lossy(&bytes).as_bytes()), Fault::TextMode);
    assert_eq!(fault(b"#!/bin/sh\necho this is a script, not a checkpoint\n"), Fault::NotAnImage);
    assert_eq!(fault(b""), Fault::NotAnImage);
}

#[test]
fn a_version_from_the_future_and_an_unknown_feature_are_named() {
    let dir = scratch();
    let bytes = one(dir.path());
    let newer = with_header(&bytes, |header| header[8] = 9);
    assert_eq!(fault(&newer), Fault::FutureVersion { found: 9 });
    assert!(fault(&newer).to_string().contains("format version 9"));
    let feature = with_header(&bytes, |header| {
        let name = header.len() - 3;
        header[name..].copy_from_slice(b"zip");
    });
    assert_eq!(fault(&feature), Fault::UnknownFeature { name: "zip".into() });
    // prune does not touch what a newer version may need.
    std::fs::write(dir.path().join("000002.ckpt"), newer).unwrap();
    let error = super::super::prune(dir.path(), 1, &[], || Ok(())).unwrap_err();
    assert!(error.to_string().contains("newer ckptbpf"), "{error}");
}

#[test]
fn a_renamed_file_a_missing_parent_and_another_jobs_parent_are_refused() {
    let dir = scratch();
    three_generations(dir.path());
    let path = |id| dir.path().join(super::super::file_name(GenerationId(id)));
    std::fs::copy(path(3), path(4)).unwrap();
    let error = Chain::open(dir.path(), Some(GenerationId(4))).unwrap_err();
    assert!(error.to_string().contains("generation 3: was it renamed?"), "{error}");
    std::fs::remove_file(path(4)).unwrap();
    std::fs::rename(path(1), dir.path().join("kept")).unwrap();
    let error = Chain::open(dir.path(), Some(GenerationId(3))).unwrap_err();
    assert!(matches!(error, ImageError::MissingParent { parent: GenerationId(1), .. }), "{error}");
    assert!(matches!(Chain::open(dir.path(), None), Err(ImageError::AllDamaged { .. })));
    assert!(!verify(dir.path(), |_, _| ()).unwrap().all_restartable());
    let mut stranger = header(1, 0);
    stranger.job = [9; 16];
    commit(GenerationWriter::create(dir.path(), stranger, Codec::None, 0).unwrap()).unwrap();
    let error = Chain::open(dir.path(), Some(GenerationId(3))).unwrap_err();
    assert!(error.to_string().contains("another job"), "{error}");
    let missing = Chain::open(dir.path(), Some(GenerationId(9))).unwrap_err();
    assert!(matches!(missing, ImageError::NoSuchGeneration { .. }));
    assert!(matches!(Chain::open(scratch().path(), None), Err(ImageError::NoGenerations { .. })));
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let dir = scratch();
    nix::unistd::mkfifo(&dir.path().join("000001.ckpt"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::create_dir(dir.path().join("000002.ckpt")).unwrap();
    for id in [1, 2] {
        let error = Chain::open(dir.path(), Some(GenerationId(id))).unwrap_err();
        assert!(matches!(error, ImageError::Refused { fault: Fault::NotAnImage, .. }), "{error}");
    }
}

#[test]
fn a_sparse_file_that_claims_huge_sections_allocates_nothing() {
    let dir = scratch();
    let mut bytes = one(dir.path());
    let header = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let at = bytes.len() - 128;
    let length = 1u64 << 40;
    let word = |value: u64| value.to_le_bytes();
    let mut footer = bytes.split_off(at);
    let sections = [(header as u64, length - header as u64 - 128), (length - 128, 0), (length - 128, 0)];
    for (place, (offset, size)) in (24..).step_by(24).zip(sections) {
        footer[place..place + 8].copy_from_slice(&word(offset));
        footer[place + 8..place + 16].copy_from_slice(&word(size));
    }
    footer[96..104].copy_from_slice(&word(length));
    let checksum = xxh3_64(&footer[..112]);
    footer[112..120].copy_from_slice(&word(checksum));
    let path = dir.path().join("000002.ckpt");
    let file = std::fs::File::create(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[..header], 0).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &footer, length - 128).unwrap();
    let Err(ImageError::Refused { fault, .. }) = Generation::open(&path) else { panic!("opened") };
    assert_eq!(fault, Fault::damaged(Section::Footer, "a section larger than any writer makes"));
}
