//! The private store: a sparse data file, the map that says which of its blocks count, and the map's journal.
//!
//! The map in use is a mapped file (`live`): a killed process loses nothing. It counts until the machine restarts,
//! for the kernel may write it to disk before the data; then `map` and `journal` say what is there.
//! Crash contract of these: a flush snapshots the map's changes, syncs the data, then journals the changes. So a block's bit
//! never reaches the disk before its data; what was not flushed may be lost, as in any disk's cache, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, errno};
use crate::journal::{Journal, Replay};
use crate::map::{
    BLOCK, BlockMap, SECTOR, SectorBytes, State, WORDS, is_sealed, is_sound, seal, sector_count, sector_index,
};
use crate::mapping::Mapping;

const MAGIC: &[u8; 8] = b"LMMAP001";
const LIVE_MAGIC: &[u8; 8] = b"LMLIVE01";
/// Where the words start in the live map's file.
const LIVE_START: u64 = 4096;
/// The map file starts with two header slots, used in turn.
const HEADERS: u64 = 2;

pub struct PrivateStore {
    pub map: BlockMap,
    data: File,
    map_file: File,
    size: u64,
    written: AtomicU64,
    /// Set when a sync failed: the kernel may have dropped what it could not write, so nothing is certain any more.
    failed: AtomicBool,
    durable: Mutex<Durable>,
}

struct Durable {
    journal: Journal,
    /// Sectors that are in the journal and not yet in their place in the map.
    pending: BTreeMap<u32, SectorBytes>,
    flushed: u64,
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

fn open_file(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(create).mode(0o600).open(path)
}

fn punch(file: &File, offset: u64, length: u64) {
    // SAFETY: plain system call on a descriptor we hold. Failing only costs space.
    unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            offset as libc::off_t,
            length as libc::off_t,
        )
    };
}

