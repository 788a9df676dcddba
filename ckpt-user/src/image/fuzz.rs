//! The parts of [`crate::fuzz`] that stand below this module's checksums.

use super::block::{self, BLOCK_BYTES, BLOCK_HEADER};
use super::footer::{FOOTER, Footer};
use super::index::Index;
use super::publish::file_name;
use super::{
    Chain, Codec, Generation, GenerationId, GenerationWriter, Header, PAGE_SIZE, Source, SpaceId, Summary,
    chain, header, list, merge, prune, publish, rfc3339, verify,
};
use prost::Message;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// A header with its checksum made right.
pub(crate) fn header(bytes: &[u8]) {
    let _ = header::header_length(bytes, bytes.len() as u64);
    let mut bytes = bytes.to_vec();
    if let Some((body, checksum)) = bytes.split_last_chunk_mut::<8>() {
        *checksum = xxh3_64(body).to_le_bytes();
    }
    if let Ok(header) = Header::decode(&bytes) {
        assert_eq!(Header::decode(&header.encode()).as_ref(), Ok(&header));
    }
}

/// A footer of a file that is as long as it says.
pub(crate) fn footer(bytes: &[u8]) {
    let length = word(bytes, 96);
    let _ = Footer::decode(bytes, length as u64);
    let mut bytes = bytes.to_vec();
    if bytes.len() != FOOTER {
        return;
    }
    sign_footer(&mut bytes, 0);
    if let Ok(footer) = Footer::decode(&bytes, length as u64) {
        assert_eq!(footer.encode(), bytes);
    }
}

/// An index whose blocks end where it says.
pub(crate) fn index(bytes: &[u8]) {
    const START: u64 = 66;
    let count = bytes.first_chunk::<4>().map_or(0, |count| u32::from_le_bytes(*count)) as usize;
    let rows = bytes.get(12..).unwrap_or_default().as_chunks::<4>().0;
    let stored = |row: &[u8; 4]| u64::from(u32::from_le_bytes(*row) & 0xff_ffff) + BLOCK_HEADER as u64;
    let end = START + rows.iter().take(count).map(stored).sum::<u64>();
    if let Ok(index) = Index::decode(bytes, START..end) {
        assert_eq!(index.encode(), bytes);
        for (number, block) in index.blocks.iter().enumerate() {
            assert_eq!(index.block_at(block.offset), Some(number));
        }
    }
}

/// Pages, codec, payload.
pub(crate) fn block(bytes: &[u8]) {
    let [pages, codec, payload @ ..] = bytes else { return };
    let pages = pages % 16 + 1;
    let mut block = vec![0; 8];
    block.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    block.extend_from_slice(&[*codec, pages, 0, 0]);
    block.extend_from_slice(payload);
    block::seal(7, &mut block);
    let mut out = vec![0; usize::from(pages) * PAGE_SIZE];
    let _ = block::check(7, pages, &block);
    let _ = block::decode(7, pages, &block, &mut out);
    let _ = block::decode(7, pages, bytes, &mut out);
}

/// A summary, and what `list` makes of it.
pub(crate) fn summary(bytes: &[u8]) {
    if let Ok(summary) = Summary::decode(bytes) {
        let _ = serde_json::to_value(&summary);
        let _ = rfc3339(summary.time_unix_ns);
    }
}

/// One file, opened and read as a whole: as it is, and with its lengths and checksums made right.
pub(crate) fn generation(bytes: &[u8]) {
    let scratch = Scratch::new();
    let path = scratch.0.join("image");
    let mut signed = bytes.to_vec();
    repair(&mut signed);
    for bytes in [bytes, &signed] {
        if std::fs::write(&path, bytes).is_ok()
            && let Ok(generation) = Generation::open(&path)
        {
            let _ = generation.check_blocks(&mut |_| ());
        }
    }
}

