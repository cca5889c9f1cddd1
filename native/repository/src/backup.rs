//! Writing a disk image as a copy.
//!
//! Crash contract: packs, then index, then snapshot, each durable before the next. A backup that fails or is killed
//! leaves no snapshot, only packs that no index names: `prune` removes them. Any error of the source or of the
//! repository ends the backup; nothing is skipped.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use jiff::Zoned;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};
use rustic_core::repofile::{
    Metadata as NodeMetadata, Node, NodeType, SnapshotFile, SnapshotSummary, StringList, Tree,
};
use rustic_core::{FileType, Id, TreeId};

use crate::crypto::{hash, hash_parts, id_bytes};
use crate::error::{Error, Kind, Result};
use crate::index::{BlobKind, Index, IndexBlob, IndexFile, IndexPack};
use crate::repository::Repository;
use crate::workers;

/// Length of a chunk. Of all images the same, so that copies share chunks.
pub const CHUNK: u64 = 512 << 10;
/// A pack is written when it has this many bytes.
const PACK: usize = 32 << 20;
/// Blobs of one index file.
const INDEX_BLOBS: usize = 50_000;
/// A larger image would need a tree blob of more than half a gibibyte.
const MAX_IMAGE: u64 = 4 << 40;
/// Go's `os.ModeDir`, as restic writes it.
const MODE_DIRECTORY: u32 = 1 << 31;
/// The image's name in its folder.
pub const DISK_FILE: &str = "disk0.raw";
/// The description's name beside it.
pub const MACHINE_FILE: &str = "machine.json";
/// What marks our snapshots.
pub const TAG: &str = "livemount";

/// What a backup did.
pub struct Written {
    pub snapshot: Id,
    pub time: Zoned,
    pub size: u64,
    /// Bytes of the image that are not holes.
    pub stored: u64,
    /// Bytes that were added to the repository's packs.
    pub added: u64,
}

/// Fills packs and writes them; used from many threads.
struct Packer<'a> {
    repository: &'a Repository,
    kind: BlobKind,
    filling: Mutex<(Vec<Bytes>, Vec<IndexBlob>, usize)>,
    done: Mutex<Vec<IndexPack>>,
    added: AtomicU64,
}

impl<'a> Packer<'a> {
    fn new(repository: &'a Repository, kind: BlobKind) -> Self {
        Self { repository, kind, filling: Mutex::default(), done: Mutex::default(), added: AtomicU64::new(0) }
    }

    /// Compress, encrypt and add a blob; a pack that is full is written by the thread that filled it.
    fn add(&self, id: Id, content: &[u8]) -> Result<()> {
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
        self.repository.store.write(FileType::Pack, &id, &parts)?;
        let size: usize = parts.iter().map(Bytes::len).sum();
        self.added.fetch_add(size as u64, Ordering::Relaxed);
        self.done.lock().expect("no thread panics holding it").push(IndexPack { id, blobs });
        Ok(())
    }

    /// Write what is left, and return the packs and the bytes that were written.
    fn finish(self) -> Result<(Vec<IndexPack>, u64)> {
        let (parts, blobs, _) = std::mem::take(&mut *self.filling.lock().expect("no thread panics holding it"));
        if !blobs.is_empty() {
            self.write(parts, blobs)?;
        }
        let packs = self.done.into_inner().expect("no thread panics holding it");
        Ok((packs, self.added.into_inner()))
    }
}

