//! A folder of a snapshot with all that is in it, and the ext4 file system that it becomes.
//!
//! A snapshot may be a stranger's: names, depths, numbers and sizes are checked before they are used.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use rustic_core::Id;
use rustic_core::repofile::{Metadata, Node, NodeType};

use super::disk::Piece;
use super::ext4::{self, BLOCK, Content, FIRST, Inode, Placed, Plan, ROOT};
use crate::crypto::hash;
use crate::error::{Error, Kind, Result};
use crate::index::{BlobKind, Entry, Index};
use crate::repository::Repository;

const MOST_ENTRIES: usize = 20_000_000;
const LOST_AND_FOUND: &[u8] = b"lost+found";
const MOST_DEPTH: u32 = 2000;
const LONGEST_NAME: usize = 255;
const LONGEST_LINK: usize = 4095;
/// The largest file that 32-bit block numbers reach.
const LARGEST_FILE: u64 = (1 << 44) - BLOCK;
/// Chunks of zeros are known by their ids where they have a multiple of this length.
const ZEROS: u32 = 1 << 16;
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

/// What to change in the synthesised file system, and how to call it.
pub struct Wishes {
    pub uuid: [u8; 16],
    pub label: Vec<u8>,
    /// Bytes that are free.
    pub free: u64,
    /// Files by their paths, and their content.
    pub files: Vec<(Vec<u8>, Vec<u8>)>,
    /// Folders of the root that are made where there are none, and their permissions.
    pub folders: Vec<(Vec<u8>, u16)>,
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
        let mut folders = vec![(0_u32, self.id, 0_u32)];
        while let Some((at, id, depth)) = folders.pop() {
            if depth > MOST_DEPTH {
                return Err(Error::new(Kind::Unsupported, format!("{} is deeper than {MOST_DEPTH} folders", self.name)));
            }
            let mut below = Vec::new();
            let mut seen = HashSet::new();
            let nodes = self.repository.tree(&self.index, &id)?.nodes;
            names += nodes.len();
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
                    return Err(self.damaged(name, &format!("should have {} bytes, its chunks have {size}", node.meta.size)));
                }
                if size > LARGEST_FILE {
                    return Err(Error::new(Kind::Unsupported, format!("{:?} has {size} bytes, more than ext4 can hold", String::from_utf8_lossy(name))));
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

    /// The file system that this becomes; what is in no item of ours stands behind them.
    fn plan(&self, wishes: &Wishes) -> Result<Plan> {
        // `lost+found` has its own number, so items begin behind it, and the root has another one.
        let number = |item: u32| if item == 0 { ROOT } else { FIRST + item };
        let mut all: Vec<Inode> = Vec::with_capacity(self.items.len() + 8);
        for item in &self.items {
            let content = match &item.kept {
                Kept::Folder(entries, parent) => Content::Folder {
                    parent: number(*parent),
                    entries: entries.iter().map(|(name, at)| (name.clone(), number(*at))).collect(),
                },
                Kept::File { size, chunks } => Content::Away { size: *size, blocks: blocks(chunks) },
                Kept::Link(target) => Content::Bytes(target.clone()),
                Kept::Device(major, minor) => Content::Device(*major, *minor),
                Kept::Other => Content::Nothing,
            };
            let time = |time: Option<rustic_time::Time>| time.map_or((self.time, 0), rustic_time::parts);
            all.push(Inode {
                mode: item.mode,
                uid: item.metadata.uid.unwrap_or(0),
                gid: item.metadata.gid.unwrap_or(0),
                links: item.links,
                atime: time(item.metadata.atime.or(item.metadata.mtime)),
                mtime: time(item.metadata.mtime),
                ctime: time(item.metadata.ctime.or(item.metadata.mtime)),
                attributes: item
                    .metadata
                    .extended_attributes
                    .iter()
                    .map(|each| (each.name.clone().into_bytes(), each.value.clone().unwrap_or_default()))
                    .collect(),
                content,
            });
        }
        for (path, bytes) in &wishes.files {
            self.put(&mut all, path, bytes)?;
        }
        for (name, permissions) in &wishes.folders {
            if !entries(&mut all[0]).iter().any(|(other, _)| other == name) {
                let made = self.made(ext4::S_IFDIR | permissions, Content::Folder { parent: ROOT, entries: Vec::new() });
                attach(&mut all, 0, name, made);
            }
        }
        let spare = self.made(ext4::S_IFDIR | 0o700, Content::Folder { parent: ROOT, entries: Vec::new() });
        let mut root = std::mem::replace(&mut all[0], spare);
        match self.lost_and_found() {
            Some(own) => close_gap(&mut root, &mut all, own),
            None => {
                entries(&mut root).push((LOST_AND_FOUND.to_vec(), FIRST));
                root.links += 1;
            }
        }
        let inodes = all;
        Ok(Plan { uuid: wishes.uuid, label: wishes.label.clone(), time: self.time, root, inodes })
    }

    fn made(&self, mode: u16, content: Content) -> Inode {
        let links = if matches!(content, Content::Folder { .. }) { 2 } else { 1 };
        let time = (self.time, 0);
        Inode { mode, uid: 0, gid: 0, links, atime: time, mtime: time, ctime: time, attributes: Vec::new(), content }
    }

    /// Give a file other content, making it and the folders on its way where they are not there.
    fn put(&self, all: &mut Vec<Inode>, path: &[u8], bytes: &[u8]) -> Result<()> {
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
        let (last, way) = parts.split_last().expect("a file has a name");
        let mut at = 0;
        for part in way {
            let found = entries(&mut all[at]).iter().find(|(name, _)| name == part).map(|(_, inode)| *inode);
            at = match found {
                None => {
                    let parent = if at == 0 { ROOT } else { FIRST + at as u32 };
                    let folder = self.made(ext4::S_IFDIR | 0o755, Content::Folder { parent, entries: Vec::new() });
                    attach(all, at, part, folder)
                }
                Some(inode) if matches!(all[(inode - FIRST) as usize].content, Content::Folder { .. }) => {
                    (inode - FIRST) as usize
                }
                Some(_) => {
                    let path = String::from_utf8_lossy(path).into_owned();
                    return Err(Error::new(Kind::Unsupported, format!("the way to /{path} in {} is no folder", self.name)));
                }
            };
        }
        let found = entries(&mut all[at]).iter().find(|(name, _)| name == last).map(|(_, inode)| *inode);
        if let Some(inode) = found {
            let old = &mut all[(inode - FIRST) as usize];
            if matches!(old.content, Content::Away { .. } | Content::Bytes(_)) && old.links == 1 {
                if old.mode & ext4::S_IFMT == ext4::S_IFLNK {
                    old.mode = ext4::S_IFREG | 0o644;
                }
                old.content = Content::Bytes(bytes.to_vec());
                return Ok(());
            }
            let path = String::from_utf8_lossy(path).into_owned();
            return Err(Error::new(Kind::Unsupported, format!("/{path} in {} is no ordinary file", self.name)));
        }
        let file = self.made(ext4::S_IFREG | 0o644, Content::Bytes(bytes.to_vec()));
        attach(all, at, last, file);
        Ok(())
    }

    /// How large the file system is.
    pub fn size(&self, wishes: &Wishes) -> Result<u64> {
        ext4::size(&self.plan(wishes)?, wishes.free)
    }

    /// Write the metadata into a sparse file of zeros, from byte `start` on, and tell where chunks belong in it.
    pub fn write(&self, wishes: &Wishes, file: &File, start: u64) -> Result<Vec<Piece>> {
        let plan = self.plan(wishes)?;
        let size = ext4::size(&plan, wishes.free)?;
        let placed = ext4::write(&plan, size, file, start)?;
        let mut pieces = Vec::new();
        let gap = self.lost_and_found();
        for mut part in placed {
            if gap.is_some_and(|gap| part.inode >= gap) {
                part.inode += 1;
            }
            self.pieces(&part, start, &mut pieces);
        }
        Ok(pieces)
    }

    fn pieces(&self, part: &Placed, start: u64, pieces: &mut Vec<Piece>) {
        let Kept::File { chunks, .. } = &self.items[part.inode].kept else { return };
        let (begin, end) = (part.logical * BLOCK, (part.logical + part.length) * BLOCK);
        let mut offset = 0;
        for (number, length) in chunks {
            if let Some(number) = number
                && offset >= begin
                && offset < end
            {
                pieces.push(Piece { offset: start + part.physical * BLOCK + offset - begin, blob: *number });
            }
            offset += u64::from(*length);
        }
    }

    pub fn into_parts(self) -> (Arc<Repository>, Vec<Id>, Vec<Entry>) {
        (self.repository, self.index.packs, self.blobs)
    }
}

/// The times of nodes.
mod rustic_time {
    pub type Time = jiff::Timestamp;

