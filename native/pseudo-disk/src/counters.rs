//! Counters of one disk in a mapped file: they survive a killed worker and are read by the supervisor at no cost.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::mapping::Mapping;

/// Places in the file, little-endian u64 each; `livemount/driver/layout.py` reads the same.
#[derive(Clone, Copy)]
pub enum Counter {
    Reads = 0,
    Writes = 1,
    ReadErrors = 2,
    RecalledBytes = 3,
    PrivateBytes = 4,
    WriteErrors = 5,
    // 6 is the supervisor's.
    PrefetchedBytes = 7,
    ReadBytes = 8,
    WrittenBytes = 9,
    ZeroHits = 10,
    PrivateHits = 11,
    RecallHits = 12,
    Misses = 13,
}

/// Latencies: the sum in microseconds, then `BUCKETS` counts; bucket `i` is for less than 2^i microseconds.
#[derive(Clone, Copy)]
pub enum Latency {
    Read = 16,
    Write = 48,
}

const BUCKETS: usize = 30;

pub struct Counters(Mapping);

impl Counters {
    pub fn open(file: &File) -> io::Result<Self> {
        Ok(Self(Mapping::new(file, 4096)?))
    }

    fn add_at(&self, place: usize, amount: u64) {
        self.0.words()[place].fetch_add(amount, Ordering::Relaxed);
    }

    pub fn add(&self, counter: Counter, amount: u64) {
        self.add_at(counter as usize, amount);
    }

    pub fn set(&self, counter: Counter, value: u64) {
        self.0.words()[counter as usize].store(value, Ordering::Relaxed);
    }

    /// Counts a request that came at `start` and is answered now.
    pub fn took(&self, latency: Latency, start: Instant) {
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        self.add_at(latency as usize, micros);
        self.add_at(latency as usize + 1 + bucket.min(BUCKETS - 1), 1);
    }
}
