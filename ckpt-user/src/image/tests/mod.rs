//! Tests of the image, in files by what they show. The helpers are here.
// A space with one live range is the usual case, not a mistaken `vec![0; n]`.
#![allow(clippy::single_range_in_vec_init)]

mod damage;
mod model;
mod prune;
mod pure;
mod refuse;
mod speed;
mod write;

use super::{
    Chain, Codec, Committed, GenerationId, GenerationWriter, Header, ImageError, PAGE_SIZE, SpaceId, Summary,
};
use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;
use std::path::Path;

const SPACE: SpaceId = SpaceId(1);

/// The same cases at every run, others with another `CKPTBPF_SEED` (`cargo xtask soak`).
fn cases(cases: u32) -> ProptestConfig {
    let seed = std::env::var("CKPTBPF_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// In memory where that is possible: these tests make thousands of files durable.
fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir()
        && let Ok(dir) = tempfile::tempdir_in(shm)
    {
        return dir;
    }
    tempfile::tempdir().unwrap()
}

fn header(id: u64, parent: u64) -> Header {
    Header {
        id: GenerationId(id),
        parent: (parent > 0).then_some(GenerationId(parent)),
        job: *b"0123456789abcdef",
        features: Vec::new(),
        created_unix_ns: 1_000_000_000,
    }
}

fn writer(dir: &Path, id: u64, parent: u64) -> GenerationWriter {
    GenerationWriter::create(dir, header(id, parent), Codec::Lz4, 0).unwrap()
}

fn commit(writer: GenerationWriter) -> Result<Committed, ImageError> {
    let summary = Summary { tasks: 1, program: "count".into(), ..Summary::default() };
    writer.commit(b"metadata of the tasks", summary, || Ok(()))
}

/// The contents that `seed` stands for: zeros (0), text-like (odd), or noise (even).
fn page(seed: u64) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in page.as_chunks_mut::<8>().0 {
        if seed != 0 && seed.is_multiple_of(2) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        *word = state.to_le_bytes();
    }
    page
}

fn pages(seeds: impl IntoIterator<Item = u64>) -> Vec<u8> {
    seeds.into_iter().flat_map(page).collect()
}

/// The contents of one page at the newest generation of `chain`; `None` where there are none.
fn read_page(chain: &Chain, space: SpaceId, number: u64) -> Option<Vec<u8>> {
    let source = chain.pages(space).get(number)?;
    let mut out = vec![1; PAGE_SIZE];
    chain.reader().read(&source, 1, &mut out).unwrap();
    Some(out)
}

/// A copy of a directory: what a crash would leave of it.
fn copy(dir: &Path) -> tempfile::TempDir {
    let copy = scratch();
    for name in names(dir) {
        std::fs::copy(dir.join(&name), copy.path().join(&name)).unwrap();
    }
    copy
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Three generations of one space, every kind of block and entry in each.
fn three_generations(dir: &Path) {
    for id in 1..=3 {
        let mut writer = writer(dir, id, id - 1);
        writer.put_pages(SPACE, 10 * id, &pages((1..40).map(|seed| seed + id))).unwrap();
        writer.put_zero(SPACE, 100 + id, 3).unwrap();
        writer.put_back_to_file(SPACE, 200 + id, 3).unwrap();
        writer.set_spaces(&[(SPACE, vec![0..1000])]).unwrap();
        commit(writer).unwrap();
    }
}