    pub fn parts(time: Time) -> (i64, u32) {
        // Before 1970 jiff counts both backwards.
        match (time.as_second(), time.subsec_nanosecond()) {
            (seconds, nanoseconds) if nanoseconds < 0 => (seconds - 1, (nanoseconds + 1_000_000_000) as u32),
            (seconds, nanoseconds) => (seconds, nanoseconds as u32),
        }
    }
}

fn entries(inode: &mut Inode) -> &mut Vec<(Vec<u8>, u32)> {
    match &mut inode.content {
        Content::Folder { entries, .. } => entries,
        _ => unreachable!("only folders are asked"),
    }
}

/// Make the tree's own `lost+found` the first inode, in place of the spare one, and the others move up.
fn close_gap(root: &mut Inode, all: &mut Vec<Inode>, own: usize) {
    all[0] = all.remove(own);
    let gap = FIRST + own as u32;
    let moved = |inode: &mut u32| match (*inode).cmp(&gap) {
        std::cmp::Ordering::Less => {}
        std::cmp::Ordering::Equal => *inode = FIRST,
        std::cmp::Ordering::Greater => *inode -= 1,
    };
    for inode in all.iter_mut().chain([root]) {
        if let Content::Folder { parent, entries } = &mut inode.content {
            moved(parent);
            entries.iter_mut().for_each(|(_, inode)| moved(inode));
        }
    }
}

/// Put a new inode into a folder.
fn attach(all: &mut Vec<Inode>, folder: usize, name: &[u8], inode: Inode) -> usize {
    let at = all.len();
    if matches!(inode.content, Content::Folder { .. }) {
        all[folder].links += 1;
    }
    all.push(inode);
    entries(&mut all[folder]).push((name.to_vec(), FIRST + at as u32));
    at
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

/// The ranges of a file's blocks that are not zeros only.
fn blocks(chunks: &[Chunk]) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut offset = 0;
    for (number, length) in chunks {
        let end = offset + u64::from(*length);
        if number.is_some() && *length > 0 {
            let (first, last) = (offset / BLOCK, end.div_ceil(BLOCK));
            match found.last_mut() {
                Some((start, count)) if *start + *count >= first => *count = last - *start,
                _ => found.push((first, last - first)),
            }
        }
        offset = end;
    }
    found
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
