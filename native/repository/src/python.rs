//! The classes that Python sees. Every call lets go of the GIL while it works.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::backup::{self, Written};
use crate::disk::{Disk, parse_id, read_small};
use crate::error::{Error, Kind, Result};
use crate::files::python::{PyFileTree, PyFilesDisk};
use crate::repository::Repository;
use crate::retention::{Pruned, Verdict};

/// A panic is an error of the one request.
pub fn contained<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(Error::panicked(&*payload)))
}

fn parse_ids(texts: &[String]) -> Result<Vec<rustic_core::Id>> {
    texts.iter().map(|text| parse_id(text)).collect()
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
}

/// What a backup did.
#[pyclass(frozen, get_all, name = "BackupResult", module = "livemount._native")]
pub struct PyBackupResult {
    id: String,
    time: i64,
    size: u64,
    stored: u64,
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
    fn init(py: Python<'_>, path: PathBuf, password: &str) -> PyResult<Self> {
        let repository = py.detach(|| contained(|| Repository::init(&path, password)))?;
        Ok(Self(Arc::new(repository)))
    }

    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf, password: &str) -> PyResult<Self> {
        let repository = py.detach(|| contained(|| Repository::open(&path, password)))?;
        Ok(Self(Arc::new(repository)))
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
            })
            .collect();
        Ok((good, found.bad.into_iter().map(|error| error.message).collect()))
    }

    /// Write an image as a copy. `progress(read, total)` is called some ten times a second and may raise.
    fn backup(
        &self,
        py: Python<'_>,
        image: PathBuf,
        name: &str,
        description: &[u8],
        progress: &Bound<'_, PyAny>,
    ) -> PyResult<PyBackupResult> {
        let progress = progress.clone().unbind();
        let repository = &self.0;
        let written: Written = py.detach(|| {
            catch_unwind(AssertUnwindSafe(|| {
                backup::backup(repository, &image, name, description, |read, total| {
                    Python::attach(|py| {
                        py.check_signals()?;
                        progress.call1(py, (read, total)).map(drop)
                    })
                })
            }))
            .unwrap_or_else(|payload| Err(Error::panicked(&*payload).into()))
        })?;
        Ok(PyBackupResult {
            id: written.snapshot.to_hex().to_string(),
            time: written.time.timestamp().as_microsecond(),
            size: written.size,
            stored: written.stored,
            added: written.added,
        })
    }

    fn disk(&self, py: Python<'_>, snapshot: &str, file: PathBuf) -> PyResult<PyDisk> {
        let disk = py.detach(|| contained(|| Disk::open(Arc::clone(&self.0), &parse_id(snapshot)?, &file)))?;
        Ok(PyDisk { disk, closed: AtomicBool::new(false) })
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
    module.add_class::<PyPruned>()?;
    module.add_class::<PyRepository>()?;
    module.add_class::<PyFileTree>()?;
    module.add_class::<PyFilesDisk>()?;
    module.add_class::<PyDisk>()
}
