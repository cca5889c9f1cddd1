//! The journal of the private store's map: what makes a flush durable with one append and one fdatasync.
//!
//! A record is a sealed header sector and the map sectors it changes, sealed as well; sectors never used are sealed
//! and empty. A last record of which some sectors are older ones is a flush that was never acknowledged, and dropped.
//! A sector that is not sealed, or a bad record with younger ones behind it, is damage.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::map::{SECTOR, SectorBytes, is_sealed, seal};

const MAGIC: &[u8; 8] = b"LMJRNL01";
/// The file's size. When it is full the map is written in place and the journal starts again; it is written from end
/// to end at the start, so that a flush needs no change of the file system's own metadata.
pub const LIMIT: u64 = 1 << 20;

pub struct Journal {
    file: File,
    tail: u64,
    next: u64,
}

pub enum Replay {
    Good(Vec<SectorBytes>),
    Damaged { record: u64 },
}

struct Header {
    number: u64,
    count: u32,
    sum: u32,
}

fn encode(header: &Header) -> SectorBytes {
    let mut bytes = [0; SECTOR];
    bytes[4..12].copy_from_slice(MAGIC);
    bytes[12..20].copy_from_slice(&header.number.to_le_bytes());
    bytes[20..24].copy_from_slice(&header.count.to_le_bytes());
    bytes[24..28].copy_from_slice(&header.sum.to_le_bytes());
    seal(&mut bytes);
    bytes
}

fn u32_at(bytes: &SectorBytes, at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn decode(bytes: &SectorBytes) -> Option<Header> {
    (&bytes[4..12] == MAGIC && is_sealed(bytes)).then(|| Header {
        number: u64::from(u32_at(bytes, 12)) | u64::from(u32_at(bytes, 16)) << 32,
        count: u32_at(bytes, 20),
        sum: u32_at(bytes, 24),
    })
}

impl Journal {
    /// Fills a new journal file.
    pub fn format(file: &File) -> io::Result<()> {
        let mut free = [0; SECTOR];
        seal(&mut free);
        file.write_all_at(&free.repeat(LIMIT as usize / SECTOR), 0)?;
        file.sync_all()
    }

    /// Reads the records from number `first` on.
    pub fn open(file: File, first: u64) -> io::Result<(Self, Replay)> {
        let mut content = vec![0; LIMIT as usize];
        file.read_exact_at(&mut content, 0)?;
        let (sectors, _) = content.as_chunks::<SECTOR>();
        let payload = |at: usize, header: &Header| {
            let found = sectors.get(at + 1..at + 1 + header.count as usize)?;
            (crc32fast::hash(found.as_flattened()) == header.sum).then_some(found)
        };
        let (mut at, mut next, mut replayed) = (0, first, Vec::new());
        while let Some(header) = sectors.get(at).and_then(decode) {
            match payload(at, &header) {
                Some(found) if header.number == next => {
                    replayed.extend_from_slice(found);
                    at += 1 + found.len();
                    next += 1;
                }
                _ => break,
            }
        }
        // Of a record that was never complete, each sector is there or is what was there before.
        let torn = match sectors.get(at).and_then(decode) {
            Some(header) if header.number == next => 1 + header.count as usize,
            _ => 1,
        };
        let younger = |sector: &SectorBytes| decode(sector).is_some_and(|header| header.number > next);
        let is_damaged = !sectors[at..].iter().take(torn).all(is_sealed) || sectors[at..].iter().any(younger);
        let replay = if is_damaged { Replay::Damaged { record: next } } else { Replay::Good(replayed) };
        Ok((Self { file, tail: (at * SECTOR) as u64, next }, replay))
    }

    /// Makes changed sectors durable, as many as there is room for. After an error nothing counts as written.
    pub fn append(&mut self, sectors: &[SectorBytes]) -> io::Result<()> {
        let body = sectors.as_flattened();
        let count = sectors.len() as u32;
        let header = encode(&Header { number: self.next, count, sum: crc32fast::hash(body) });
        let mut record = Vec::with_capacity(SECTOR + body.len());
        record.extend_from_slice(&header);
        record.extend_from_slice(body);
        self.file.write_all_at(&record, self.tail)?;
        self.file.sync_data()?;
        self.tail += record.len() as u64;
        self.next += 1;
        Ok(())
    }

    /// How many sectors the next record can take.
    pub fn room(&self) -> usize {
        ((LIMIT - self.tail) as usize / SECTOR).saturating_sub(1)
    }

    /// The number the next record gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Starts again at the front, once the map holds everything and says so.
    pub fn restart(&mut self) {
        self.tail = 0;
    }
}
