//! The private store's map: two bits for each 4 KiB block, in groups that go to disk as self-checked sectors.
//!
//! The words are mapped from a file, so a killed process loses none; what survives the machine is the store's matter.
//! Bits are set after the data was written; `take_dirty` may run beside setters: what it misses stays dirty.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::mapping::Mapping;

pub const BLOCK: u64 = 4096;
pub const SECTOR: usize = 512;

/// A sector on disk: CRC-32 of the rest, its index, then 63 words.
pub type SectorBytes = [u8; SECTOR];

pub const WORDS: usize = 63;
const BLOCKS_PER_WORD: u64 = 32;
const BLOCKS_PER_SECTOR: u64 = WORDS as u64 * BLOCKS_PER_WORD;
const EVERY: u64 = 0x5555_5555_5555_5555;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not in the private store: the block is the source's.
    Absent = 0,
    /// The data file holds the block.
    Data = 1,
    /// The block is zero whatever the data file or the source hold.
    Zero = 2,
}

pub struct BlockMap {
    words: Mapping,
    /// Words before the first of the map.
    start: usize,
    is_dirty: Vec<AtomicBool>,
    dirty: Mutex<Vec<u32>>,
    data_blocks: AtomicU64,
}

/// How many sectors the map of a disk has.
pub fn sector_count(blocks: u64) -> usize {
    blocks.div_ceil(BLOCKS_PER_SECTOR) as usize
}

fn state_of(word: u64, place: u64) -> State {
    match (word >> (place * 2)) & 3 {
        0 => State::Absent,
        1 => State::Data,
        _ => State::Zero,
    }
}

fn data_blocks(word: u64) -> u64 {
    u64::from((word & EVERY).count_ones())
}

impl BlockMap {
    /// A map of `sectors` groups of words, that begin `start` words into the mapping.
    pub fn new(words: Mapping, start: usize, sectors: usize) -> Self {
        Self {
            words,
            start,
            is_dirty: (0..sectors).map(|_| AtomicBool::new(false)).collect(),
            dirty: Mutex::new(Vec::new()),
            data_blocks: AtomicU64::new(0),
        }
    }

    /// Bytes of the blocks in state `Data`.
    pub fn data_bytes(&self) -> u64 {
        self.data_blocks.load(Ordering::Relaxed) * BLOCK
    }

    /// A word beside the map that lives as long as it, for the store to note something in.
    pub fn note(&self) -> &AtomicU64 {
        &self.words.words()[self.start - 1]
    }

    fn word(&self, block: u64) -> &AtomicU64 {
        &self.words.words()[self.start + (block / BLOCKS_PER_WORD) as usize]
    }

    fn group(&self, index: u32) -> &[AtomicU64] {
        &self.words.words()[self.start + index as usize * WORDS..][..WORDS]
    }

    pub fn get(&self, block: u64) -> State {
        state_of(self.word(block).load(Ordering::Acquire), block % BLOCKS_PER_WORD)
    }

    /// The state of `block`, and how many blocks from it on (at most `limit`) share it.
    pub fn run(&self, block: u64, limit: u64) -> (State, u64) {
        let mut place = block % BLOCKS_PER_WORD;
        let mut word = self.word(block).load(Ordering::Acquire);
        let state = state_of(word, place);
        let mut count = 1;
        while count < limit {
            place += 1;
            if place == BLOCKS_PER_WORD {
                place = 0;
                word = self.word(block + count).load(Ordering::Acquire);
            }
            if state_of(word, place) != state {
                break;
            }
            count += 1;
        }
        (state, count)
    }

    /// Sets `count` blocks from `first` on.
    pub fn set(&self, first: u64, count: u64, state: State) {
        let (mut block, end) = (first, first + count);
        while block < end {
            let shift = block % BLOCKS_PER_WORD;
            let here = (BLOCKS_PER_WORD - shift).min(end - block);
            let ones = if here == BLOCKS_PER_WORD { u64::MAX } else { ((1 << (here * 2)) - 1) << (shift * 2) };
            let bits = ones & (EVERY * state as u64);
            let word = self.word(block);
            let mut old = word.load(Ordering::Relaxed);
            while old & ones != bits {
                let new = old & !ones | bits;
                match word.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => {
                        let change = data_blocks(new).wrapping_sub(data_blocks(old));
                        self.data_blocks.fetch_add(change, Ordering::Relaxed);
                        self.mark_dirty((block / BLOCKS_PER_SECTOR) as u32);
                        break;
                    }
                    Err(now) => old = now,
                }
            }
            block += here;
        }
    }

    pub fn mark_dirty(&self, index: u32) {
        // Under the lock, so that `take_dirty` never misses one that is marked and not yet listed.
        let mut dirty = self.dirty.lock();
        if !self.is_dirty[index as usize].swap(true, Ordering::AcqRel) {
            dirty.push(index);
        }
    }

    /// The sectors changed since the last call, as they go to disk.
    pub fn take_dirty(&self) -> Vec<SectorBytes> {
        let indices = std::mem::take(&mut *self.dirty.lock());
        let take = |index: u32| {
            // Before the words are read: a bit set later makes the sector dirty again.
            self.is_dirty[index as usize].swap(false, Ordering::AcqRel);
            self.encode(index)
        };
        indices.into_iter().map(take).collect()
    }

    fn encode(&self, index: u32) -> SectorBytes {
        let mut bytes = [0; SECTOR];
        bytes[4..8].copy_from_slice(&index.to_le_bytes());
        for (word, place) in self.group(index).iter().zip(bytes[8..].chunks_exact_mut(8)) {
            place.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
        }
        seal(&mut bytes);
        bytes
    }

    /// Takes a sector into account that an earlier process or `load` left in the mapping; `durable` is what the disk
    /// has of it.
    pub fn adopt(&self, index: u32, durable: Option<&SectorBytes>) {
        let blocks = self.group(index).iter().map(|word| data_blocks(word.load(Ordering::Acquire))).sum();
        self.data_blocks.fetch_add(blocks, Ordering::Relaxed);
        let is_durable = match durable {
            Some(bytes) => *bytes == self.encode(index),
            None => self.group(index).iter().all(|word| word.load(Ordering::Acquire) == 0),
        };
        if !is_durable {
            self.mark_dirty(index);
        }
    }

    /// Sets the words of a sector read from disk.
    pub fn load(&self, bytes: &SectorBytes) {
        for (word, value) in self.group(sector_index(bytes)).iter().zip(bytes[8..].as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*value), Ordering::Release);
        }
    }
}

/// Whether the bytes are a sound sector of a map of `sectors` sectors.
pub fn is_sound(bytes: &SectorBytes, sectors: usize) -> bool {
    let is_state = |word: &[u8; 8]| {
        let word = u64::from_le_bytes(*word);
        word & (word >> 1) & EVERY == 0
    };
    is_sealed(bytes) && (sector_index(bytes) as usize) < sectors && bytes[8..].as_chunks::<8>().0.iter().all(is_state)
}

/// Which sector of the map these bytes are.
pub fn sector_index(bytes: &SectorBytes) -> u32 {
    u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]])
}

/// Writes the checksum of a sector into its first four bytes.
pub fn seal(bytes: &mut SectorBytes) {
    let sum = crc32fast::hash(&bytes[4..]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
}

/// Whether a sector's checksum is right.
pub fn is_sealed(bytes: &SectorBytes) -> bool {
    bytes[..4] == crc32fast::hash(&bytes[4..]).to_le_bytes()
}
