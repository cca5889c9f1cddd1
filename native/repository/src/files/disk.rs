//! The synthesised disk: what was written for it lies in a sparse file, its files' data in the repository.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::crypto::id_bytes;
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};

const PAGE: u64 = 4096;
/// What to read in: few files' worth, so that a recall is quick, and many chunks are whole.
pub const CHUNK: u64 = 128 << 10;

/// A chunk and where it begins on the disk.
pub struct Piece {
    pub offset: u64,
    pub blob: u32,
}

/// Where a run of neighbouring chunks lies: on the disk, and among all chunks.
#[derive(Clone, Copy)]
struct Run {
    offset: u64,
    within: u64,
    length: u64,
}

pub struct FilesDisk {
    size: u64,
    written: File,
    runs: Vec<Run>,
    data: Disk,
    pub identity: String,
    /// `lseek` finds the holes of `written`, and moves its one offset.
    seeking: Mutex<()>,
}

impl FilesDisk {
    /// A disk of what is in the file `written` and the pieces, in order of their offsets.
    pub fn new(tree: super::tree::FileTree, written: File, pieces: &[Piece]) -> Result<Self> {
        let size = written.metadata().map_err(|error| fail(&error))?.len();
        let (repository, packs, blobs) = tree.into_parts();
        let mut runs: Vec<Run> = Vec::new();
        let mut within = 0;
        let mut hasher = Sha256::new();
        for piece in pieces {
            let entry = &blobs[piece.blob as usize];
            let length = u64::from(entry.content);
            match runs.last_mut() {
                Some(run) if run.offset + run.length == piece.offset => run.length += length,
                _ => runs.push(Run { offset: piece.offset, within, length }),
            }
            within += length;
            hasher.update(piece.offset.to_le_bytes());
            hasher.update(length.to_le_bytes());
            hasher.update(id_bytes(&entry.id));
        }
        if runs.last().is_some_and(|run| run.offset + run.length > size) {
            return Err(Error::new(Kind::Internal, "a file lies behind the end of a synthesised disk"));
        }
        let data = Disk::of_chunks(repository, packs, blobs, pieces.iter().map(|piece| piece.blob).collect());
        let mut disk = Self { size, written, runs, data, identity: String::new(), seeking: Mutex::new(()) };
        hasher.update(size.to_le_bytes());
        disk.hash_written(&mut hasher)?;
        disk.identity = hex::encode(hasher.finalize());
        Ok(disk)
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Which pages were written, and their content; what is zero does not count, wherever the file has its holes.
    fn hash_written(&self, hasher: &mut Sha256) -> Result<()> {
        let mut buffer = vec![0; 1 << 20];
        for (start, end) in self.filled(0, self.size)? {
            let start = start / PAGE * PAGE;
            for at in (start..end).step_by(buffer.len()) {
                let part = &mut buffer[..(self.size - at).min(1 << 20) as usize];
                self.written.read_exact_at(part, at).map_err(|error| fail(&error))?;
                for (page, number) in part.chunks(PAGE as usize).zip(0..) {
                    let offset = at + number * PAGE;
                    if offset < end && page.iter().any(|byte| *byte != 0) {
                        hasher.update(offset.to_le_bytes());
                        hasher.update(page);
                    }
                }
            }
        }
        Ok(())
    }

    /// The ranges of what was written that are no holes of the file.
    fn filled(&self, offset: u64, end: u64) -> Result<Vec<(u64, u64)>> {
        let _alone = self.seeking.lock();
        let mut found = Vec::new();
        let mut at = offset;
        while at < end {
            let data = match lseek64(&self.written, at as i64, Whence::SeekData) {
                Ok(data) => data as u64,
                Err(Errno::ENXIO) => break,
                Err(errno) => return Err(fail(&errno.into())),
            };
            if data >= end {
                break;
            }
            let hole = lseek64(&self.written, data as i64, Whence::SeekHole).map_err(|errno| fail(&errno.into()))?;
            at = (hole as u64).min(end);
            found.push((data, at));
        }
        Ok(found)
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let size = self.size;
        Err(Error::new(Kind::Usage, format!("{length} bytes at {offset} are not within the disk of {size} bytes")))
    }

    /// The runs that a range touches.
    fn touched(&self, offset: u64, end: u64) -> &[Run] {
        let first = self.runs.partition_point(|run| run.offset + run.length <= offset);
        let last = self.runs.partition_point(|run| run.offset < end);
        &self.runs[first.min(last)..last]
    }

    /// The data of a range that comes from the repository, as (place in the range, content).
    pub fn recalled(&self, offset: u64, length: u64) -> Result<Vec<(usize, Bytes)>> {
        self.check(offset, length)?;
        let end = offset + length;
        let mut found = Vec::new();
        for run in self.touched(offset, end) {
            let (begin, stop) = (run.offset.max(offset), (run.offset + run.length).min(end));
            let mut at = (begin - offset) as usize;
            for (content, length) in self.data.pieces(run.within + (begin - run.offset), stop - begin)? {
                if let Some(content) = content {
                    found.push((at, content));
                }
                at += length;
            }
        }
        Ok(found)
    }

    /// What was written of a range.
    pub fn written(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.written.read_exact_at(buffer, offset).map_err(|error| fail(&error))
    }

    /// The extents of a range as (offset, length, hole).
    pub fn extents(&self, offset: u64, length: u64) -> Result<Vec<(u64, u64, bool)>> {
        self.check(offset, length)?;
        let end = offset + length;
        let mut filled = self.filled(offset, end)?;
        filled.extend(
            self.touched(offset, end).iter().map(|run| (run.offset.max(offset), (run.offset + run.length).min(end))),
        );
        filled.sort_unstable();
        let mut found: Vec<(u64, u64, bool)> = Vec::new();
        let mut at = offset;
        for (start, stop) in filled {
            if start > at {
                found.push((at, start - at, true));
            }
            if stop > at {
                let begin = start.max(at);
                match found.last_mut() {
                    Some(last) if !last.2 => last.1 += stop - begin,
                    _ => found.push((begin, stop - begin, false)),
                }
                at = stop;
            }
        }
        if at < end {
            found.push((at, end - at, true));
        }
        Ok(found)
    }
}

fn fail(error: &io::Error) -> Error {
    Error::io("cannot read the metadata of a synthesised disk", error)
}
