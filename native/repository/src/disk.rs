//! A disk image in a snapshot, readable at any offset from many threads.
//!
//! The index is used when the disk is opened, and again when a pack is gone that a prune has repacked; what is kept is 12
//! bytes a chunk and 52 bytes a distinct chunk.
//! Every chunk is checked by its MAC and by the SHA-256 that is its id before a byte of it is handed out. Threads that
//! want parts of the same chunk at once share one read of it.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use quick_cache::sync::Cache;
use rustic_core::Id;
use sha2::{Digest, Sha256};

use crate::backup::CHUNK;
use crate::crypto::{hash, id_bytes};
use crate::error::{Error, Kind, Result};
use crate::index::{BlobKind, Entry, Index};
use crate::parts::Parts;
use crate::repository::Repository;
use crate::store::Area;
use crate::workers;

/// Bytes of chunks that are kept because only parts of them were read.
const CACHE: u64 = 64 << 20;
/// More than two shards of the cache would be too small for the 8 MiB chunks that restic makes.
const CACHE_ITEMS: usize = 64;
/// What snapshots of other chunks than fixed ones are read in: the average length of those that restic cuts by content.
const FOREIGN_CHUNK: u64 = 1 << 20;
/// What the length of fixed chunks must be a multiple of to be told as the size to read in.
const PAGE: u64 = 4096;
/// The chunk number of a hole.
const HOLE: u32 = u32::MAX;
/// Chunks hashed in one go by `digest`.
const BATCH: usize = 32;

#[derive(Clone)]
struct Weight;

impl quick_cache::Weighter<u32, Bytes> for Weight {
    fn weight(&self, _key: &u32, value: &Bytes) -> u64 {
        value.len() as u64
    }
}

/// Where the distinct chunks are: their entries name packs by number.
struct Places {
    packs: Vec<Id>,
    blobs: Vec<Entry>,
}

pub struct Disk {
    repository: Arc<Repository>,
    places: RwLock<Places>,
    /// For each chunk its number in `blobs`, or `HOLE`.
    chunks: Vec<u32>,
    /// Where each chunk begins, and the end.
    starts: Vec<u64>,
    pub identity: String,
    pub chunk_size: u64,
    pub stored: u64,
    cache: Cache<u32, Bytes, Weight>,
}

impl Disk {
    pub fn open(repository: Arc<Repository>, snapshot: &Id, path: &Path) -> Result<Self> {
        let file = repository.snapshot(snapshot)?;
        let index = Index::load(&repository)?;
        let mut parts = Parts::find(&repository, &index, &file, path)?;
        let name = format!("{} of snapshot {}", path.display(), &*snapshot.to_hex());

        let mut numbers: HashMap<Id, u32> = HashMap::new();
        let mut blobs = Vec::new();
        let mut chunks = Vec::new();
        let mut starts = Vec::new();
        let mut end = 0_u64;
        let mut size = 0_u64;
        let mut missing = 0_usize;
        let mut hasher = Sha256::new();
        for part in 0..parts.len() {
            let content = parts.load(&repository, &index, part)?;
            size = size.saturating_add(content.size);
            for id in &content.chunks {
                let number = match numbers.get(id) {
                    Some(number) => *number,
                    None => {
                        let Some(entry) = index.find(BlobKind::Data, id) else {
                            missing += 1;
                            continue;
                        };
                        let number = u32::try_from(blobs.len()).expect("fewer than 2^32 chunks");
                        blobs.push(*entry);
                        numbers.insert(*id, number);
                        number
                    }
                };
                let length = blobs[number as usize].content;
                chunks.push(number);
                starts.push(end);
                end += u64::from(length);
                hasher.update(length.to_le_bytes());
                hasher.update(id_bytes(id));
            }
        }
        starts.push(end);
        if missing > 0 {
            return Err(index.missing(&format!("{missing} chunks of {name}")));
        }
        if size != end {
            return Err(Error::corrupt(format!("{name} should have {size} bytes, its chunks have {end}")));
        }
        if end == 0 || !end.is_multiple_of(512) {
            return Err(Error::new(
                Kind::Unsupported,
                format!("{name} is no disk image: it has {end} bytes, not a multiple of 512"),
            ));
        }

        let first = u64::from(blobs[chunks[0] as usize].content);
        let last = chunks.len() - 1;
        let uniform = starts[..=last].iter().zip(0_u64..).all(|(start, number)| *start == number * first)
            && end - starts[last] <= first;
        mark_holes(&mut chunks, &blobs);
        let stored = chunks
            .iter()
            .zip(starts.windows(2))
            .filter(|(number, _)| **number != HOLE)
            .map(|(_, bounds)| bounds[1] - bounds[0])
            .sum();
        Ok(Self {
            repository,
            places: RwLock::new(Places { packs: index.packs, blobs }),
            chunks,
            starts,
            identity: hex::encode(hasher.finalize()),
            chunk_size: if last == 0 {
                CHUNK
            } else if uniform && first.is_multiple_of(PAGE) {
                first
            } else {
                FOREIGN_CHUNK
            },
            stored,
            cache: Cache::with_weighter(CACHE_ITEMS, CACHE, Weight),
        })
    }

