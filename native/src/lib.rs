//! `livemount._native`: one Python extension module, its parts registered by the library crates.

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    #[cfg(feature = "repository")]
    livemount_repository::register(module)?;
    Ok(())
}
