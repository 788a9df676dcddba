//! Names this build by what it is made of: a daemon's worker does what its front was asked for, in words that both have to know. And by
//! itself what eBPF programs tell, which a worker may ask a daemon of another build for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const SOURCES: [&str; 5] =
    ["src", "Cargo.toml", "../Cargo.lock", "../ckpt-common/src", "../ckpt-ebpf/ckptbpf.bpf.o"];

/// Of [`SOURCES`] those of questions and their answers.
const ROWS: [&str; 8] = [
    "src/daemon/object.rs",
    "src/daemon/questions.rs",
    "src/daemon/veil.rs",
    "src/daemon/wire.rs",
    "src/sys/bpf",
    "src/task/iterators",
    "../ckpt-common/src",
    "../ckpt-ebpf/ckptbpf.bpf.o",
];

fn main() -> io::Result<()> {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rustc-env=CKPTBPF_BUILD={:08x}", hash_of(&SOURCES)?);
    println!("cargo::rustc-env=CKPTBPF_ROWS={:08x}", hash_of(&ROWS)?);
    Ok(())
}

fn hash_of(sources: &[&str]) -> io::Result<u64> {
    let mut hash = Hash(0xcbf2_9ce4_8422_2325);
    sources.iter().try_for_each(|source| hash.add(Path::new(source)))?;
    Ok((hash.0 >> 32) ^ (hash.0 & 0xffff_ffff))
}

/// FNV-1a: short, and the same with every compiler.
struct Hash(u64);

impl Hash {
    /// A file with its path, or all that are in a directory, in the order of their names.
    fn add(&mut self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            let entries = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path()));
            let mut paths = entries.collect::<io::Result<Vec<PathBuf>>>()?;
            paths.sort();
            return paths.iter().try_for_each(|path| self.add(path));
        }
        let content = fs::read(path)?;
        for byte in path.as_os_str().as_encoded_bytes().iter().chain(&content) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}
