//! Writing a tree of files as a copy: `/NAME/files0/...` beside the machine's description.
//!
//! The crash contract is that of disks: a whole snapshot or none, and any error ends the backup; a file that cannot be
//! read is never left out. Files that the last copy has as they are now are not read.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{Timestamp, Zoned};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};
use rustic_core::repofile::{
    Metadata as NodeMetadata, Node, NodeType, SnapshotFile, SnapshotSummary, StringList, Tree,
};
use rustic_core::{Id, TreeId};
use serde::de::DeserializeOwned;

use crate::backup::{CHUNK, MACHINE_FILE, TAG};
use crate::crypto::hash;
use crate::error::{Error, Kind, Result};
use crate::index::{BlobKind, Index};
use crate::packer::{Packer, write_index};
use crate::repository::Repository;
use crate::store::Area;
use crate::workers;

/// The tree's name in its copy.
pub const FOLDER: &str = "files0";
/// How often a file is read that changes meanwhile.
const TRIES: usize = 3;
const NO_FOLLOW: i32 = 0o400_000 | 0o4_000 | 0o2_000_000;

pub struct Order<'a> {
    pub root: &'a Path,
    pub name: &'a str,
    pub tags: &'a [String],
    /// Folders of the root whose content is left out.
    pub emptied: HashSet<PathBuf>,
    /// File systems that are mounted in the tree belong to it.
    pub across: bool,
    /// An earlier copy of the machine.
    pub since: Option<Id>,
}

pub struct Written {
    pub snapshot: Id,
    pub time: Zoned,
    pub stored: u64,
    pub read: u64,
    pub added: u64,
}

struct Found {
    path: PathBuf,
    parent: usize,
    metadata: Metadata,
    node: Node,
    /// The content is to be read.
    read: bool,
}

/// What the threads of a backup share.
struct Job<'a> {
    index: Index,
    data: Packer<'a>,
    trees: Packer<'a>,
    new: Mutex<HashSet<Id>>,
    read: AtomicU64,
    stored: AtomicU64,
}

impl Job<'_> {
    fn put(&self, content: &[u8]) -> Result<Id> {
        let id = hash(content);
        if self.index.find(BlobKind::Data, &id).is_none()
            && self.new.lock().expect("no thread panics holding it").insert(id)
        {
            self.data.add(id, content)?;
        }
        Ok(id)
    }

    fn put_tree(&self, nodes: Vec<Node>) -> Result<TreeId> {
        let (text, id) = Tree { nodes }.serialize().map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
        let is_new = self.new.lock().expect("no thread panics holding it").insert(*id);
        if self.index.find(BlobKind::Tree, &id).is_none() && is_new {
            self.trees.add(*id, &text)?;
        }
        Ok(id)
    }

    /// Read a file as it is at one time.
    fn file(&self, found: &Found, zero: Id) -> Result<(Vec<Id>, Metadata)> {
        for _ in 0..TRIES {
            let file = open(found)?;
            let before = file.metadata().map_err(|error| unread(&found.path, &error))?;
            match self.content(&file, &before, &found.path, zero) {
                Ok(content) => {
                    let after = file.metadata().map_err(|error| unread(&found.path, &error))?;
                    if facts(&before) == facts(&after) {
                        return Ok((content, before));
                    }
                }
                Err(error) if error.kind == Kind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(
            Kind::Conflict,
            format!("{} changed each time it was read; no copy was made", found.path.display()),
        )
        .hint("stop what writes to it, or back up a snapshot of it"))
    }

    fn content(&self, file: &File, metadata: &Metadata, path: &Path, zero: Id) -> Result<Vec<Id>> {
        let size = metadata.len();
        let sparse = metadata.blocks() * 512 < size;
        let mut content = Vec::with_capacity(size.div_ceil(CHUNK) as usize);
        let mut buffer = vec![0; CHUNK.min(size) as usize];
        let mut stored = 0;
        for offset in (0..size).step_by(CHUNK as usize) {
            let length = CHUNK.min(size - offset);
            let hole = sparse && length == CHUNK && is_hole(file, offset).map_err(|error| unread(path, &error))?;
            if hole {
                content.push(zero);
            } else {
                let part = &mut buffer[..length as usize];
                file.read_exact_at(part, offset).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => Error::new(Kind::Conflict, "a file became shorter"),
                    _ => unread(path, &error),
                })?;
                let id = self.put(part)?;
                content.push(id);
                stored += if id == zero { 0 } else { length };
            }
            self.read.fetch_add(length, Ordering::Relaxed);
        }
        self.stored.fetch_add(stored, Ordering::Relaxed);
        Ok(content)
    }
}

