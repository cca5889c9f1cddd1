//! The repository's encryption: AES-256-CTR with Poly1305-AES, a random nonce in front, the MAC behind.

use aes256ctr_poly1305aes::aead::AeadInPlace;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Nonce, Tag};
use bytes::Bytes;
use rand::Rng;
use rustic_core::Id;
use rustic_core::repofile::MasterKey;
use sha2::{Digest, Sha256};

const NONCE: usize = 16;
const TAG: usize = 16;
/// Bytes that encryption adds.
pub const OVERHEAD: usize = NONCE + TAG;

/// The repository's master key.
pub struct Key(aes256ctr_poly1305aes::Key);

impl Key {
    pub fn new(master: &MasterKey) -> Self {
        let mut key = aes256ctr_poly1305aes::Key::default();
        key[..32].copy_from_slice(&master.encrypt);
        key[32..48].copy_from_slice(&master.mac.k);
        key[48..].copy_from_slice(&master.mac.r);
        Self(key)
    }

    pub fn seal(&self, plain: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(plain.len() + OVERHEAD);
        let mut nonce = Nonce::default();
        rand::rng().fill_bytes(&mut nonce);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let tag = Aes256CtrPoly1305Aes::new(&self.0)
            .encrypt_in_place_detached(&nonce, &[], &mut sealed[NONCE..])
            .expect("the cipher takes any length that fits in memory");
        sealed.extend_from_slice(&tag);
        sealed
    }

    /// The plain text (in the same memory), or nothing when the MAC does not fit.
    pub fn open(&self, mut sealed: Vec<u8>) -> Option<Bytes> {
        let end = sealed.len().checked_sub(TAG).filter(|end| *end >= NONCE)?;
        let (front, tag) = sealed.split_at_mut(end);
        let (nonce, text) = front.split_at_mut(NONCE);
        Aes256CtrPoly1305Aes::new(&self.0)
            .decrypt_in_place_detached(Nonce::from_slice(nonce), &[], text, Tag::from_slice(tag))
            .ok()?;
        Some(Bytes::from(sealed).slice(NONCE..end))
    }
}

/// SHA-256: what names every file and every chunk of a repository.
pub fn hash(data: &[u8]) -> Id {
    Id::new(Sha256::digest(data).into())
}

/// SHA-256 of parts that are one file.
pub fn hash_parts(parts: &[Bytes]) -> Id {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    Id::new(hasher.finalize().into())
}

/// The 32 bytes of an id, which its type keeps to itself.
pub fn id_bytes(id: &Id) -> [u8; 32] {
    let mut bytes = [0; 32];
    hex::decode_to_slice(&*id.to_hex(), &mut bytes).expect("an id is 64 hex digits");
    bytes
}
