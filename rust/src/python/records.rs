//! Undecoded records, and the bodies they come in.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::document;
use crate::frame::{EventStream, ShardEvent};
use crate::records::{Records, TooLarge};

pyo3::create_exception!(_core, FrameError, PyValueError, "An event-stream body that can't be trusted further.");

impl From<TooLarge> for PyErr {
    fn from(error: TooLarge) -> Self {
        PyValueError::new_err(error.to_string())
    }
}

#[pyclass(name = "Records", module = "replicator._core", frozen)]
pub(super) struct PyRecords(pub(super) Arc<Records>);

#[pymethods]
impl PyRecords {
    #[staticmethod]
    #[pyo3(signature = (payloads, sequence_numbers=None, arrival_ms=None))]
    fn pack(
        py: Python<'_>,
        payloads: Vec<PyBackedBytes>,
        sequence_numbers: Option<Vec<String>>,
        arrival_ms: Option<Vec<i64>>,
    ) -> PyResult<Self> {
        let wrong = |len: Option<usize>| len.is_some_and(|len| len != payloads.len());
        if wrong(sequence_numbers.as_ref().map(Vec::len)) || wrong(arrival_ms.as_ref().map(Vec::len)) {
            return Err(PyValueError::new_err("payloads, sequence_numbers and arrival_ms must have one length"));
        }
        let records = py.detach(|| {
            let size = payloads.iter().map(|payload| payload.len()).sum();
            let mut records = Records::with_capacity(size, payloads.len());
            for (i, payload) in payloads.iter().enumerate() {
                let number = sequence_numbers.as_ref().map_or("", |numbers| &numbers[i]);
                records.push(payload, number.as_bytes(), arrival_ms.as_ref().map(|all| all[i]), 0)?;
            }
            Ok::<_, TooLarge>(records)
        })?;
        Ok(Self(Arc::new(records)))
    }

    #[staticmethod]
    fn document(py: Python<'_>, data: PyBackedBytes) -> PyResult<Self> {
        Ok(Self(Arc::new(py.detach(|| document::read(&data))?)))
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.0.nbytes()
    }

    #[getter]
    fn first_sequence_number(&self) -> Option<&str> {
        self.0.first_sequence_number()
    }

    #[getter]
    fn last_sequence_number(&self) -> Option<&str> {
        self.0.last_sequence_number()
    }

    #[getter]
    fn last_arrival_ms(&self) -> Option<i64> {
        self.0.last_arrival_ms()
    }
}

#[pyclass(name = "ShardEvent", module = "replicator._core", frozen)]
pub(super) struct PyShardEvent {
    records: Py<PyRecords>,
    event: ShardEvent,
}

impl PyShardEvent {
    fn new(py: Python<'_>, mut event: ShardEvent) -> PyResult<Self> {
        let records = Py::new(py, PyRecords(Arc::new(std::mem::take(&mut event.records))))?;
        Ok(Self { records, event })
    }
}

#[pymethods]
impl PyShardEvent {
    #[getter]
    fn records(&self, py: Python<'_>) -> Py<PyRecords> {
        self.records.clone_ref(py)
    }

    #[getter]
    fn continuation_sequence_number(&self) -> Option<&str> {
        self.event.continuation_sequence_number.as_deref()
    }

    #[getter]
    fn millis_behind_latest(&self) -> i64 {
        self.event.millis_behind_latest
    }

    #[getter]
    fn child_shards(&self) -> Vec<(String, Vec<String>)> {
        self.event.child_shards.clone()
    }

    #[getter]
    fn exception(&self) -> Option<(&str, &str)> {
        self.event.exception.as_ref().map(|exception| (&*exception.kind, &*exception.message))
    }
}

#[pyclass(name = "EventStream", module = "replicator._core")]
pub(super) struct PyEventStream(pub(super) EventStream);

#[pymethods]
impl PyEventStream {
    #[new]
    #[pyo3(signature = (frame_bytes_max=33_554_432))]
    fn new(frame_bytes_max: u64) -> Self {
        Self(EventStream::new(frame_bytes_max))
    }

    fn feed(&mut self, py: Python<'_>, chunk: PyBackedBytes) -> PyResult<Vec<PyShardEvent>> {
        match py.detach(|| self.0.feed(&chunk)) {
            Ok(events) => events.into_iter().map(|event| PyShardEvent::new(py, event)).collect(),
            Err(fault) => {
                let error = FrameError::new_err(fault.to_string());
                error.value(py).setattr("code", fault.slug())?;
                Err(error)
            }
        }
    }

    #[getter]
    fn buffered_bytes(&self) -> usize {
        self.0.buffered_bytes()
    }
}
