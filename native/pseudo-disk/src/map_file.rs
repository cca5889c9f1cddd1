//! The map's file: two header slots, used in turn, an index, and the map's sectors, each in its place.
//!
//! Header and index are always sealed. The index has one bit for each map sector that was ever stored: the others are
//! never looked at, so the map of a large disk costs what was used of it, and a stored sector that became zeros is
//! damage, not a sector that was never stored.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::error::Error;
use crate::map::{SECTOR, SectorBytes, WORDS, is_sealed, is_sound, seal, sector_index};

const MAGIC: &[u8; 8] = b"LMMAP002";
const HEADERS: u64 = 2;
/// Map sectors that an index sector speaks of.
const COVERED: usize = WORDS * 64;
/// The longest read, in sectors.
const RUN: usize = 2048;

pub struct MapFile {
    file: File,
    size: u64,
    index: Vec<SectorBytes>,
}

/// What an opened file says.
pub struct Stored {
    pub file: MapFile,
    /// Number of the first journal record that counts.
    pub first: u64,
    /// Sectors that were ever stored; a killed checkpoint may have torn those that the journal has.
    pub sectors: BTreeMap<u32, SectorBytes>,
}

/// Header: sealed; magic, size of the disk, number of the first journal record that counts.
fn header(size: u64, first: u64) -> SectorBytes {
    let mut bytes = [0; SECTOR];
    bytes[4..12].copy_from_slice(MAGIC);
    bytes[12..20].copy_from_slice(&size.to_le_bytes());
    bytes[20..28].copy_from_slice(&first.to_le_bytes());
    seal(&mut bytes);
    bytes
}

fn read_header(file: &File, size: u64, slot: u64) -> io::Result<Option<u64>> {
    let mut bytes = [0; SECTOR];
    file.read_exact_at(&mut bytes, slot * SECTOR as u64)?;
    let mut first = [0; 8];
    first.copy_from_slice(&bytes[20..28]);
    let known = is_sealed(&bytes) && &bytes[4..12] == MAGIC && bytes[12..20] == size.to_le_bytes();
    Ok(known.then(|| u64::from_le_bytes(first)))
}

/// The name of an index sector: no map sector has it.
fn index_name(number: usize) -> u32 {
    u32::MAX - number as u32
}

fn length(sectors: usize) -> u64 {
    (HEADERS + (sectors.div_ceil(COVERED) + sectors) as u64) * SECTOR as u64
}

impl MapFile {
    /// Fills a new file for a disk of `size` bytes whose map has `sectors` sectors.
    pub fn format(file: &File, size: u64, sectors: usize) -> io::Result<()> {
        file.set_len(0)?;
        // Allocated at once: a full file system must not keep a flush from being acknowledged.
        // SAFETY: plain system call on a descriptor we hold.
        let error = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length(sectors) as libc::off_t) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        file.write_all_at(&header(size, 1), 0)?;
        for number in 0..sectors.div_ceil(COVERED) {
            let mut bytes = [0; SECTOR];
            bytes[4..8].copy_from_slice(&index_name(number).to_le_bytes());
            seal(&mut bytes);
            file.write_all_at(&bytes, (HEADERS + number as u64) * SECTOR as u64)?;
        }
        file.sync_all()
    }

    /// Reads what is stored. `Error::Corrupt` names the part that is damaged.
    pub fn open(file: File, size: u64, sectors: usize) -> Result<Stored, Error> {
        let damaged = |what: &str| Error::corrupt(what.to_owned());
        if file.metadata()?.len() != length(sectors) {
            return Err(damaged("the size of the map"));
        }
        let first = read_header(&file, size, 0)?.max(read_header(&file, size, 1)?);
        let first = first.ok_or_else(|| damaged("the map's header"))?;
        let mut content = vec![0; sectors.div_ceil(COVERED) * SECTOR];
        file.read_exact_at(&mut content, HEADERS * SECTOR as u64)?;
        let index = content.as_chunks::<SECTOR>().0.to_vec();
        if (0..).zip(&index).any(|(number, bytes)| !is_sealed(bytes) || sector_index(bytes) != index_name(number)) {
            return Err(damaged("the map's index"));
        }
        let map = Self { file, size, index };
        let sectors = map.read_stored(sectors)?;
        Ok(Stored { file: map, first, sectors })
    }

    fn is_stored(&self, index: usize) -> bool {
        let bit = index % COVERED;
        self.index[index / COVERED][8 + bit / 8] & (1 << (bit % 8)) != 0
    }

    fn place(&self, index: usize) -> u64 {
        (HEADERS + (self.index.len() + index) as u64) * SECTOR as u64
    }

    fn read_stored(&self, sectors: usize) -> io::Result<BTreeMap<u32, SectorBytes>> {
        let mut found = BTreeMap::new();
        let mut start = 0;
        while start < sectors {
            let count = (start..sectors.min(start + RUN)).take_while(|index| self.is_stored(*index)).count();
            let mut content = vec![0; count * SECTOR];
            self.file.read_exact_at(&mut content, self.place(start))?;
            found.extend((start as u32..).zip(content.as_chunks::<SECTOR>().0.iter().copied()));
            start += count.max(1);
        }
        Ok(found)
    }

    /// Brings sectors to their places, durably. Until the next `set_first` the journal must have them as well.
    pub fn store(&mut self, sectors: &BTreeMap<u32, SectorBytes>) -> io::Result<()> {
        let mut touched = BTreeSet::new();
        for (index, bytes) in sectors {
            let index = *index as usize;
            self.file.write_all_at(bytes, self.place(index))?;
            self.index[index / COVERED][8 + index % COVERED / 8] |= 1 << (index % 8);
            touched.insert(index / COVERED);
        }
        for number in touched {
            seal(&mut self.index[number]);
            self.file.write_all_at(&self.index[number], (HEADERS + number as u64) * SECTOR as u64)?;
        }
        self.file.sync_data()
    }

    /// Notes, durably, that the journal counts from record `first` on. After an error it may count from there or not.
    pub fn set_first(&self, first: u64) -> io::Result<()> {
        self.file.write_all_at(&header(self.size, first), first % HEADERS * SECTOR as u64)?;
        self.file.sync_data()
    }
}

/// The first of the sectors that is not what it should be.
pub fn unsound(stored: &BTreeMap<u32, SectorBytes>, sectors: usize) -> Option<u32> {
    stored
        .iter()
        .find(|(index, bytes)| sector_index(bytes) != **index || !is_sound(bytes, sectors))
        .map(|(index, _)| *index)
}
