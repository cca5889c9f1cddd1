//! A folder of a snapshot with all that is in it, and the ext4 file system that it becomes.
//!
//! A snapshot may be a stranger's: names, depths, numbers and sizes are checked before they are used.

mod plan;

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use rustic_core::Id;
use rustic_core::repofile::{Metadata, Node, NodeType};

pub use self::plan::Wishes;
use super::ext4::{self, BLOCK};
use crate::crypto::hash;
use crate::error::{Error, Kind, Result};
use crate::index::{BlobKind, Entry, Index};
use crate::repository::Repository;

const MOST_ENTRIES: usize = 20_000_000;
/// Of them, in folders that were there before: equal ones cost a snapshot nothing, so a few can be made to be millions.
const MOST_REPEATED: usize = 100_000;
const LOST_AND_FOUND: &[u8] = b"lost+found";
const MOST_DEPTH: u32 = 2000;
const LONGEST_NAME: usize = 255;
const LONGEST_LINK: usize = 4095;
/// The largest file that 32-bit block numbers reach.
const LARGEST_FILE: u64 = (1 << 44) - BLOCK;
/// Chunks of zeros are known by their ids where they have a multiple of this length.
const ZEROS: u32 = 1 << 16;
/// More than any chunker's largest chunk.
const LARGEST_CHUNK: u32 = 64 << 20;
/// Go's `os.FileMode` bits, as restic writes them, and what they are here.
const SPECIAL: [(u32, u16); 3] = [(1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000)];

/// A file's chunk: its number among the distinct ones, or nothing for zeros, and its length.
type Chunk = (Option<u32>, u32);

enum Kept {
    Folder(Vec<(Vec<u8>, u32)>, u32),
    File { size: u64, chunks: Vec<Chunk> },
    Link(Vec<u8>),
    Device(u32, u32),
    Other,
}

struct Item {
    mode: u16,
    links: u32,
    metadata: Metadata,
    kept: Kept,
}

pub struct FileTree {
    repository: Arc<Repository>,
    index: Index,
    /// The root, then what is in it: item N is inode `FIRST + N`, but for the root.
    items: Vec<Item>,
    blobs: Vec<Entry>,
    time: i64,
    pub id: Id,
    name: String,
}

impl FileTree {
    pub fn open(repository: Arc<Repository>, snapshot: &Id, path: &Path) -> Result<Self> {
        let file = repository.snapshot(snapshot)?;
        let index = Index::load(&repository)?;
        let time = file.time.timestamp().as_second();
        let name = format!("{} of snapshot {}", path.display(), &*snapshot.to_hex());
        let (id, metadata) = repository.folder(&index, &file, path)?;
        let unknown = || Metadata { mode: Some(0o755), mtime: Some(file.time.timestamp()), ..Metadata::default() };
        let metadata = metadata.unwrap_or_else(unknown);
        let mut tree = Self { repository, index, items: Vec::new(), blobs: Vec::new(), time, id, name };
        let mode = mode(&metadata) | ext4::S_IFDIR;
        tree.items.push(Item { mode, links: 2, metadata, kept: Kept::Folder(Vec::new(), 0) });
        tree.load()?;
        Ok(tree)
    }

