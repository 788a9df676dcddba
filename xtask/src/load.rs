//! A load beside the tests: every processor, a piece of memory and the disk are kept busy until it is dropped.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

const MEMORY: usize = 512 << 20;
const FILE: usize = 64 << 20;

/// Threads that do work for nobody.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    scratch: PathBuf,
}

impl Load {
    pub fn begin() -> Result<Self> {
        fs::create_dir_all("target")?;
        let scratch = Path::new("target/soak-load").to_path_buf();
        let file = File::create(&scratch).context("the file that is written to keep the disk busy")?;
        let stop = Arc::new(AtomicBool::new(false));
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let mut threads: Vec<_> = (0..processors).map(|_| repeat(&stop, compute)).collect();
        let mut memory = vec![0_u8; MEMORY];
        threads.push(repeat(&stop, move || memory.iter_mut().step_by(4096).for_each(|byte| *byte ^= 1)));
        threads.push(repeat(&stop, move || write(&file)));
        Ok(Self { stop, threads, scratch })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.scratch);
    }
}

fn repeat(stop: &Arc<AtomicBool>, mut work: impl FnMut() + Send + 'static) -> JoinHandle<()> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            work();
        }
    })
}

fn compute() {
    let sum = (0..10_000_000_u64).fold(1_u64, |sum, i| std::hint::black_box(sum.wrapping_mul(i | 1)));
    std::hint::black_box(sum);
}

/// A full disk is a load as well: errors are of no interest.
fn write(mut file: &File) {
    let block = vec![7_u8; 1 << 20];
    let _ = file.rewind();
    for _ in 0..FILE / block.len() {
        let _ = file.write_all(&block);
    }
    let _ = file.sync_all();
}
