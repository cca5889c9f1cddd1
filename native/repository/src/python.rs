//! The classes that Python sees. Every call lets go of the GIL while it works.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::backup::{self, DiskOrder, Order, Written};
use crate::copy::{self, Copied};
use crate::disk::{Disk, parse_id, read_small};
use crate::error::{Error, Kind, Result};
use crate::files::backup::Order as FilesOrder;
use crate::files::python::{PyFileTree, PyFilesDisk};
use crate::input::{Image, Input};
use crate::repository::Repository;
use crate::retention::{Pruned, Verdict};
use crate::store::{Area, Secrets};

/// A panic is an error of the one request.
pub fn contained<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(Error::panicked(&*payload)))
}

fn parse_ids(texts: &[String]) -> Result<Vec<rustic_core::Id>> {
    texts.iter().map(|text| parse_id(text)).collect()
}

fn tell(progress: &Py<PyAny>, read: u64, total: u64) -> PyResult<()> {
    Python::attach(|py| {
        py.check_signals()?;
        progress.call1(py, (read, total)).map(drop)
    })
}

/// A disk to back up: an object with these attributes. It is read from `path`, else by calling `read`.
#[derive(FromPyObject)]
struct PyDiskOrder {
    file: String,
    path: Option<PathBuf>,
    read: Option<Py<PyAny>>,
    size: u64,
    data: Vec<(u64, u64)>,
    base: Option<(String, PathBuf)>,
    changed: Vec<(u64, u64)>,
}

impl PyDiskOrder {
    fn order<'a>(self) -> Result<DiskOrder<'a>> {
        let input: Box<dyn Input> = match (self.path, self.read) {
            (Some(path), _) => Box::new(Image::open(&path)?),
            (None, Some(read)) => Box::new(PySource { read, size: self.size, data: ranges(self.data) }),
            (None, None) => return Err(Error::new(Kind::Internal, "a disk has neither path nor source")),
        };
        if input.size() != self.size {
            return Err(Error::new(Kind::Conflict, format!("{} has changed its size", self.file)));
        }
        let base = match self.base {
            None => None,
            Some((snapshot, file)) => Some((parse_id(&snapshot)?, file)),
        };
        Ok(DiskOrder { file: self.file, input, base, changed: ranges(self.changed) })
    }
}

fn ranges(pairs: Vec<(u64, u64)>) -> Vec<Range<u64>> {
    pairs.into_iter().map(|(offset, length)| offset..offset.saturating_add(length)).collect()
}

/// A `livemount.media.source.Source`.
struct PySource {
    read: Py<PyAny>,
    size: u64,
    data: Vec<Range<u64>>,
}

impl Input for PySource {
    fn size(&self) -> u64 {
        self.size
    }

    fn time(&self) -> Option<jiff::Timestamp> {
        None
    }

    /// Most of the time of a read is waiting.
    fn threads(&self) -> usize {
        16
    }

    fn data(&self) -> Result<Vec<Range<u64>>> {
        Ok(self.data.clone())
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        Python::attach(|py| {
            let answer = self.read.call1(py, (offset, buffer.len()))?;
            let content = answer.extract::<&[u8]>(py).map_err(PyErr::from)?;
            if content.len() != buffer.len() {
                return Err(Error::new(Kind::Internal, "a source gave another number of bytes than asked for"));
            }
            buffer.copy_from_slice(content);
            Ok(())
        })
    }

