//! Copying snapshots, with all that they need and is not there yet, into another repository.
//!
//! Crash contract: data packs and their index, then tree packs and theirs, then snapshots, each durable before the next. A
//! run that was killed leaves no snapshot; what its index files name is not copied again. Every blob is checked against
//! its id before it is written; any error ends the run.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustic_core::Id;
use rustic_core::repofile::SnapshotFile;

use crate::error::{Error, Result};
use crate::index::{BlobKind, Entry, Index};
use crate::packer::{Packer, write_index};
use crate::repository::Repository;
use crate::store::Area;
use crate::workers;

/// What a run did.
pub struct Copied {
    /// Of each snapshot that was asked for: its id in the other repository, and whether it was copied now.
    pub snapshots: Vec<(Id, bool)>,
    /// Bytes of blobs that were copied, as they are unpacked.
    pub read: u64,
    /// Bytes that were added to the other repository's packs.
    pub added: u64,
}

/// What snapshots need and the other repository lacks.
struct Missing {
    /// Blobs of files, in the order in which they lie in packs.
    data: Vec<Entry>,
    trees: Vec<Entry>,
}

/// Copy snapshots. `checkpoint` is the number of bytes of packs after which they are named in an index. `progress` gets
/// (bytes copied, bytes to copy) and may end it.
pub fn copy<E: From<Error>>(
    from: &Repository,
    to: &Repository,
    ids: &[Id],
    checkpoint: u64,
    mut progress: impl FnMut(u64, u64) -> std::result::Result<(), E>,
) -> std::result::Result<Copied, E> {
    let there = origins(to)?;
    let mut snapshots = Vec::new();
    let mut wanted = Vec::new();
    for id in ids {
        let file = from.snapshot(id)?;
        let known = there.get(&origin(id, &file)).copied();
        if known.is_none() {
            wanted.push((snapshots.len(), origin(id, &file), file));
        }
        snapshots.push((known.unwrap_or_default(), false));
    }
    if wanted.is_empty() {
        return Ok(Copied { snapshots, read: 0, added: 0 });
    }
    to.store.remove_stale()?;
    let target = Index::load(to)?;
    if let Some(damage) = target.damaged.first() {
        return Err(damage
            .clone()
            .hint("`restic repair index` (`restic rebuild-index` before 0.16) makes a new index")
            .into());
    }
    let index = Index::load(from)?;
    let missing = missing(from, &index, &target, wanted.iter().map(|(_, _, file)| *file.tree))?;
    let total = missing.data.iter().chain(&missing.trees).map(|entry| u64::from(entry.content)).sum();
    let done = AtomicU64::new(0);
    progress(0, total)?;
    let mut added = 0;
    for (kind, entries) in [(BlobKind::Data, &missing.data), (BlobKind::Tree, &missing.trees)] {
        let packer = Packer::new(to, kind);
        let next = AtomicUsize::new(0);
        workers::run(
            workers::threads().min(entries.len()),
            |stop| {
                while !stop.is_set() {
                    let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    let content = from.read_blob(&index.packs[entry.pack as usize], entry)?;
                    packer.add(entry.id, &content)?;
                    done.fetch_add(u64::from(entry.content), Ordering::Relaxed);
                    write_index(to, packer.take(checkpoint).into_iter())?;
                }
                Ok(())
            },
            || progress(done.load(Ordering::Relaxed), total),
        )?;
        let (packs, bytes) = packer.finish()?;
        write_index(to, packs.into_iter())?;
        added += bytes;
    }
    progress(total, total)?;
    let mut copied: HashMap<Id, Id> = HashMap::new();
    for (place, origin, file) in wanted {
        // Asked for twice: it is copied once.
        let (id, now) = match copied.get(&origin) {
            Some(id) => (*id, false),
            None => {
                // Parents are snapshots of the repository it comes from.
                let file = SnapshotFile { original: Some(origin.into()), parent: None, parents: Vec::new(), ..file };
                (to.write_json(Area::Snapshot, &file)?, true)
            }
        };
        copied.insert(origin, id);
        snapshots[place] = (id, now);
    }
    Ok(Copied { snapshots, read: total, added })
}

/// The snapshot that was first written, of which all others are copies.
fn origin(id: &Id, file: &SnapshotFile) -> Id {
    file.original.map_or(*id, |original| *original)
}

/// What the snapshots of a repository are copies of. A damaged one is none: it is copied again.
fn origins(repository: &Repository) -> Result<HashMap<Id, Id>> {
    Ok(repository.snapshots()?.good.into_iter().map(|(id, file)| (origin(&id, &file), id)).collect())
}

fn missing(from: &Repository, index: &Index, target: &Index, roots: impl Iterator<Item = Id>) -> Result<Missing> {
    let mut found = Missing { data: Vec::new(), trees: Vec::new() };
    let mut seen = HashSet::new();
    let mut to_visit: Vec<Id> = roots.collect();
    let mut add = |kind: BlobKind, id: &Id| -> Result<bool> {
        if !seen.insert((kind, *id)) {
            return Ok(false);
        }
        if target.find(kind, id).is_none() {
            let entry = index.find(kind, id).ok_or_else(|| index.missing(&format!("the chunk {}", &*id.to_hex())))?;
            match kind {
                BlobKind::Data => found.data.push(*entry),
                BlobKind::Tree => found.trees.push(*entry),
            }
        }
        Ok(true)
    };
    // A tree that is there may be of a run that was killed before what it names was copied: it is looked through as well.
    while let Some(tree) = to_visit.pop() {
        if !add(BlobKind::Tree, &tree)? {
            continue;
        }
        for node in from.tree(index, &tree)?.nodes {
            to_visit.extend(node.subtree.map(|tree| *tree));
            for id in node.content.unwrap_or_default() {
                add(BlobKind::Data, &id)?;
            }
        }
    }
    found.data.sort_unstable_by_key(|entry| (entry.pack, entry.offset));
    Ok(found)
}
