//! Disk images as copies in a repository of restic's format, version 2.
//!
//! `rustic_core` gives keys, snapshots, trees and `check`; packs and indexes are written and read here, so that any
//! error ends a backup, and every chunk is checked against its id.

mod backup;
mod copy;
mod crypto;
mod disk;
mod error;
mod files;
mod index;
mod input;
mod journal;
mod notes;
mod packer;
mod parts;
mod plan;
mod python;
mod repository;
mod retention;
mod store;
mod workers;

pub use python::register;