    /// Each source looks at itself when it is read.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// A snapshot as the repository lists it.
#[pyclass(frozen, get_all, name = "Snapshot", module = "livemount._native")]
pub struct PySnapshot {
    id: String,
    /// Microseconds since 1970, UTC.
    time: i64,
    hostname: String,
    tags: Vec<String>,
    paths: Vec<String>,
    description: Option<String>,
    /// Bytes that it added to the repository, where that is told.
    added: Option<u64>,
}

/// What a backup did.
#[pyclass(frozen, get_all, name = "BackupResult", module = "livemount._native")]
pub struct PyBackupResult {
    id: String,
    time: i64,
    /// Of each disk.
    stored: Vec<u64>,
    read: u64,
    added: u64,
}

/// What copying into another repository did: of each snapshot its id there, and whether it was copied now.
#[pyclass(frozen, get_all, name = "Copied", module = "livemount._native")]
pub struct PyCopied {
    snapshots: Vec<(String, bool)>,
    read: u64,
    added: u64,
}

/// What a prune did, in bytes of packs.
#[pyclass(frozen, get_all, name = "Pruned", module = "livemount._native")]
pub struct PyPruned {
    marked: u64,
    deleted: u64,
    repacked: u64,
}

#[pyclass(frozen, name = "Repository", module = "livemount._native")]
pub struct PyRepository(Arc<Repository>);

#[pymethods]
impl PyRepository {
    #[staticmethod]
    #[pyo3(signature = (place, password, secrets=None, append_only=false))]
    fn init(
        py: Python<'_>,
        place: PathBuf,
        password: &str,
        secrets: Option<Secrets>,
        append_only: bool,
    ) -> PyResult<Self> {
        let secrets = secrets.unwrap_or_default();
        let repository = py.detach(|| contained(|| Repository::init(&place, password, &secrets, append_only)))?;
        Ok(Self(Arc::new(repository)))
    }

    #[staticmethod]
    #[pyo3(signature = (place, password, secrets=None))]
    fn open(py: Python<'_>, place: PathBuf, password: &str, secrets: Option<Secrets>) -> PyResult<Self> {
        let secrets = secrets.unwrap_or_default();
        let repository = py.detach(|| contained(|| Repository::open(&place, password, &secrets)))?;
        Ok(Self(Arc::new(repository)))
    }

    /// The ids of the notes: see `livemount.media.notes`.
    fn notes(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let found = py.detach(|| contained(|| self.0.store.files(Area::Note)))?;
        Ok(found.into_iter().map(|(id, _)| id.to_hex().to_string()).collect())
    }

