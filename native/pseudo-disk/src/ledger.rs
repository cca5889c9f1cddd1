//! The ledger of a folder of recall stores, shared with all workers and the supervisor of a host; the contract stands in
//! `livemount/driver/ledger.py`.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;
use crate::mapping::Mapping;

/// Places in the file, u64 each; `livemount/driver/ledger.py` reads the same.
const KEPT: usize = 0;
const LIMIT: usize = 1;
const NOT_KEPT: usize = 2;

pub struct Ledger(Mapping);

impl Ledger {
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let file = File::options().read(true).write(true).open(folder.join(".ledger"))?;
        Ok(Self(Mapping::new(&file, 4096)?))
    }

    fn entry(&self, place: usize) -> &AtomicU64 {
        &self.0.words()[place]
    }

    /// Whether so many more bytes may be kept.
    pub fn has_room(&self, bytes: u64) -> bool {
        let kept = self.entry(KEPT).load(Ordering::Relaxed);
        kept.checked_add(bytes).is_some_and(|sum| sum <= self.entry(LIMIT).load(Ordering::Relaxed))
    }

    /// Notes that so many bytes will be kept, if they may.
    pub fn take(&self, bytes: u64) -> bool {
        let limit = self.entry(LIMIT).load(Ordering::Relaxed);
        let add = |kept: u64| kept.checked_add(bytes).filter(|sum| *sum <= limit);
        self.entry(KEPT).fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// Counts a chunk that could not be kept.
    pub fn count_not_kept(&self) {
        self.entry(NOT_KEPT).fetch_add(1, Ordering::Relaxed);
    }
}
