//! The recall store: what was recalled from a source, shared by the workers of all mounts of it on this host.
//!
//! One state byte a chunk, mapped shared: it only ever goes from absent to present or zero, after the data was
//! written, and the data is fixed by the source's identity, so a double recall is harmless. The mapped states count
//! only until the machine restarts; `livemount/driver/recall_store.py` keeps the ones that survive that.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, errno};
use crate::ledger::Ledger;
use crate::mapping::Mapping;

/// Where the state bytes start in the map file, after the header that Python writes.
const STATES: usize = 4096;

const PRESENT: u8 = 1;
const ZERO: u8 = 2;

/// A chunk's bytes, kept at hand for the requests that waited for it.
pub type Chunk = (u64, Arc<Vec<u8>>);

/// Where a read's bytes came from, the slowest place of all its parts.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    #[default]
    Zero,
    Private,
    Recall,
}

/// What a read met on its way.
#[derive(Default)]
pub struct Trace {
    /// Chunks that are not here.
    pub missing: Vec<u64>,
    /// Chunks that this disk read for the first time, and whether the store knew them to be zeros.
    pub first_reads: Vec<(u64, bool)>,
    pub place: Place,
}

pub struct RecallStore {
    data: File,
    states: Mapping,
    /// Of the folder that holds all recall stores.
    ledger: Ledger,
    /// One bit a chunk: this disk has read it since it was opened.
    seen: Vec<AtomicU64>,
    size: u64,
    pub chunk_size: u64,
}

impl RecallStore {
    pub fn open(folder: &Path, size: u64, chunk_size: u64) -> Result<Self, Error> {
        let open = |name| File::options().read(true).write(true).open(folder.join(name));
        let chunks = size.div_ceil(chunk_size) as usize;
        let states = Mapping::new(&open("live")?, STATES + chunks)?;
        let ledger = Ledger::open(folder.parent().ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?)?;
        let seen = (0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { data: open("data")?, states, ledger, seen, size, chunk_size })
    }

    pub fn chunks(&self) -> u64 {
        self.size.div_ceil(self.chunk_size)
    }

    fn is_first_read(&self, chunk: u64) -> bool {
        let (word, bit) = (&self.seen[(chunk / 64) as usize], 1 << (chunk % 64));
        word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// Offset and length of `count` chunks.
    pub fn range(&self, chunk: u64, count: u64) -> (u64, usize) {
        let offset = chunk * self.chunk_size;
        (offset, (count * self.chunk_size).min(self.size - offset) as usize)
    }

    /// Whether the store answers for a chunk.
    pub fn has(&self, chunk: u64) -> bool {
        matches!(self.states.bytes()[STATES + chunk as usize].load(Ordering::Acquire), PRESENT | ZERO)
    }

    /// Reads from the store or from `hand`; chunks that are in neither are missing.
    pub fn read(&self, buffer: &mut [u8], offset: u64, hand: &[Chunk], trace: &mut Trace) -> Result<(), i32> {
        let (mut position, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let chunk = position / self.chunk_size;
            let within = (position - chunk * self.chunk_size) as usize;
            let length = rest.len().min(self.chunk_size as usize - within);
            let (part, after) = rest.split_at_mut(length);
            let state = self.states.bytes()[STATES + chunk as usize].load(Ordering::Acquire);
            if self.is_first_read(chunk) {
                trace.first_reads.push((chunk, state == ZERO));
            }
            if state != ZERO {
                trace.place = Place::Recall;
            }
            match state {
                PRESENT => self.data.read_exact_at(part, position).map_err(|error| errno(&error))?,
                ZERO => part.fill(0),
                _ => match hand.iter().find(|(number, _)| *number == chunk) {
                    Some((_, bytes)) => part.copy_from_slice(&bytes[within..within + length]),
                    None => trace.missing.push(chunk),
                },
            }
            position += length as u64;
            rest = after;
        }
        Ok(())
    }

    /// Whether there is room for one more chunk: without it, a recall that nobody waits for is of no use.
    pub fn has_room(&self) -> bool {
        self.ledger.has_room(self.chunk_size)
    }

    /// Keeps a chunk and says whether it could. Failing to (no space, or no room in the quota) only costs another
    /// recall later.
    pub fn keep(&self, chunk: u64, bytes: &[u8]) -> bool {
        if self.has(chunk) {
            return true;
        }
        let state = if bytes.iter().all(|byte| *byte == 0) {
            ZERO
        } else if self.ledger.take(bytes.len() as u64) && self.data.write_all_at(bytes, chunk * self.chunk_size).is_ok()
        {
            PRESENT
        } else {
            self.ledger.count_not_kept();
            return false;
        };
        self.states.bytes()[STATES + chunk as usize].store(state, Ordering::Release);
        true
    }
}
