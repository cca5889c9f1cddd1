//! The recall store: what was recalled from a source, shared by the workers of all mounts of it on this host.
//!
//! One state byte a chunk, mapped shared: it only ever goes from absent to present or zero, after the data was
//! written, and the data is fixed by the source's identity, so a double recall is harmless. The mapped states count
//! only until the machine restarts; `livemount/driver/recall_store.py` keeps the ones that survive that.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, errno};
use crate::mapping::Mapping;

/// Where the state bytes start in the map file, after the header that Python writes.
const STATES: usize = 4096;

const PRESENT: u8 = 1;
const ZERO: u8 = 2;

/// A chunk's bytes, kept at hand for the requests that waited for it.
pub type Chunk = (u64, Arc<Vec<u8>>);

pub struct RecallStore {
    data: File,
    states: Mapping,
    size: u64,
    chunk_size: u64,
}

impl RecallStore {
    pub fn open(folder: &Path, size: u64, chunk_size: u64) -> Result<Self, Error> {
        let open = |name| File::options().read(true).write(true).open(folder.join(name));
        let chunks = size.div_ceil(chunk_size) as usize;
        let states = Mapping::new(&open("live")?, STATES + chunks)?;
        Ok(Self { data: open("data")?, states, size, chunk_size })
    }

    /// Offset and length of a chunk.
    pub fn range(&self, chunk: u64) -> (u64, usize) {
        let offset = chunk * self.chunk_size;
        (offset, self.chunk_size.min(self.size - offset) as usize)
    }

    /// Whether the store answers for a chunk.
    pub fn has(&self, chunk: u64) -> bool {
        matches!(self.states.bytes()[STATES + chunk as usize].load(Ordering::Acquire), PRESENT | ZERO)
    }

    /// Reads from the store or from `hand`; chunks that are in neither are added to `missing`.
    pub fn read(&self, buffer: &mut [u8], offset: u64, hand: &[Chunk], missing: &mut Vec<u64>) -> Result<(), i32> {
        let (mut position, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let chunk = position / self.chunk_size;
            let within = (position - chunk * self.chunk_size) as usize;
            let length = rest.len().min(self.chunk_size as usize - within);
            let (part, after) = rest.split_at_mut(length);
            match self.states.bytes()[STATES + chunk as usize].load(Ordering::Acquire) {
                PRESENT => self.data.read_exact_at(part, position).map_err(|error| errno(&error))?,
                ZERO => part.fill(0),
                _ => match hand.iter().find(|(number, _)| *number == chunk) {
                    Some((_, bytes)) => part.copy_from_slice(&bytes[within..within + length]),
                    None => missing.push(chunk),
                },
            }
            position += length as u64;
            rest = after;
        }
        Ok(())
    }

    /// Keeps a chunk. Failing to (no space) only costs another recall later.
    pub fn keep(&self, chunk: u64, bytes: &[u8]) {
        let state = if bytes.iter().all(|byte| *byte == 0) {
            ZERO
        } else if self.data.write_all_at(bytes, chunk * self.chunk_size).is_ok() {
            PRESENT
        } else {
            return;
        };
        self.states.bytes()[STATES + chunk as usize].store(state, Ordering::Release);
    }
}
