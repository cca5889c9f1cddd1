//! Copies of files: a folder of a snapshot, and the disk that is synthesised from it.

pub mod backup;
pub mod disk;
mod ext4;
pub mod python;
pub mod tree;
mod xattr;
