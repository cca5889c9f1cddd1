//! The ext4 file system that a tree becomes, with what is changed so that it boots.

use std::fs::File;

use super::{Chunk, FileTree, Kept, LOST_AND_FOUND};
use crate::error::{Error, Kind, Result};
use crate::files::disk::Piece;
use crate::files::ext4::{self, BLOCK, Content, FIRST, Inode, Placed, Plan, ROOT};

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
                let made =
                    self.made(ext4::S_IFDIR | permissions, Content::Folder { parent: ROOT, entries: Vec::new() });
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
                    return Err(Error::new(
                        Kind::Unsupported,
                        format!("the way to /{path} in {} is no folder", self.name),
                    ));
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