    /// Read all folders.
    fn load(&mut self) -> Result<()> {
        let mut numbers = HashMap::new();
        let mut zeros = HashMap::new();
        let mut linked: HashMap<(u64, u64), u32> = HashMap::new();
        let mut missing = 0_usize;
        let mut names = 0_usize;
        let mut repeated = 0_usize;
        let mut known = HashSet::new();
        let mut folders = vec![(0_u32, self.id, 0_u32)];
        while let Some((at, id, depth)) = folders.pop() {
            if depth > MOST_DEPTH {
                return Err(Error::new(
                    Kind::Unsupported,
                    format!("{} is deeper than {MOST_DEPTH} folders", self.name),
                ));
            }
            let mut below = Vec::new();
            let mut seen = HashSet::new();
            let nodes = self.repository.tree(&self.index, &id)?.nodes;
            names += nodes.len();
            if !known.insert(id) {
                repeated += nodes.len();
            }
            if repeated > MOST_REPEATED {
                return Err(Error::new(Kind::Unsupported, format!("{} has the same folders over and over", self.name)));
            }
            if names > MOST_ENTRIES {
                return Err(Error::new(Kind::Unsupported, format!("{} has more than {MOST_ENTRIES} files", self.name)));
            }
            let mut entries = Vec::with_capacity(nodes.len());
            for node in nodes {
                let name = node.name().into_owned().into_vec();
                check_name(&name, &self.name)?;
                if !seen.insert(name.clone()) {
                    return Err(self.damaged(&name, "is there twice"));
                }
                let key = (node.meta.device_id, node.meta.inode);
                let may_link = node.meta.links > 1 && node.meta.inode != 0 && !node.is_dir();
                let subtree = node.subtree;
                let item = self.item(node, at, &name, &mut numbers, &mut zeros, &mut missing)?;
                if may_link
                    && let Some(first) = linked.get(&key)
                    && same(&self.items[*first as usize], &item)
                {
                    self.items[*first as usize].links += 1;
                    entries.push((name, *first));
                    continue;
                }
                let number = self.items.len() as u32;
                if matches!(item.kept, Kept::Folder(..)) {
                    let id = subtree.ok_or_else(|| self.damaged(&name, "is a folder without content"))?;
                    below.push((number, *id, depth + 1));
                    self.items[at as usize].links += 1;
                }
                self.items.push(item);
                if may_link {
                    linked.insert(key, number);
                }
                entries.push((name, number));
            }
            if let Kept::Folder(list, _) = &mut self.items[at as usize].kept {
                *list = entries;
            }
            folders.extend(below.into_iter().rev());
        }
        if missing > 0 {
            return Err(self.index.missing(&format!("{missing} chunks of {}", self.name)));
        }
        Ok(())
    }

    fn damaged(&self, name: &[u8], what: &str) -> Error {
        Error::corrupt(format!("{:?} in {} {what}", String::from_utf8_lossy(name), self.name))
    }

    fn item(
        &mut self,
        node: Node,
        parent: u32,
        name: &[u8],
        numbers: &mut HashMap<Id, u32>,
        zeros: &mut HashMap<u32, Id>,
        missing: &mut usize,
    ) -> Result<Item> {
        let mut permissions = mode(&node.meta);
        let (kind, kept) = match &node.node_type {
            NodeType::Dir => (ext4::S_IFDIR, Kept::Folder(Vec::new(), parent)),
            NodeType::File => {
                let mut chunks = Vec::new();
                let mut size = 0_u64;
                let before = *missing;
                for id in node.content.iter().flatten() {
                    let Some(entry) = self.index.find(BlobKind::Data, id) else {
                        *missing += 1;
                        continue;
                    };
                    let length = entry.content;
                    if length > LARGEST_CHUNK {
                        return Err(self.damaged(name, &format!("has a chunk of {length} bytes")));
                    }
                    size = size.saturating_add(u64::from(length));
                    let zero = length.is_multiple_of(ZEROS)
                        && *zeros.entry(length).or_insert_with(|| hash(&vec![0; length as usize])) == **id;
                    let number = if zero {
                        None
                    } else {
                        let next = self.blobs.len() as u32;
                        let number = *numbers.entry(**id).or_insert(next);
                        if number == next {
                            self.blobs.push(*entry);
                        }
                        Some(number)
                    };
                    chunks.push((number, length));
                }
                if *missing == before && size != node.meta.size {
                    return Err(
                        self.damaged(name, &format!("should have {} bytes, its chunks have {size}", node.meta.size))
                    );
                }
                if size > LARGEST_FILE {
                    return Err(Error::new(
                        Kind::Unsupported,
                        format!("{:?} has {size} bytes, more than ext4 can hold", String::from_utf8_lossy(name)),
                    ));
                }
                (ext4::S_IFREG, Kept::File { size, chunks })
            }
            NodeType::Symlink { .. } => {
                let target = node.node_type.to_link().as_os_str().as_bytes().to_vec();
                if target.is_empty() || target.len() > LONGEST_LINK || target.contains(&0) {
                    return Err(self.damaged(name, "is a link that leads nowhere"));
                }
                permissions = 0o777;
                (ext4::S_IFLNK, Kept::Link(target))
            }
            NodeType::Dev { device } => (ext4::S_IFBLK, device_numbers(*device)),
            NodeType::Chardev { device } => (ext4::S_IFCHR, device_numbers(*device)),
            NodeType::Fifo => (ext4::S_IFIFO, Kept::Other),
            NodeType::Socket => (ext4::S_IFSOCK, Kept::Other),
        };
        let links = if kind == ext4::S_IFDIR { 2 } else { 1 };
        Ok(Item { mode: kind | permissions, links, metadata: node.meta, kept })
    }

