//! Writing disks as a copy.
//!
//! Crash contract: packs, then index, then snapshot, each durable before the next. A backup that fails or is killed
//! leaves no snapshot, only packs that no snapshot needs, and a journal by which the same backup goes on where it was;
//! `prune` removes both. Any error of a source or of the repository ends the backup; nothing is skipped.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::{Timestamp, Zoned};
use rustic_core::repofile::{
    Metadata as NodeMetadata, Node, NodeType, SnapshotFile, SnapshotSummary, StringList, Tree,
};
use rustic_core::{Id, TreeId};

use crate::crypto::hash;
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::index::{BlobKind, Index};
use crate::input::Input;
use crate::journal::{Journal, Known, Stored};
use crate::packer::{Packer, write_index};
use crate::parts::{Parts, SEGMENT, SEGMENT_FILE, segment_name};
use crate::plan::{Plan, chunks_of, within};
use crate::repository::Repository;
use crate::store::Area;
use crate::workers;

/// Length of a chunk. Of all images the same, so that copies share chunks.
pub const CHUNK: u64 = 512 << 10;
const SEGMENT_CHUNKS: u64 = SEGMENT / CHUNK;
/// Go's `os.ModeDir`, as restic writes it.
const MODE_DIRECTORY: u32 = 1 << 31;
/// The description's name beside the disks.
pub const MACHINE_FILE: &str = "machine.json";
/// What marks our snapshots.
pub const TAG: &str = "livemount";

/// A disk to back up.
pub struct DiskOrder<'a> {
    /// Its name in the copy.
    pub file: String,
    pub input: Box<dyn Input + 'a>,
    /// The snapshot and path of an earlier copy that has the same bytes everywhere but in `changed`.
    pub base: Option<(Id, PathBuf)>,
    pub changed: Vec<Range<u64>>,
}

/// A copy to make.
pub struct Order<'a> {
    pub name: &'a str,
    pub description: &'a [u8],
    pub tags: &'a [String],
    pub disks: Vec<DiskOrder<'a>>,
    /// Where to note what is stored; nobody else uses it meanwhile.
    pub journal: Option<&'a Path>,
    /// Bytes of packs after which the index is written and the journal is brought up to date.
    pub checkpoint: u64,
}

/// What a backup did.
pub struct Written {
    pub snapshot: Id,
    pub time: Zoned,
    /// Bytes of each disk that are not holes.
    pub stored: Vec<u64>,
    /// Bytes that were read from the disks.
    pub read: u64,
    /// Bytes that were added to the repository's packs.
    pub added: u64,
}

/// A backup that is being made: what its threads share.
struct Job<'a> {
    repository: &'a Repository,
    index: Index,
    data: Packer<'a>,
    trees: Packer<'a>,
    /// Chunks that this backup adds, and whether an index file names them.
    new: Mutex<HashMap<Id, bool>>,
    journal: Option<Mutex<Journal>>,
    /// What an earlier, killed run has stored.
    known: Known,
    /// Chunks that the journal does not have yet.
    recent: Mutex<Vec<Stored>>,
    checkpoint: u64,
    read: AtomicU64,
    /// A whole chunk of zeros.
    zero: Id,
}

