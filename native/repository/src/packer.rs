//! Fills packs with blobs and writes them, from many threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rustic_core::Id;

use crate::crypto::{hash_parts, id_bytes};
use crate::error::{Error, Kind, Result};
use crate::index::{BlobKind, IndexBlob, IndexFile, IndexPack};
use crate::repository::Repository;
use crate::store::Area;

/// A pack is written when it has this many bytes.
const PACK: usize = 32 << 20;
/// Blobs of one index file.
const INDEX_BLOBS: usize = 50_000;

/// Fills packs and writes them; used from many threads.
pub struct Packer<'a> {
    repository: &'a Repository,
    kind: BlobKind,
    filling: Mutex<(Vec<Bytes>, Vec<IndexBlob>, usize)>,
    done: Mutex<Vec<IndexPack>>,
    added: AtomicU64,
}

impl<'a> Packer<'a> {
    pub fn new(repository: &'a Repository, kind: BlobKind) -> Self {
        Self { repository, kind, filling: Mutex::default(), done: Mutex::default(), added: AtomicU64::new(0) }
    }

    /// Compress, encrypt and add a blob; a pack that is full is written by the thread that filled it.
    pub fn add(&self, id: Id, content: &[u8]) -> Result<()> {
        let length =
            u32::try_from(content.len()).map_err(|_| Error::new(Kind::Unsupported, "a blob has more than 4 GiB"))?;
        let packed = match self.repository.level {
            None => None,
            Some(level) => {
                let packed =
                    zstd::bulk::compress(content, level).map_err(|error| Error::io("cannot compress", &error))?;
                (packed.len() < content.len()).then_some(packed)
            }
        };
        let sealed = self.repository.key.seal(packed.as_deref().unwrap_or(content));
        let full = {
            let mut guard = self.filling.lock().expect("no thread panics holding it");
            let (parts, blobs, size) = &mut *guard;
            blobs.push(IndexBlob {
                id,
                kind: self.kind,
                offset: u32::try_from(*size).expect("a pack is far below 4 GiB"),
                length: u32::try_from(sealed.len()).expect("a blob is far below 4 GiB"),
                uncompressed_length: packed.is_some().then_some(length),
            });
            *size += sealed.len();
            parts.push(sealed.into());
            (*size >= PACK).then(|| std::mem::take(&mut *guard))
        };
        full.map_or(Ok(()), |(parts, blobs, _)| self.write(parts, blobs))
    }

    /// A pack: the blobs, the encrypted list of them, and the length of that list.
    fn write(&self, mut parts: Vec<Bytes>, blobs: Vec<IndexBlob>) -> Result<()> {
        let mut header = Vec::with_capacity(blobs.len() * 41);
        for blob in &blobs {
            let kind = match (blob.kind, blob.uncompressed_length) {
                (BlobKind::Data, None) => 0,
                (BlobKind::Tree, None) => 1,
                (BlobKind::Data, Some(_)) => 2,
                (BlobKind::Tree, Some(_)) => 3,
            };
            header.push(kind);
            header.extend(blob.length.to_le_bytes());
            if let Some(length) = blob.uncompressed_length {
                header.extend(length.to_le_bytes());
            }
            header.extend(id_bytes(&blob.id));
        }
        let sealed = self.repository.key.seal(&header);
        let length = u32::try_from(sealed.len()).expect("a header is far below 4 GiB");
        parts.push(sealed.into());
        parts.push(Bytes::copy_from_slice(&length.to_le_bytes()));
        let id = hash_parts(&parts);
        self.repository.store.write(Area::Pack, &id, &parts)?;
        let size: usize = parts.iter().map(Bytes::len).sum();
        self.added.fetch_add(size as u64, Ordering::Relaxed);
        self.done.lock().expect("no thread panics holding it").push(IndexPack { id, blobs });
        Ok(())
    }

    /// The packs that were written since it was last asked, once they have `bytes` bytes together.
    pub fn take(&self, bytes: u64) -> Vec<IndexPack> {
        let mut done = self.done.lock().expect("no thread panics holding it");
        let size: u64 = done.iter().flat_map(|pack| &pack.blobs).map(|blob| u64::from(blob.length)).sum();
        if size < bytes { Vec::new() } else { std::mem::take(&mut *done) }
    }

    /// Write what is left, and return the packs and the bytes that were written.
    pub fn finish(self) -> Result<(Vec<IndexPack>, u64)> {
        let (parts, blobs, _) = std::mem::take(&mut *self.filling.lock().expect("no thread panics holding it"));
        if !blobs.is_empty() {
            self.write(parts, blobs)?;
        }
        let packs = self.done.into_inner().expect("no thread panics holding it");
        Ok((packs, self.added.into_inner()))
    }
}

/// Name packs in new index files.
pub fn write_index(repository: &Repository, packs: impl Iterator<Item = IndexPack>) -> Result<()> {
    let mut file = IndexFile::default();
    let mut blobs = 0;
    for pack in packs {
        blobs += pack.blobs.len();
        file.packs.push(pack);
        if blobs >= INDEX_BLOBS {
            repository.write_json(Area::Index, &std::mem::take(&mut file))?;
            blobs = 0;
        }
    }
    if !file.packs.is_empty() {
        repository.write_json(Area::Index, &file)?;
    }
    Ok(())
}