    /// Chunks one after the other, by their numbers in `blobs`, whose entries name packs by number.
    pub fn of_chunks(repository: Arc<Repository>, packs: Vec<Id>, blobs: Vec<Entry>, chunks: Vec<u32>) -> Self {
        let mut end = 0;
        let mut starts = Vec::with_capacity(chunks.len() + 1);
        for number in &chunks {
            starts.push(end);
            end += u64::from(blobs[*number as usize].content);
        }
        starts.push(end);
        Self {
            repository,
            places: RwLock::new(Places { packs, blobs }),
            chunks,
            starts,
            identity: String::new(),
            chunk_size: FOREIGN_CHUNK,
            stored: end,
            cache: Cache::with_weighter(CACHE_ITEMS, CACHE, Weight),
        }
    }

    pub fn size(&self) -> u64 {
        self.starts[self.chunks.len()]
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_some_and(|end| end <= self.size()) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Usage,
            format!("{length} bytes at {offset} are not within the disk of {} bytes", self.size()),
        ))
    }

    /// The chunks that a range touches.
    fn touched(&self, offset: u64, length: u64) -> Range<usize> {
        if length == 0 {
            return 0..0;
        }
        let first = self.starts.partition_point(|start| *start <= offset) - 1;
        let end = self.starts.partition_point(|start| *start < offset + length);
        first..end
    }

    /// A chunk's content. One of which only a part is wanted is kept, for the rest is likely to be wanted next; one
    /// that is wanted whole is not: whoever asked has it, and an idle mount is small.
    fn chunk(&self, number: u32, whole: bool) -> Result<Bytes> {
        if !whole {
            return self.cache.get_or_insert_with(&number, || self.fetch(number));
        }
        self.cache.get(&number).map_or_else(|| self.fetch(number), Ok)
    }

    fn place(&self, number: u32) -> (Id, Entry) {
        let places = self.places.read();
        let entry = places.blobs[number as usize];
        (places.packs[entry.pack as usize], entry)
    }

    fn fetch(&self, number: u32) -> Result<Bytes> {
        let (pack, entry) = self.place(number);
        let result = self.repository.read_blob(&pack, &entry);
        if !matches!(&result, Err(error) if error.kind == Kind::Corrupt)
            || self.repository.store.has(Area::Pack, &pack)?
        {
            return result;
        }
        self.find_again(number, &pack)?;
        let (moved, entry) = self.place(number);
        if moved == pack { result } else { self.repository.read_blob(&moved, &entry) }
    }

    /// Read the index again, unless another thread has done it since `number` was thought to be in `gone`.
    fn find_again(&self, number: u32, gone: &Id) -> Result<()> {
        let mut places = self.places.write();
        let Places { packs, blobs } = &mut *places;
        if packs[blobs[number as usize].pack as usize] != *gone {
            return Ok(());
        }
        let index = Index::load(&self.repository)?;
        let first = u32::try_from(packs.len()).expect("fewer than 2^32 packs");
        for blob in blobs {
            if let Some(found) = index.find(BlobKind::Data, &blob.id) {
                *blob = Entry { pack: first + found.pack, ..*found };
            }
        }
        packs.extend(index.packs);
        Ok(())
    }

    /// The pieces of a range, in order: content, or nothing for zeros, and the length.
    pub fn pieces(&self, offset: u64, length: u64) -> Result<Vec<(Option<Bytes>, usize)>> {
        self.check(offset, length)?;
        self.touched(offset, length)
            .map(|at| {
                let begin = self.starts[at].max(offset);
                let end = self.starts[at + 1].min(offset + length);
                let within = (begin - self.starts[at]) as usize..(end - self.starts[at]) as usize;
                Ok(match self.chunks[at] {
                    HOLE => (None, within.len()),
                    number => {
                        let whole = within.len() as u64 == self.starts[at + 1] - self.starts[at];
                        (Some(self.chunk(number, whole)?.slice(within.clone())), within.len())
                    }
                })
            })
            .collect()
    }

    /// The extents of a range as (offset, length, hole), neighbours of one sort joined.
    pub fn extents(&self, offset: u64, length: u64) -> Result<Vec<(u64, u64, bool)>> {
        self.check(offset, length)?;
        let mut found: Vec<(u64, u64, bool)> = Vec::new();
        for at in self.touched(offset, length) {
            let begin = self.starts[at].max(offset);
            let end = self.starts[at + 1].min(offset + length);
            let hole = self.chunks[at] == HOLE;
            match found.last_mut() {
                Some(last) if last.2 == hole => last.1 += end - begin,
                _ => found.push((begin, end - begin, hole)),
            }
        }
        Ok(found)
    }

    /// SHA-256 of all bytes, holes as zeros.
    pub fn digest<E: From<Error>>(
        &self,
        mut tick: impl FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<String, E> {
        let mut hasher = Sha256::new();
        let zeros = vec![0_u8; 1 << 20];
        for first in (0..self.chunks.len()).step_by(BATCH) {
            let batch = first..(first + BATCH).min(self.chunks.len());
            // Fetched in parallel, hashed in order. Past the cache: it must not push out what a mount reads.
            let next = std::sync::atomic::AtomicUsize::new(batch.start);
            let mut fetched = workers::run(
                workers::threads().min(batch.len()),
                |stop| {
                    let mut mine = Vec::new();
                    while !stop.is_set() {
                        let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if at >= batch.end {
                            break;
                        }
                        if self.chunks[at] != HOLE {
                            mine.push((at, self.fetch(self.chunks[at])?));
                        }
                    }
                    Ok(mine)
                },
                &mut tick,
            )?
            .into_iter()
            .flatten()
            .collect::<HashMap<_, _>>();
            tick()?;
            for at in batch {
                if let Some(content) = fetched.remove(&at) {
                    hasher.update(&content);
                } else {
                    let mut left = (self.starts[at + 1] - self.starts[at]) as usize;
                    while left > 0 {
                        let step = left.min(zeros.len());
                        hasher.update(&zeros[..step]);
                        left -= step;
                    }
                }
            }
        }
        Ok(hex::encode(hasher.finalize()))
    }
}

