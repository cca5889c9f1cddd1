//! Lays out an ext4 file system: all of its metadata is written, of the files' data only the places are told.
//!
//! Equal input gives equal bytes, on every machine: recall stores are shared by them. What follows is the on-disk
//! format as Linux' Documentation/filesystems/ext4 describes it, with 4 KiB blocks, flexible block groups (all
//! bitmaps and inode tables lie at the front), no checksums, no backup superblocks and a journal that is empty.

mod writer;

use std::fs::File;

use self::writer::Writer;
use super::xattr;
use crate::error::{Error, Kind, Result};

pub const BLOCK: u64 = 4096;
const GROUP: u64 = 8 * BLOCK;
const INODE: u64 = 256;
const DESCRIPTOR: u64 = 32;
/// Room that inodes have for more than the classic fields.
const EXTRA: u16 = 32;
pub const ROOT: u32 = 2;
const JOURNAL: u32 = 8;
pub const FIRST: u32 = 11;
const JOURNAL_BLOCKS: u64 = 8192;
const MOST_BLOCKS: u64 = u32::MAX as u64 - GROUP;
const MOST_EXTENT: u64 = 32768;
const MOST_LINKS: u32 = 65000;
/// Larger folders need a feature of ext4 that is not used here.
const LARGEST_FOLDER: u64 = u32::MAX as u64 / BLOCK;
const ROOT_EXTENTS: usize = 4;
const EXTENTS: u32 = 0x8_0000;
const HAS_JOURNAL: u32 = 0x4;
const EXT_ATTR: u32 = 0x8;
const SPARSE_SUPER2: u32 = 0x200;
const FILETYPE: u32 = 0x2;
const HAS_EXTENTS: u32 = 0x40;
const FLEX_BG: u32 = 0x200;
const LARGE_FILE: u32 = 0x2;
const DIR_NLINK: u32 = 0x20;
const EXTRA_ISIZE: u32 = 0x40;

pub const S_IFMT: u16 = 0o170_000;
pub const S_IFSOCK: u16 = 0o140_000;
pub const S_IFLNK: u16 = 0o120_000;
pub const S_IFREG: u16 = 0o100_000;
pub const S_IFBLK: u16 = 0o060_000;
pub const S_IFDIR: u16 = 0o040_000;
pub const S_IFCHR: u16 = 0o020_000;
pub const S_IFIFO: u16 = 0o010_000;

/// Seconds since 1970, and nanoseconds.
pub type Time = (i64, u32);

/// What an inode holds.
pub enum Content {
    /// Name and inode of each entry.
    Folder {
        parent: u32,
        entries: Vec<(Vec<u8>, u32)>,
    },
    /// A file whose data lies in the given ranges of its blocks; the data itself is not written.
    Away {
        size: u64,
        blocks: Vec<(u64, u64)>,
    },
    /// A file, or the target of a link, whose bytes are written.
    Bytes(Vec<u8>),
    Device(u32, u32),
    Nothing,
}

pub struct Inode {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
    pub content: Content,
}

/// A file system to lay out: inodes from number `FIRST` on (`FIRST` itself is `lost+found`), and the root.
pub struct Plan {
    pub uuid: [u8; 16],
    pub label: Vec<u8>,
    pub time: i64,
    pub root: Inode,
    pub inodes: Vec<Inode>,
}

/// A range of a file's blocks and where it lies.
pub struct Placed {
    /// Which of the plan's inodes.
    pub inode: usize,
    pub logical: u64,
    pub physical: u64,
    pub length: u64,
}

/// The numbers that decide where everything lies.
struct Shape {
    groups: u64,
    table_blocks: u64,
    inodes_per_group: u64,
    tables: u64,
    first_free: u64,
}

impl Shape {
    fn new(groups: u64, inodes: u64) -> Self {
        let wanted = (groups * GROUP / 8).max(inodes + inodes / 4 + 1024);
        let inodes_per_group = wanted.div_ceil(groups).next_multiple_of(16).min(GROUP);
        let table_blocks = inodes_per_group * INODE / BLOCK;
        let tables = 1 + (groups * DESCRIPTOR).div_ceil(BLOCK) + 2 * groups;
        Self { groups, table_blocks, inodes_per_group, tables, first_free: tables + groups * table_blocks }
    }

