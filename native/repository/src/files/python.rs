//! The classes of file-level copies that Python sees.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::disk::{CHUNK, FilesDisk, Piece};
use super::tree::{FileTree, Wishes};
use crate::error::{Error, Kind, Result};
use crate::python::contained;
use crate::repository::Repository;

/// A folder of a snapshot: looked at, then written as a disk.
#[pyclass(frozen, name = "FileTree", module = "livemount._native")]
pub struct PyFileTree(Mutex<Option<(FileTree, Vec<Piece>)>>);

impl PyFileTree {
    pub fn open(repository: Arc<Repository>, snapshot: &rustic_core::Id, path: &std::path::Path) -> Result<Self> {
        Ok(Self(Mutex::new(Some((FileTree::open(repository, snapshot, path)?, Vec::new())))))
    }

    fn with<T>(&self, work: impl FnOnce(&mut (FileTree, Vec<Piece>)) -> Result<T>) -> Result<T> {
        let mut guard = self.0.lock();
        work(guard.as_mut().ok_or_else(|| Error::new(Kind::Usage, "the tree has become a disk"))?)
    }
}

#[pymethods]
impl PyFileTree {
    /// Hex digits that name the folder's content.
    #[getter]
    fn id(&self) -> PyResult<String> {
        Ok(self.with(|(tree, _)| Ok(tree.id.to_hex().to_string()))?)
    }

    /// How many files and folders there are.
    #[getter]
    fn count(&self) -> PyResult<usize> {
        Ok(self.with(|(tree, _)| Ok(tree.count()))?)
    }

    /// Bytes of all files.
    #[getter]
    fn bytes(&self) -> PyResult<u64> {
        Ok(self.with(|(tree, _)| Ok(tree.bytes()))?)
    }

    fn read<'py>(&self, py: Python<'py>, path: &[u8], limit: u64) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let text = py.detach(|| contained(|| self.with(|(tree, _)| tree.read(path, limit))))?;
        Ok(text.map(|text| PyBytes::new(py, &text)))
    }

    fn names<'py>(&self, py: Python<'py>, path: &[u8]) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let names = self.with(|(tree, _)| Ok(tree.names(path)))?;
        Ok(names.iter().map(|name| PyBytes::new(py, name)).collect())
    }

    /// Write a file system's metadata into the file `target`, which becomes a disk: `before` bytes, the file system,
    /// `after` bytes. Returns the file system's size.
    #[allow(clippy::too_many_arguments)]
    fn write(
        &self,
        py: Python<'_>,
        target: PathBuf,
        before: u64,
        after: u64,
        uuid: [u8; 16],
        label: Vec<u8>,
        free: u64,
        files: Vec<(Vec<u8>, Vec<u8>)>,
        folders: Vec<(Vec<u8>, u16)>,
    ) -> PyResult<u64> {
        let wishes = Wishes { uuid, label, free, files, folders };
        let size = py.detach(|| {
            contained(|| {
                self.with(|(tree, pieces)| {
                    let size = tree.size(&wishes)?;
                    let fail = |error: std::io::Error| Error::io(&format!("cannot write {}", target.display()), &error);
                    let file = OpenOptions::new().write(true).open(&target).map_err(fail)?;
                    file.set_len(before + size + after).map_err(fail)?;
                    *pieces = tree.write(&wishes, &file, before)?;
                    Ok(size)
                })
            })
        })?;
        Ok(size)
    }

    /// The disk whose metadata was written into the file `written`; the file may then be unlinked.
    fn disk(&self, py: Python<'_>, written: PathBuf) -> PyResult<PyFilesDisk> {
        let disk = py.detach(|| {
            contained(|| {
                let (tree, pieces) =
                    self.0.lock().take().ok_or_else(|| Error::new(Kind::Usage, "the tree has become a disk"))?;
                let fail = |error: std::io::Error| Error::io(&format!("cannot open {}", written.display()), &error);
                FilesDisk::new(tree, std::fs::File::open(&written).map_err(fail)?, &pieces)
            })
        })?;
        Ok(PyFilesDisk { disk, closed: AtomicBool::new(false) })
    }
}

#[pyclass(frozen, name = "FilesDisk", module = "livemount._native")]
pub struct PyFilesDisk {
    disk: FilesDisk,
    closed: AtomicBool,
}

impl PyFilesDisk {
    fn opened(&self) -> Result<&FilesDisk> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Unavailable, "the source is closed"));
        }
        Ok(&self.disk)
    }
}

#[pymethods]
impl PyFilesDisk {
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
        CHUNK
    }

    fn read<'py>(&self, py: Python<'py>, offset: u64, length: u64) -> PyResult<Bound<'py, PyBytes>> {
        let disk = self.opened()?;
        let recalled = py.detach(|| contained(|| disk.recalled(offset, length)))?;
        PyBytes::new_with(py, length as usize, |buffer| {
            py.detach(|| contained(|| disk.written(buffer, offset)))?;
            for (at, content) in recalled {
                buffer[at..at + content.len()].copy_from_slice(&content);
            }
            Ok(())
        })
    }

    fn extents(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<Vec<(u64, u64, bool)>> {
        let disk = self.opened()?;
        Ok(py.detach(|| contained(|| disk.extents(offset, length)))?)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}
