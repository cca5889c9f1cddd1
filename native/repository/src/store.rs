//! A repository's files in a local folder, in restic's layout.
//!
//! Crash contract: a file has its final name only when it is whole and on the disk. It is written below `tmp/`,
//! flushed, renamed, and its folder flushed; what a killed process leaves in `tmp/` is removed a day later.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};

use crate::crypto::hash;
use crate::error::{Error, Kind, Result};

const STALE: Duration = Duration::from_secs(24 * 3600);

/// The folder of a repository.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    fn directory(&self, kind: FileType) -> PathBuf {
        self.root.join(kind.dirname())
    }

    fn path(&self, kind: FileType, id: &Id) -> PathBuf {
        let name = id.to_hex();
        match kind {
            FileType::Config => self.root.join("config"),
            FileType::Pack => self.directory(kind).join(&name[..2]).join(&*name),
            _ => self.directory(kind).join(&*name),
        }
    }

    /// A failure to read `path`: a file that is gone while the repository is there is damage, not an outage.
    fn read_error(&self, path: &Path, error: &io::Error) -> Error {
        let mapped = Error::io(&format!("cannot read {}", path.display()), error);
        if mapped.kind != Kind::NotFound {
            mapped
        } else if self.root.join("config").exists() {
            Error::corrupt(format!("{} is missing from the repository", path.display()))
                .hint("`restic check` lists what is damaged")
        } else {
            Error::new(Kind::Unavailable, format!("the repository {} is not there", self.root.display()))
        }
    }

    /// The files of a kind, with their sizes. Names that are no id are not ours and are passed over.
    pub fn files(&self, kind: FileType) -> Result<Vec<(Id, u32)>> {
        let mut found = Vec::new();
        if kind == FileType::Config {
            match fs::metadata(self.root.join("config")) {
                Ok(metadata) => found.push((Id::default(), file_size(&metadata))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.read_error(&self.root.join("config"), &error)),
            }
            return Ok(found);
        }
        let top = self.directory(kind);
        let directories = if kind == FileType::Pack {
            (0..=255_u8).map(|n| top.join(format!("{n:02x}"))).collect()
        } else {
            vec![top]
        };
        for directory in directories {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                // Packs: restic makes the sub-folders as they are needed.
                Err(error) if kind == FileType::Pack && error.kind() == io::ErrorKind::NotFound => {
                    continue;
                }
                Err(error) => return Err(self.read_error(&directory, &error)),
            };
            for entry in entries {
                let entry = entry.map_err(|error| self.read_error(&directory, &error))?;
                let name = entry.file_name();
                let Some(id) = name.to_str().filter(|name| name.len() == 64) else {
                    continue;
                };
                if let Ok(id) = id.parse::<Id>() {
                    let metadata = entry.metadata().map_err(|error| self.read_error(&entry.path(), &error))?;
                    found.push((id, file_size(&metadata)));
                }
            }
        }
        Ok(found)
    }

    /// Whether a file is there.
    pub fn has(&self, kind: FileType, id: &Id) -> bool {
        self.path(kind, id).exists()
    }

    /// A whole file. Its content is checked against its name, except packs (checked blob by blob) and `config`.
    pub fn read(&self, kind: FileType, id: &Id) -> Result<Vec<u8>> {
        let path = self.path(kind, id);
        let data = fs::read(&path).map_err(|error| self.read_error(&path, &error))?;
        if !matches!(kind, FileType::Config | FileType::Pack) && hash(&data) != *id {
            return Err(Error::corrupt(format!(
                "the {} file {} is damaged: its content does not fit its name",
                kind_name(kind),
                path.display()
            ))
            .hint("`restic check` lists what is damaged"));
        }
        Ok(data)
    }

    /// A range of a file.
    pub fn read_at(&self, kind: FileType, id: &Id, offset: u32, length: u32) -> Result<Vec<u8>> {
        let path = self.path(kind, id);
        let file = File::open(&path).map_err(|error| self.read_error(&path, &error))?;
        let mut data = vec![0; length as usize];
        file.read_exact_at(&mut data, offset.into()).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                Error::corrupt(format!(
                    "the {} file {} is cut short: no {length} bytes at {offset}",
                    kind_name(kind),
                    path.display()
                ))
                .hint("`restic check` lists what is damaged")
            } else {
                self.read_error(&path, &error)
            }
        })?;
        Ok(data)
    }

    /// Write a file whole and durably, or not at all.
    pub fn write(&self, kind: FileType, id: &Id, parts: &[Bytes]) -> Result<()> {
        let path = self.path(kind, id);
        let fail = |error: io::Error| Error::io(&format!("cannot write {}", path.display()), &error);
        let temporary = self.temporary();
        fs::create_dir_all(&temporary).map_err(fail)?;
        // The process id keeps two writers of equal content apart.
        let unfinished = temporary.join(format!("{}-{}", &*id.to_hex(), std::process::id()));
        let written = File::create(&unfinished)
            .and_then(|mut file| {
                for part in parts {
                    file.write_all(part)?;
                }
                file.sync_all()
            })
            .and_then(|()| {
                let parent = path.parent().unwrap_or(&self.root);
                fs::create_dir_all(parent)?;
                fs::rename(&unfinished, &path)?;
                File::open(parent)?.sync_all()
            });
        written.map_err(|error| {
            // The reason why the write failed is the one to tell.
            let _ = fs::remove_file(&unfinished);
            fail(error)
        })
    }

    /// Remove what killed writers left behind.
    pub fn remove_stale(&self) -> Result<()> {
        let temporary = self.temporary();
        let fail = |error: io::Error| Error::io(&format!("cannot clean {}", temporary.display()), &error);
        let entries = match fs::read_dir(&temporary) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(fail(error)),
        };
        let now = SystemTime::now();
        for entry in entries {
            let path = entry.map_err(fail)?.path();
            // Writers at the same time rename theirs, and clean up as well.
            let gone = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(fail(error)) };
            match fs::metadata(&path).and_then(|metadata| metadata.modified()) {
                Ok(time) if now.duration_since(time).unwrap_or_default() > STALE => {
                    fs::remove_file(&path).or_else(gone)?;
                }
                Ok(_) => {}
                Err(error) => gone(error)?,
            }
        }
        Ok(())
    }

    fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }
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

