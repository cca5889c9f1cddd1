//! Sequential streams among the first reads of chunks, and how far to recall ahead of each.
//!
//! Only first reads count, so a stream costs nothing once its chunks were read. What is ahead of a stream is never
//! more than what it has read already, so a stream that ends has cost at most as much again; where the source is slow to
//! answer, up to four times that, or a stream would spend many waits on getting up to speed.

use std::ops::Range;
use std::time::Duration;

/// Streams that are told apart; the one that was not read for longest makes room, and its read-ahead is cancelled.
const STREAMS: usize = 8;
/// A stream's length in bytes before anything is read ahead of it.
const SHORTEST: u64 = 256 << 10;
/// The most that is ahead of a stream: 100 ms of latency at 640 MiB/s.
const WINDOW: u64 = 64 << 20;
/// How many chunks a late reader may be behind the others of its stream: the kernel reads ahead with several requests.
const BEHIND: u64 = 16;
/// For each of these a source takes to answer, what may be ahead grows by what was read, up to `MOST`.
const SLOW: Duration = Duration::from_millis(20);
const MOST: u64 = 4;

struct Stream {
    /// The chunk after the last one read.
    next: u64,
    /// The chunk after the last one wanted ahead.
    until: u64,
    length: u64,
    reads: u32,
}

impl Stream {
    fn continues(&self, first: u64) -> bool {
        if self.reads < 2 {
            return first == self.next;
        }
        (self.next.saturating_sub(BEHIND)..=self.next.max(self.until)).contains(&first)
    }
}

pub struct Plan {
    pub wanted: Range<u64>,
    pub cancelled: Range<u64>,
}

pub struct Streams {
    /// The one read last comes first.
    streams: Vec<Stream>,
    chunks: u64,
    chunk_size: u64,
}

impl Streams {
    pub fn new(chunks: u64, chunk_size: u64) -> Self {
        Self { streams: Vec::new(), chunks, chunk_size }
    }

    /// Notes that one request read chunks for the first time, from `first` to `last`; `latency` is the source's.
    pub fn read(&mut self, first: u64, last: u64, latency: Duration) -> Plan {
        let mut plan = Plan { wanted: 0..0, cancelled: 0..0 };
        let Some(place) = self.streams.iter().position(|stream| stream.continues(first)) else {
            let new = Stream { next: last + 1, until: last + 1, length: last + 1 - first, reads: 1 };
            self.streams.insert(0, new);
            if self.streams.len() > STREAMS {
                plan.cancelled = self.streams.pop().map_or(0..0, |stream| stream.next..stream.until);
            }
            return plan;
        };
        self.streams[..=place].rotate_right(1);
        let stream = &mut self.streams[0];
        stream.reads += 1;
        stream.length += (last + 1).saturating_sub(stream.next);
        stream.next = stream.next.max(last + 1);
        stream.until = stream.until.max(stream.next);
        if stream.length * self.chunk_size < SHORTEST {
            return plan;
        }
        let times = MOST.min(1 + (latency.as_millis() / SLOW.as_millis()) as u64);
        let window = (stream.length * times).min(WINDOW / self.chunk_size);
        // Half a window at a time, so that neighbouring chunks come in one read of the source.
        if stream.until <= stream.next + window / 2 {
            let end = self.chunks.min(stream.next + window);
            plan.wanted = stream.until..end.max(stream.until);
            stream.until = plan.wanted.end;
        }
        plan
    }
}
