//! Small files of ours in a repository, sealed with its key: what they say is `livemount.media.notes`' matter.

use bytes::Bytes;
use rustic_core::Id;

use crate::crypto::hash;
use crate::error::{Error, Kind, Result};
use crate::repository::Repository;
use crate::store::Area;

/// A longer one is not ours.
const LONGEST: usize = 1 << 16;

impl Repository {
    /// What a note says; nothing when it is gone.
    pub fn read_note(&self, id: &Id) -> Result<Option<Bytes>> {
        let sealed = match self.store.read(Area::Note, id) {
            Ok(sealed) => sealed,
            Err(error) if error.kind == Kind::Corrupt && !self.store.has(Area::Note, id)? => return Ok(None),
            Err(error) => return Err(error),
        };
        let plain = if sealed.len() > LONGEST { None } else { self.key.open(sealed) };
        plain.map(Some).ok_or_else(|| {
            Error::corrupt(format!("{} is damaged, or of another key", self.store.locate(Area::Note, id)))
                .hint("look which mounts there are; when none needs it, delete the file")
        })
    }

    pub fn write_note(&self, text: &[u8]) -> Result<Id> {
        let sealed = self.key.seal(text);
        let id = hash(&sealed);
        self.store.write(Area::Note, &id, &[sealed.into()])?;
        Ok(id)
    }

    /// Nothing happens when it is gone.
    pub fn remove_note(&self, id: &Id) -> Result<()> {
        match self.store.remove(Area::Note, id) {
            Err(error) if error.kind == Kind::NotFound => Ok(()),
            other => other,
        }
    }
}