/// Files, newest first, each behind its length: a chain, if they are one. Merging it changes no page; what is not one
/// is listed, verified and pruned all the same.
pub(crate) fn chain(bytes: &[u8]) {
    let scratch = Scratch::new();
    let files = scratch.put(bytes);
    let _ = list::list(&scratch.0);
    let _ = verify::verify(&scratch.0, |_, _| ());
    let generations = || files.iter().map(|path| Generation::open(path)).collect::<Result<Vec<_>, _>>();
    if let Ok(chain) = generations().and_then(Chain::from_generations) {
        let (id, before) = (chain.newest().header().id, contents(&chain));
        if let Ok(Some(_)) = merge::merge(&scratch.0, chain, &mut || Ok(()), &|_, _| true) {
            let merged = chain::named(&scratch.0.join(file_name(id)), id);
            let after = merged.and_then(|merged| Chain::from_generations(vec![merged])).map(|c| contents(&c));
            assert_eq!(after.ok(), Some(before), "merging has changed pages");
        }
    }
    let _ = prune::prune(&scratch.0, 1, &[], || Ok(()));
}

/// The generation that a file name stands for. What stands for one leads nowhere else.
pub(crate) fn name(text: &str) -> Option<u64> {
    let id = publish::parse_name(text)?;
    assert_eq!(Path::new(&file_name(id)).components().count(), 1);
    Some(id.0)
}

#[derive(Debug, PartialEq)]
enum Content {
    Zero,
    BackToFile,
    /// By hash.
    Page(u64),
    Damaged,
}

/// What the chain has in each space: space, first page, page behind the last.
fn contents(chain: &Chain) -> Vec<(SpaceId, u64, u64, Content)> {
    let mut all: Vec<(SpaceId, u64, u64, Content)> = Vec::new();
    let mut reader = chain.reader();
    let mut out = vec![0; BLOCK_BYTES];
    for space in chain.spaces() {
        let map = chain.pages(space);
        assert!(map.runs().windows(2).all(|pair| pair[0].pages().end <= pair[1].first_page));
        for run in map.runs() {
            let content = match run.source {
                Source::Zero => Content::Zero,
                Source::BackToFile => Content::BackToFile,
                Source::Stored { .. } => {
                    let bytes = &mut out[..run.count as usize * PAGE_SIZE];
                    let read = reader.read_run(run, bytes);
                    for (page, bytes) in run.pages().zip(bytes.chunks_exact(PAGE_SIZE)) {
                        let content =
                            read.as_ref().map_or(Content::Damaged, |()| Content::Page(xxh3_64(bytes)));
                        all.push((space, page, page + 1, content));
                    }
                    continue;
                }
            };
            match all.last_mut() {
                Some(last) if last.0 == space && last.2 == run.first_page && last.3 == content => {
                    last.2 = run.pages().end;
                }
                _ => all.push((space, run.first_page, run.pages().end, content)),
            }
        }
    }
    all
}

fn word(bytes: &[u8], at: usize) -> usize {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    word.map_or(0, |word| usize::try_from(u64::from_le_bytes(*word)).unwrap_or(usize::MAX))
}

fn put(bytes: &mut [u8], at: usize, word: u64) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<8>()) {
        *place = word.to_le_bytes();
    }
}

/// Lengths and checksums as somebody would make them who crafts an image.
fn repair(bytes: &mut [u8]) {
    let Some(footer) = bytes.len().checked_sub(FOOTER) else { return };
    let header = (word(bytes, 12) & 0xffff_ffff).clamp(8, footer.max(8));
    if header > footer {
        return;
    }
    let sum = xxh3_64(&bytes[..header - 8]);
    put(bytes, header - 8, sum);
    let (mut at, index) = (header, word(bytes, footer + 24).min(footer));
    for number in 0.. {
        let end = at.saturating_add(BLOCK_HEADER).saturating_add(word(bytes, at + 8) & 0xffff_ffff);
        if end > index {
            break;
        }
        block::seal(number, &mut bytes[at..end]);
        at = end;
    }
    // Sections follow each other: where they begin says how long they are.
    let begins = [0, word(bytes, footer + 24), word(bytes, footer + 48), word(bytes, footer + 72), footer];
    let ends = [header, begins[2], begins[3], footer];
    for (section, end) in ends.into_iter().enumerate() {
        let begin = begins[section];
        if let Some(part) = bytes.get(begin..end) {
            let (length, sum) = (part.len() as u64, xxh3_64(part));
            put(bytes, footer + 24 * section + 8, length);
            put(bytes, footer + 24 * section + 16, sum);
        }
    }
    let length = bytes.len() as u64;
    put(bytes, footer + 96, length);
    put(bytes, footer + 104, word(bytes, 16) as u64);
    sign_footer(bytes, footer);
}

