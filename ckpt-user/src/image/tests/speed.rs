//! How fast: prints, and judges nothing. A GiB of each kind, in memory and on the disk:
//! `CKPTBPF_SPEED_MIB=1024 cargo test --release -p ckpt-user --lib -- --nocapture throughput`

use super::super::prune;
use super::*;
use std::time::Instant;

const GIB: u64 = 1 << 30;
/// What the caller hands over at a time.
const PART: usize = 4 << 20;

/// 4 MiB that LZ4 makes about half as large: words of a small vocabulary between noise.
fn compressible() -> Vec<u8> {
    let noise = noise();
    let words = noise.as_chunks::<8>().0;
    words
        .iter()
        .enumerate()
        .flat_map(|(at, word)| if at % 8 < 5 { words[usize::from(word[0] & 15)] } else { *word })
        .collect()
}

fn noise() -> Vec<u8> {
    pages((1..=PART as u64 / PAGE_SIZE as u64).map(|number| number * 2))
}

fn rate(bytes: u64, since: Instant) -> String {
    format!("{:.2} GiB/s", bytes as f64 / GIB as f64 / since.elapsed().as_secs_f64())
}

#[test]
fn throughput() {
    let kinds = [
        ("compressible", compressible(), Codec::Lz4),
        ("random", noise(), Codec::Lz4),
        ("stored", noise(), Codec::None),
    ];
    let asked: Option<u64> = std::env::var("CKPTBPF_SPEED_MIB").ok().and_then(|mib| mib.parse().ok());
    let size = asked.unwrap_or(8) << 20;
    let places = [("memory", Path::new("/dev/shm")), ("disk", Path::new("/var/tmp"))];
    for (place, root) in
        places.into_iter().filter(|(_, root)| root.is_dir()).take(if asked.is_some() { 2 } else { 1 })
    {
        for (kind, data, codec) in &kinds {
            for workers in [0, 1, 2] {
                let dir = tempfile::tempdir_in(root).unwrap();
                let start = Instant::now();
                let mut writer = GenerationWriter::create(dir.path(), header(1, 0), *codec, workers).unwrap();
                for part in 0..size / PART as u64 {
                    writer.put_pages(SPACE, part * (PART / PAGE_SIZE) as u64, data).unwrap();
                }
                let put = rate(size, start);
                let committed = commit(writer).unwrap();
                let durable = rate(size, start);
                let ratio = committed.summary.bytes_stored as f64 / size as f64;
                println!(
                    "{place} {kind} {workers} workers: put {put}, with commit {durable}, stored {ratio:.2}"
                );
                if workers == 2 {
                    read(dir.path(), &format!("{place} {kind}"), size);
                }
            }
        }
    }
}

fn read(dir: &Path, name: &str, size: u64) {
    let start = Instant::now();
    let chain = Chain::open(dir, None).unwrap().chain;
    let map = chain.pages(SPACE);
    let opened = start.elapsed();
    let start = Instant::now();
    let mut reader = chain.reader();
    let mut out = vec![0; 16 * PAGE_SIZE];
    for run in map.runs() {
        reader.read_run(run, &mut out[..run.count as usize * PAGE_SIZE]).unwrap();
    }
    let all = rate(size, start);
    let start = Instant::now();
    for number in 0..10_000 {
        let source = map.get(number * 7919 % (size / PAGE_SIZE as u64)).unwrap();
        reader.read(&source, 1, &mut out[..PAGE_SIZE]).unwrap();
    }
    let lazy = start.elapsed() / 10_000;
    println!("{name}: open and map {opened:?}, read {all} by one thread, one scattered page {lazy:?}");
    drop((chain, reader));
    commit(writer(dir, 2, 1)).unwrap();
    let start = Instant::now();
    prune(dir, 1, &[], || Ok(())).unwrap();
    println!("{name}: merge {}", rate(size, start));
}