impl Job<'_> {
    /// Store a chunk, unless it is there.
    fn put(&self, content: &[u8]) -> Result<Id> {
        let id = hash(content);
        if self.index.find(BlobKind::Data, &id).is_none() {
            let mut new = self.new.lock().expect("no thread panics holding it");
            if let std::collections::hash_map::Entry::Vacant(place) = new.entry(id) {
                place.insert(false);
                drop(new);
                self.data.add(id, content)?;
            }
        }
        Ok(id)
    }

    /// Name in an index what is stored, and note it in the journal, when it has become enough.
    fn keep(&self) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let packs = self.data.take(self.checkpoint);
        if packs.is_empty() {
            return Ok(());
        }
        let ids: Vec<Id> = packs.iter().flat_map(|pack| pack.blobs.iter().map(|blob| blob.id)).collect();
        write_index(self.repository, packs.into_iter())?;
        let mut new = self.new.lock().expect("no thread panics holding it");
        for id in ids {
            new.insert(id, true);
        }
        let recent = std::mem::take(&mut *self.recent.lock().expect("no thread panics holding it"));
        let (ready, later): (Vec<_>, Vec<_>) = recent.into_iter().partition(|(_, _, id)| {
            *id == self.zero
                || new.get(id).map_or_else(|| self.index.find(BlobKind::Data, id).is_some(), |named| *named)
        });
        drop(new);
        self.recent.lock().expect("no thread panics holding it").extend(later);
        journal.lock().expect("no thread panics holding it").append(&self.repository.key, &ready)
    }

    /// The chunk of a disk that an earlier run has stored, if it is still there.
    fn stored(&self, disk: u32, chunk: u64) -> Option<Id> {
        let id = *self.known.get(&(disk, chunk))?;
        (id == self.zero || self.index.find(BlobKind::Data, &id).is_some()).then_some(id)
    }

    fn put_tree(&self, nodes: Vec<Node>) -> Result<TreeId> {
        let (text, id) = Tree { nodes }.serialize().map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
        let mut new = self.new.lock().expect("no thread panics holding it");
        if self.index.find(BlobKind::Tree, &id).is_none() && new.insert(*id, false).is_none() {
            drop(new);
            self.trees.add(*id, &text)?;
        }
        Ok(id)
    }

    /// Write one disk. Returns its node and its bytes that are not holes.
    fn disk<E: From<Error>>(
        &self,
        number: u32,
        order: &DiskOrder<'_>,
        plan: &Plan,
        progress: &mut impl FnMut(u64) -> std::result::Result<(), E>,
    ) -> std::result::Result<(Node, u64), E> {
        let size = order.input.size();
        let mut base = match &order.base {
            None => None,
            Some((snapshot, path)) => {
                let file = self.repository.snapshot(snapshot)?;
                Some(Parts::find(self.repository, &self.index, &file, path)?)
            }
        };
        let time = order.input.time();
        let mut folders = Vec::new();
        let mut stored = 0;
        let mut zero_segment = None;
        let chunks = size.div_ceil(CHUNK);
        for (segment, first) in (0..chunks).step_by(SEGMENT_CHUNKS as usize).enumerate() {
            let part = first..(first + SEGMENT_CHUNKS).min(chunks);
            let content = self.segment(number, order, plan, base.as_mut(), part.clone(), progress)?;
            let end = (part.end * CHUNK).min(size);
            let tail = (end - (part.end - 1) * CHUNK) as usize;
            let last_zero = hash(&vec![0; tail]);
            let holes = content.iter().filter(|id| **id == self.zero).count() as u64;
            let mut in_use = (content.len() as u64 - holes) * CHUNK;
            if content.last() != Some(&self.zero) {
                in_use = in_use - CHUNK + if content.last() == Some(&last_zero) { 0 } else { tail as u64 };
            }
            stored += in_use;
            if content.last() == Some(&last_zero) {
                self.put(&vec![0; tail])?;
            }
            if holes > 0 {
                self.put(&vec![0; CHUNK as usize])?;
            }
            let length = end - first * CHUNK;
            if size <= SEGMENT {
                return Ok((file_node(&order.file, length, time, content), stored));
            }
            let all_zero = in_use == 0 && length == SEGMENT;
            let tree = match zero_segment {
                Some(tree) if all_zero => tree,
                // Without a time, so that a segment that did not change is the same folder in the next copy.
                _ => self.put_tree(vec![file_node(SEGMENT_FILE, length, None, content)])?,
            };
            if all_zero {
                zero_segment = Some(tree);
            }
            folders.push(directory_node(&segment_name(segment), tree, None));
        }
        let tree = self.put_tree(folders)?;
        Ok((directory_node(&order.file, tree, time), stored))
    }

    /// The chunks of a part of a disk, in order.
    fn segment<E: From<Error>>(
        &self,
        number: u32,
        order: &DiskOrder<'_>,
        plan: &Plan,
        base: Option<&mut Parts>,
        part: Range<u64>,
        progress: &mut impl FnMut(u64) -> std::result::Result<(), E>,
    ) -> std::result::Result<Vec<Id>, E> {
        let size = order.input.size();
        let length = |chunk: u64| CHUNK.min(size - chunk * CHUNK);
        let tail = length(part.end - 1);
        let mut content = vec![self.zero; (part.end - part.start) as usize];
        if tail < CHUNK {
            *content.last_mut().expect("a part is not empty") = hash(&vec![0; tail as usize]);
        }
        let zeros = (self.zero, *content.last().expect("a part is not empty"));
        let mut lost = HashSet::new();
        if let Some(base) = base {
            let old = base_chunks(self.repository, &self.index, base, size, &part)?;
            let changed = plan.changed(&part);
            for (at, id) in old.into_iter().enumerate() {
                let chunk = part.start + at as u64;
                if changed.binary_search(&chunk).is_ok() {
                    continue;
                }
                match self.index.find(BlobKind::Data, &id) {
                    Some(entry) if u64::from(entry.content) == length(chunk) => content[at] = id,
                    // The base is damaged here: this copy need not be.
                    _ => drop(lost.insert(chunk)),
                }
            }
        }
        let mut to_read = plan.read(&part);
        to_read.extend(&lost);
        to_read.retain(|chunk| match self.stored(number, *chunk) {
            Some(id) => {
                content[(chunk - part.start) as usize] = id;
                false
            }
            None => true,
        });
        let next = AtomicU64::new(0);
        let found = workers::run(
            order.input.threads().min(to_read.len()),
            |stop| {
                let mut mine = Vec::new();
                let mut buffer = vec![0; CHUNK as usize];
                while !stop.is_set() {
                    let at = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(chunk) = to_read.get(at).copied() else {
                        break;
                    };
                    let length = length(chunk);
                    let content = &mut buffer[..length as usize];
                    order.input.read(content, chunk * CHUNK)?;
                    let id = if content.iter().any(|byte| *byte != 0) {
                        self.put(content)?
                    } else if length == CHUNK {
                        zeros.0
                    } else {
                        zeros.1
                    };
                    mine.push((chunk, id));
                    self.read.fetch_add(length, Ordering::Relaxed);
                    if self.journal.is_some() {
                        self.recent.lock().expect("no thread panics holding it").push((number, chunk, id));
                    }
                }
                Ok(mine)
            },
            || {
                self.keep()?;
                progress(self.read.load(Ordering::Relaxed))
            },
        )?;
        for (chunk, id) in found.into_iter().flatten() {
            content[(chunk - part.start) as usize] = id;
        }
        Ok(content)
    }
}