/// Write a tree as a copy. `describe` gets the bytes of all files and returns the machine's description; `progress` gets
/// (bytes read, bytes to read) and may end the backup.
pub fn backup<E: From<Error>>(
    repository: &Repository,
    order: &Order<'_>,
    describe: impl FnOnce(u64) -> std::result::Result<Vec<u8>, E>,
    mut progress: impl FnMut(u64, u64) -> std::result::Result<(), E>,
) -> std::result::Result<Written, E> {
    let started = Zoned::now();
    repository.store.remove_stale()?;
    let index = Index::load(repository)?;
    if let Some(damage) = index.damaged.first() {
        return Err(damage.clone().hint("`restic repair index` makes a new index").into());
    }
    let job = Job {
        index,
        data: Packer::new(repository, BlobKind::Data),
        trees: Packer::new(repository, BlobKind::Tree),
        new: Mutex::default(),
        read: AtomicU64::new(0),
        stored: AtomicU64::new(0),
    };
    let mut found = walk(repository, &job.index, order, &mut progress)?;
    let size = found.iter().filter(|each| each.node.is_file()).map(|each| each.metadata.len()).sum();
    let description = describe(size)?;
    let to_read: Vec<usize> = (0..found.len()).filter(|at| found[*at].read).collect();
    let total = to_read.iter().map(|at| found[*at].metadata.len()).sum();
    let zero = job.put(&vec![0; CHUNK as usize])?;
    let next = AtomicU64::new(0);
    let done = workers::run(
        workers::threads().min(to_read.len()),
        |stop| {
            let mut mine = Vec::new();
            while !stop.is_set() {
                let Some(at) = to_read.get(next.fetch_add(1, Ordering::Relaxed) as usize) else {
                    break;
                };
                mine.push((*at, job.file(&found[*at], zero)?));
            }
            Ok(mine)
        },
        || progress(job.read.load(Ordering::Relaxed).min(total), total),
    )?;
    for (at, (content, metadata)) in done.into_iter().flatten() {
        let node = &mut found[at].node;
        node.meta.size = metadata.len();
        node.meta.mtime = time(metadata.mtime(), metadata.mtime_nsec());
        node.meta.ctime = time(metadata.ctime(), metadata.ctime_nsec());
        node.content = Some(content.into_iter().map(Into::into).collect());
    }
    let mut stored = job.stored.load(Ordering::Relaxed);
    for each in found.iter().filter(|each| !each.read && each.node.is_file()) {
        stored += each.node.content.iter().flatten().filter(|id| ***id != zero).count() as u64 * CHUNK;
    }
    let files = found.len() as u64;
    let tree = trees(&job, found)?;
    let machine = Node {
        content: Some(vec![job.put(&description)?.into()]),
        meta: plain(0o600, description.len() as u64, &started),
        ..Node::new_node(MACHINE_FILE.as_ref(), NodeType::File, NodeMetadata::default())
    };
    let folder = job.put_tree(vec![tree, machine])?;
    let root = job.put_tree(vec![Node {
        subtree: Some(folder),
        meta: plain(1 << 31 | 0o700, 0, &started),
        ..Node::new_node(order.name.as_ref(), NodeType::Dir, NodeMetadata::default())
    }])?;
    let (data_packs, data_added) = job.data.finish()?;
    let (tree_packs, tree_added) = job.trees.finish()?;
    write_index(repository, data_packs.into_iter().chain(tree_packs))?;
    let mut summary = SnapshotSummary::default();
    summary.total_files_processed = files;
    summary.total_bytes_processed = size;
    summary.data_added_packed = data_added + tree_added;
    summary.backup_start = started.clone();
    let tags = std::iter::once(TAG).chain(order.tags.iter().map(String::as_str)).collect::<Vec<_>>().join(",");
    let snapshot = SnapshotFile {
        time: started.clone(),
        program_version: format!("livemount {}", env!("CARGO_PKG_VERSION")),
        tree: root,
        paths: list(&format!("/{}/{FOLDER}", order.name))?,
        hostname: order.name.to_owned(),
        tags: list(&tags)?,
        description: Some(
            serde_json::json!({
                "machine": serde_json::from_slice::<serde_json::Value>(&description).ok(),
                "size": size.max(1),
                "stored": stored,
                "disks": [stored],
            })
            .to_string(),
        ),
        summary: Some(summary),
        ..SnapshotFile::default()
    };
    let id = repository.write_json(Area::Snapshot, &snapshot)?;
    let read = job.read.into_inner();
    Ok(Written { snapshot: id, time: started, stored, read, added: data_added + tree_added })
}

