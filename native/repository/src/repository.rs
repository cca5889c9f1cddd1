//! A repository that is open: its key, its snapshots, its trees, its check.

use std::path::{Component, Path};
use std::sync::Arc;

use bytes::Bytes;
use rustic_core::repofile::{Metadata, Node, NodeType, SnapshotFile, Tree};
use rustic_core::{
    CheckOptions, ConfigOptions, Credentials, Id, KeyOptions, OpenStatus, ReadSubsetOption, RepositoryBackends,
    RepositoryOptions,
};
use serde::de::DeserializeOwned;

use crate::crypto::{Key, hash};
use crate::error::{Error, Kind, Result};
use crate::index::{BlobKind, Entry, Index};
use crate::store::{self, Area, Backend, Secrets, Store};

/// Files and blobs larger than this are not ours or not sane: a damaged length must not take all memory.
const MAX_BLOB: u32 = 1 << 30;

pub struct Repository {
    pub store: Arc<dyn Store>,
    pub key: Key,
    /// Level of compression; none in repositories of format 1.
    pub level: Option<i32>,
    pub(crate) inner: rustic_core::Repository<OpenStatus>,
}

/// What a list of snapshots gives.
pub struct Snapshots {
    /// Oldest first.
    pub good: Vec<(Id, SnapshotFile)>,
    /// Why others cannot be read, each naming its file.
    pub bad: Vec<Error>,
}

fn unopened(store: &Arc<dyn Store>) -> Result<rustic_core::Repository<()>> {
    // No cache: it would keep metadata of users' repositories in the home folder of whoever runs this.
    let options = RepositoryOptions::default().no_cache(true);
    let backends = RepositoryBackends::new(Arc::new(Backend(Arc::clone(store))), None);
    rustic_core::Repository::new(&options, &backends).map_err(|error| Error::rustic(&describe(&**store), &error))
}

pub fn describe(store: &dyn Store) -> String {
    format!("the repository {}", store.place())
}

impl Repository {
    /// Make a new, encrypted repository of format 2 in an empty place.
    pub fn init(place: &Path, password: &str, secrets: &Secrets, append_only: bool) -> Result<Self> {
        let store = store::open(place, secrets)?;
        if !store.is_empty()? {
            return Err(Error::new(Kind::Conflict, format!("{} is not empty", store.place()))
                .hint("a new repository needs a folder of its own"));
        }
        let inner = unopened(&store)?
            .init(
                &Credentials::password(password),
                &KeyOptions::default().with_created(true),
                &ConfigOptions::default().set_append_only(append_only.then_some(true)),
            )
            .map_err(|error| Error::rustic(&describe(&*store), &error))?;
        Self::from_inner(store, inner)
    }

    /// Open a repository of format 1 or 2.
    pub fn open(place: &Path, password: &str, secrets: &Secrets) -> Result<Self> {
        let store = store::open(place, secrets)?;
        if store.files(Area::Config)?.is_empty() {
            return Err(Error::new(Kind::NotFound, format!("there is no repository in {}", store.place())));
        }
        let inner = unopened(&store)?.open(&Credentials::password(password)).map_err(|error| {
            if error.is_incorrect_password() {
                Error::new(Kind::Denied, format!("wrong password for {}", describe(&*store)))
            } else {
                Error::rustic(&format!("{} cannot be opened", describe(&*store)), &error)
            }
        })?;
        Self::from_inner(store, inner)
    }

    /// The content of `config`, and the ids of the snapshots, in order.
    pub fn state(&self) -> Result<(Vec<u8>, Vec<String>)> {
        let config = self.store.get(Area::Config, &Id::default())?;
        let files = self.store.files(Area::Snapshot)?;
        let mut snapshots: Vec<_> = files.iter().map(|(id, _)| id.to_hex().to_string()).collect();
        snapshots.sort_unstable();
        Ok((config, snapshots))
    }

