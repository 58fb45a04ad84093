//! The memory of a log sink.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::batch::PyChangeBatch;
use crate::window::{Limits, Window};

#[pyclass(name = "Window", module = "replicator._core")]
pub(super) struct PyWindow(Window);

#[pymethods]
impl PyWindow {
    #[new]
    #[pyo3(signature = (*, reorder_us=1_000_000, duplicate_us=60_000_000, bytes_max=67_108_864, compacted=false))]
    fn new(reorder_us: i64, duplicate_us: i64, bytes_max: usize, compacted: bool) -> PyResult<Self> {
        if reorder_us < 0 || duplicate_us < reorder_us {
            return Err(PyValueError::new_err("reorder_us must not be negative, nor greater than duplicate_us"));
        }
        Ok(Self(Window::new(Limits { reorder_us, duplicate_us, bytes_max, compacted })))
    }

    fn add(&mut self, py: Python<'_>, batch: &PyChangeBatch) -> PyChangeBatch {
        PyChangeBatch(Arc::new(py.detach(|| self.0.add(&batch.0))))
    }

    #[pyo3(signature = (batch, given_us=None))]
    fn refill(&mut self, py: Python<'_>, batch: &PyChangeBatch, given_us: Option<i64>) {
        py.detach(|| self.0.refill(&batch.0, given_us));
    }

    fn advance(&mut self, py: Python<'_>, event_us: i64) -> PyChangeBatch {
        PyChangeBatch(Arc::new(py.detach(|| self.0.advance(event_us))))
    }

    fn flush(&mut self, py: Python<'_>) -> PyChangeBatch {
        PyChangeBatch(Arc::new(py.detach(|| self.0.flush())))
    }

    fn remembered<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &py.detach(|| self.0.remembered()))
    }

    fn inherit(&mut self, py: Python<'_>, remembered: &[u8]) -> PyResult<i64> {
        py.detach(|| self.0.inherit(remembered))
            .ok_or_else(|| PyValueError::new_err("no window remembered these bytes"))
    }

    fn limit(&mut self, bytes_max: usize) {
        self.0.limit(bytes_max);
    }

    #[getter]
    fn held(&self) -> usize {
        self.0.held()
    }

    #[getter]
    fn oldest(&self) -> Option<u64> {
        self.0.oldest()
    }

    #[getter]
    fn given_us(&self) -> Option<i64> {
        self.0.given_us()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.0.nbytes()
    }

    #[getter]
    fn late(&self) -> u64 {
        self.0.counts.late
    }

    #[getter]
    fn left_out(&self) -> u64 {
        self.0.counts.left_out
    }

    #[getter]
    fn early(&self) -> u64 {
        self.0.counts.early
    }

    #[getter]
    fn forgotten(&self) -> u64 {
        self.0.counts.forgotten
    }
}
