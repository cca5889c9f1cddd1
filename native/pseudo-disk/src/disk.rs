//! One disk: reads and writes over the private store and the recall store, as far as they go without the source.
//!
//! Whole-block writes share a region's lock; writes of parts of a block, and zeroing, have it alone, because they
//! read, change and write. Every operation may be repeated from its start: that is how it goes on after a recall.

use std::path::Path;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::counters::{Counter, Counters};
use crate::error::Error;
use crate::map::{BLOCK, State};
use crate::private::PrivateStore;
use crate::recall::{Chunk, Place, RecallStore, Trace};

/// The longest read or write, and the size of a lock's region.
pub const REGION: u64 = 1 << 20;
const LOCKS: usize = 64;

pub enum Fault {
    /// Chunks that must be recalled before a repetition can succeed.
    Missing(Vec<u64>),
    Errno(i32),
}

impl From<i32> for Fault {
    fn from(errno: i32) -> Self {
        Self::Errno(errno)
    }
}

#[expect(dead_code, reason = "guards are held, not read")]
enum Guard<'a> {
    Shared(RwLockReadGuard<'a, ()>),
    Alone(RwLockWriteGuard<'a, ()>),
}

pub struct Disk {
    pub size: u64,
    pub private: PrivateStore,
    pub recall: RecallStore,
    pub counters: Counters,
    locks: [RwLock<()>; LOCKS],
}

impl Disk {
    pub fn open(private: &Path, recall: &Path, size: u64, chunk_size: u64) -> Result<Self, Error> {
        let counters = std::fs::File::options().read(true).write(true).open(private.join("counters"))?;
        let disk = Self {
            size,
            private: PrivateStore::open(private, size)?,
            recall: RecallStore::open(recall, size, chunk_size)?,
            counters: Counters::open(&counters)?,
            locks: [const { RwLock::new(()) }; LOCKS],
        };
        disk.count_private();
        Ok(disk)
    }

    fn count_private(&self) {
        self.counters.set(Counter::PrivateBytes, self.private.map.data_bytes());
    }

    /// Locks the (at most two) regions of a range, always in the same order.
    fn lock(&self, offset: u64, end: u64, alone: bool) -> [Option<Guard<'_>>; 2] {
        let place = |at: u64| (at / REGION) as usize % LOCKS;
        let (one, two) = (place(offset), place(end - 1));
        let take = |place: usize| {
            Some(if alone { Guard::Alone(self.locks[place].write()) } else { Guard::Shared(self.locks[place].read()) })
        };
        [take(one.min(two)), if one == two { None } else { take(one.max(two)) }]
    }

    fn check(&self, offset: u64, length: u64, beyond: i32) -> Result<u64, Fault> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(end),
            _ => Err(Fault::Errno(beyond)),
        }
    }

    pub fn read(&self, buffer: &mut [u8], offset: u64, hand: &[Chunk], trace: &mut Trace) -> Result<(), Fault> {
        let end = self.check(offset, buffer.len() as u64, libc::EINVAL)?;
        let (mut position, mut rest) = (offset, buffer);
        while position < end {
            let block = position / BLOCK;
            let (state, count) = self.private.map.run(block, end.div_ceil(BLOCK) - block);
            let length = end.min((block + count) * BLOCK) - position;
            let (part, after) = rest.split_at_mut(length as usize);
            match state {
                State::Data => {
                    trace.place = trace.place.max(Place::Private);
                    self.private.read(part, position)?;
                }
                State::Zero => part.fill(0),
                State::Absent => self.recall.read(part, position, hand, trace)?,
            }
            position += length;
            rest = after;
        }
        missing(trace)
    }

    /// Writes at most `REGION` bytes.
    pub fn write(&self, data: &[u8], offset: u64, hand: &[Chunk], trace: &mut Trace) -> Result<(), Fault> {
        let end = self.check(offset, data.len() as u64, libc::EFBIG)?;
        if data.is_empty() {
            return Ok(());
        }
        let (first, last) = (offset / BLOCK, (end - 1) / BLOCK);
        let head = !offset.is_multiple_of(BLOCK);
        let tail = !end.is_multiple_of(BLOCK) && end != self.size;
        let _guards = self.lock(offset, end, head || tail);
        let mut partial = Vec::new();
        for block in [head.then_some(first), (tail && !(head && first == last)).then_some(last)].into_iter().flatten() {
            let state = self.private.map.get(block);
            if state == State::Data {
                continue;
            }
            let start = block * BLOCK;
            let mut base = vec![0; BLOCK.min(self.size - start) as usize];
            if state == State::Absent {
                self.recall.read(&mut base, start, hand, trace)?;
            }
            let (from, to) = (offset.max(start), end.min(start + BLOCK));
            base[(from - start) as usize..(to - start) as usize]
                .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            partial.push((start, base));
        }
        missing(trace)?;
        // What the completed blocks do not cover is one range in the middle.
        let (mut from, mut to) = (offset, end);
        for (start, base) in partial {
            self.private.write(&base, start)?;
            if start <= from {
                from = end.min(start + BLOCK);
            } else {
                to = start;
            }
        }
        if from < to {
            self.private.write(&data[(from - offset) as usize..(to - offset) as usize], from)?;
        }
        self.private.map.set(first, last - first + 1, State::Data);
        self.private.wrote();
        self.count_private();
        Ok(())
    }

    /// Makes a range of any length zero: whole blocks in the map only, the parts at its ends by a write.
    pub fn zero(&self, offset: u64, length: u64, hand: &[Chunk], trace: &mut Trace) -> Result<(), Fault> {
        let end = self.check(offset, length, libc::EINVAL)?;
        let first = offset.div_ceil(BLOCK);
        let after = if end == self.size { end.div_ceil(BLOCK) } else { end / BLOCK };
        let zeros = [0; BLOCK as usize];
        if first >= after {
            let done = length.min(BLOCK);
            self.write(&zeros[..done as usize], offset, hand, trace)?;
            // Two parts of neighbouring blocks: the second one is left.
            return self.write(&zeros[..(length - done) as usize], offset + done, hand, trace);
        }
        self.write(&zeros[..(first * BLOCK - offset) as usize], offset, hand, trace)?;
        if end > after * BLOCK {
            self.write(&zeros[..(end - after * BLOCK) as usize], after * BLOCK, hand, trace)?;
        }
        let mut block = first;
        while block < after {
            let next = after.min((block * BLOCK / REGION + 1) * REGION / BLOCK);
            let _guards = self.lock(block * BLOCK, next * BLOCK, true);
            self.private.zero(block, next - block)?;
            block = next;
        }
        self.private.wrote();
        self.count_private();
        Ok(())
    }
}

fn missing(trace: &mut Trace) -> Result<(), Fault> {
    if trace.missing.is_empty() { Ok(()) } else { Err(Fault::Missing(std::mem::take(&mut trace.missing))) }
}