    fn from_inner(store: Arc<dyn Store>, inner: rustic_core::Repository<OpenStatus>) -> Result<Self> {
        let level = inner.config().zstd().map_err(|error| Error::rustic(&describe(&*store), &error))?;
        Ok(Self { key: Key::new(&inner.key()), store, level, inner })
    }

    pub fn is_append_only(&self) -> bool {
        self.inner.config().append_only == Some(true)
    }

    /// Read, decrypt, unpack and parse an index or snapshot file.
    pub fn read_json<T: DeserializeOwned>(&self, kind: Area, id: &Id) -> Result<T> {
        let bad = |reason: &str| {
            Error::corrupt(format!(
                "the {} file {} of {} is damaged: {reason}",
                kind,
                &*id.to_hex(),
                describe(&*self.store)
            ))
        };
        let sealed = self.store.read(kind, id)?;
        let plain = self.key.open(sealed).ok_or_else(|| bad("its MAC does not fit"))?;
        let text = match plain.first() {
            Some(b'{' | b'[') => plain,
            // 2: zstd follows. The MAC was right, so it is what a holder of the key wrote.
            Some(2) => zstd::stream::decode_all(&plain[1..])
                .map_err(|error| bad(&format!("it cannot be unpacked: {error}")))?
                .into(),
            _ => return Err(bad("its encoding is unknown")),
        };
        serde_json::from_slice(&text).map_err(|error| bad(&format!("it cannot be parsed: {error}")))
    }

    /// Pack, encrypt and write an index or snapshot file, and return its id.
    pub fn write_json(&self, kind: Area, value: &impl serde::Serialize) -> Result<Id> {
        let text = serde_json::to_vec(value)
            .map_err(|error| Error::new(Kind::Internal, format!("cannot encode a {kind} file: {error}")))?;
        let plain = match self.level {
            None => text,
            Some(level) => {
                let mut packed = vec![2];
                zstd::stream::copy_encode(&*text, &mut packed, level)
                    .map_err(|error| Error::io("cannot compress", &error))?;
                packed
            }
        };
        let sealed = self.key.seal(&plain);
        let id = hash(&sealed);
        self.store.write(kind, &id, &[sealed.into()])?;
        Ok(id)
    }

    /// Read a blob and check it against its id.
    pub fn read_blob(&self, pack: &Id, entry: &Entry) -> Result<Bytes> {
        let bad = |reason: &str| {
            Error::corrupt(format!(
                "the chunk {} in pack {} of {} is damaged: {reason}",
                &*entry.id.to_hex(),
                &*pack.to_hex(),
                describe(&*self.store)
            ))
            .hint("`restic check --read-data` lists what is damaged")
        };
        if entry.length > MAX_BLOB || entry.content > MAX_BLOB {
            return Err(bad("its length is not plausible"));
        }
        let sealed = self.store.read_at(Area::Pack, pack, entry.offset, entry.length)?;
        let plain = self.key.open(sealed).ok_or_else(|| bad("its MAC does not fit"))?;
        let content = if entry.compressed {
            zstd::bulk::decompress(&plain, entry.content as usize)
                .map_err(|error| bad(&format!("it cannot be unpacked: {error}")))?
                .into()
        } else {
            plain
        };
        if content.len() != entry.content as usize || hash(&content) != entry.id {
            return Err(bad("its content does not fit its id"));
        }
        Ok(content)
    }