/// A small file of a snapshot, such as the machine's description.
pub fn read_small(repository: &Repository, snapshot: &Id, path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = repository.snapshot(snapshot)?;
    let index = Index::load(repository)?;
    let node = repository.node(&index, &file, path)?;
    if !node.is_file() {
        return Err(Error::new(Kind::NotFound, format!("{} is no file", path.display())));
    }
    if node.meta.size > limit {
        return Err(Error::corrupt(format!(
            "{} of snapshot {} has {} bytes, more than the {limit} that are allowed",
            path.display(),
            &*snapshot.to_hex(),
            node.meta.size
        )));
    }
    let mut text = Vec::new();
    for id in node.content.unwrap_or_default() {
        let entry =
            index.find(BlobKind::Data, &id).ok_or_else(|| index.missing(&format!("the chunk {}", &*id.to_hex())))?;
        text.extend(repository.read_blob(&index.packs[entry.pack as usize], entry)?);
    }
    Ok(text)
}

/// Mark the chunks of zeros, which are known by their ids.
///
/// Only lengths that chunks of zeros have are tried, for each costs a hash: whole 64 KiB (fixed chunks, and the largest
/// of the content-defined ones, which is what zeros come in), and the last chunk.
fn mark_holes(chunks: &mut [u32], blobs: &[Entry]) {
    let last = chunks.last().copied();
    let mut zero_ids: HashMap<u32, Id> = HashMap::new();
    let holes: Vec<bool> = blobs
        .iter()
        .zip(0_u32..)
        .map(|(blob, number)| {
            (blob.content.is_multiple_of(1 << 16) || Some(number) == last)
                && *zero_ids.entry(blob.content).or_insert_with(|| hash(&vec![0; blob.content as usize])) == blob.id
        })
        .collect();
    for chunk in chunks {
        if holes[*chunk as usize] {
            *chunk = HOLE;
        }
    }
}

/// The id of a snapshot from 64 hex digits.
pub fn parse_id(text: &str) -> Result<Id> {
    if text.len() == 64
        && let Ok(id) = text.parse()
    {
        return Ok(id);
    }
    Err(Error::new(Kind::Usage, format!("{text:?} is no snapshot id: 64 hex digits")))
}
