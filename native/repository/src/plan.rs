//! Which chunks of a disk a backup reads: those with data, of an incremental one only those that changed.

use std::ops::Range;

use crate::backup::{CHUNK, DiskOrder};
use crate::error::{Error, Kind, Result};

/// Which chunks of a disk are to be read.
pub struct Plan {
    read: Vec<Range<u64>>,
    changed: Vec<Range<u64>>,
}

impl Plan {
    pub fn new(order: &DiskOrder<'_>) -> Result<Self> {
        let size = order.input.size();
        let changed = chunks_of(&order.changed, size)?;
        let data = if order.base.is_some() && changed.is_empty() { Vec::new() } else { order.input.data()? };
        let data = chunks_of(&data, size)?;
        let read = if order.base.is_some() { intersect(&data, &changed) } else { data };
        Ok(Self { read, changed })
    }

    /// The chunks of a part that are to be read, in order.
    pub fn read(&self, part: &Range<u64>) -> Vec<u64> {
        within(&self.read, part)
    }

    /// The chunks of a part that are not as in the earlier copy, in order.
    pub fn changed(&self, part: &Range<u64>) -> Vec<u64> {
        within(&self.changed, part)
    }

    /// Bytes that are to be read, of a disk of `size` bytes.
    pub fn bytes(&self, size: u64) -> u64 {
        self.read.iter().map(|range| (range.end * CHUNK).min(size) - range.start * CHUNK).sum()
    }
}

/// The chunks that ranges of bytes touch, as ranges in order, without overlap.
pub fn chunks_of(ranges: &[Range<u64>], size: u64) -> Result<Vec<Range<u64>>> {
    let mut chunks = Vec::with_capacity(ranges.len());
    for range in ranges {
        if range.start > range.end || range.end > size {
            return Err(Error::new(
                Kind::Usage,
                format!("the range {} to {} is not within the {size} bytes of the disk", range.start, range.end),
            ));
        }
        if range.start < range.end {
            chunks.push(range.start / CHUNK..range.end.div_ceil(CHUNK));
        }
    }
    chunks.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(chunks.len());
    for range in chunks {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    Ok(joined)
}

fn intersect(a: &[Range<u64>], b: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut i, mut j) = (0, 0);
    let mut both = Vec::new();
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let common = x.start.max(y.start)..x.end.min(y.end);
        if !common.is_empty() {
            both.push(common);
        }
        if x.end < y.end { i += 1 } else { j += 1 }
    }
    both
}

/// The chunks of ranges of chunks that are within a part.
pub fn within(ranges: &[Range<u64>], part: &Range<u64>) -> Vec<u64> {
    let first = ranges.partition_point(|range| range.end <= part.start);
    ranges[first..]
        .iter()
        .take_while(|range| range.start < part.end)
        .flat_map(|range| range.start.max(part.start)..range.end.min(part.end))
        .collect()
}