/// The chunks of an earlier copy's disk, which must have been cut as this one is.
fn base_chunks(
    repository: &Repository,
    index: &Index,
    base: &mut Parts,
    size: u64,
    part: &Range<u64>,
) -> Result<Vec<Id>> {
    let other = || {
        Error::new(Kind::Conflict, "the earlier copy has another disk: its size or its chunks differ")
            .hint("make a copy without a list of changes")
    };
    let whole = base.len() == 1;
    let content = base.load(repository, index, if whole { 0 } else { (part.start / SEGMENT_CHUNKS) as usize })?;
    let (begin, expected) = if whole { (part.start, size) } else { (0, SEGMENT.min(size - part.start * CHUNK)) };
    if content.size != expected
        || content.chunks.len() as u64 != expected.div_ceil(CHUNK)
        || (!whole && base.len() as u64 != size.div_ceil(SEGMENT))
    {
        return Err(other());
    }
    let end = begin + (part.end - part.start);
    Ok(content.chunks[begin as usize..end as usize].to_vec())
}

/// Write a copy. `progress` gets (bytes read, bytes to read) and may end the backup.
pub fn backup<E: From<Error>>(
    repository: &Repository,
    order: &Order<'_>,
    mut progress: impl FnMut(u64, u64) -> std::result::Result<(), E>,
) -> std::result::Result<Written, E> {
    let started = Zoned::now();
    repository.store.remove_stale()?;
    let index = Index::load(repository)?;
    if let Some(damage) = index.damaged.first() {
        return Err(damage
            .clone()
            .hint("`restic repair index` (`restic rebuild-index` before 0.16) makes a new index")
            .into());
    }
    let plans = order.disks.iter().map(Plan::new).collect::<Result<Vec<_>>>()?;
    let total = plans.iter().zip(&order.disks).map(|(plan, disk)| plan.bytes(disk.input.size())).sum();
    let chunks = order.disks.iter().map(|disk| disk.input.size().div_ceil(CHUNK)).sum();
    let (journal, known) = match order.journal {
        None => (None, Known::new()),
        Some(path) => {
            let (journal, known) = Journal::open(path, &repository.key, chunks)?;
            (Some(Mutex::new(journal)), known)
        }
    };
    let job = Job {
        repository,
        index,
        data: Packer::new(repository, BlobKind::Data),
        trees: Packer::new(repository, BlobKind::Tree),
        new: Mutex::default(),
        journal,
        known,
        recent: Mutex::default(),
        checkpoint: order.checkpoint,
        read: AtomicU64::new(0),
        zero: hash(&vec![0; CHUNK as usize]),
    };
    progress(0, total)?;
    let mut nodes = Vec::new();
    let mut stored = Vec::new();
    for ((number, disk), plan) in (0..).zip(&order.disks).zip(&plans) {
        let (node, in_use) = job.disk(number, disk, plan, &mut |read| progress(read.min(total), total))?;
        disk.input.check_unchanged()?;
        nodes.push(node);
        stored.push(in_use);
    }
    progress(total, total)?;
    let machine = job.put(order.description)?;
    let time = order.disks.first().and_then(|disk| disk.input.time());
    nodes.push(file_node(MACHINE_FILE, order.description.len() as u64, time, vec![machine]));
    // restic wants a folder's names in order.
    nodes.sort_by_key(|node| node.name.clone());
    let folder = job.put_tree(nodes)?;
    let root = job.put_tree(vec![directory_node(order.name, folder, time)])?;

    let read = job.read.into_inner();
    let (data_packs, data_added) = job.data.finish()?;
    let (tree_packs, tree_added) = job.trees.finish()?;
    write_index(repository, data_packs.into_iter().chain(tree_packs))?;
    let size: u64 = order.disks.iter().map(|disk| disk.input.size()).sum();
    let mut summary = SnapshotSummary::default();
    summary.total_files_processed = order.disks.len() as u64 + 1;
    summary.total_bytes_processed = size + order.description.len() as u64;
    summary.data_added_packed = data_added + tree_added;
    summary.backup_start = started.clone();
    let files: Vec<_> = order.disks.iter().map(|disk| format!("/{}/{}", order.name, disk.file)).collect();
    let snapshot = SnapshotFile {
        time: started.clone(),
        program_version: format!("livemount {}", env!("CARGO_PKG_VERSION")),
        tree: root,
        paths: list(&files.join(","))?,
        hostname: order.name.to_owned(),
        tags: list(&[&[TAG.to_owned()], order.tags].concat().join(","))?,
        // Told here as well so that a list of copies needs no index. The file is what counts: restic's `tag`, `copy`
        // and `rewrite` write snapshots anew and drop the fields they do not know, this one too.
        description: Some(
            serde_json::json!({
                "machine": serde_json::from_slice::<serde_json::Value>(order.description).ok(),
                "size": size,
                "stored": stored.iter().sum::<u64>(),
                "disks": stored,
            })
            .to_string(),
        ),
        summary: Some(summary),
        ..SnapshotFile::default()
    };
    let id = repository.write_json(Area::Snapshot, &snapshot)?;
    Ok(Written { snapshot: id, time: started, stored, read, added: data_added + tree_added })
}

