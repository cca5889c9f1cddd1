//! Extended attributes as ext4 keeps them: in the inode where they fit, else in one block.

use super::ext4::{BLOCK, put16, put32};
use crate::error::{Error, Kind, Result};

const MAGIC: u32 = 0xEA02_0000;
const HEADER: usize = 32;
const ENTRY: usize = 16;
const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const PREFIXES: [(&[u8], u8); 4] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6), (b"system.", 7)];
/// The tags of an ACL whose entries name somebody.
const NAMED: [u16; 2] = [2, 8];

/// Write the attributes into an inode's room for them; where that is too small, return the block to write instead.
pub fn lay_out(attributes: &[(Vec<u8>, Vec<u8>)], room: &mut [u8]) -> Result<Option<Vec<u8>>> {
    if attributes.is_empty() {
        return Ok(None);
    }
    let mut sorted = Vec::with_capacity(attributes.len());
    for (name, value) in attributes {
        let (index, rest) = split(name)?;
        let value = if index == 2 || index == 3 { acl(value)? } else { value.clone() };
        sorted.push((index, rest.len(), rest, value));
    }
    // The order in which the kernel looks for them.
    sorted.sort();
    if sorted.windows(2).any(|pair| pair[0].0 == pair[1].0 && pair[0].2 == pair[1].2) {
        return Err(Error::corrupt("a file has an extended attribute twice"));
    }
    let needed: usize =
        sorted.iter().map(|(_, length, _, value)| entry(*length) + padded(value.len())).sum::<usize>() + 4;
    if needed + 4 <= room.len() {
        put32(room, 0, MAGIC);
        fill(&mut room[4..], 0, 0, &sorted);
        return Ok(None);
    }
    let mut block = vec![0; BLOCK as usize];
    if needed + HEADER > block.len() {
        return Err(Error::new(
            Kind::Unsupported,
            format!("a file has {needed} bytes of extended attributes, ext4 holds 4000"),
        )
        .hint("copy the machine's disk block by block"));
    }
    put32(&mut block, 0, MAGIC);
    put32(&mut block, 4, 1);
    put32(&mut block, 8, 1);
    fill(&mut block, HEADER, 0, &sorted);
    Ok(Some(block))
}

fn fill(raw: &mut [u8], first: usize, base: usize, sorted: &[(u8, usize, &[u8], Vec<u8>)]) {
    let mut at = first;
    let mut end = raw.len() & !3;
    for (index, length, name, value) in sorted {
        end -= padded(value.len());
        raw[end..end + value.len()].copy_from_slice(value);
        raw[at] = *length as u8;
        raw[at + 1] = *index;
        put16(raw, at + 2, if value.is_empty() { 0 } else { (end - base) as u16 });
        put32(raw, at + 8, value.len() as u32);
        put32(raw, at + 12, hash(name, value));
        raw[at + ENTRY..at + ENTRY + name.len()].copy_from_slice(name);
        at += entry(*length);
    }
}

fn hash(name: &[u8], value: &[u8]) -> u32 {
    let named = name.iter().fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    value.chunks(4).fold(named, |hash, part| {
        let mut word = [0; 4];
        word[..part.len()].copy_from_slice(part);
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}

fn entry(name: usize) -> usize {
    ENTRY + padded(name)
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The number that stands for an attribute's prefix, and the rest of its name.
fn split(name: &[u8]) -> Result<(u8, &[u8])> {
    let found = match name {
        ACCESS => Some((2, &b""[..])),
        DEFAULT => Some((3, &b""[..])),
        _ => PREFIXES.iter().find_map(|(prefix, index)| name.strip_prefix(*prefix).map(|rest| (*index, rest))),
    };
    match found {
        Some((index, rest))
            if rest.len() < 256 && !rest.contains(&0) && (!rest.is_empty() || index == 2 || index == 3) =>
        {
            Ok((index, rest))
        }
        _ => Err(Error::new(
            Kind::Unsupported,
            format!("ext4 has no extended attribute {:?}", String::from_utf8_lossy(name)),
        )),
    }
}

/// An ACL as the kernel hands it out, made shorter as ext4 keeps it.
fn acl(value: &[u8]) -> Result<Vec<u8>> {
    if value.len() < 4 || value[..4] != 2_u32.to_le_bytes() || !(value.len() - 4).is_multiple_of(8) {
        return Err(Error::corrupt("a file has an ACL that cannot be read"));
    }
    let mut short = 1_u32.to_le_bytes().to_vec();
    for part in value[4..].chunks(8) {
        let named = NAMED.contains(&u16::from_le_bytes([part[0], part[1]]));
        short.extend(&part[..if named { 8 } else { 4 }]);
    }
    Ok(short)
}
