//! What a backup has stored so far, so that the same backup, begun again, need not read it again.
//!
//! A file of sealed records, each appended after the index that names its chunks is durable. Nothing in it is trusted:
//! a record that is torn ends it, and a chunk that the index does not name (any more) is read again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustic_core::Id;

use crate::crypto::{Key, id_bytes};
use crate::error::{Error, Result};

/// Bytes of an entry: number of the disk, of the chunk, its id.
const ENTRY: usize = 4 + 8 + 32;
/// Bytes around a record: its length before, nonce and MAC.
const FRAME: u64 = 4 + 32;
/// Entries of one record.
const RECORD: usize = 1 << 16;

/// A chunk of a disk that is stored: (disk, chunk, id).
pub type Stored = (u32, u64, Id);

/// Ids of stored chunks, by disk and chunk.
pub type Known = HashMap<(u32, u64), Id>;

pub struct Journal {
    file: File,
}

impl Journal {
    /// Open or make the journal, and read it. `most` is the number of chunks that there are: a longer file is not ours.
    pub fn open(path: &Path, key: &Key, most: u64) -> Result<(Self, Known)> {
        let fail = |error| Error::io(&format!("cannot read the journal {}", path.display()), &error);
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(fail)?;
        let mut known = Known::new();
        let length = file.metadata().map_err(fail)?.len();
        let mut good = 0;
        if length <= most.saturating_mul(ENTRY as u64 + FRAME) {
            let mut text = Vec::new();
            file.read_to_end(&mut text).map_err(fail)?;
            while let Some(record) = next(&text[good..]) {
                let Some(plain) = key.open(record.to_vec()) else { break };
                for entry in plain.chunks_exact(ENTRY) {
                    let (disk, rest) = entry.split_at(4);
                    let (chunk, id) = rest.split_at(8);
                    known.insert(
                        (
                            u32::from_le_bytes(disk.try_into().expect("4 bytes")),
                            u64::from_le_bytes(chunk.try_into().expect("8 bytes")),
                        ),
                        Id::new(id.try_into().expect("32 bytes")),
                    );
                }
                good += 4 + record.len();
            }
        }
        // What follows a torn record could never be read.
        file.set_len(good as u64).map_err(fail)?;
        Ok((Self { file }, known))
    }

    /// Note chunks that are stored.
    pub fn append(&mut self, key: &Key, stored: &[Stored]) -> Result<()> {
        for part in stored.chunks(RECORD) {
            let mut plain = Vec::with_capacity(part.len() * ENTRY);
            for (disk, chunk, id) in part {
                plain.extend(disk.to_le_bytes());
                plain.extend(chunk.to_le_bytes());
                plain.extend(id_bytes(id));
            }
            let sealed = key.seal(&plain);
            let mut record = u32::try_from(sealed.len()).expect("a few MiB").to_le_bytes().to_vec();
            record.extend(sealed);
            self.file.write_all(&record).map_err(|error| Error::io("cannot write the journal of a backup", &error))?;
        }
        Ok(())
    }
}

/// The record at the start of `text`, if all of it is there.
fn next(text: &[u8]) -> Option<&[u8]> {
    let (length, rest) = text.split_first_chunk::<4>()?;
    rest.get(..u32::from_le_bytes(*length) as usize)
}