/// Write `image` as a copy of the machine `name`. `progress` gets (bytes read, bytes to read) and may end the backup.
pub fn backup<E: From<Error>>(
    repository: &Repository,
    image: &Path,
    name: &str,
    description: &[u8],
    mut progress: impl FnMut(u64, u64) -> std::result::Result<(), E>,
) -> std::result::Result<Written, E> {
    let started = Zoned::now();
    let source = Image::open(image)?;
    repository.store.remove_stale()?;
    let index = Index::load(repository)?;
    if let Some(damage) = index.damaged.first() {
        return Err(damage
            .clone()
            .hint("`restic repair index` (`restic rebuild-index` before 0.16) makes a new index")
            .into());
    }

    let data = Packer::new(repository, BlobKind::Data);
    let new = Mutex::new(HashSet::new());
    let put = |content: &[u8]| -> Result<Id> {
        let id = hash(content);
        if index.find(BlobKind::Data, &id).is_none() && new.lock().expect("no thread panics holding it").insert(id) {
            data.add(id, content)?;
        }
        Ok(id)
    };

    let to_read = source.chunks_with_data()?;
    let total = to_read.iter().map(|chunk| source.length(*chunk)).sum();
    progress(0, total)?;
    let next = AtomicU64::new(0);
    let read = AtomicU64::new(0);
    let found = workers::run(
        workers::threads().min(to_read.len()),
        |stop| {
            let mut mine = Vec::new();
            let mut buffer = vec![0; CHUNK as usize];
            while !stop.is_set() {
                let at = next.fetch_add(1, Ordering::Relaxed) as usize;
                let Some(chunk) = to_read.get(at).copied() else {
                    break;
                };
                let length = source.length(chunk);
                let content = &mut buffer[..length as usize];
                source.read(content, chunk * CHUNK)?;
                if content.iter().any(|byte| *byte != 0) {
                    mine.push((chunk, put(content)?));
                }
                read.fetch_add(length, Ordering::Relaxed);
            }
            Ok(mine)
        },
        || progress(read.load(Ordering::Relaxed), total),
    )?;
    source.check_unchanged()?;
    progress(total, total)?;

    let count = source.size.div_ceil(CHUNK);
    let mut content = vec![None; count as usize];
    let mut stored = 0;
    for (chunk, id) in found.into_iter().flatten() {
        content[chunk as usize] = Some(id);
        stored += source.length(chunk);
    }
    let zeros = vec![0; CHUNK as usize];
    let mut whole_zero = None;
    for (chunk, id) in (0..).zip(&mut content) {
        if id.is_none() {
            let length = source.length(chunk);
            *id = Some(match whole_zero {
                Some(known) if length == CHUNK => known,
                _ => put(&zeros[..length as usize])?,
            });
            if length == CHUNK {
                whole_zero = *id;
            }
        }
    }
    let machine = put(description)?;

    let trees = Packer::new(repository, BlobKind::Tree);
    let disk = file_node(DISK_FILE, source.size, &source.metadata, content.into_iter().flatten().collect());
    let machine = file_node(MACHINE_FILE, description.len() as u64, &source.metadata, vec![machine]);
    let folder = put_tree(&index, &trees, vec![disk, machine])?;
    let root = put_tree(&index, &trees, vec![directory_node(name, folder, &source.metadata)])?;

    let (data_packs, data_added) = data.finish()?;
    let (tree_packs, tree_added) = trees.finish()?;
    write_index(repository, data_packs.into_iter().chain(tree_packs))?;
    let mut summary = SnapshotSummary::default();
    summary.total_files_processed = 2;
    summary.total_bytes_processed = source.size + description.len() as u64;
    summary.data_added_packed = data_added + tree_added;
    summary.backup_start = started.clone();
    let snapshot = SnapshotFile {
        time: started.clone(),
        program_version: format!("livemount {}", env!("CARGO_PKG_VERSION")),
        tree: root,
        paths: list(&format!("/{name}/{DISK_FILE}"))?,
        hostname: name.to_owned(),
        tags: list(TAG)?,
        // Told here as well so that a list of copies needs no index. The file is what counts: restic's `tag`, `copy`
        // and `rewrite` write snapshots anew and drop the fields they do not know, this one too.
        description: Some(
            serde_json::json!({
                "machine": serde_json::from_slice::<serde_json::Value>(description).ok(),
                "size": source.size,
                "stored": stored,
            })
            .to_string(),
        ),
        summary: Some(summary),
        ..SnapshotFile::default()
    };
    let id = repository.write_json(FileType::Snapshot, &snapshot)?;
    Ok(Written { snapshot: id, time: started, size: source.size, stored, added: data_added + tree_added })
}