    fn block_bitmaps(&self) -> u64 {
        1 + (self.groups * DESCRIPTOR).div_ceil(BLOCK)
    }
}

/// How many bytes a file system needs that holds this plan, with as many bytes free as asked.
pub fn size(plan: &Plan, free: u64) -> Result<u64> {
    let mut needed = JOURNAL_BLOCKS + 8;
    for inode in plan.inodes.iter().chain([&plan.root]) {
        let (data, extents) = match &inode.content {
            Content::Folder { entries, .. } => (folder_blocks(entries), 1),
            Content::Bytes(bytes) => ((bytes.len() as u64).div_ceil(BLOCK), 1),
            Content::Away { blocks, .. } => (
                blocks.iter().map(|(_, length)| length).sum(),
                blocks.iter().map(|(_, length)| length.div_ceil(MOST_EXTENT)).sum::<u64>(),
            ),
            Content::Device(..) | Content::Nothing => (0, 0),
        };
        if matches!(inode.content, Content::Folder { .. }) && data > LARGEST_FOLDER {
            return Err(Error::new(Kind::Unsupported, "a folder has so many files that its names need 4 GiB"));
        }
        let tree = if extents as usize > ROOT_EXTENTS { extents / 300 + 8 } else { 0 };
        needed += data + tree + 1;
        if needed > MOST_BLOCKS {
            return Err(Error::new(
                Kind::Unsupported,
                "the files need more than 16 TiB: ext4 as it is made here ends there",
            ));
        }
    }
    needed += free / BLOCK;
    let inodes = plan.inodes.len() as u64 + u64::from(FIRST);
    let mut groups = needed.div_ceil(GROUP).max(inodes.div_ceil(GROUP / 2)).max(1);
    while Shape::new(groups, inodes).first_free + needed > groups * GROUP {
        groups += 1;
    }
    if groups * GROUP > MOST_BLOCKS {
        return Err(Error::new(Kind::Unsupported, "the files and free room need more than 16 TiB"));
    }
    Ok(groups * GROUP * BLOCK)
}

/// How many entries' blocks a folder has.
fn folder_blocks(entries: &[(Vec<u8>, u32)]) -> u64 {
    let mut blocks = 1;
    let mut used = 24;
    for (name, _) in entries {
        let length = entry_length(name);
        if used + length > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += length;
    }
    blocks
}

fn entry_length(name: &[u8]) -> u64 {
    (8 + name.len() as u64).next_multiple_of(4)
}

