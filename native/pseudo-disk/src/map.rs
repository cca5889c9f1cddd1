//! The private store's map in memory: two bits for each 4 KiB block, in self-checked 512-byte sectors.
//!
//! Bits are set after the data was written; `take_dirty` may run beside setters: what it misses stays dirty.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

pub const BLOCK: u64 = 4096;
pub const SECTOR: usize = 512;

/// A sector on disk: CRC-32 of the rest, its index, then 63 words.
pub type SectorBytes = [u8; SECTOR];

const WORDS: usize = 63;
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

struct Sector {
    words: [AtomicU64; WORDS],
    dirty: AtomicBool,
}

pub struct BlockMap {
    sectors: Vec<OnceLock<Box<Sector>>>,
    dirty: Mutex<Vec<u32>>,
    data_blocks: AtomicU64,
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
    pub fn new(blocks: u64) -> Self {
        let count = blocks.div_ceil(BLOCKS_PER_SECTOR) as usize;
        Self {
            sectors: (0..count).map(|_| OnceLock::new()).collect(),
            dirty: Mutex::new(Vec::new()),
            data_blocks: AtomicU64::new(0),
        }
    }

    pub fn sector_count(&self) -> usize {
        self.sectors.len()
    }

    /// Bytes of the blocks in state `Data`.
    pub fn data_bytes(&self) -> u64 {
        self.data_blocks.load(Ordering::Relaxed) * BLOCK
    }

    fn word(&self, block: u64) -> u64 {
        match self.sectors[(block / BLOCKS_PER_SECTOR) as usize].get() {
            None => 0,
            Some(sector) => {
                sector.words[(block % BLOCKS_PER_SECTOR / BLOCKS_PER_WORD) as usize].load(Ordering::Acquire)
            }
        }
    }

    pub fn get(&self, block: u64) -> State {
        state_of(self.word(block), block % BLOCKS_PER_SECTOR % BLOCKS_PER_WORD)
    }

    /// The state of `block`, and how many blocks from it on (at most `limit`) share it.
    pub fn run(&self, block: u64, limit: u64) -> (State, u64) {
        let mut place = block % BLOCKS_PER_SECTOR % BLOCKS_PER_WORD;
        let mut word = self.word(block);
        let state = state_of(word, place);
        let mut count = 1;
        while count < limit {
            place += 1;
            if place == BLOCKS_PER_WORD {
                place = 0;
                word = self.word(block + count);
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
            let index = (block / BLOCKS_PER_SECTOR) as usize;
            let sector = self.sectors[index].get_or_init(|| {
                Box::new(Sector { words: [const { AtomicU64::new(0) }; WORDS], dirty: AtomicBool::new(false) })
            });
            let sector_end = end.min((index as u64 + 1) * BLOCKS_PER_SECTOR);
            let mut changed = false;
            while block < sector_end {
                let place = block % BLOCKS_PER_SECTOR;
                let shift = place % BLOCKS_PER_WORD;
                let here = (BLOCKS_PER_WORD - shift).min(sector_end - block);
                let ones = if here == BLOCKS_PER_WORD { u64::MAX } else { ((1 << (here * 2)) - 1) << (shift * 2) };
                let bits = ones & (EVERY * state as u64);
                let word = &sector.words[(place / BLOCKS_PER_WORD) as usize];
                let mut old = word.load(Ordering::Relaxed);
                let mut new = old & !ones | bits;
                while old != new {
                    match word.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                        Ok(_) => {
                            changed = true;
                            self.data_blocks
                                .fetch_add(data_blocks(new).wrapping_sub(data_blocks(old)), Ordering::Relaxed);
                            break;
                        }
                        Err(now) => {
                            old = now;
                            new = old & !ones | bits;
                        }
                    }
                }
                block += here;
            }
            if changed {
                self.mark_dirty(index as u32);
            }
        }
    }

    pub fn mark_dirty(&self, index: u32) {
        if let Some(sector) = self.sectors[index as usize].get()
            && !sector.dirty.swap(true, Ordering::AcqRel)
        {
            self.dirty.lock().push(index);
        }
    }

    /// The sectors changed since the last call, as they go to disk.
    pub fn take_dirty(&self) -> Vec<SectorBytes> {
        let indices = std::mem::take(&mut *self.dirty.lock());
        let encode = |index: u32| {
            let sector = self.sectors[index as usize].get()?;
            // Before the words are read: a bit set later makes the sector dirty again.
            sector.dirty.swap(false, Ordering::AcqRel);
            let mut bytes = [0; SECTOR];
            bytes[4..8].copy_from_slice(&index.to_le_bytes());
            for (word, place) in sector.words.iter().zip(bytes[8..].chunks_exact_mut(8)) {
                place.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
            }
            seal(&mut bytes);
            Some(bytes)
        };
        indices.into_iter().filter_map(encode).collect()
    }

    /// Takes over a sector read from disk; false when it fails its check.
    pub fn load(&self, bytes: &SectorBytes) -> bool {
        let index = sector_index(bytes) as usize;
        if !is_sealed(bytes) || index >= self.sectors.len() {
            return false;
        }
        let mut words = [0u64; WORDS];
        for (word, place) in words.iter_mut().zip(bytes[8..].as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*place);
            if *word & (*word >> 1) & EVERY != 0 {
                return false;
            }
        }
        let new: u64 = words.iter().copied().map(data_blocks).sum();
        let sector = self.sectors[index].get_or_init(|| {
            Box::new(Sector { words: [const { AtomicU64::new(0) }; WORDS], dirty: AtomicBool::new(false) })
        });
        let mut old = 0;
        for (place, word) in sector.words.iter().zip(words) {
            old += data_blocks(place.swap(word, Ordering::AcqRel));
        }
        self.data_blocks.fetch_add(new.wrapping_sub(old), Ordering::Relaxed);
        true
    }
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
