//! What a disk's bytes lie in: one file of a snapshot, or of a large disk a folder of segments.
//!
//! A segment is a file in a folder of its own: a folder's list names every chunk of its files, and would be hundreds of
//! megabytes for a large disk. One that did not change is the same folder in the next copy.

use std::path::Path;
use std::sync::Arc;

use rustic_core::repofile::{Node, SnapshotFile};
use rustic_core::{Id, TreeId};

use crate::error::{Error, Kind, Result};
use crate::index::Index;
use crate::repository::Repository;

/// Bytes of a segment; a disk that has no more is one file.
pub const SEGMENT: u64 = 64 << 30;
/// The one file in a segment's folder.
pub const SEGMENT_FILE: &str = "data";

/// The name of a segment's folder.
pub fn segment_name(number: usize) -> String {
    format!("{number:08}")
}

/// The chunks of a part, in order, and its bytes.
pub struct Content {
    pub chunks: Vec<Id>,
    pub size: u64,
}

enum Part {
    File(Arc<Content>),
    Folder(TreeId),
}

/// The parts of a disk, read one at a time.
pub struct Parts {
    parts: Vec<Part>,
    /// Neighbours are often the same: zeros.
    last: Option<(TreeId, Arc<Content>)>,
}

impl Parts {
    /// Find the disk in a snapshot. `path` names a file, or the folder of its segments.
    pub fn find(repository: &Repository, index: &Index, snapshot: &SnapshotFile, path: &Path) -> Result<Self> {
        let node = repository.node(index, snapshot, path)?;
        let other = || Error::new(Kind::NotFound, format!("the snapshot has no file {}", path.display()));
        let parts = match node.subtree {
            None if node.is_file() => vec![Part::File(Arc::new(content(node)))],
            None => return Err(other()),
            Some(tree) => repository
                .tree(index, &tree)?
                .nodes
                .into_iter()
                .enumerate()
                .map(|(number, node)| match node.subtree {
                    Some(tree) if node.name().to_str() == Some(&segment_name(number)) => Ok(Part::Folder(tree)),
                    _ => Err(other()),
                })
                .collect::<Result<_>>()?,
        };
        if parts.is_empty() { Err(other()) } else { Ok(Self { parts, last: None }) }
    }

    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// The content of a part.
    pub fn load(&mut self, repository: &Repository, index: &Index, number: usize) -> Result<Arc<Content>> {
        let tree = match &self.parts[number] {
            Part::File(content) => return Ok(Arc::clone(content)),
            Part::Folder(tree) => *tree,
        };
        if let Some((known, content)) = &self.last
            && *known == tree
        {
            return Ok(Arc::clone(content));
        }
        let mut nodes = repository.tree(index, &tree)?.nodes;
        let content = match nodes.pop() {
            Some(node) if nodes.is_empty() && node.is_file() => Arc::new(content(node)),
            _ => return Err(Error::corrupt(format!("the segment {number} of a disk is not one file"))),
        };
        self.last = Some((tree, Arc::clone(&content)));
        Ok(content)
    }
}

fn content(node: Node) -> Content {
    Content { chunks: node.content.unwrap_or_default().into_iter().map(|id| *id).collect(), size: node.meta.size }
}
