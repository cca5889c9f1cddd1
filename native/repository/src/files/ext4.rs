//! Lays out an ext4 file system: all of its metadata is written, of the files' data only the places are told.
//!
//! Equal input gives equal bytes, on every machine: recall stores are shared by them. What follows is the on-disk
//! format as Linux' Documentation/filesystems/ext4 describes it, with 4 KiB blocks, flexible block groups (all
//! bitmaps and inode tables lie at the front), no checksums, no backup superblocks and a journal that is empty.

use std::fs::File;
use std::os::unix::fs::FileExt;

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
const ROOT_EXTENTS: usize = 4;
const LEAF_EXTENTS: usize = (BLOCK as usize - 12) / 12;
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
    Folder { parent: u32, entries: Vec<(Vec<u8>, u32)> },
    /// A file whose data lies in the given ranges of its blocks; the data itself is not written.
    Away { size: u64, blocks: Vec<(u64, u64)> },
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
        let tree = if extents as usize > ROOT_EXTENTS { extents / 300 + 8 } else { 0 };
        needed += data + tree + 1;
        if needed > MOST_BLOCKS {
            return Err(Error::new(Kind::Unsupported, "the files need more than 16 TiB: ext4 as it is made here ends there"));
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

/// Writes into a sparse file whose bytes are zero.
struct Writer<'a> {
    file: &'a File,
    start: u64,
    shape: Shape,
    next: u64,
    placed: Vec<Placed>,
}