fn list(text: &str) -> Result<StringList> {
    text.parse().map_err(|error| Error::new(Kind::Usage, format!("{text:?}: {error}")))
}

fn write_index(repository: &Repository, packs: impl Iterator<Item = IndexPack>) -> Result<()> {
    let mut file = IndexFile::default();
    let mut blobs = 0;
    for pack in packs {
        blobs += pack.blobs.len();
        file.packs.push(pack);
        if blobs >= INDEX_BLOBS {
            repository.write_json(FileType::Index, &std::mem::take(&mut file))?;
            blobs = 0;
        }
    }
    if !file.packs.is_empty() {
        repository.write_json(FileType::Index, &file)?;
    }
    Ok(())
}

fn put_tree(index: &Index, packer: &Packer<'_>, nodes: Vec<Node>) -> Result<TreeId> {
    let (text, id) = Tree { nodes }.serialize().map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
    if index.find(BlobKind::Tree, &id).is_none() {
        packer.add(*id, &text)?;
    }
    Ok(id)
}

fn node_metadata(size: u64, mode: u32, image: &Metadata) -> NodeMetadata {
    let time = jiff::Timestamp::new(image.mtime(), image.mtime_nsec() as i32).ok();
    NodeMetadata {
        mode: Some(mode),
        mtime: time,
        atime: time,
        ctime: time,
        uid: Some(0),
        gid: Some(0),
        size,
        links: 1,
        ..NodeMetadata::default()
    }
}

fn file_node(name: &str, size: u64, image: &Metadata, content: Vec<Id>) -> Node {
    Node {
        name: name.to_owned(),
        node_type: NodeType::File,
        meta: node_metadata(size, 0o600, image),
        content: Some(content.into_iter().map(Into::into).collect()),
        subtree: None,
    }
}

fn directory_node(name: &str, subtree: TreeId, image: &Metadata) -> Node {
    Node {
        name: name.to_owned(),
        node_type: NodeType::Dir,
        meta: node_metadata(0, MODE_DIRECTORY | 0o700, image),
        content: None,
        subtree: Some(subtree),
    }
}

/// The image that is read.
struct Image<'a> {
    path: &'a Path,
    file: File,
    metadata: Metadata,
    size: u64,
}

impl<'a> Image<'a> {
    fn open(path: &'a Path) -> Result<Self> {
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
        if size > MAX_IMAGE {
            return Err(Error::new(Kind::Unsupported, format!("{} has {size} bytes, more than 4 TiB", path.display())));
        }
        Ok(Self { path, file, metadata, size })
    }

    fn length(&self, chunk: u64) -> u64 {
        CHUNK.min(self.size - chunk * CHUNK)
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

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                self.changed("became shorter")
            } else {
                self.fail(&error)
            }
        })
    }

    /// The chunks that are not wholly in holes of the file.
    fn chunks_with_data(&self) -> Result<Vec<u64>> {
        let mut chunks = Vec::new();
        let mut offset = 0_u64;
        let mut next = 0;
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
            let end = hole.div_ceil(CHUNK);
            chunks.extend((data / CHUNK).max(next)..end);
            next = end;
            offset = hole;
        }
        Ok(chunks)
    }

    /// Whether the image is still what it was when it was opened. Writes to a block device leave no trace in these facts.
    fn check_unchanged(&self) -> Result<()> {
        let facts = |metadata: &Metadata| {
            (metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
        };
        let before = facts(&self.metadata);
        let now = std::fs::metadata(self.path).map_err(|error| self.fail(&error))?;
        // Both: the file that was read, and what the path names now.
        let read = self.file.metadata().map_err(|error| self.fail(&error))?;
        if facts(&now) == before && facts(&read) == before { Ok(()) } else { Err(self.changed("was changed")) }
    }
}
