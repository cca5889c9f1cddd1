//! Errors: on the I/O path a bare errno, when opening a store a message for the user.

use std::io;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

pub enum Error {
    Io(io::Error),
    Corrupt(String),
}

impl Error {
    pub fn corrupt(message: String) -> Self {
        Self::Corrupt(message)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Io(error) => os_error(errno(&error)),
            Error::Corrupt(message) => Python::attach(|py| {
                let raised = py
                    .import("livemount.core.errors")
                    .and_then(|errors| errors.getattr("CorruptError")?.call1((message,)));
                raised.map_or_else(|error| error, PyErr::from_value)
            }),
        }
    }
}

/// An `OSError` with its errno, which pyo3's own conversion leaves out.
pub fn os_error(errno: i32) -> PyErr {
    PyOSError::new_err((errno, io::Error::from_raw_os_error(errno).to_string()))
}

pub fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
