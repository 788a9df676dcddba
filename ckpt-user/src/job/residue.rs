//! Pages copied in the freeze, kept until the thaw: nothing is compressed or written while the program waits.
//!
//! Beyond a bound they go to the writer's thread at once, which then writes during the freeze: a residue that
//! large is the exception (a first checkpoint of a new process, no dirty tracking), and memory stays bounded.

use super::in_freeze::Message;
use crate::image::SpaceId;
use std::io;
use std::sync::mpsc::SyncSender;

/// Bytes kept in memory before the freeze waits for the writer.
pub const BOUND: usize = 256 << 20;

/// Consecutive pages of one space.
#[derive(Debug)]
pub struct Batch {
    pub space: SpaceId,
    pub first_page: u64,
    pub bytes: Vec<u8>,
}

/// What the freeze has copied.
#[derive(Debug)]
pub struct Residue {
    pub batches: Vec<Batch>,
    held: usize,
    overflow: SyncSender<Message>,
    pub pages: u64,
}

impl Residue {
    pub fn new(overflow: SyncSender<Message>) -> Self {
        Self { batches: Vec::with_capacity(4096), held: 0, overflow, pages: 0 }
    }

    /// Takes consecutive pages in.
    ///
    /// # Errors
    /// BrokenPipe when the writer has failed meanwhile.
    pub fn push(&mut self, space: SpaceId, first_page: u64, bytes: &[u8]) -> io::Result<()> {
        self.pages += bytes.len() as u64 / 4096;
        let batch = Batch { space, first_page, bytes: bytes.to_vec() };
        if self.held + bytes.len() <= BOUND {
            self.held += bytes.len();
            self.batches.push(batch);
            return Ok(());
        }
        self.overflow.send(Message::Overflow(batch)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}
