//! The private store: a sparse data file, the map that says which of its blocks count, and the map's journal.
//!
//! The map in use is a mapped file (`live`): a killed process loses nothing. It counts until the machine restarts,
//! for the kernel may write it to disk before the data; then `map` and `journal` say what is there.
//! Crash contract of these: a flush snapshots the map's changes, syncs the data, then journals the changes. So a block's bit
//! never reaches the disk before its data; what was not flushed may be lost, as in any disk's cache, and nothing else.
//! Disks tear writes between sectors of 512 bytes, not within. So every sector of `map` and `journal` is sealed and all
//! space of them is allocated when the store is made: a sector that is neither old nor new is damage, and refused.
//! A failed sync of the data fails all flushes and writes until the machine restarts, whatever process serves them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, errno};
use crate::journal::{Journal, LIMIT, Replay};
use crate::map::{BLOCK, BlockMap, SECTOR, SectorBytes, State, WORDS, sector_count, sector_index};
use crate::map_file::{MapFile, unsound};
use crate::mapping::Mapping;

const LIVE_MAGIC: &[u8; 8] = b"LMLIVE01";
/// Where the words start in the live map's file.
const LIVE_START: u64 = 4096;

pub struct PrivateStore {
    pub map: BlockMap,
    data: File,
    written: AtomicU64,
    durable: Mutex<Durable>,
}

struct Durable {
    map_file: MapFile,
    journal: Journal,
    /// Sectors that are in the journal and not yet in their place in the map.
    pending: BTreeMap<u32, SectorBytes>,
    flushed: u64,
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
        if !map_path.try_exists()? {
            // Made after the map: with it the map was there.
            if folder.join("live").try_exists()? {
                return Err(Error::corrupt(format!("the map of private store {} is gone", folder.display())));
            }
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
        let sectors = sector_count(size.div_ceil(BLOCK));
        let damaged = |what: String| Error::corrupt(format!("{what} of private store {} is damaged", folder.display()));
        if data.metadata()?.len() != size.next_multiple_of(BLOCK) || journal.metadata()?.len() != LIMIT {
            return Err(damaged("the size of a file".to_owned()));
        }
        let stored = MapFile::open(open_file(&map_path, false)?, size, sectors).map_err(|error| match error {
            Error::Corrupt(what) => damaged(what),
            error @ Error::Io(_) => error,
        })?;
        let (journal, replay) = Journal::open(journal, stored.first)?;
        let replayed = match replay {
            Replay::Good(sectors) => sectors,
            Replay::Damaged { record } => return Err(damaged(format!("journal record {record}"))),
        };
        let pending: BTreeMap<u32, SectorBytes> =
            replayed.into_iter().map(|bytes| (sector_index(&bytes), bytes)).collect();
        // A sector of the journal replaces one that a killed checkpoint may have torn.
        let mut durable = stored.sectors;
        durable.extend(&pending);
        if let Some(index) = unsound(&durable, sectors) {
            return Err(damaged(format!("map sector {index}")));
        }
        let map = live_map(folder, size, sectors, &durable)?;
        let mut durable = Durable { map_file: stored.file, journal, pending, flushed: 0 };
        // What a killed process wrote and did not sync is in the page cache only: nothing may be built on it.
        Self::checkpoint(&mut durable)?;
        // An earlier process may have left something to flush.
        Ok(Self { map, data, written: AtomicU64::new(1), durable: Mutex::new(durable) })
    }

    fn format(folder: &Path, size: u64) -> Result<(), Error> {
        let data = open_file(&folder.join("data"), true)?;
        data.set_len(0)?;
        data.set_len(size.next_multiple_of(BLOCK))?;
        data.sync_all()?;
        Journal::format(&open_file(&folder.join("journal"), true)?)?;
        // The map comes last and at once: with it the store exists.
        let fresh = folder.join("map.new");
        MapFile::format(&open_file(&fresh, true)?, size, sector_count(size.div_ceil(BLOCK)))?;
        std::fs::rename(&fresh, folder.join("map"))?;
        File::open(folder)?.sync_all()?;
        Ok(())
    }

    /// Fails when a sync failed: the kernel may have dropped what it could not write, and says so only once.
    fn check(&self) -> Result<(), i32> {
        if self.map.note().load(Ordering::Relaxed) == 0 { Ok(()) } else { Err(libc::EIO) }
    }

    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), i32> {
        self.data.read_exact_at(buffer, offset).map_err(|error| errno(&error))
    }

    /// Writes bytes to the data file; the caller sets the map after it, then calls `wrote`.
    pub fn write(&self, data: &[u8], offset: u64) -> Result<(), i32> {
        self.check()?;
        self.data.write_all_at(data, offset).map_err(|error| errno(&error))
    }

    /// Makes whole blocks zero. The caller keeps writers of them away.
    pub fn zero(&self, first: u64, count: u64) -> Result<(), i32> {
        self.check()?;
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
        Ok(())
    }

    /// Counts a change, so that the next flush has something to do.
    pub fn wrote(&self) {
        self.written.fetch_add(1, Ordering::AcqRel);
    }

    /// Makes every change that was complete before the call durable.
    pub fn flush(&self) -> Result<(), i32> {
        let wanted = self.written.load(Ordering::Acquire);
        let mut durable = self.durable.lock();
        self.check()?;
        if durable.flushed >= wanted {
            return Ok(());
        }
        let covered = self.written.load(Ordering::Acquire);
        let changed = self.map.take_dirty();
        self.data.sync_data().map_err(|error| {
            self.map.note().store(1, Ordering::Relaxed);
            errno(&error)
        })?;
        let mut left = &changed[..];
        while !left.is_empty() {
            match Self::append(&mut durable, left) {
                Ok(count) => left = &left[count..],
                Err(error) => {
                    left.iter().for_each(|bytes| self.map.mark_dirty(sector_index(bytes)));
                    return Err(errno(&error));
                }
            }
        }
        durable.flushed = covered;
        Ok(())
    }

    /// Journals as many of the sectors as one record takes, and says how many.
    fn append(durable: &mut Durable, sectors: &[SectorBytes]) -> io::Result<usize> {
        let is_full = durable.journal.room() < sectors.len() && !durable.pending.is_empty();
        if is_full {
            Self::checkpoint(durable)?;
        }
        let now = &sectors[..sectors.len().min(durable.journal.room())];
        durable.journal.append(now)?;
        durable.pending.extend(now.iter().map(|bytes| (sector_index(bytes), *bytes)));
        Ok(now.len())
    }

    /// Brings the journalled sectors to their places, then lets the journal start again. A failed one must be repeated before
    /// the next append, and is: what did not fit then does not fit later.
    fn checkpoint(durable: &mut Durable) -> io::Result<()> {
        durable.map_file.store(&durable.pending)?;
        durable.map_file.set_first(durable.journal.next())?;
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
        Self::checkpoint(&mut durable).map_err(|error| errno(&error))
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