/// Everything in the tree, folders before what is in them; of the last copy what is as it was.
fn walk<E: From<Error>>(
    repository: &Repository,
    index: &Index,
    order: &Order<'_>,
    progress: &mut impl FnMut(u64, u64) -> std::result::Result<(), E>,
) -> std::result::Result<Vec<Found>, E> {
    let metadata = std::fs::symlink_metadata(order.root).map_err(|error| unread(order.root, &error))?;
    if !metadata.is_dir() {
        return Err(Error::new(Kind::Usage, format!("{} is no folder", order.root.display())).into());
    }
    let device = metadata.dev();
    let old = match &order.since {
        None => None,
        Some(snapshot) => {
            let file = repository.snapshot(snapshot)?;
            repository.folder(index, &file, &Path::new("/").join(order.name).join(FOLDER)).ok().map(|(id, _)| id)
        }
    };
    let node = node_of(order.root, FOLDER.into(), &metadata)?;
    let mut found = vec![Found { path: order.root.to_owned(), parent: 0, metadata, node, read: false }];
    let mut folders = vec![(0, old)];
    let mut devices = vec![device];
    while let Some((at, old)) = folders.pop() {
        let path = found[at].path.clone();
        let relative = path.strip_prefix(order.root).expect("all is below the root");
        if order.emptied.contains(relative) || (found[at].metadata.dev() != device && !order.across) {
            continue;
        }
        progress(0, 0)?;
        let mut before: HashMap<OsString, Node> = match old {
            None => HashMap::new(),
            Some(id) => {
                repository.tree(index, &id)?.nodes.into_iter().map(|node| (node.name().into_owned(), node)).collect()
            }
        };
        let entries = std::fs::read_dir(&path).map_err(|error| unread(&path, &error))?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>();
        for name in names.map_err(|error| unread(&path, &error))? {
            let path = path.join(&name);
            let metadata = match std::fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                // It was deleted after the folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unread(&path, &error).into()),
            };
            let mut node = node_of(&path, name.clone(), &metadata)?;
            node.meta.device_id = number(&mut devices, metadata.dev());
            let old = before.remove(&name);
            let mut read = node.is_file();
            if let Some(old) = &old
                && node.is_file()
                && is_unchanged(index, old, &node)
            {
                node.content.clone_from(&old.content);
                read = false;
            }
            if node.is_dir() {
                folders.push((found.len(), old.and_then(|old| old.subtree).map(|id| *id)));
            }
            found.push(Found { path, parent: at, metadata, node, read });
        }
    }
    Ok(found)
}

/// Which of the devices it is: their own numbers are others at each time that an image is opened.
fn number(devices: &mut Vec<u64>, device: u64) -> u64 {
    let at = devices.iter().position(|known| *known == device).unwrap_or_else(|| {
        devices.push(device);
        devices.len() - 1
    });
    at as u64 + 1
}

fn is_unchanged(index: &Index, old: &Node, new: &Node) -> bool {
    let facts = |node: &Node| (node.meta.inode, node.meta.size, node.meta.mtime, node.meta.ctime);
    let sizes = old.content.iter().flatten().map(|id| index.find(BlobKind::Data, id).map(|entry| entry.content));
    old.is_file()
        && facts(old) == facts(new)
        && sizes.map(|size| size.map(u64::from)).sum::<Option<u64>>() == Some(new.meta.size)
}

/// Write the folders, the deepest first, and return the root's node.
fn trees(job: &Job<'_>, found: Vec<Found>) -> Result<Node> {
    let mut below: HashMap<usize, Vec<Node>> = HashMap::new();
    for (at, each) in found.into_iter().enumerate().rev() {
        let mut node = each.node;
        if node.is_dir() {
            let mut nodes = below.remove(&at).unwrap_or_default();
            nodes.sort_by(|one, other| one.name().cmp(&other.name()));
            node.subtree = Some(job.put_tree(nodes)?);
        }
        if at == 0 {
            return Ok(node);
        }
        below.entry(each.parent).or_default().push(node);
    }
    Err(Error::new(Kind::Internal, "a tree has no root"))
}

