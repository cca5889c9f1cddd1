//! Writes the parts of an ext4 file system: folders, inodes with what leads to their blocks, the journal, bitmaps.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::xattr;
use super::{
    BLOCK, Content, EXTENTS, EXTRA, GROUP, INODE, Inode, JOURNAL, JOURNAL_BLOCKS, MOST_EXTENT, MOST_LINKS, Placed,
    ROOT_EXTENTS, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, Shape, Time, entry_length,
    put16, put32,
};
use crate::error::{Error, Kind, Result};

const LEAF_EXTENTS: usize = (BLOCK as usize - 12) / 12;

/// Writes into a sparse file whose bytes are zero.
pub struct Writer<'a> {
    pub file: &'a File,
    pub start: u64,
    pub shape: Shape,
    pub next: u64,
    pub placed: Vec<Placed>,
}

impl Writer<'_> {
    pub fn put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
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

    pub fn inode(
        &mut self,
        number: u32,
        at: Option<usize>,
        inode: &Inode,
        kinds: &dyn Fn(u32) -> u16,
    ) -> Result<[u8; 60]> {
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
        put16(
            &mut raw,
            0x1A,
            match inode.content {
                Content::Folder { .. } if inode.links > MOST_LINKS => 1,
                _ if inode.links > MOST_LINKS => {
                    return Err(Error::new(
                        Kind::Unsupported,
                        format!("a file has {} names, ext4 allows {MOST_LINKS}", inode.links),
                    ));
                }
                _ => inode.links as u16,
            },
        );
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

    pub fn journal(&mut self, uuid: &[u8; 16], time: i64) -> Result<[u8; 60]> {
        let first = self.take(JOURNAL_BLOCKS);
        let mut superblock = vec![0; 1024];
        let words: [(usize, u32); 7] = [
            (0, 0xC03B_3998),
            (4, 4),
            (0xC, BLOCK as u32),
            (0x10, JOURNAL_BLOCKS as u32),
            (0x14, 1),
            (0x18, 1),
            (0x40, 1),
        ];
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
    pub fn bitmap(&self, place: u64, group: u64, per_group: u64, used: u64) -> Result<()> {
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
