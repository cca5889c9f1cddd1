//! `livemount._native`: one Python extension module, its parts registered by the library crates.

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    livemount_pseudo_disk::register(module)?;
    livemount_repository::register(module)
}
