//! Compression, the interpreter free meanwhile.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::compress::{Codec, CompressFault, Compressor};

impl From<CompressFault> for PyErr {
    fn from(fault: CompressFault) -> Self {
        match fault {
            CompressFault::Level(_) => PyValueError::new_err(fault.to_string()),
            CompressFault::Failed(_) => PyRuntimeError::new_err(fault.to_string()),
        }
    }
}

#[pyfunction]
#[pyo3(signature = (data, codec, level=None))]
pub(super) fn compress<'py>(
    py: Python<'py>,
    data: &[u8],
    codec: &str,
    level: Option<i32>,
) -> PyResult<Bound<'py, PyBytes>> {
    let codec =
        Codec::from_name(codec).ok_or_else(|| PyValueError::new_err("codec must be 'gzip', 'zstd' or 'lz4'"))?;
    let out = py.detach(|| {
        let mut out = Vec::new();
        Compressor::new(codec, level)?.compress(data, &mut out).map(|()| out)
    })?;
    Ok(PyBytes::new(py, &out))
}
