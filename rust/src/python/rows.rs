//! The newest change per key: what state sinks take.

use std::sync::Arc;

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::batch::{PyRejection, rejections};
use crate::dedupe::{Column, Rows};
use crate::encode::copy;
use crate::key::KeyType;

pub(super) fn column((name, letter): (String, String)) -> PyResult<Column> {
    let kind = match letter.as_bytes() {
        [letter] => KeyType::from_letter(*letter),
        _ => None,
    };
    let kind = kind.ok_or_else(|| PyValueError::new_err("a key attribute's type must be 'S', 'N' or 'B'"))?;
    Ok((name.into_bytes().into_boxed_slice(), kind))
}

#[pyclass(name = "Rows", module = "replicator._core", frozen)]
pub(super) struct PyRows(pub(super) Arc<Rows>);

#[pymethods]
impl PyRows {
    fn __len__(&self) -> usize {
        self.0.rows.len()
    }

    #[getter]
    fn deletes(&self) -> usize {
        self.0.deletes
    }

    #[getter]
    fn filtered(&self) -> usize {
        self.0.filtered
    }

    #[getter]
    fn folded(&self) -> usize {
        self.0.folded
    }

    #[getter]
    fn rejections(&self) -> Vec<PyRejection> {
        rejections(&self.0.rejections)
    }

    #[pyo3(signature = (lo=0, hi=None))]
    fn copy<'py>(&self, py: Python<'py>, lo: usize, hi: Option<usize>) -> Bound<'py, PyBytes> {
        let stream = py.detach(|| copy::stream(&self.0, lo, hi.unwrap_or(usize::MAX)));
        PyBytes::new(py, &stream)
    }

    fn copy_before<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &py.detach(|| copy::before(&self.0)))
    }

    fn record(&self, row: usize, code: &str, message: String) -> PyResult<PyRejection> {
        let r = self.0.rows.get(row).ok_or_else(|| PyIndexError::new_err("no such row"))?;
        Ok(PyRejection(self.0.batch.reject(*r, code, message)))
    }

    fn without(&self, py: Python<'_>, rows: Vec<usize>) -> PyResult<Self> {
        if rows.iter().any(|&row| row >= self.0.rows.len()) {
            return Err(PyIndexError::new_err("no such row"));
        }
        Ok(Self(Arc::new(py.detach(|| self.0.without(&rows))?)))
    }
}
