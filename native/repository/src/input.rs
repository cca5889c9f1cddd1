//! What disks are read from when they are backed up: a raw image or block device, or anything else through `Input`.

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};

use crate::error::{Error, Kind, Result};
use crate::workers;

/// Larger than any disk that a cloud or hypervisor of today has.
pub const MAX_DISK: u64 = 64 << 40;

/// A disk that can be read from many threads.
pub trait Input: Sync {
    fn size(&self) -> u64;

    /// When it was last changed, where that can be told.
    fn time(&self) -> Option<jiff::Timestamp>;

    /// How many threads are good to read it.
    fn threads(&self) -> usize;

    /// The ranges that may be other than zeros, in order.
    fn data(&self) -> Result<Vec<Range<u64>>>;

    /// Fill the buffer.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()>;

    /// Fails when it is not what it was when it was opened, as far as that can be told.
    fn check_unchanged(&self) -> Result<()>;
}

/// A raw image or block device.
pub struct Image {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    size: u64,
}

impl Image {
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |error: io::Error| Error::io(&format!("cannot read the image {}", path.display()), &error);
        let bad = |reason: &str| Error::new(Kind::Usage, format!("{} is no disk image: {reason}", path.display()));
        // Before it is opened: opening a pipe would wait for its writer.
        let kind = std::fs::metadata(path).map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(bad("it is not a regular file or block device"));
        }
        let mut file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        // The length that metadata gives is none for a device.
        let size = file.seek(SeekFrom::End(0)).map_err(fail)?;
        if size == 0 {
            return Err(bad("it is empty"));
        }
        if !size.is_multiple_of(512) {
            return Err(bad(&format!("its {size} bytes are not a multiple of 512"))
                .hint("a raw image is wanted; `qemu-img convert -O raw` makes one"));
        }
        if size > MAX_DISK {
            return Err(Error::new(
                Kind::Unsupported,
                format!("{} has {size} bytes, more than 64 TiB", path.display()),
            ));
        }
        Ok(Self { path: path.to_owned(), file, metadata, size })
    }

    fn fail(&self, error: &io::Error) -> Error {
        Error::io(&format!("cannot read the image {}", self.path.display()), error)
    }

    fn changed(&self, how: &str) -> Error {
        Error::new(
            Kind::Conflict,
            format!("the image {} {how} while it was read; no copy was made", self.path.display()),
        )
        .hint("stop what writes to it, or back up a snapshot of it")
    }
}

impl Input for Image {
    fn size(&self) -> u64 {
        self.size
    }

    fn time(&self) -> Option<jiff::Timestamp> {
        jiff::Timestamp::new(self.metadata.mtime(), self.metadata.mtime_nsec() as i32).ok()
    }

    fn threads(&self) -> usize {
        workers::threads()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                self.changed("became shorter")
            } else {
                self.fail(&error)
            }
        })
    }

    fn data(&self) -> Result<Vec<Range<u64>>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut offset = 0_u64;
        while offset < self.size {
            let seek = |whence, from: u64| lseek64(&self.file, from as i64, whence);
            let data = match seek(Whence::SeekData, offset) {
                Ok(data) => data as u64,
                Err(Errno::ENXIO) => break,
                // A block device knows of no holes.
                Err(Errno::EINVAL) => offset,
                Err(errno) => return Err(self.fail(&errno.into())),
            };
            // A file that shrank has no hole there: the read will tell.
            let hole = match seek(Whence::SeekHole, data) {
                Ok(hole) => (hole as u64).min(self.size),
                Err(Errno::ENXIO | Errno::EINVAL) => self.size,
                Err(errno) => return Err(self.fail(&errno.into())),
            };
            if data >= self.size {
                break;
            }
            found.push(data..hole);
            offset = hole;
        }
        Ok(found)
    }

    /// Whether the image is still what it was when it was opened. Writes to a block device leave no trace in these facts.
    fn check_unchanged(&self) -> Result<()> {
        let facts = |metadata: &Metadata| {
            (metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
        };
        let before = facts(&self.metadata);
        let now = std::fs::metadata(&self.path).map_err(|error| self.fail(&error))?;
        // Both: the file that was read, and what the path names now.
        let read = self.file.metadata().map_err(|error| self.fail(&error))?;
        if facts(&now) == before && facts(&read) == before { Ok(()) } else { Err(self.changed("was changed")) }
    }
}