    /// The tree's own folder of this name, which is known by its inode's number.
    fn lost_and_found(&self) -> Option<usize> {
        let Kept::Folder(entries, _) = &self.items[0].kept else { return None };
        let (_, at) = entries.iter().find(|(name, _)| name == LOST_AND_FOUND)?;
        matches!(self.items[*at as usize].kept, Kept::Folder(..)).then_some(*at as usize)
    }

    fn find(&self, path: &[u8]) -> Option<&Item> {
        let mut item = &self.items[0];
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            let Kept::Folder(entries, _) = &item.kept else { return None };
            let (_, number) = entries.iter().find(|(name, _)| name == part)?;
            item = &self.items[*number as usize];
        }
        Some(item)
    }

    /// The content of a regular file, if there is one; links are not followed.
    pub fn read(&self, path: &[u8], limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(Item { kept: Kept::File { size, chunks }, .. }) = self.find(path) else { return Ok(None) };
        if *size > limit {
            let path = String::from_utf8_lossy(path);
            return Err(Error::new(Kind::Unsupported, format!("{path} has {size} bytes, more than {limit}")));
        }
        let mut text = Vec::with_capacity(*size as usize);
        for (number, length) in chunks {
            match number {
                None => text.resize(text.len() + *length as usize, 0),
                Some(number) => {
                    let entry = &self.blobs[*number as usize];
                    text.extend(self.repository.read_blob(&self.index.packs[entry.pack as usize], entry)?);
                }
            }
        }
        Ok(Some(text))
    }

    /// The names of the regular files in a folder.
    pub fn names(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let Some(Item { kept: Kept::Folder(entries, _), .. }) = self.find(path) else { return Vec::new() };
        let is_file = |number: u32| matches!(self.items[number as usize].kept, Kept::File { .. });
        entries.iter().filter(|(_, number)| is_file(*number)).map(|(name, _)| name.clone()).collect()
    }

    pub fn count(&self) -> usize {
        self.items.len()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        let sizes = self.items.iter().map(|item| if let Kept::File { size, .. } = item.kept { size } else { 0 });
        sizes.fold(0, u64::saturating_add)
    }

    pub fn into_parts(self) -> (Arc<Repository>, Vec<Id>, Vec<Entry>) {
        (self.repository, self.index.packs, self.blobs)
    }
}

/// Whether two names may be of one file.
fn same(first: &Item, other: &Item) -> bool {
    first.mode == other.mode
        && match (&first.kept, &other.kept) {
            (Kept::File { chunks, .. }, Kept::File { chunks: others, .. }) => chunks == others,
            (Kept::Link(target), Kept::Link(other)) => target == other,
            (Kept::Device(major, minor), Kept::Device(a, b)) => (major, minor) == (a, b),
            (Kept::Other, Kept::Other) => true,
            _ => false,
        }
}

fn mode(metadata: &Metadata) -> u16 {
    let go = metadata.mode.unwrap_or(0o644);
    SPECIAL.iter().fold((go & 0o777) as u16, |mode, (bit, here)| if go & bit == 0 { mode } else { mode | here })
}

/// Linux's numbers of a device in 64 bits.
fn device_numbers(device: u64) -> Kept {
    let major = (device >> 8) & 0xfff | (device >> 32) & 0xffff_f000;
    let minor = device & 0xff | (device >> 12) & 0xffff_ff00;
    Kept::Device((major & 0xfff) as u32, (minor & 0xf_ffff) as u32)
}

fn check_name(name: &[u8], tree: &str) -> Result<()> {
    let bad = name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0);
    if bad || name.len() > LONGEST_NAME {
        return Err(Error::corrupt(format!("{:?} in {tree} can name no file", String::from_utf8_lossy(name))));
    }
    Ok(())
}
