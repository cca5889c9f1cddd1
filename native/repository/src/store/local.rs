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
use rustic_core::Id;

use super::{Area, Store, cut_short, file_name, file_size, missing, parse_name};
use crate::error::{Error, Kind, Result};

const STALE: Duration = Duration::from_secs(24 * 3600);

/// The folder of a repository.
#[derive(Debug)]
pub struct Local {
    root: PathBuf,
    shown: String,
}

impl Local {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), shown: root.display().to_string() }
    }

    fn directory(&self, kind: Area) -> PathBuf {
        self.root.join(kind.folder())
    }

    fn path(&self, kind: Area, id: &Id) -> PathBuf {
        if kind == Area::Note { self.notes().join(&*id.to_hex()) } else { self.root.join(file_name(kind, id)) }
    }

    /// Where a rest-server that serves this folder has notes: see `store::rest`.
    fn notes(&self) -> PathBuf {
        let beside = PathBuf::from(format!("{}.livemount/locks", self.root.display()));
        if beside.is_dir() { beside } else { self.directory(Area::Note) }
    }

    /// A failure to read `path`: a file that is gone while the repository is there is damage, not an outage.
    fn read_error(&self, path: &Path, error: &io::Error) -> Error {
        let mapped = Error::io(&format!("cannot read {}", path.display()), error);
        if mapped.kind != Kind::NotFound {
            mapped
        } else if self.root.join("config").exists() {
            missing(&path.display().to_string())
        } else {
            Error::new(Kind::Unavailable, format!("the repository {} is not there", self.root.display()))
        }
    }

    fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }
}

impl Store for Local {
    fn place(&self) -> &str {
        &self.shown
    }

    fn is_empty(&self) -> Result<bool> {
        let occupied = self.root.is_file() || self.root.read_dir().is_ok_and(|mut entries| entries.next().is_some());
        Ok(!occupied)
    }

    fn create(&self) -> Result<()> {
        // restic wants its folders to be there, `locks` among them. Those of the packs are made at once, so that
        // writing a pack never makes one and need not flush the folder above.
        let names = ["index", "keys", "locks", "snapshots"].map(str::to_owned);
        let packs = (0..=255_u8).map(|number| format!("data/{number:02x}"));
        names
            .into_iter()
            .chain(packs)
            .try_for_each(|name| fs::create_dir_all(self.root.join(name)))
            .and_then(|()| File::open(self.directory(Area::Pack))?.sync_all())
            .and_then(|()| File::open(&self.root)?.sync_all())
            .map_err(|error| Error::io(&format!("cannot make {}", self.root.display()), &error))
    }

    fn files(&self, kind: Area) -> Result<Vec<(Id, u32)>> {
        let mut found = Vec::new();
        if kind == Area::Config {
            match fs::metadata(self.root.join("config")) {
                Ok(metadata) => found.push((Id::default(), file_size(metadata.len()))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.read_error(&self.root.join("config"), &error)),
            }
            return Ok(found);
        }
        let top = if kind == Area::Note { self.notes() } else { self.directory(kind) };
        let directories =
            if kind == Area::Pack { (0..=255_u8).map(|n| top.join(format!("{n:02x}"))).collect() } else { vec![top] };
        for directory in directories {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                // Packs: restic makes the sub-folders as they are needed. Notes: there are none yet.
                Err(error) if matches!(kind, Area::Pack | Area::Note) && error.kind() == io::ErrorKind::NotFound => {
                    continue;
                }
                Err(error) => return Err(self.read_error(&directory, &error)),
            };
            for entry in entries {
                let entry = entry.map_err(|error| self.read_error(&directory, &error))?;
                let name = entry.file_name();
                if let Some(id) = name.to_str().and_then(parse_name) {
                    match entry.metadata() {
                        Ok(metadata) => found.push((id, file_size(metadata.len()))),
                        // Somebody has removed it since the folder was read.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Err(self.read_error(&entry.path(), &error)),
                    }
                }
            }
        }
        Ok(found)
    }

    fn has(&self, kind: Area, id: &Id) -> Result<bool> {
        Ok(self.path(kind, id).exists())
    }

    fn get(&self, kind: Area, id: &Id) -> Result<Vec<u8>> {
        let path = self.path(kind, id);
        fs::read(&path).map_err(|error| self.read_error(&path, &error))
    }

    fn read_at(&self, kind: Area, id: &Id, offset: u32, length: u32) -> Result<Vec<u8>> {
        let path = self.path(kind, id);
        let file = File::open(&path).map_err(|error| self.read_error(&path, &error))?;
        let mut data = vec![0; length as usize];
        file.read_exact_at(&mut data, offset.into()).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                cut_short(kind, &path.display().to_string(), offset, length)
            } else {
                self.read_error(&path, &error)
            }
        })?;
        Ok(data)
    }

    fn write(&self, kind: Area, id: &Id, parts: &[Bytes]) -> Result<()> {
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

    fn remove(&self, kind: Area, id: &Id) -> Result<()> {
        let path = self.path(kind, id);
        fs::remove_file(&path).map_err(|error| Error::io(&format!("cannot remove {}", path.display()), &error))
    }

    fn remove_stale(&self) -> Result<()> {
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
            let gone =
                |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(fail(error)) };
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
}
