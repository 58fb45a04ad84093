//! The boundary to Python: what `_core.pyi` promises, and nothing else.
//!
//! In: bytes and small values. Out: handles, counts, positions, finished payloads. Invariant: whatever touches
//! more than one record runs detached from the interpreter.

// Arguments arrive by value: that is how they are taken over from Python.
#![allow(clippy::needless_pass_by_value)]

use std::sync::Arc;

use pyo3::exceptions::{PyIndexError, PyRuntimeWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict};

use crate::change::{self, ChangeBatch};
use crate::dedupe::{Column, Rows};
use crate::document;
use crate::encode::copy;
use crate::encode::json::{self, Form};
use crate::error::Code;
use crate::frame::{EventStream, ShardEvent};
use crate::key::KeyType;
use crate::records::{Records, TooLarge};

pyo3::create_exception!(_core, FrameError, PyValueError, "An event-stream body that can't be trusted further.");

impl From<TooLarge> for PyErr {
    fn from(error: TooLarge) -> Self {
        PyValueError::new_err(error.to_string())
    }
}

#[pyclass(name = "Rejection", module = "replicator._core", frozen)]
struct PyRejection(change::Rejection);

#[pymethods]
impl PyRejection {
    #[getter]
    fn index(&self) -> u32 {
        self.0.index
    }

    #[getter]
    fn line(&self) -> u32 {
        self.0.records.entries().get(self.0.index as usize).map_or(0, |entry| entry.line)
    }

    #[getter]
    fn part(&self) -> u32 {
        self.0.part
    }

    #[getter]
    fn code(&self) -> &str {
        &self.0.code
    }

    #[getter]
    fn message(&self) -> &str {
        &self.0.message
    }

    #[getter]
    fn raw<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.records.payload(self.0.index as usize))
    }

    #[getter]
    fn sequence_number(&self) -> &str {
        self.0.records.sequence_number(self.0.index as usize)
    }

    #[getter]
    fn table(&self) -> Option<&str> {
        self.0.table.as_deref()
    }

    fn __repr__(&self) -> String {
        format!("<Rejection {} of record {}: {}>", self.0.code, self.0.index, self.0.message)
    }
}

fn rejections(found: &[change::Rejection]) -> Vec<PyRejection> {
    found.iter().cloned().map(PyRejection).collect()
}

#[pyclass(name = "Records", module = "replicator._core", frozen)]
struct PyRecords(Arc<Records>);

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
struct PyShardEvent {
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
struct PyEventStream(EventStream);

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

#[pyclass(name = "ChangeBatch", module = "replicator._core", frozen)]
struct PyChangeBatch(Arc<ChangeBatch>);

#[pymethods]
impl PyChangeBatch {
    fn __len__(&self) -> usize {
        self.0.order.len()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.0.nbytes()
    }

    #[getter]
    fn records(&self) -> usize {
        self.0.records()
    }

    #[getter]
    fn duplicates(&self) -> usize {
        self.0.duplicates
    }

    #[getter]
    fn ambiguous(&self) -> usize {
        self.0.ambiguous
    }

    #[getter]
    fn rejections(&self) -> Vec<PyRejection> {
        rejections(&self.0.rejections)
    }

    #[getter]
    fn tables<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = py.detach(|| self.0.table_counts());
        let tables = PyDict::new(py);
        for (name, count) in counts {
            tables.set_item(name.as_deref(), count)?;
        }
        Ok(tables)
    }

    #[getter]
    fn first_sequence_number(&self) -> Option<&str> {
        self.0.parts.iter().find_map(|part| part.records.first_sequence_number())
    }

    #[getter]
    fn last_sequence_number(&self) -> Option<&str> {
        self.0.parts.iter().rev().find_map(|part| part.records.last_sequence_number())
    }

    #[getter]
    fn last_arrival_ms(&self) -> Option<i64> {
        self.0.parts.iter().filter_map(|part| part.records.last_arrival_ms()).max()
    }

    #[getter]
    fn first_event_us(&self) -> Option<i64> {
        self.0.event_us().map(|(first, _)| first)
    }

    #[getter]
    fn last_event_us(&self) -> Option<i64> {
        self.0.event_us().map(|(_, last)| last)
    }

    #[staticmethod]
    fn concat(py: Python<'_>, batches: Vec<Py<Self>>) -> Self {
        let batches: Vec<_> = batches.iter().map(|batch| Arc::clone(&batch.get().0)).collect();
        Self(Arc::new(py.detach(|| ChangeBatch::concat(&batches))))
    }

    fn newest(&self, py: Python<'_>, table: &str, keys: Vec<(String, String)>) -> PyResult<PyRows> {
        let columns = keys.into_iter().map(column).collect::<PyResult<Vec<_>>>()?;
        let batch = Arc::clone(&self.0);
        Ok(PyRows(Arc::new(py.detach(|| Rows::newest(batch, table, columns)))))
    }

    #[pyo3(signature = (form="plain"))]
    fn json_lines<'py>(&self, py: Python<'py>, form: &str) -> PyResult<Bound<'py, PyBytes>> {
        let form = match form {
            "plain" => Form::Plain,
            "dynamodb" => Form::Dynamodb,
            _ => return Err(PyValueError::new_err("form must be 'plain' or 'dynamodb'")),
        };
        let lines = py.detach(|| json::lines(&self.0, form));
        Ok(PyBytes::new(py, &lines))
    }
}

fn column((name, letter): (String, String)) -> PyResult<Column> {
    let kind = match letter.as_bytes() {
        [letter] => KeyType::from_letter(*letter),
        _ => None,
    };
    let kind = kind.ok_or_else(|| PyValueError::new_err("a key attribute's type must be 'S', 'N' or 'B'"))?;
    Ok((name.into_bytes().into_boxed_slice(), kind))
}

#[pyclass(name = "Rows", module = "replicator._core", frozen)]
struct PyRows(Arc<Rows>);

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
        Ok(Self(Arc::new(py.detach(|| self.0.without(&rows)))))
    }
}

#[pyfunction]
#[pyo3(signature = (records, *, table=None, keep_all=false))]
fn decode(py: Python<'_>, records: &PyRecords, table: Option<&str>, keep_all: bool) -> PyChangeBatch {
    let records = Arc::clone(&records.0);
    PyChangeBatch(Arc::new(py.detach(|| change::decode(records, table, keep_all))))
}

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
    let frame_error = py.get_type::<FrameError>();
    frame_error.setattr("__module__", "replicator._core")?;
    module.add("FrameError", frame_error)?;
    module.add_class::<PyRejection>()?;
    module.add_class::<PyRecords>()?;
    module.add_class::<PyShardEvent>()?;
    module.add_class::<PyEventStream>()?;
    module.add_class::<PyChangeBatch>()?;
    module.add_class::<PyRows>()?;
    module.add_function(wrap_pyfunction!(decode, module)?)
}