/// Write the metadata of a file system of `size` bytes, as `size()` tells, from byte `start` of a sparse file on.
/// Returns where the data that is away belongs.
pub fn write(plan: &Plan, size: u64, file: &File, start: u64) -> Result<Vec<Placed>> {
    let groups = size / BLOCK / GROUP;
    let inodes = plan.inodes.len() as u64 + u64::from(FIRST) - 1;
    let shape = Shape::new(groups, inodes + 1);
    let first_free = shape.first_free;
    let mut writer = Writer { file, start, shape, next: first_free, placed: Vec::new() };
    let journal = writer.journal(&plan.uuid, plan.time)?;
    let kinds = |inode: u32| if inode == ROOT { S_IFDIR } else { plan.inodes[(inode - FIRST) as usize].mode };
    let mut folders = vec![0_u32; groups as usize];
    writer.inode(ROOT, None, &plan.root, &kinds)?;
    folders[0] += 1;
    // Folders first: they are near each other, and no data that is away lies between them.
    let is_away = |inode: &Inode| matches!(inode.content, Content::Away { .. });
    for away in [false, true] {
        for (at, inode) in plan.inodes.iter().enumerate().filter(|(_, inode)| is_away(inode) == away) {
            let number = FIRST + at as u32;
            writer.inode(number, Some(at), inode, &kinds)?;
            if matches!(inode.content, Content::Folder { .. }) {
                folders[(u64::from(number - 1) / writer.shape.inodes_per_group) as usize] += 1;
            }
        }
    }
    let used = writer.next;
    if used > groups * GROUP {
        return Err(Error::new(Kind::Internal, "a synthesised file system is fuller than was reckoned"));
    }
    let shape = &writer.shape;
    let mut descriptors = vec![0; (groups * DESCRIPTOR) as usize];
    for group in 0..groups {
        let (blocks, bits) = (shape.block_bitmaps() + group, shape.block_bitmaps() + groups + group);
        writer.bitmap(blocks, group, GROUP, used)?;
        writer.bitmap(bits, group, shape.inodes_per_group, inodes)?;
        let raw = &mut descriptors[(group * DESCRIPTOR) as usize..][..DESCRIPTOR as usize];
        put32(raw, 0, blocks as u32);
        put32(raw, 4, bits as u32);
        put32(raw, 8, (shape.tables + group * shape.table_blocks) as u32);
        let free = |per_group: u64, used: u64| per_group - used.saturating_sub(group * per_group).min(per_group);
        put16(raw, 0xC, free(GROUP, used) as u16);
        put16(raw, 0xE, free(shape.inodes_per_group, inodes) as u16);
        put16(raw, 0x10, folders[group as usize] as u16);
    }
    writer.put(BLOCK, &descriptors)?;
    writer.put(1024, &superblock(plan, &writer.shape, used, inodes, &journal))?;
    Ok(writer.placed)
}

fn superblock(plan: &Plan, shape: &Shape, used: u64, inodes: u64, journal: &[u8; 60]) -> Vec<u8> {
    let mut raw = vec![0; 1024];
    let blocks = shape.groups * GROUP;
    let time = plan.time as u32;
    for (offset, word) in [
        (0x00, (shape.groups * shape.inodes_per_group) as u32),
        (0x04, blocks as u32),
        (0x08, ((blocks - used) / 20) as u32),
        (0x0C, (blocks - used) as u32),
        (0x10, (shape.groups * shape.inodes_per_group - inodes) as u32),
        (0x18, 2),
        (0x1C, 2),
        (0x20, GROUP as u32),
        (0x24, GROUP as u32),
        (0x28, shape.inodes_per_group as u32),
        (0x30, time),
        (0x40, time),
        (0x4C, 1),
        (0x54, FIRST),
        (0x5C, HAS_JOURNAL | EXT_ATTR | SPARSE_SUPER2),
        (0x60, FILETYPE | HAS_EXTENTS | FLEX_BG),
        (0x64, LARGE_FILE | DIR_NLINK | EXTRA_ISIZE),
        (0xE0, JOURNAL),
        (0x100, 0xC),
        (0x108, time),
        (0x10C + 64, (JOURNAL_BLOCKS * BLOCK) as u32),
        (0x160, 1),
    ] {
        put32(&mut raw, offset, word);
    }
    for (offset, half) in
        [(0x36, 0xFFFF), (0x38, 0xEF53), (0x3A, 1), (0x3C, 1), (0x58, INODE as u16), (0x15C, EXTRA), (0x15E, EXTRA)]
    {
        put16(&mut raw, offset, half);
    }
    raw[0x68..0x78].copy_from_slice(&plan.uuid);
    let label = &plan.label[..plan.label.len().min(16)];
    raw[0x78..0x78 + label.len()].copy_from_slice(label);
    raw[0xEC..0xFC].copy_from_slice(&plan.uuid);
    raw[0xFC] = 1;
    raw[0xFD] = 1;
    raw[0x10C..0x10C + 60].copy_from_slice(journal);
    raw[0x174] = 4;
    raw
}

pub fn put16(raw: &mut [u8], offset: usize, value: u16) {
    raw[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
}

pub fn put32(raw: &mut [u8], offset: usize, value: u32) {
    raw[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}
