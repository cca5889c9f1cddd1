//! Where the files of a repository are: the trait `Store`, with a module for each kind of place.

mod azure;
mod http;
mod local;
mod rest;
mod s3;
mod sftp;

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};

use crate::crypto::hash;
use crate::error::{Error, Kind, Result};

/// What opens a place, by name, such as `AWS_ACCESS_KEY_ID`: never part of its URI.
pub type Secrets = HashMap<String, String>;

/// What files there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    Config,
    Index,
    Key,
    Pack,
    Snapshot,
    /// Small files of ours, named by what is in them, as all others are: pins and locks. restic passes them over.
    Note,
}

impl Area {
    /// The folder's name.
    fn folder(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Index => "index",
            Self::Key => "keys",
            Self::Pack => "data",
            Self::Snapshot => "snapshots",
            Self::Note => "livemount/locks",
        }
    }

    /// What messages call a file.
    fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Index => "index",
            Self::Key => "key",
            Self::Pack => "pack",
            Self::Snapshot => "snapshot",
            Self::Note => "note",
        }
    }
}

impl fmt::Display for Area {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl From<FileType> for Area {
    fn from(kind: FileType) -> Self {
        match kind {
            FileType::Config => Self::Config,
            FileType::Index => Self::Index,
            FileType::Key => Self::Key,
            FileType::Pack => Self::Pack,
            FileType::Snapshot => Self::Snapshot,
        }
    }
}

/// The files of one repository, in restic's layout. A file has its name only when it is whole.
pub trait Store: Debug + Send + Sync {
    /// The folder or URI.
    fn place(&self) -> &str;

    /// What messages call a file.
    fn locate(&self, kind: Area, id: &Id) -> String {
        format!("{}/{}", self.place(), file_name(kind, id))
    }

    /// Whether there is nothing at all, so that a new repository may be made.
    fn is_empty(&self) -> Result<bool>;

    /// Prepare for a new repository.
    fn create(&self) -> Result<()>;

    /// The files of a kind, with their sizes. Names that are no id are not ours and are passed over.
    fn files(&self, kind: Area) -> Result<Vec<(Id, u32)>>;

    /// Whether a file is there.
    fn has(&self, kind: Area, id: &Id) -> Result<bool>;

    /// A whole file, as it is.
    fn get(&self, kind: Area, id: &Id) -> Result<Vec<u8>>;

    /// Exactly this range of a file. One that is missing or shorter while the repository is there is `Corrupt`.
    fn read_at(&self, kind: Area, id: &Id, offset: u32, length: u32) -> Result<Vec<u8>>;

    /// Write a file whole and durably, or not at all.
    fn write(&self, kind: Area, id: &Id, parts: &[Bytes]) -> Result<()>;

    fn remove(&self, kind: Area, id: &Id) -> Result<()>;

