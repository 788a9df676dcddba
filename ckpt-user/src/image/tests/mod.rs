//! Tests of the image, in files by what they show. The helpers are here.

mod model;

use super::{
    Chain, Codec, Committed, GenerationId, GenerationWriter, Header, ImageError, PAGE_SIZE, SpaceId, Summary,
};
use std::path::Path;

const SPACE: SpaceId = SpaceId(1);

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
