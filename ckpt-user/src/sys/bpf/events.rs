//! What the attached programs report through ring buffers, and how much of it was lost.
use aya::{
    maps::{MapData, RingBuf},
    programs::tp_btf::BtfTracePointLink,
};
use ckpt_common::lost;
use zerocopy::FromBytes;

/// Programs that are attached until this is dropped.
#[must_use = "dropping it detaches the programs"]
#[derive(Debug)]
pub struct Attached {
    pub(super) links: Vec<BtfTracePointLink>,
}

impl Attached {
    /// How many programs it holds.
    #[must_use]
    pub fn count(&self) -> usize {
        self.links.len()
    }
}

/// What could not be reported since the programs were loaded. Anything above 0 means that the state is to be read
/// anew, by iterator or from `/proc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Lifecycle events.
    pub lifecycle: u64,
    /// Write faults.
    pub faults: u64,
    /// Children that are not tracked, the map being full.
    pub children: u64,
    /// Kernel memory that could not be read.
    pub reads: u64,
}

impl Lost {
    pub(super) fn from_counters(counter: impl Fn(u32) -> u64) -> Self {
        Self {
            lifecycle: counter(lost::LIFECYCLE),
            faults: counter(lost::FAULTS),
            children: counter(lost::CHILDREN),
            reads: counter(lost::READS),
        }
    }

    /// All of it.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.lifecycle + self.faults + self.children + self.reads
    }
}

/// Takes all records out of a ring, oldest first. One of another size than ours cannot be: the object is built with
/// this library, and checked by its tests.
pub(super) fn drain<T: FromBytes>(ring: &mut RingBuf<MapData>) -> Vec<T> {
    let mut records = Vec::new();
    while let Some(item) = ring.next() {
        if let Ok(record) = T::read_from_bytes(&item) {
            records.push(record);
        }
    }
    records
}