    /// Remove what killed writers left behind.
    fn remove_stale(&self) -> Result<()>;
}

impl dyn Store {
    /// A whole file. Its content is checked against its name, except packs (checked blob by blob) and `config`.
    pub fn read(&self, kind: Area, id: &Id) -> Result<Vec<u8>> {
        let data = self.get(kind, id)?;
        if !matches!(kind, Area::Config | Area::Pack) && hash(&data) != *id {
            return Err(Error::corrupt(format!(
                "the {kind} file {} is damaged: its content does not fit its name",
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
    let Some((scheme, _)) = text.split_once("://") else {
        return Ok(Arc::new(local::Local::new(place)));
    };
    let known = ["restic+s3", "restic+azure", "restic+rest", "restic+sftp"];
    if !known.contains(&scheme) {
        return Err(Error::new(Kind::Unsupported, format!("there is no kind of repository for {text}"))
            .hint(format!("a folder, or {}", known.map(|scheme| format!("{scheme}://HOST/PATH")).join(", "))));
    }
    let place = Place::parse(&text, secrets)?;
    Ok(match scheme {
        "restic+s3" => Arc::new(s3::S3::new(place)?),
        "restic+azure" => Arc::new(azure::Azure::new(place)?),
        "restic+rest" => Arc::new(rest::Rest::new(&place)?),
        _ => Arc::new(sftp::Sftp::new(&place)?),
    })
}

/// `SCHEME://HOST[:PORT]/PART/PART...`, and what opens it.
struct Place<'a> {
    text: String,
    authority: String,
    parts: Vec<String>,
    secrets: &'a Secrets,
}

impl<'a> Place<'a> {
    fn parse(text: &str, secrets: &'a Secrets) -> Result<Self> {
        let text = text.trim_end_matches('/');
        let (_, rest) = text.split_once("://").unwrap_or_default();
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let place = Self {
            text: text.to_owned(),
            authority: authority.to_owned(),
            parts: path.split('/').filter(|_| !path.is_empty()).map(str::to_owned).collect(),
            secrets,
        };
        let named = authority.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[')
            && authority.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:[]".contains(&byte));
        if !named {
            return Err(place
                .malformed("only HOST or HOST:PORT comes before the path")
                .hint("secrets and names of users go by the password file"));
        }
        let plain = |part: &String| {
            !matches!(part.as_str(), "" | "." | "..")
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~+".contains(&byte))
        };
        if !place.parts.iter().all(plain) {
            return Err(place.malformed("a part of its path is not of letters, digits, `-`, `_`, `.`, `~`, `+`"));
        }
        Ok(place)
    }

    fn malformed(&self, reason: &str) -> Error {
        Error::new(Kind::Usage, format!("{} names no repository: {reason}", self.text))
    }

    /// What the password file says, else the environment.
    fn given(&self, name: &str) -> Option<String> {
        self.secrets.get(name).cloned().or_else(|| std::env::var(name).ok()).filter(|value| !value.is_empty())
    }
}

/// The name of a file below its repository.
fn file_name(kind: Area, id: &Id) -> String {
    let name = id.to_hex();
    match kind {
        Area::Config => "config".to_owned(),
        Area::Pack => format!("data/{}/{}", &name[..2], &*name),
        _ => format!("{}/{}", kind.folder(), &*name),
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

/// The error for a file that is not there: while the repository is there that is damage, else an outage.
fn absent(store: &dyn Store, file: &str) -> Error {
    match store.has(Area::Config, &Id::default()) {
        Ok(true) => missing(file),
        Ok(false) => Error::new(Kind::Unavailable, format!("the repository {} is not there", store.place())),
        Err(error) => error,
    }
}

/// The error for a file that is not there while the repository is: damage, not an outage.
fn missing(file: &str) -> Error {
    Error::corrupt(format!("{file} is missing from the repository")).hint("`restic check` lists what is damaged")
}

/// The error for a file that ends before a range does.
fn cut_short(kind: Area, file: &str, offset: u32, length: u32) -> Error {
    Error::corrupt(format!("the {kind} file {file} is cut short: no {length} bytes at {offset}"))
        .hint("`restic check` lists what is damaged")
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
        self.0.files(kind.into()).map_err(foreign)
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        self.0.read(kind.into(), id).map(Into::into).map_err(foreign)
    }

    fn read_partial(&self, kind: FileType, id: &Id, _cacheable: bool, offset: u32, length: u32) -> RusticResult<Bytes> {
        self.0.read_at(kind.into(), id, offset, length).map(Into::into).map_err(foreign)
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        self.0.locate(kind.into(), id)
    }
}

impl WriteBackend for Backend {
    fn create(&self) -> RusticResult<()> {
        self.0.create().map_err(foreign)
    }

    fn write_bytes(&self, kind: FileType, id: &Id, _cacheable: bool, content: BytesList) -> RusticResult<()> {
        self.0.write(kind.into(), id, content.slice()).map_err(foreign)
    }

    fn remove(&self, kind: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        self.0.remove(kind.into(), id).map_err(foreign)
    }
}