/// Sizes are 32 bits in the format; a larger file is damage that the check of its size finds.
fn file_size(metadata: &fs::Metadata) -> u32 {
    u32::try_from(metadata.len()).unwrap_or(u32::MAX)
}

fn foreign(error: Error) -> Box<RusticError> {
    RusticError::with_source(ErrorKind::Backend, error.message.clone(), error)
}

impl ReadBackend for Store {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        self.files(kind).map_err(foreign)
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        self.read(kind, id).map(Into::into).map_err(foreign)
    }

    fn read_partial(&self, kind: FileType, id: &Id, _cacheable: bool, offset: u32, length: u32) -> RusticResult<Bytes> {
        self.read_at(kind, id, offset, length).map(Into::into).map_err(foreign)
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        self.path(kind, id).display().to_string()
    }
}

impl WriteBackend for Store {
    fn create(&self) -> RusticResult<()> {
        // restic wants its folders to be there, `locks` among them. Those of the packs are made at once, so that
        // writing a pack never makes one and need not flush the folder above.
        let names = ["index", "keys", "locks", "snapshots"].map(str::to_owned);
        let packs = (0..=255_u8).map(|number| format!("data/{number:02x}"));
        names
            .into_iter()
            .chain(packs)
            .try_for_each(|name| fs::create_dir_all(self.root.join(name)))
            .and_then(|()| File::open(self.directory(FileType::Pack))?.sync_all())
            .and_then(|()| File::open(&self.root)?.sync_all())
            .map_err(|error| Error::io(&format!("cannot make {}", self.root.display()), &error))
            .map_err(foreign)
    }

    fn write_bytes(&self, kind: FileType, id: &Id, _cacheable: bool, content: BytesList) -> RusticResult<()> {
        self.write(kind, id, content.slice()).map_err(foreign)
    }

    fn remove(&self, kind: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        let path = self.path(kind, id);
        fs::remove_file(&path)
            .map_err(|error| Error::io(&format!("cannot remove {}", path.display()), &error))
            .map_err(foreign)
    }
}