/// Read a disk wholly, and compare it with its copy. `progress` gets (bytes read, bytes to read).
pub fn verify<E: From<Error>>(
    copy: &Disk,
    input: &dyn Input,
    mut progress: impl FnMut(u64, u64) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let size = input.size();
    let differs = |offset: u64| Error::corrupt(format!("the copy differs from the disk at the byte {offset} or after"));
    if copy.size() != size {
        return Err(differs(size.min(copy.size())).into());
    }
    let data = chunks_of(&input.data()?, size)?;
    let to_read = within(&data, &(0..size.div_ceil(CHUNK)));
    let mut read: HashSet<u64> = HashSet::new();
    read.extend(&to_read);
    for (offset, length, hole) in copy.extents(0, size)? {
        let chunks = offset / CHUNK..(offset + length).div_ceil(CHUNK);
        if let Some(chunk) = (!hole).then(|| chunks.into_iter().find(|chunk| !read.contains(chunk))).flatten() {
            return Err(differs(chunk * CHUNK).into());
        }
    }
    let next = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    workers::run(
        input.threads().min(to_read.len()),
        |stop| {
            let mut buffer = vec![0; CHUNK as usize];
            while !stop.is_set() {
                let at = next.fetch_add(1, Ordering::Relaxed) as usize;
                let Some(chunk) = to_read.get(at).copied() else { break };
                let length = CHUNK.min(size - chunk * CHUNK);
                let mut rest = &mut buffer[..length as usize];
                input.read(rest, chunk * CHUNK)?;
                for (content, length) in copy.pieces(chunk * CHUNK, length)? {
                    let (here, after) = rest.split_at_mut(length);
                    if content.map_or_else(|| here.iter().any(|byte| *byte != 0), |content| *content != *here) {
                        return Err(differs(chunk * CHUNK));
                    }
                    rest = after;
                }
                done.fetch_add(length, Ordering::Relaxed);
            }
            Ok(())
        },
        || progress(done.load(Ordering::Relaxed), size),
    )?;
    input.check_unchanged()?;
    Ok(())
}

fn list(text: &str) -> Result<StringList> {
    text.parse().map_err(|error| Error::new(Kind::Usage, format!("{text:?}: {error}")))
}

fn node_metadata(size: u64, mode: u32, time: Option<Timestamp>) -> NodeMetadata {
    let time = Some(time.unwrap_or(Timestamp::UNIX_EPOCH));
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

fn file_node(name: &str, size: u64, time: Option<Timestamp>, content: Vec<Id>) -> Node {
    Node {
        name: name.to_owned(),
        node_type: NodeType::File,
        meta: node_metadata(size, 0o600, time),
        content: Some(content.into_iter().map(Into::into).collect()),
        subtree: None,
    }
}

fn directory_node(name: &str, subtree: TreeId, time: Option<Timestamp>) -> Node {
    Node {
        name: name.to_owned(),
        node_type: NodeType::Dir,
        meta: node_metadata(0, MODE_DIRECTORY | 0o700, time),
        content: None,
        subtree: Some(subtree),
    }
}
