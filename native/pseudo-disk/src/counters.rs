//! Counters of one disk in a mapped file: they survive a killed worker and are read by the supervisor at no cost.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

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
}

pub struct Counters(Mapping);

impl Counters {
    pub fn open(file: &File) -> io::Result<Self> {
        Ok(Self(Mapping::new(file, 64)?))
    }

    fn at(&self, counter: Counter) -> &AtomicU64 {
        &self.0.words()[counter as usize]
    }

    pub fn add(&self, counter: Counter, amount: u64) {
        self.at(counter).fetch_add(amount, Ordering::Relaxed);
    }

    pub fn set(&self, counter: Counter, value: u64) {
        self.at(counter).store(value, Ordering::Relaxed);
    }
}
