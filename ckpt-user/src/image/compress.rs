//! Compression beside the caller: chunks go to threads and come back in order, a bounded number at a time.
//!
//! ```text
//! caller ─chunk n─▶ worker n mod W ─▶ back to the caller in the same order, who writes them
//! ```
//! A worker has at most [`DEPTH`] chunks, so that neither side can wait for the other forever and memory stays at
//! about 2 MiB × (DEPTH × W + 1). Workers touch no file.

use super::block::{BLOCK_BYTES, BLOCK_PAGES, Encoder};
use super::index::BlockRow;
use super::{Codec, ImageError, PAGE_SIZE};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Pages of a chunk: 1 MiB, so that handing over costs little and writes are large.
pub(super) const CHUNK_PAGES: usize = 16 * BLOCK_PAGES;
/// One being compressed, one waiting.
const DEPTH: usize = 2;

/// Raw pages on their way to the file.
#[derive(Default)]
pub(super) struct Chunk {
    /// Number of its first block.
    pub(super) first_block: u32,
    pub(super) raw: Vec<u8>,
    /// The blocks as they are written.
    pub(super) encoded: Vec<u8>,
    /// Its blocks; the offset counts from the chunk's start.
    pub(super) rows: Vec<BlockRow>,
}

impl Chunk {
    fn encode(&mut self, encoder: &mut Encoder) {
        self.encoded.clear();
        self.rows.clear();
        for (number, raw) in (self.first_block..).zip(self.raw.chunks(BLOCK_BYTES)) {
            let offset = self.encoded.len() as u64;
            let stored = encoder.encode(number, raw, &mut self.encoded);
            self.rows.push(BlockRow { offset, stored, pages: (raw.len() / PAGE_SIZE) as u8 });
        }
    }
}

struct Worker {
    to: SyncSender<Chunk>,
    from: Receiver<Chunk>,
    thread: JoinHandle<()>,
}

fn start(codec: Codec) -> std::io::Result<Worker> {
    let (to, jobs) = sync_channel::<Chunk>(DEPTH);
    let (done, from) = sync_channel(DEPTH);
    let thread = std::thread::Builder::new().name("ckpt-compress".into()).spawn(move || {
        let mut encoder = Encoder::new(codec);
        while let Ok(mut chunk) = jobs.recv() {
            chunk.encode(&mut encoder);
            if done.send(chunk).is_err() {
                return;
            }
        }
    })?;
    Ok(Worker { to, from, thread })
}

/// Chunks in, encoded chunks out, in order.
pub(super) struct Pipeline {
    codec: Codec,
    /// Threads to use; 0: the caller's own.
    wanted: usize,
    /// Started at the first whole chunk: a small delta needs none.
    workers: Vec<Worker>,
    own: Option<Encoder>,
    sent: usize,
    received: usize,
    /// Encoded by the caller itself.
    ready: VecDeque<Chunk>,
    spare: Vec<Chunk>,
}

impl Pipeline {
    pub(super) fn new(codec: Codec, wanted: usize) -> Pipeline {
        let (workers, ready, spare) = (Vec::new(), VecDeque::new(), Vec::new());
        Pipeline { codec, wanted, workers, own: None, sent: 0, received: 0, ready, spare }
    }

    /// An empty chunk, its buffers used before if possible.
    pub(super) fn empty(&mut self, first_block: u32) -> Chunk {
        let mut chunk = self.spare.pop().unwrap_or_default();
        chunk.first_block = first_block;
        chunk.raw.clear();
        chunk.raw.reserve_exact(CHUNK_PAGES * PAGE_SIZE);
        chunk
    }

    /// Gives an encoded chunk's buffers back.
    pub(super) fn recycle(&mut self, chunk: Chunk) {
        self.spare.push(chunk);
    }

    /// Hands a chunk over; gives the oldest one when there are as many under way as there may be.
    pub(super) fn push(&mut self, mut chunk: Chunk) -> Result<Option<Chunk>, ImageError> {
        let whole = chunk.raw.len() == CHUNK_PAGES * PAGE_SIZE;
        if self.workers.is_empty() && self.wanted > 0 && whole {
            // A machine that refuses threads (a limit of the job's) still gets its checkpoint.
            self.workers = (0..self.wanted).map_while(|_| start(self.codec).ok()).collect();
            self.wanted = self.workers.len();
        }
        if self.workers.is_empty() {
            let codec = self.codec;
            chunk.encode(self.own.get_or_insert_with(|| Encoder::new(codec)));
            self.ready.push_back(chunk);
            return Ok(self.ready.pop_front());
        }
        let full = self.sent - self.received == DEPTH * self.workers.len();
        let oldest = if full { self.pop()? } else { None };
        let worker = &self.workers[self.sent % self.workers.len()];
        worker.to.send(chunk).map_err(|_| ImageError::WorkerGone)?;
        self.sent += 1;
        Ok(oldest)
    }

    /// Waits for the oldest chunk under way; `None` when there is none.
    pub(super) fn pop(&mut self) -> Result<Option<Chunk>, ImageError> {
        if self.sent == self.received {
            return Ok(None);
        }
        let worker = &self.workers[self.received % self.workers.len()];
        let chunk = worker.from.recv().map_err(|_| ImageError::WorkerGone)?;
        self.received += 1;
        Ok(Some(chunk))
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        for Worker { to, from, thread } in self.workers.drain(..) {
            drop((to, from));
            // A thread that panicked was reported by pop().
            let _ = thread.join();
        }
    }
}