impl PrivateStore {
    /// Opens the store in `folder`, making it when it is not there.
    pub fn open(folder: &Path, size: u64) -> Result<Self, Error> {
        let map_path = folder.join("map");
        if !map_path.exists() {
            Self::format(folder, size)?;
        }
        let missing = |what: &str, error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                Error::corrupt(format!("the {what} of private store {} is gone", folder.display()))
            }
            _ => Error::Io(error),
        };
        let data = open_file(&folder.join("data"), false).map_err(|error| missing("data file", error))?;
        let journal = open_file(&folder.join("journal"), false).map_err(|error| missing("journal", error))?;
        let map_file = open_file(&map_path, false)?;
        let sectors = sector_count(size.div_ceil(BLOCK));
        let damaged = |what: String| Error::corrupt(format!("{what} of private store {} is damaged", folder.display()));
        let expected = (HEADERS + sectors as u64) * SECTOR as u64;
        if map_file.metadata()?.len() != expected || data.metadata()?.len() != size.next_multiple_of(BLOCK) {
            return Err(damaged("the size of a file".to_owned()));
        }
        let first = (read_header(&map_file, size, 0)?)
            .max(read_header(&map_file, size, 1)?)
            .ok_or_else(|| damaged("the map's header".to_owned()))?;
        let (journal, replay) = Journal::open(journal, first)?;
        let replayed = match replay {
            Replay::Good(sectors) => sectors,
            Replay::Damaged { record } => return Err(damaged(format!("journal record {record}"))),
        };
        let pending: BTreeMap<u32, SectorBytes> =
            replayed.into_iter().map(|bytes| (sector_index(&bytes), bytes)).collect();
        // A sector of the journal replaces one that a killed checkpoint may have torn.
        let mut durable = stored_sectors(&map_file)?;
        durable.extend(&pending);
        for (index, bytes) in &durable {
            if sector_index(bytes) != *index || !is_sound(bytes, sectors) {
                return Err(damaged(format!("map sector {index}")));
            }
        }
        Ok(Self {
            map: live_map(folder, size, sectors, &durable)?,
            data,
            map_file,
            size,
            // An earlier process may have left something to flush.
            written: AtomicU64::new(1),
            failed: AtomicBool::new(false),
            durable: Mutex::new(Durable { journal, pending, flushed: 0 }),
        })
    }

    fn format(folder: &Path, size: u64) -> Result<(), Error> {
        let data = open_file(&folder.join("data"), true)?;
        data.set_len(0)?;
        data.set_len(size.next_multiple_of(BLOCK))?;
        data.sync_all()?;
        Journal::format(&open_file(&folder.join("journal"), true)?)?;
        // The map comes last and at once: with it the store exists.
        let fresh = folder.join("map.new");
        let map_file = open_file(&fresh, true)?;
        let sectors = sector_count(size.div_ceil(BLOCK)) as u64;
        map_file.set_len(0)?;
        map_file.set_len((HEADERS + sectors) * SECTOR as u64)?;
        map_file.write_all_at(&header(size, 1), 0)?;
        map_file.sync_all()?;
        std::fs::rename(&fresh, folder.join("map"))?;
        File::open(folder)?.sync_all()?;
        Ok(())
    }

    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), i32> {
        self.data.read_exact_at(buffer, offset).map_err(|error| errno(&error))
    }

    /// Writes bytes to the data file; the caller sets the map after it, then calls `wrote`.
    pub fn write(&self, data: &[u8], offset: u64) -> Result<(), i32> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(libc::EIO);
        }
        self.data.write_all_at(data, offset).map_err(|error| errno(&error))
    }

    /// Makes whole blocks zero. The caller keeps writers of them away.
    pub fn zero(&self, first: u64, count: u64) {
        let (mut block, end) = (first, first + count);
        while block < end {
            let (state, run) = self.map.run(block, end - block);
            if state == State::Data {
                self.map.set(block, run, State::Zero);
                punch(&self.data, block * BLOCK, run * BLOCK);
            }
            block += run;
        }
        self.map.set(first, count, State::Zero);
    }

    /// Counts a change, so that the next flush has something to do.
    pub fn wrote(&self) {
        self.written.fetch_add(1, Ordering::AcqRel);
    }

    /// Makes every change that was complete before the call durable.
    pub fn flush(&self) -> Result<(), i32> {
        let wanted = self.written.load(Ordering::Acquire);
        let mut durable = self.durable.lock();
        if self.failed.load(Ordering::Relaxed) {
            return Err(libc::EIO);
        }
        if durable.flushed >= wanted {
            return Ok(());
        }
        let covered = self.written.load(Ordering::Acquire);
        let changed = self.map.take_dirty();
        let lost = |error: io::Error| {
            self.failed.store(true, Ordering::Relaxed);
            errno(&error)
        };
        self.data.sync_data().map_err(lost)?;
        if !changed.is_empty() {
            if let Err(error) = durable.journal.append(&changed) {
                changed.iter().for_each(|bytes| self.map.mark_dirty(sector_index(bytes)));
                return Err(errno(&error));
            }
            durable.pending.extend(changed.into_iter().map(|bytes| (sector_index(&bytes), bytes)));
        }
        durable.flushed = covered;
        if durable.journal.is_full() {
            // Without room the journal just goes on growing; the next flush tries again.
            let _ = self.checkpoint(&mut durable);
        }
        Ok(())
    }

    /// Brings the journalled sectors to their places, then lets the journal start again.
    fn checkpoint(&self, durable: &mut Durable) -> io::Result<()> {
        for (index, bytes) in &durable.pending {
            self.map_file.write_all_at(bytes, (HEADERS + u64::from(*index)) * SECTOR as u64)?;
        }
        self.map_file.sync_data()?;
        let first = durable.journal.next();
        self.map_file.write_all_at(&header(self.size, first), first % HEADERS * SECTOR as u64)?;
        self.map_file.sync_data()?;
        durable.journal.restart();
        durable.pending.clear();
        Ok(())
    }

    /// Flushes and leaves an empty journal behind.
    pub fn close(&self) -> Result<(), i32> {
        self.flush()?;
        let mut durable = self.durable.lock();
        if durable.pending.is_empty() {
            return Ok(());
        }
        self.checkpoint(&mut durable).map_err(|error| errno(&error))
    }
}

