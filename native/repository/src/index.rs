//! Where each blob is: the index files of a repository, read into memory, and written.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustic_core::Id;
use serde::{Deserialize, Serialize};

use crate::crypto::OVERHEAD;
use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::store::Area;
use crate::workers;

/// How often the index is read when its files are replaced meanwhile.
const ATTEMPTS: usize = 5;

/// What a blob holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobKind {
    Data,
    Tree,
}

/// A blob as an index file names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IndexBlob {
    pub id: Id,
    #[serde(rename = "type")]
    pub kind: BlobKind,
    pub offset: u32,
    pub length: u32,
    /// Absent: not compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncompressed_length: Option<u32>,
}

/// A pack as an index file names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IndexPack {
    pub id: Id,
    pub blobs: Vec<IndexBlob>,
}

/// An index file. Packs that are marked for deletion are in another list, which is not used.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct IndexFile {
    #[serde(default)]
    pub packs: Vec<IndexPack>,
}

/// A blob in memory: 52 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub id: Id,
    pub kind: BlobKind,
    /// Index into `Index::packs`.
    pub pack: u32,
    pub offset: u32,
    pub length: u32,
    /// Length of the content.
    pub content: u32,
    pub compressed: bool,
}

/// All blobs of a repository, sorted.
pub struct Index {
    pub packs: Vec<Id>,
    entries: Vec<Entry>,
    /// The index files that cannot be used, and why.
    pub damaged: Vec<Error>,
}

impl Index {
    /// Read all index files. One that is damaged is named in `damaged`; one that cannot be read is an error.
    ///
    /// Readers hold no lock: a prune may write new files and remove those that were listed. Then it is read again.
    pub fn load(repository: &Repository) -> Result<Self> {
        let mut files = files(repository)?;
        for _ in 1..ATTEMPTS {
            let index = Self::read(repository, &files)?;
            let now = self::files(repository)?;
            if now == files {
                return Ok(index);
            }
            files = now;
        }
        Self::read(repository, &files)
    }

    fn read(repository: &Repository, files: &[Id]) -> Result<Self> {
        let next = AtomicUsize::new(0);
        let loaded = Mutex::new(Self { packs: Vec::new(), entries: Vec::new(), damaged: Vec::new() });
        let threads = workers::threads().min(files.len());
        workers::run::<_, Error>(
            threads,
            |stop| {
                while !stop.is_set() {
                    let Some(id) = files.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        break;
                    };
                    let parsed = repository.read_json::<IndexFile>(Area::Index, id);
                    let mut index = loaded.lock().expect("no thread panics while it holds it");
                    match parsed {
                        Ok(file) => index.add(file),
                        Err(error) if error.kind == crate::error::Kind::Corrupt => {
                            index.damaged.push(error);
                        }
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            },
            || Ok(()),
        )?;
        let mut index = loaded.into_inner().expect("no thread panics while it holds it");
        index.entries.sort_unstable();
        Ok(index)
    }

    fn add(&mut self, file: IndexFile) {
        for pack in file.packs {
            let number = u32::try_from(self.packs.len()).expect("fewer than 2^32 packs");
            self.packs.push(pack.id);
            self.entries.extend(pack.blobs.into_iter().map(|blob| Entry {
                id: blob.id,
                kind: blob.kind,
                pack: number,
                offset: blob.offset,
                length: blob.length,
                content: blob.uncompressed_length.unwrap_or_else(|| blob.length.saturating_sub(OVERHEAD as u32)),
                compressed: blob.uncompressed_length.is_some(),
            }));
        }
    }

    pub fn find(&self, kind: BlobKind, id: &Id) -> Option<&Entry> {
        let at = self.entries.partition_point(|entry| (entry.id, entry.kind) < (*id, kind));
        self.entries.get(at).filter(|entry| entry.id == *id && entry.kind == kind)
    }

    /// The error for a blob that no index file names.
    pub fn missing(&self, what: &str) -> Error {
        let reasons: Vec<_> = self.damaged.iter().map(|e| e.message.as_str()).collect();
        let reason = if reasons.is_empty() { "no index file names it".to_owned() } else { reasons.join("; ") };
        Error::corrupt(format!("{what} cannot be found: {reason}"))
            .hint("`restic repair index` (`restic rebuild-index` before 0.16) makes a new index")
    }
}

/// The index files, in order.
fn files(repository: &Repository) -> Result<Vec<Id>> {
    let mut files: Vec<_> = repository.store.files(Area::Index)?.into_iter().map(|(id, _)| id).collect();
    files.sort_unstable();
    Ok(files)
}
