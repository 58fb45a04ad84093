//! The boundary to Python: what `_core.pyi` promises, and nothing else.
//!
//! In: bytes and small values. Out: handles, counts, positions, finished payloads. Invariant: whatever touches
//! more than one record runs detached from the interpreter.

// Arguments arrive by value: that is how they are taken over from Python.
#![allow(clippy::needless_pass_by_value)]

mod batch;
mod columns;
mod compress;
mod filter;
mod kafka;
mod records;
mod rows;
mod window;

use pyo3::exceptions::PyRuntimeWarning;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use self::batch::{PyChangeBatch, PyRejection, decode};
use self::columns::PyColumns;
use self::filter::{PyPattern, PyProjection};
use self::kafka::{PyKafkaBatch, PySchema};
use self::records::{BodyError, PyAnswer, PyEventStream, PyRecords, PyShardEvent};
use self::rows::{PyRows, PySettled, crate_item};
use self::window::PyWindow;
use crate::error::Code;

/// The module `replicator._core`.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    if profile == "debug" {
        let message = c"replicator._core is a debug build: many times slower; build it with --release";
        PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), message, 1)?;
    }
    let codes = PyDict::new(py);
    for code in Code::ALL {
        codes.set_item(code.slug(), code.meaning())?;
    }
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("BUILD_PROFILE", profile)?;
    module.add("COMMIT", option_env!("BUILD_COMMIT").unwrap_or("unknown"))?;
    module.add("REJECTION_CODES", codes)?;
    let body_error = py.get_type::<BodyError>();
    body_error.setattr("__module__", "replicator._core")?;
    module.add("BodyError", body_error)?;
    module.add_class::<PyRejection>()?;
    module.add_class::<PyRecords>()?;
    module.add_class::<PyShardEvent>()?;
    module.add_class::<PyEventStream>()?;
    module.add_class::<PyAnswer>()?;
    module.add_class::<PyChangeBatch>()?;
    module.add_class::<PyRows>()?;
    module.add_class::<PySettled>()?;
    module.add_class::<PyPattern>()?;
    module.add_class::<PyProjection>()?;
    module.add_class::<PyWindow>()?;
    module.add_class::<PyColumns>()?;
    module.add_class::<PyKafkaBatch>()?;
    module.add_class::<PySchema>()?;
    module.add_function(wrap_pyfunction!(compress::compress, module)?)?;
    module.add_function(wrap_pyfunction!(crate_item, module)?)?;
    module.add_function(wrap_pyfunction!(decode, module)?)
}