    /// All snapshots: one that is damaged does not hide the others.
    pub fn snapshots(&self) -> Result<Snapshots> {
        let mut good = Vec::new();
        let mut bad = Vec::new();
        for (id, _) in self.store.files(Area::Snapshot)? {
            match self.read_json::<SnapshotFile>(Area::Snapshot, &id) {
                Ok(snapshot) => good.push((id, snapshot)),
                // It may have been forgotten meanwhile.
                Err(error) if error.kind == Kind::Corrupt => {
                    if self.store.has(Area::Snapshot, &id)? {
                        bad.push(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        good.sort_by(|(a_id, a), (b_id, b)| (a.time.timestamp(), a_id).cmp(&(b.time.timestamp(), b_id)));
        Ok(Snapshots { good, bad })
    }

    pub fn snapshot(&self, id: &Id) -> Result<SnapshotFile> {
        let known = self.store.files(Area::Snapshot)?.iter().any(|(other, _)| other == id);
        if !known {
            return Err(Error::new(
                Kind::NotFound,
                format!("{} has no snapshot {}", describe(&*self.store), &*id.to_hex()),
            ));
        }
        self.read_json(Area::Snapshot, id)
    }

    /// What a path of a snapshot names.
    pub fn node(&self, index: &Index, snapshot: &SnapshotFile, path: &Path) -> Result<Node> {
        let absent = || {
            Error::new(
                Kind::NotFound,
                format!("the snapshot of {} has no file {}", snapshot.time.timestamp(), path.display()),
            )
        };
        let mut tree: Id = *snapshot.tree;
        let mut names = path.components().filter(|component| *component != Component::RootDir).peekable();
        while let Some(name) = names.next() {
            let node = self
                .tree(index, &tree)?
                .nodes
                .into_iter()
                .find(|node| Component::Normal(&node.name()) == name)
                .ok_or_else(absent)?;
            if names.peek().is_none() {
                return Ok(node);
            }
            tree = *node.subtree.ok_or_else(absent)?;
        }
        Err(absent())
    }

    /// The entries of a folder of a snapshot, by their id, and what is known of it; of the snapshot's root nothing is.
    pub fn folder(&self, index: &Index, snapshot: &SnapshotFile, path: &Path) -> Result<(Id, Option<Metadata>)> {
        let absent = || {
            let time = snapshot.time.timestamp();
            Error::new(Kind::NotFound, format!("the snapshot of {time} has no folder {}", path.display()))
        };
        let mut found = (*snapshot.tree, None);
        for name in path.components().filter(|component| *component != Component::RootDir) {
            let nodes = self.tree(index, &found.0)?.nodes;
            let node = nodes.into_iter().find(|node| Component::Normal(&node.name()) == name).ok_or_else(absent)?;
            let tree = node.subtree.filter(|_| matches!(node.node_type, NodeType::Dir)).ok_or_else(absent)?;
            found = (*tree, Some(node.meta));
        }
        Ok(found)
    }

    /// The entries of a folder.
    pub fn tree(&self, index: &Index, id: &Id) -> Result<Tree> {
        let name = format!("the tree {}", &*id.to_hex());
        let entry = index.find(BlobKind::Tree, id).ok_or_else(|| index.missing(&name))?;
        let text = self.read_blob(&index.packs[entry.pack as usize], entry)?;
        serde_json::from_slice(&text).map_err(|error| Error::corrupt(format!("{name} cannot be parsed: {error}")))
    }

    /// Check the structure, and of the packs that a snapshot needs this part, in per cent, chosen by chance. Returns (is
    /// an error, text).
    pub fn check(&self, read_percent: f64) -> Result<Vec<(bool, String)>> {
        let mut options = CheckOptions::default().read_data(read_percent > 0.0);
        if read_percent < 100.0 {
            options = options.read_data_subset(ReadSubsetOption::Percentage(read_percent));
        }
        let snapshots = self.snapshots()?;
        let index = Index::load(self)?;
        let mut findings: Vec<_> =
            snapshots.bad.into_iter().chain(index.damaged).map(|error| (true, error.message)).collect();
        let trees = snapshots.good.into_iter().map(|(_, file)| file.tree).collect();
        match self.inner.check_with_trees(options, trees) {
            Ok(results) => findings.extend(
                results
                    .0
                    .iter()
                    // The type of the level has no public name.
                    .map(|(level, finding)| (format!("{level:?}") == "Error", finding.to_string())),
            ),
            Err(error) => {
                let error = Error::rustic(&describe(&*self.store), &error);
                if error.kind != Kind::Corrupt {
                    return Err(error);
                }
                if !findings.iter().any(|(_, text)| *text == error.message) {
                    findings.push((true, error.message));
                }
            }
        }
        Ok(findings)
    }
}