    fn read_note<'py>(&self, py: Python<'py>, id: &str) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let text = py.detach(|| contained(|| self.0.read_note(&parse_id(id)?)))?;
        Ok(text.map(|text| PyBytes::new(py, &text)))
    }

    fn write_note(&self, py: Python<'_>, text: &[u8]) -> PyResult<String> {
        Ok(py.detach(|| contained(|| self.0.write_note(text)))?.to_hex().to_string())
    }

    fn remove_note(&self, py: Python<'_>, id: &str) -> PyResult<()> {
        Ok(py.detach(|| contained(|| self.0.remove_note(&parse_id(id)?)))?)
    }

    /// Whether forgetting and pruning are refused.
    #[getter]
    fn append_only(&self) -> bool {
        self.0.is_append_only()
    }

    /// The content of `config`, and the ids of the snapshots, in order.
    fn state(&self, py: Python<'_>) -> PyResult<(Vec<u8>, Vec<String>)> {
        Ok(py.detach(|| contained(|| self.0.state()))?)
    }

    /// Snapshots, oldest first, and the reasons why others cannot be read.
    fn snapshots(&self, py: Python<'_>) -> PyResult<(Vec<PySnapshot>, Vec<String>)> {
        let found = py.detach(|| contained(|| self.0.snapshots()))?;
        let good = found
            .good
            .into_iter()
            .map(|(id, file)| PySnapshot {
                id: id.to_hex().to_string(),
                time: file.time.timestamp().as_microsecond(),
                hostname: file.hostname,
                tags: (&file.tags).into_iter().cloned().collect(),
                paths: (&file.paths).into_iter().cloned().collect(),
                description: file.description,
                added: file.summary.map(|summary| summary.data_added_packed),
            })
            .collect();
        Ok((good, found.bad.into_iter().map(|error| error.message).collect()))
    }

    /// Write disks as a copy. `progress(read, total)` is called some ten times a second and may raise.
    #[expect(clippy::too_many_arguments, reason = "each has its name in Python")]
    fn backup(
        &self,
        py: Python<'_>,
        name: &str,
        description: &[u8],
        disks: Vec<PyDiskOrder>,
        tags: Vec<String>,
        journal: Option<PathBuf>,
        checkpoint: u64,
        progress: &Bound<'_, PyAny>,
    ) -> PyResult<PyBackupResult> {
        let progress = progress.clone().unbind();
        let repository = &self.0;
        let written: Written = py.detach(|| {
            catch_unwind(AssertUnwindSafe(|| {
                let disks = disks.into_iter().map(PyDiskOrder::order).collect::<Result<_>>()?;
                let order = Order { name, description, tags: &tags, disks, journal: journal.as_deref(), checkpoint };
                backup::backup(repository, &order, |read, total| tell(&progress, read, total))
            }))
            .unwrap_or_else(|payload| Err(Error::panicked(&*payload).into()))
        })?;
        Ok(PyBackupResult {
            id: written.snapshot.to_hex().to_string(),
            time: written.time.timestamp().as_microsecond(),
            stored: written.stored,
            read: written.read,
            added: written.added,
        })
    }

    /// Compare a disk with its copy in a snapshot.
    fn verify(
        &self,
        py: Python<'_>,
        snapshot: &str,
        file: PathBuf,
        disk: PyDiskOrder,
        progress: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let progress = progress.clone().unbind();
        py.detach(|| {
            catch_unwind(AssertUnwindSafe(|| {
                let copy = Disk::open(Arc::clone(&self.0), &parse_id(snapshot)?, &file)?;
                let order = disk.order()?;
                backup::verify(&copy, &*order.input, |read, total| tell(&progress, read, total))
            }))
            .unwrap_or_else(|payload| Err(Error::panicked(&*payload).into()))
        })
    }

    fn disk(&self, py: Python<'_>, snapshot: &str, file: PathBuf) -> PyResult<PyDisk> {
        let disk = py.detach(|| contained(|| Disk::open(Arc::clone(&self.0), &parse_id(snapshot)?, &file)))?;
        Ok(PyDisk { disk, closed: AtomicBool::new(false) })
    }

    /// Write a tree of files as a copy. `describe(bytes)` returns the machine's description, `progress` is as of `backup`.
    #[allow(clippy::too_many_arguments)]
    fn backup_files(
        &self,
        py: Python<'_>,
        root: PathBuf,
        name: &str,
        tags: Vec<String>,
        emptied: Vec<PathBuf>,
        across: bool,
        since: Option<&str>,
        describe: &Bound<'_, PyAny>,
        progress: &Bound<'_, PyAny>,
    ) -> PyResult<PyBackupResult> {
        let (describe, progress) = (describe.clone().unbind(), progress.clone().unbind());
        let since = since.map(parse_id).transpose()?;
        let emptied = emptied.into_iter().collect();
        let order = FilesOrder { root: &root, name, tags: &tags, emptied, across, since };
        let written = py.detach(|| {
            catch_unwind(AssertUnwindSafe(|| {
                crate::files::backup::backup(
                    &self.0,
                    &order,
                    |bytes| Python::attach(|py| describe.call1(py, (bytes,))?.extract::<Vec<u8>>(py)),
                    |read, total| {
                        Python::attach(|py| {
                            py.check_signals()?;
                            progress.call1(py, (read, total)).map(drop)
                        })
                    },
                )
            }))
            .unwrap_or_else(|payload| Err(Error::panicked(&*payload).into()))
        })?;
        Ok(PyBackupResult {
            id: written.snapshot.to_hex().to_string(),
            time: written.time.timestamp().as_microsecond(),
            stored: vec![written.stored],
            read: written.read,
            added: written.added,
        })
    }

    /// Copy snapshots into another repository. `progress` is as of `backup`.
    fn copy_to(
        &self,
        py: Python<'_>,
        to: &Self,
        ids: Vec<String>,
        checkpoint: u64,
        progress: &Bound<'_, PyAny>,
    ) -> PyResult<PyCopied> {
        let progress = progress.clone().unbind();
        let Copied { snapshots, read, added } = py.detach(|| {
            catch_unwind(AssertUnwindSafe(|| {
                copy::copy(&self.0, &to.0, &parse_ids(&ids)?, checkpoint, |read, total| tell(&progress, read, total))
            }))
            .unwrap_or_else(|payload| Err(Error::panicked(&*payload).into()))
        })?;
        let snapshots = snapshots.into_iter().map(|(id, now)| (id.to_hex().to_string(), now)).collect();
        Ok(PyCopied { snapshots, read, added })
    }

    fn file_tree(&self, py: Python<'_>, snapshot: &str, path: PathBuf) -> PyResult<PyFileTree> {
        Ok(py.detach(|| contained(|| PyFileTree::open(Arc::clone(&self.0), &parse_id(snapshot)?, &path)))?)
    }

    /// A file of at most `limit` bytes.
    fn read_file<'py>(
        &self,
        py: Python<'py>,
        snapshot: &str,
        file: PathBuf,
        limit: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let text = py.detach(|| contained(|| read_small(&self.0, &parse_id(snapshot)?, &file, limit)))?;
        Ok(PyBytes::new(py, &text))
    }

    /// What is wrong, as (is an error, text).
    fn check(&self, py: Python<'_>, read_percent: f64) -> PyResult<Vec<(bool, String)>> {
        Ok(py.detach(|| contained(|| self.0.check(read_percent)))?)
    }

    /// What the rules say of each of these snapshots, as (id, is kept, reasons).
    fn retention(&self, py: Python<'_>, ids: Vec<String>, rules: &str) -> PyResult<Vec<(String, bool, Vec<String>)>> {
        let verdicts = py.detach(|| contained(|| self.0.retention(&parse_ids(&ids)?, rules)))?;
        Ok(verdicts.into_iter().map(|Verdict { id, kept, reasons }| (id.to_hex().to_string(), kept, reasons)).collect())
    }

    fn forget(&self, py: Python<'_>, ids: Vec<String>) -> PyResult<()> {
        Ok(py.detach(|| contained(|| self.0.forget(&parse_ids(&ids)?)))?)
    }

    fn prune(&self, py: Python<'_>, plan_only: bool, max_unused: u64, keep: i64) -> PyResult<PyPruned> {
        let Pruned { marked, deleted, repacked } =
            py.detach(|| contained(|| self.0.prune(plan_only, max_unused, keep)))?;
        Ok(PyPruned { marked, deleted, repacked })
    }
}

