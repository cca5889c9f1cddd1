//! The pseudo-disk: stores, their maps and the /dev/fuse loop that answers hits without Python.

mod ahead;
mod counters;
mod disk;
mod error;
mod fuse;
mod held;
mod journal;
mod ledger;
mod map;
mod map_file;
mod mapping;
mod mount;
mod private;
mod recall;
mod requests;

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::disk::{Disk, REGION};
use crate::error::{errno, os_error};
use crate::requests::{Operation, Outcome, Requests};

/// A disk over its stores; see `livemount/_native.pyi`.
#[pyclass(frozen)]
struct PseudoDisk {
    requests: Arc<Requests>,
    session: Mutex<Option<fuse::Session>>,
}

impl PseudoDisk {
    /// Runs an operation as a request from the kernel would, and waits for it.
    fn request(&self, py: Python<'_>, operation: Operation) -> PyResult<Vec<u8>> {
        let requests = &self.requests;
        let outcome: Outcome = py.detach(|| match requests.run(&operation, &[]) {
            Ok(data) => Ok(data),
            Err(fault) => {
                let (sender, receiver) = sync_channel(1);
                requests.submit(operation, fault, move |outcome| drop(sender.send(outcome)));
                receiver.recv().unwrap_or(Err(libc::EIO))
            }
        });
        outcome.map_err(os_error)
    }
}

#[pymethods]
impl PseudoDisk {
    #[new]
    #[pyo3(signature = (private, recall_store, size, chunk_size, recall, recall_threads, hold=0.0))]
    #[expect(clippy::too_many_arguments, reason = "named in Python")]
    fn new(
        py: Python<'_>,
        private: PathBuf,
        recall_store: PathBuf,
        size: u64,
        chunk_size: u64,
        recall: Py<PyAny>,
        recall_threads: usize,
        hold: f64,
    ) -> PyResult<Self> {
        let hold = Duration::try_from_secs_f64(hold).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let disk = py.detach(|| Disk::open(&private, &recall_store, size, chunk_size))?;
        Ok(Self { requests: Requests::start(disk, recall, recall_threads, hold), session: Mutex::new(None) })
    }

    fn read<'py>(&self, py: Python<'py>, offset: u64, length: usize) -> PyResult<Bound<'py, PyBytes>> {
        let data = self.request(py, Operation::Read { offset, length })?;
        Ok(PyBytes::new(py, &data))
    }

    fn write(&self, py: Python<'_>, offset: u64, data: Vec<u8>) -> PyResult<()> {
        for (part, start) in data.chunks(REGION as usize).zip((offset..).step_by(REGION as usize)) {
            self.request(py, Operation::Write { offset: start, data: part.to_vec() })?;
        }
        Ok(())
    }

    fn zero(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<()> {
        self.request(py, Operation::Zero { offset, length }).map(drop)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.requests.disk.private.flush()).map_err(os_error)
    }

    fn prefetch(&self, chunks: Vec<u64>) {
        self.requests.prefetch(chunks);
    }

    fn first_reads(&self) -> Vec<u64> {
        self.requests.first_reads()
    }

    fn serve(&self, descriptor: i32, threads: usize) -> PyResult<()> {
        // SAFETY: duplicates a descriptor; the result is checked before it is owned.
        let own = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3) };
        if own < 0 {
            return Err(os_error(errno(&std::io::Error::last_os_error())));
        }
        // SAFETY: `own` was just made and nobody else has it.
        let device = fuse::Device::new(unsafe { OwnedFd::from_raw_fd(own) });
        *self.session.lock() = Some(fuse::Session::start(&self.requests, &device, threads));
        Ok(())
    }

    fn wait(&self, py: Python<'_>) {
        let session = self.session.lock().take();
        py.detach(|| session.map(fuse::Session::wait));
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            self.requests.close();
            self.requests.disk.private.close()
        })
        .map_err(os_error)
    }
}

/// Adds this crate's classes and functions to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PseudoDisk>()?;
    module.add_function(wrap_pyfunction!(mount::mount_fuse, module)?)?;
    module.add_function(wrap_pyfunction!(mount::unmount, module)?)?;
    module.add_function(wrap_pyfunction!(mount::set_io_flusher, module)?)?;
    Ok(())
}