fn node_of(path: &Path, name: OsString, metadata: &Metadata) -> Result<Node> {
    let kind = metadata.file_type();
    let (kind, bits) = if kind.is_dir() {
        (NodeType::Dir, 1 << 31)
    } else if kind.is_file() {
        (NodeType::File, 0)
    } else if kind.is_symlink() {
        let target = std::fs::read_link(path).map_err(|error| unread(path, &error))?;
        (NodeType::from_link(&target), 1 << 27)
    } else if kind.is_block_device() {
        (NodeType::Dev { device: metadata.rdev() }, 1 << 26)
    } else if kind.is_char_device() {
        (NodeType::Chardev { device: metadata.rdev() }, 1 << 26 | 1 << 21)
    } else if kind.is_fifo() {
        (NodeType::Fifo, 1 << 25)
    } else {
        (NodeType::Socket, 1 << 24)
    };
    let mode = metadata.mode();
    let special = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    let special = special.iter().fold(0, |found, (bit, go)| if mode & bit == 0 { found } else { found | go });
    let meta = NodeMetadata {
        mode: Some(mode & 0o777 | special | bits),
        mtime: time(metadata.mtime(), metadata.mtime_nsec()),
        atime: time(metadata.mtime(), metadata.mtime_nsec()),
        ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        inode: metadata.ino(),
        size: if matches!(kind, NodeType::File) { metadata.len() } else { 0 },
        links: metadata.nlink(),
        extended_attributes: attributes(path)?,
        ..NodeMetadata::default()
    };
    Ok(Node::new_node(&name, kind, meta))
}

/// The extended attributes, as restic's JSON: the type of one has no public name.
fn attributes<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let mut found = Vec::new();
    let names = match xattr::list(path) {
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Vec::new(),
        names => names.map_err(|error| unread(path, &error))?.collect(),
    };
    for name in names {
        let value = xattr::get(path, &name).map_err(|error| unread(path, &error))?;
        let name = name.into_string().map_err(|name| {
            Error::new(Kind::Unsupported, format!("{}: the attribute {} is no text", path.display(), name.display()))
        })?;
        found.push((name, STANDARD.encode(value.unwrap_or_default())));
    }
    found.sort();
    let json = found.into_iter().map(|(name, value)| serde_json::json!({"name": name, "value": value})).collect();
    serde_json::from_value(json).map_err(|error| Error::new(Kind::Internal, error.to_string()))
}

/// Open a file that is what it was when it was found.
fn open(found: &Found) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(NO_FOLLOW)
        .open(&found.path)
        .map_err(|error| unread(&found.path, &error))?;
    let metadata = file.metadata().map_err(|error| unread(&found.path, &error))?;
    if (metadata.dev(), metadata.ino()) != (found.metadata.dev(), found.metadata.ino()) || !metadata.is_file() {
        let path = found.path.display();
        return Err(Error::new(
            Kind::Conflict,
            format!("{path} was replaced while the tree was read; no copy was made"),
        )
        .hint("stop what writes to it, or back up a snapshot of it"));
    }
    Ok(file)
}

fn is_hole(file: &File, offset: u64) -> io::Result<bool> {
    match lseek64(file, offset as i64, Whence::SeekData) {
        Ok(data) => Ok(data as u64 >= offset + CHUNK),
        Err(Errno::ENXIO) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn facts(metadata: &Metadata) -> (u64, i64, i64, i64, i64) {
    (metadata.len(), metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec())
}

fn plain(mode: u32, size: u64, time: &Zoned) -> NodeMetadata {
    let time = Some(time.timestamp());
    let owner = Some(0);
    NodeMetadata {
        mode: Some(mode),
        mtime: time,
        atime: time,
        ctime: time,
        uid: owner,
        gid: owner,
        size,
        links: 1,
        ..NodeMetadata::default()
    }
}

fn time(seconds: i64, nanoseconds: i64) -> Option<Timestamp> {
    // Before 1970 the kernel counts nanoseconds forwards, jiff backwards.
    Timestamp::from_nanosecond(i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)).ok()
}

fn list(text: &str) -> Result<StringList> {
    text.parse().map_err(|error| Error::new(Kind::Usage, format!("{text:?}: {error}")))
}

fn unread(path: &Path, error: &io::Error) -> Error {
    Error::io(&format!("cannot read {}", path.display()), error)
}
