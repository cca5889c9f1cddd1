//! Where the files of a repository are: the trait `Store`, with a module for each kind of place.

mod http;
mod local;
mod s3;

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};

use crate::crypto::hash;
use crate::error::{Error, Kind, Result};

/// What opens a place, by name, such as `AWS_ACCESS_KEY_ID`: never part of its URI.
pub type Secrets = HashMap<String, String>;

/// The files of one repository, in restic's layout. A file has its name only when it is whole.
pub trait Store: Debug + Send + Sync {
    /// The folder or URI.
    fn place(&self) -> &str;

    /// What messages call a file.
    fn locate(&self, kind: FileType, id: &Id) -> String {
        format!("{}/{}", self.place(), file_name(kind, id))
    }

    /// Whether there is nothing at all, so that a new repository may be made.
    fn is_empty(&self) -> Result<bool>;

    /// Prepare for a new repository.
    fn create(&self) -> Result<()>;

    /// The files of a kind, with their sizes. Names that are no id are not ours and are passed over.
    fn files(&self, kind: FileType) -> Result<Vec<(Id, u32)>>;

    /// Whether a file is there.
    fn has(&self, kind: FileType, id: &Id) -> Result<bool>;

    /// A whole file, as it is.
    fn get(&self, kind: FileType, id: &Id) -> Result<Vec<u8>>;

    /// Exactly this range of a file. One that is missing or shorter while the repository is there is `Corrupt`.
    fn read_at(&self, kind: FileType, id: &Id, offset: u32, length: u32) -> Result<Vec<u8>>;

    /// Write a file whole and durably, or not at all.
    fn write(&self, kind: FileType, id: &Id, parts: &[Bytes]) -> Result<()>;

    fn remove(&self, kind: FileType, id: &Id) -> Result<()>;

    /// Remove what killed writers left behind.
    fn remove_stale(&self) -> Result<()>;
}

impl dyn Store {
    /// A whole file. Its content is checked against its name, except packs (checked blob by blob) and `config`.
    pub fn read(&self, kind: FileType, id: &Id) -> Result<Vec<u8>> {
        let data = self.get(kind, id)?;
        if !matches!(kind, FileType::Config | FileType::Pack) && hash(&data) != *id {
            return Err(Error::corrupt(format!(
                "the {} file {} is damaged: its content does not fit its name",
                kind_name(kind),
                self.locate(kind, id)
            ))
            .hint("`restic check` lists what is damaged"));
        }
        Ok(data)
    }
}

/// The store that a path or a URI names.
pub fn open(place: &Path, secrets: &Secrets) -> Result<Arc<dyn Store>> {
    let text = place.to_string_lossy();
    if let Some(rest) = text.strip_prefix("restic+s3://") {
        return Ok(Arc::new(s3::S3::new(&text, rest, secrets)?));
    }
    if text.contains("://") {
        return Err(Error::new(Kind::Unsupported, format!("there is no kind of repository for {text}"))
            .hint("a folder, or restic+s3://HOST[:PORT]/BUCKET[/PREFIX]"));
    }
    Ok(Arc::new(local::Local::new(place)))
}

/// The name of a file below its repository.
fn file_name(kind: FileType, id: &Id) -> String {
    let name = id.to_hex();
    match kind {
        FileType::Config => "config".to_owned(),
        FileType::Pack => format!("data/{}/{}", &name[..2], &*name),
        _ => format!("{}/{}", kind.dirname(), &*name),
    }
}

/// The id that the last part of a file's name is.
fn parse_name(name: &str) -> Option<Id> {
    Some(name).filter(|name| name.len() == 64).and_then(|name| name.parse().ok())
}

/// Sizes are 32 bits in the format; a larger file is damage that the check of its size finds.
fn file_size(size: u64) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// The error for a file that is not there while the repository is: damage, not an outage.
fn missing(file: &str) -> Error {
    Error::corrupt(format!("{file} is missing from the repository")).hint("`restic check` lists what is damaged")
}

/// The error for a file that ends before a range does.
fn cut_short(kind: FileType, file: &str, offset: u32, length: u32) -> Error {
    Error::corrupt(format!("the {} file {file} is cut short: no {length} bytes at {offset}", kind_name(kind)))
        .hint("`restic check` lists what is damaged")
}

/// What messages call a kind of file.
pub fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Config => "config",
        FileType::Index => "index",
        FileType::Key => "key",
        FileType::Snapshot => "snapshot",
        FileType::Pack => "pack",
    }
}

/// A store as `rustic_core` sees it.
#[derive(Debug)]
pub struct Backend(pub Arc<dyn Store>);

fn foreign(error: Error) -> Box<RusticError> {
    RusticError::with_source(ErrorKind::Backend, error.message.clone(), error)
}

impl ReadBackend for Backend {
    fn location(&self) -> String {
        self.0.place().to_owned()
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        self.0.files(kind).map_err(foreign)
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        self.0.read(kind, id).map(Into::into).map_err(foreign)
    }

    fn read_partial(&self, kind: FileType, id: &Id, _cacheable: bool, offset: u32, length: u32) -> RusticResult<Bytes> {
        self.0.read_at(kind, id, offset, length).map(Into::into).map_err(foreign)
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        self.0.locate(kind, id)
    }
}

impl WriteBackend for Backend {
    fn create(&self) -> RusticResult<()> {
        self.0.create().map_err(foreign)
    }

    fn write_bytes(&self, kind: FileType, id: &Id, _cacheable: bool, content: BytesList) -> RusticResult<()> {
        self.0.write(kind, id, content.slice()).map_err(foreign)
    }

    fn remove(&self, kind: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        self.0.remove(kind, id).map_err(foreign)
    }
}
