//! The pseudo-disk: stores, their maps and the /dev/fuse loop that answers hits without Python.

use pyo3::prelude::*;

/// Adds this crate's classes to the extension module.
pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