impl Writer<'_> {
    fn put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, self.start + offset)
            .map_err(|error| Error::io("cannot write the metadata of a synthesised disk", &error))
    }

    fn take(&mut self, blocks: u64) -> u64 {
        let first = self.next;
        self.next += blocks;
        first
    }

    /// Write bytes into new blocks, and return the first one.
    fn bytes(&mut self, bytes: &[u8]) -> Result<u64> {
        let first = self.take((bytes.len() as u64).div_ceil(BLOCK));
        self.put(first * BLOCK, bytes)?;
        Ok(first)
    }

    /// The 60 bytes of an inode that lead to its extents, and the blocks that were needed for them.
    fn extents(&mut self, extents: &[(u64, u64, u64)]) -> Result<([u8; 60], u64)> {
        let mut cut = Vec::with_capacity(extents.len());
        for (logical, physical, length) in extents {
            for at in (0..*length).step_by(MOST_EXTENT as usize) {
                let mut entry = [0; 12];
                put32(&mut entry, 0, (logical + at) as u32);
                put16(&mut entry, 4, MOST_EXTENT.min(length - at) as u16);
                put32(&mut entry, 8, (physical + at) as u32);
                cut.push((logical + at, entry));
            }
        }
        let mut depth = 0;
        let mut blocks = 0;
        while cut.len() > ROOT_EXTENTS {
            let mut above = Vec::with_capacity(cut.len() / LEAF_EXTENTS + 1);
            for part in cut.chunks(LEAF_EXTENTS) {
                let mut block = vec![0; BLOCK as usize];
                extent_header(&mut block, part.len(), LEAF_EXTENTS, depth);
                for (number, (_, entry)) in part.iter().enumerate() {
                    block[12 + number * 12..][..12].copy_from_slice(entry);
                }
                let place = self.bytes(&block)?;
                blocks += 1;
                let mut entry = [0; 12];
                put32(&mut entry, 0, part[0].0 as u32);
                put32(&mut entry, 4, place as u32);
                above.push((part[0].0, entry));
            }
            cut = above;
            depth += 1;
        }
        let mut root = [0; 60];
        extent_header(&mut root, cut.len(), ROOT_EXTENTS, depth);
        for (number, (_, entry)) in cut.iter().enumerate() {
            root[12 + number * 12..][..12].copy_from_slice(entry);
        }
        Ok((root, blocks))
    }

    /// A folder's blocks. `kinds` gives an inode's mode.
    fn folder(&self, own: u32, parent: u32, entries: &[(Vec<u8>, u32)], kinds: &dyn Fn(u32) -> u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut block: Vec<u8> = Vec::with_capacity(BLOCK as usize);
        let mut last = 0;
        let own_entries = [(&b"."[..], own), (&b".."[..], parent)];
        let all = own_entries.into_iter().chain(entries.iter().map(|(name, inode)| (&**name, *inode)));
        for (name, inode) in all {
            let length = entry_length(name) as usize;
            if block.len() + length > BLOCK as usize {
                close_block(&mut block, last);
                bytes.append(&mut block);
            }
            last = block.len();
            block.extend(inode.to_le_bytes());
            block.extend((length as u16).to_le_bytes());
            block.push(name.len() as u8);
            block.push(match kinds(inode) & S_IFMT {
                S_IFREG => 1,
                S_IFDIR => 2,
                S_IFCHR => 3,
                S_IFBLK => 4,
                S_IFIFO => 5,
                S_IFSOCK => 6,
                _ => 7,
            });
            block.extend(name);
            block.resize(last + length, 0);
        }
        close_block(&mut block, last);
        bytes.append(&mut block);
        bytes
    }

    fn inode(&mut self, number: u32, at: Option<usize>, inode: &Inode, kinds: &dyn Fn(u32) -> u16) -> Result<[u8; 60]> {
        let mut raw = vec![0; INODE as usize];
        let mut flags = 0;
        let mut blocks = 0;
        let mut size = 0;
        let mut root = [0; 60];
        match &inode.content {
            Content::Folder { parent, entries } => {
                let bytes = self.folder(number, *parent, entries, kinds);
                (root, blocks, size) = self.whole(&bytes)?;
                flags = EXTENTS;
            }
            Content::Bytes(bytes) if inode.mode & S_IFMT == S_IFLNK && bytes.len() < 60 => {
                root[..bytes.len()].copy_from_slice(bytes);
                size = bytes.len() as u64;
            }
            Content::Bytes(bytes) => {
                (root, blocks, size) = self.whole(bytes)?;
                flags = EXTENTS;
            }
            Content::Away { size: length, blocks: wanted } => {
                let mut extents = Vec::with_capacity(wanted.len());
                for (logical, length) in wanted {
                    let physical = self.take(*length);
                    extents.push((*logical, physical, *length));
                    if let Some(inode) = at {
                        self.placed.push(Placed { inode, logical: *logical, physical, length: *length });
                    }
                    blocks += length;
                }
                let (found, more) = self.extents(&extents)?;
                root = found;
                blocks += more;
                size = *length;
                flags = EXTENTS;
            }
            Content::Device(major, minor) if *major < 256 && *minor < 256 => put32(&mut root, 0, major << 8 | minor),
            Content::Device(major, minor) => {
                put32(&mut root, 4, (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12));
            }
            Content::Nothing => {}
        }
        if let Some(block) = xattr::lay_out(&inode.attributes, &mut raw[128 + EXTRA as usize..])? {
            let place = self.bytes(&block)?;
            put32(&mut raw, 0x68, place as u32);
            blocks += 1;
        }
        put16(&mut raw, 0, inode.mode);
        put16(&mut raw, 2, inode.uid as u16);
        put32(&mut raw, 4, size as u32);
        put16(&mut raw, 0x18, inode.gid as u16);
        put16(&mut raw, 0x1A, match inode.content {
            Content::Folder { .. } if inode.links > MOST_LINKS => 1,
            _ if inode.links > MOST_LINKS => {
                return Err(Error::new(Kind::Unsupported, format!("a file has {} names, ext4 allows {MOST_LINKS}", inode.links)));
            }
            _ => inode.links as u16,
        });
        let sectors = blocks * (BLOCK / 512);
        put32(&mut raw, 0x1C, sectors as u32);
        put32(&mut raw, 0x20, flags);
        raw[0x28..0x64].copy_from_slice(&root);
        put32(&mut raw, 0x6C, (size >> 32) as u32);
        put16(&mut raw, 0x74, (sectors >> 32) as u16);
        put16(&mut raw, 0x78, (inode.uid >> 16) as u16);
        put16(&mut raw, 0x7A, (inode.gid >> 16) as u16);
        put16(&mut raw, 0x80, EXTRA);
        for (place, extra, time) in
            [(8, 0x8C, inode.atime), (0xC, 0x84, inode.ctime), (0x10, 0x88, inode.mtime), (0x90, 0x94, inode.ctime)]
        {
            let (seconds, nanoseconds) = clamp(time);
            put32(&mut raw, place, seconds as u32);
            let epoch = ((seconds - i64::from(seconds as i32)) >> 32) as u32 & 3;
            put32(&mut raw, extra, epoch | nanoseconds << 2);
        }
        let index = u64::from(number - 1);
        let group = index / self.shape.inodes_per_group;
        let table = self.shape.tables + group * self.shape.table_blocks;
        self.put(table * BLOCK + index % self.shape.inodes_per_group * INODE, &raw)?;
        Ok(root)
    }

    /// Bytes in blocks of their own: what leads to them, how many blocks, their length.
    fn whole(&mut self, bytes: &[u8]) -> Result<([u8; 60], u64, u64)> {
        let count = (bytes.len() as u64).div_ceil(BLOCK);
        let extents = if count == 0 { vec![] } else { vec![(0, self.bytes(bytes)?, count)] };
        let (root, more) = self.extents(&extents)?;
        Ok((root, count + more, bytes.len() as u64))
    }

    fn journal(&mut self, uuid: &[u8; 16], time: i64) -> Result<[u8; 60]> {
        let first = self.take(JOURNAL_BLOCKS);
        let mut superblock = vec![0; 1024];
        let words: [(usize, u32); 7] =
            [(0, 0xC03B_3998), (4, 4), (0xC, BLOCK as u32), (0x10, JOURNAL_BLOCKS as u32), (0x14, 1), (0x18, 1), (0x40, 1)];
        for (offset, word) in words {
            superblock[offset..offset + 4].copy_from_slice(&word.to_be_bytes());
        }
        superblock[0x30..0x40].copy_from_slice(uuid);
        self.put(first * BLOCK, &superblock)?;
        let (root, _) = self.extents(&[(0, first, JOURNAL_BLOCKS)])?;
        let mut raw = vec![0; INODE as usize];
        put16(&mut raw, 0, S_IFREG | 0o600);
        put32(&mut raw, 4, (JOURNAL_BLOCKS * BLOCK) as u32);
        for offset in [8, 0xC, 0x10] {
            put32(&mut raw, offset, time as u32);
        }
        put16(&mut raw, 0x1A, 1);
        put32(&mut raw, 0x1C, (JOURNAL_BLOCKS * BLOCK / 512) as u32);
        put32(&mut raw, 0x20, EXTENTS);
        raw[0x28..0x64].copy_from_slice(&root);
        put16(&mut raw, 0x80, EXTRA);
        self.put(self.shape.tables * BLOCK + u64::from(JOURNAL - 1) * INODE, &raw)?;
        Ok(root)
    }

    /// The bits of one group, of what is in use below a number.
    fn bitmap(&self, place: u64, group: u64, per_group: u64, used: u64) -> Result<()> {
        let here = used.saturating_sub(group * per_group).min(per_group);
        if here == 0 && per_group == GROUP {
            return Ok(());
        }
        let mut bits = vec![0_u8; BLOCK as usize];
        for bit in (0..here).chain(per_group..GROUP) {
            bits[(bit / 8) as usize] |= 1 << (bit % 8);
        }
        self.put(place * BLOCK, &bits)
    }
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

/// Times that ext4 can hold: 1901 to 2446.
fn clamp((seconds, nanoseconds): Time) -> Time {
    (seconds.clamp(i64::from(i32::MIN), i64::from(i32::MAX) + (3 << 32)), nanoseconds.min(999_999_999))
}

fn close_block(block: &mut Vec<u8>, last: usize) {
    put16(block, last + 4, (BLOCK as usize - last) as u16);
    block.resize(BLOCK as usize, 0);
}

fn extent_header(raw: &mut [u8], entries: usize, most: usize, depth: u16) {
    put16(raw, 0, 0xF30A);
    put16(raw, 2, entries as u16);
    put16(raw, 4, most as u16);
    put16(raw, 6, depth);
}

pub fn put16(raw: &mut [u8], offset: usize, value: u16) {
    raw[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
}

pub fn put32(raw: &mut [u8], offset: usize, value: u32) {
    raw[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}