#[pyclass(frozen, name = "Disk", module = "livemount._native")]
pub struct PyDisk {
    disk: Disk,
    closed: AtomicBool,
}

impl PyDisk {
    fn opened(&self) -> Result<&Disk> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Unavailable, "the source is closed"));
        }
        Ok(&self.disk)
    }
}

#[pymethods]
impl PyDisk {
    #[getter]
    fn size(&self) -> u64 {
        self.disk.size()
    }

    #[getter]
    fn identity(&self) -> &str {
        &self.disk.identity
    }

    #[getter]
    fn chunk_size(&self) -> u64 {
        self.disk.chunk_size
    }

    /// Bytes that are not holes.
    #[getter]
    fn stored(&self) -> u64 {
        self.disk.stored
    }

    fn read<'py>(&self, py: Python<'py>, offset: u64, length: u64) -> PyResult<Bound<'py, PyBytes>> {
        let disk = self.opened()?;
        let pieces = py.detach(|| contained(|| disk.pieces(offset, length)))?;
        PyBytes::new_with(py, length as usize, |buffer| {
            let mut rest = buffer;
            for (content, length) in pieces {
                let (here, after) = rest.split_at_mut(length);
                // `new_with` has zeroed it: nothing to do for a hole.
                if let Some(content) = content {
                    here.copy_from_slice(&content);
                }
                rest = after;
            }
            Ok(())
        })
    }

    fn extents(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<Vec<(u64, u64, bool)>> {
        let disk = self.opened()?;
        Ok(py.detach(|| contained(|| disk.extents(offset, length)))?)
    }

    /// SHA-256 of all bytes.
    fn digest(&self, py: Python<'_>) -> PyResult<String> {
        let disk = self.opened()?;
        py.detach(|| disk.digest(|| Python::attach(|py| py.check_signals())))
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

/// Adds this crate's classes to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PySnapshot>()?;
    module.add_class::<PyBackupResult>()?;
    module.add_class::<PyCopied>()?;
    module.add_class::<PyPruned>()?;
    module.add_class::<PyRepository>()?;
    module.add_class::<PyFileTree>()?;
    module.add_class::<PyFilesDisk>()?;
    module.add_class::<PyDisk>()
}