/// The ranges of a file that are not holes, from an offset on.
fn data_ranges(file: &File, from: u64) -> io::Result<Vec<(u64, u64)>> {
    let seek = |position: u64, whence| {
        // SAFETY: plain system call on a descriptor we hold.
        let found = unsafe { libc::lseek(file.as_raw_fd(), position as libc::off_t, whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    let (mut ranges, mut position) = (Vec::new(), from);
    loop {
        let start = match seek(position, libc::SEEK_DATA) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(ranges),
            start => start?,
        };
        position = seek(start, libc::SEEK_HOLE)?;
        ranges.push((start, position));
    }
}

/// The sectors of the map file that were ever written.
fn stored_sectors(file: &File) -> io::Result<BTreeMap<u32, SectorBytes>> {
    let mut found = BTreeMap::new();
    for (start, end) in data_ranges(file, HEADERS * SECTOR as u64)? {
        let mut content = vec![0; (end - start) as usize];
        file.read_exact_at(&mut content, start)?;
        let indices = (start / SECTOR as u64 - HEADERS) as u32..;
        let written = |(_, bytes): &(u32, &SectorBytes)| **bytes != [0; SECTOR];
        let sectors = indices.zip(content.as_chunks::<SECTOR>().0).filter(written);
        found.extend(sectors.map(|(index, bytes)| (index, *bytes)));
    }
    Ok(found)
}

/// The map as the last process left it in the `live` file; as the disk has it when the machine restarted since.
fn live_map(folder: &Path, size: u64, sectors: usize, durable: &BTreeMap<u32, SectorBytes>) -> Result<BlockMap, Error> {
    const GROUP: u64 = (WORDS * 8) as u64;
    let path = folder.join("live");
    let mut header = [0; SECTOR];
    header[..8].copy_from_slice(LIVE_MAGIC);
    header[8..16].copy_from_slice(&size.to_le_bytes());
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id")?;
    header[16..52].copy_from_slice(boot.get(..36).ok_or_else(|| Error::corrupt("no boot id".to_owned()))?);
    let mut found = [0; SECTOR];
    let length = LIVE_START + sectors as u64 * GROUP;
    let open = |file: &File| {
        Ok::<_, Error>(BlockMap::new(Mapping::new(file, length as usize)?, (LIVE_START / 8) as usize, sectors))
    };
    if let Ok(file) = File::options().read(true).write(true).open(&path)
        && file.read_exact_at(&mut found, 0).is_ok()
        && found == header
    {
        let map = open(&file)?;
        let mut used: BTreeSet<u32> = durable.keys().copied().collect();
        for (start, end) in data_ranges(&file, LIVE_START)? {
            used.extend(((start - LIVE_START) / GROUP) as u32..(end.min(length) - LIVE_START).div_ceil(GROUP) as u32);
        }
        used.iter().for_each(|index| map.adopt(*index, durable.get(index)));
        return Ok(map);
    }
    let fresh = folder.join("live.new");
    let file = open_file(&fresh, true)?;
    file.set_len(0)?;
    // Allocated at once: a mapped page without a block would be a SIGBUS on a full file system.
    // SAFETY: plain system call on a descriptor we hold.
    let error = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length as libc::off_t) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error).into());
    }
    file.write_all_at(&header, 0)?;
    let map = open(&file)?;
    for (index, bytes) in durable {
        map.load(bytes);
        map.adopt(*index, Some(bytes));
    }
    std::fs::rename(&fresh, &path)?;
    Ok(map)
}
