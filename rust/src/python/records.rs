//! Undecoded records, and the bodies they come in.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::answer::{self, Answer, Child, Kind};
use crate::document;
use crate::error::BodyFault;
use crate::frame::{EventStream, ShardEvent};
use crate::records::{Records, TooLarge};

pyo3::create_exception!(_core, BodyError, PyValueError, "A body of the service that can't be read further.");

impl From<BodyFault> for PyErr {
    fn from(fault: BodyFault) -> Self {
        let error = BodyError::new_err(fault.to_string());
        Python::attach(|py| error.value(py).setattr("code", fault.slug()).err()).unwrap_or(error)
    }
}

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
    fn child_shards(&self) -> Vec<Child> {
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
        let events = py.detach(|| self.0.feed(&chunk))?;
        events.into_iter().map(|event| PyShardEvent::new(py, event)).collect()
    }

    #[getter]
    fn buffered_bytes(&self) -> usize {
        self.0.buffered_bytes()
    }
}

#[pyclass(name = "Answer", module = "replicator._core", frozen)]
pub(super) struct PyAnswer {
    records: Py<PyRecords>,
    answer: Answer,
}

#[pymethods]
impl PyAnswer {
    #[staticmethod]
    fn read(py: Python<'_>, body: PyBackedBytes, source: &str) -> PyResult<Self> {
        let kind = match source {
            "kinesis" => Kind::Kinesis,
            "streams" => Kind::Streams,
            _ => return Err(PyValueError::new_err("source must be 'kinesis' or 'streams'")),
        };
        let read = py.detach(|| answer::read(&body, kind));
        let mut answer = read.map_err(|fault| BodyFault::Answer(fault.at))?;
        let records = Py::new(py, PyRecords(Arc::new(std::mem::take(&mut answer.records))))?;
        Ok(Self { records, answer })
    }

    #[getter]
    fn records(&self, py: Python<'_>) -> Py<PyRecords> {
        self.records.clone_ref(py)
    }

    #[getter]
    fn next_iterator(&self) -> Option<&str> {
        self.answer.next.as_deref()
    }

    #[getter]
    const fn millis_behind_latest(&self) -> Option<i64> {
        self.answer.millis_behind_latest
    }

    #[getter]
    fn child_shards(&self) -> Vec<Child> {
        self.answer.child_shards.clone()
    }
}