fn sign_footer(bytes: &mut [u8], footer: usize) {
    let sum = xxh3_64(&bytes[footer..footer + 112]);
    put(bytes, footer + 112, sum);
    put(bytes, footer + 120, u64::from_le_bytes(*b"\x89CKPEND\n"));
}

/// A directory in memory that goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let shm = Path::new("/dev/shm");
        let above = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = above.join(format!("ckptbpf-fuzz-{}-{number}", std::process::id()));
        let made = std::fs::create_dir(&dir);
        assert!(made.is_ok(), "{}: {made:?}", dir.display());
        Self(dir)
    }

    /// Writes the files that `bytes` hold, each by the name that its header gives.
    fn put(&self, mut bytes: &[u8]) -> Vec<PathBuf> {
        let mut files = Vec::new();
        while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
            let length = (u32::from_le_bytes(*length) as usize).min(rest.len());
            let (file, rest) = rest.split_at(length);
            bytes = rest;
            let mut file = file.to_vec();
            repair(&mut file);
            let path = self.0.join(file_name(GenerationId(word(&file, 16) as u64)));
            if !files.contains(&path) && std::fs::write(&path, file).is_ok() {
                files.push(path);
            }
        }
        files
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Three generations of one space with every kind of block and entry, newest first, as the writer makes them.
pub(crate) fn files(metadata: &[u8]) -> Vec<Vec<u8>> {
    let scratch = Scratch::new();
    let space = SpaceId(1);
    let write = |id: u64| -> Result<Vec<u8>, super::ImageError> {
        let parent = (id > 1).then(|| GenerationId(id - 1));
        let (job, features) = (*b"0123456789abcdef", Vec::new());
        let header = Header { id: GenerationId(id), parent, job, features, created_unix_ns: 1_000_000_000 };
        let mut writer = GenerationWriter::create(&scratch.0, header, Codec::Lz4, 0)?;
        let noise = (0..3 * PAGE_SIZE as u64).map(|i| (xxh3_64(&(i ^ id).to_le_bytes())) as u8);
        writer.put_pages(space, 4 * id, &noise.collect::<Vec<u8>>())?;
        writer.put_pages(space, 4 * id + 3, &[id as u8; 5 * PAGE_SIZE])?;
        writer.put_zero(space, 100 + id, 3)?;
        writer.put_back_to_file(space, 200 + id, 3)?;
        writer.set_spaces(&[(space, vec![0..150, 200..u64::from(u16::MAX)])])?;
        let summary = Summary { tasks: 1, program: "count".into(), ..Summary::default() };
        let committed = writer.commit(metadata, summary, || Ok(()))?;
        Ok(std::fs::read(&committed.path).unwrap_or_default())
    };
    let mut files: Vec<Vec<u8>> = (1..=3).filter_map(|id| write(id).ok()).collect();
    files.reverse();
    files
}

/// A part of a file by its place in the footer: 0 header, 1 index, 2 metadata, 3 summary.
pub(crate) fn section(file: &[u8], number: usize) -> Vec<u8> {
    let footer = file.len().saturating_sub(FOOTER) + 24 * number;
    let (begin, length) = (word(file, footer), word(file, footer + 8));
    file.get(begin..begin.saturating_add(length)).unwrap_or_default().to_vec()
}

/// Files as [`chain`] takes them.
pub(crate) fn framed(files: &[Vec<u8>]) -> Vec<u8> {
    files.iter().flat_map(|file| [&(file.len() as u32).to_le_bytes(), file.as_slice()].concat()).collect()
}
