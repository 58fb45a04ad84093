//! Decoded changes: every change of a batch.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::columns::{PyColumns, by_type, misses};
use super::filter::{PyPattern, PyProjection, of_items};
use super::kafka::{PyKafkaBatch, Values, form_named};
use super::records::PyRecords;
use super::rows::{PyRows, column};
use crate::change::{self, ChangeBatch, View};
use crate::columns::Plan;
use crate::compress::{Codec, Compressor};
use crate::dedupe::Rows;
use crate::encode::json;
use crate::encode::kafka::{self, Options};
use crate::encode::kafka_aside;
use crate::filter;
use crate::partition::{partition, payloads};
use crate::position;
use crate::split::{self, Split};

#[pyclass(name = "Rejection", module = "replicator._core", frozen)]
pub(super) struct PyRejection(pub(super) change::Rejection);

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
    fn sub_sequence_number(&self) -> u32 {
        self.0.records.entries().get(self.0.index as usize).map_or(0, |entry| entry.sub_sequence_number)
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

    #[getter]
    fn late(&self) -> bool {
        self.0.late
    }

    fn __repr__(&self) -> String {
        format!("<Rejection {} of record {}: {}>", self.0.code, self.0.index, self.0.message)
    }
}

pub(super) fn rejections(found: &[change::Rejection]) -> Vec<PyRejection> {
    found.iter().cloned().map(PyRejection).collect()
}

#[pyclass(name = "ChangeBatch", module = "replicator._core", frozen)]
pub(super) struct PyChangeBatch(pub(super) Arc<ChangeBatch>);

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
    fn late(&self) -> usize {
        self.0.late.len()
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

    fn marked_late(&self) -> Self {
        Self(Arc::new(self.0.marked_late()))
    }

    fn split(&self, py: Python<'_>, sequence_number: &str) -> (Self, Self) {
        let (until, behind) = py.detach(|| position::split(&self.0, sequence_number));
        (Self(Arc::new(until)), Self(Arc::new(behind)))
    }

    #[pyo3(signature = (table, keys, pattern=None, projection=None))]
    fn newest(
        &self,
        py: Python<'_>,
        table: &str,
        keys: Vec<(String, String)>,
        pattern: Option<&Bound<'_, PyPattern>>,
        projection: Option<&Bound<'_, PyProjection>>,
    ) -> PyResult<PyRows> {
        if self.0.is_projected() && (pattern.is_some() || projection.is_some()) {
            // What is stored of an instant is settled by what is seen of all its changes, and of a delete that only
            // the pattern made nothing is left to be seen.
            return Err(PyValueError::new_err("the batch is projected already: give newest both at once"));
        }
        let columns = keys.into_iter().map(column).collect::<PyResult<Vec<_>>>()?;
        let pattern = of_items(pattern)?;
        let projection = projection.map(|projection| Arc::clone(&projection.get().0));
        if let Some(projection) = &projection {
            let names = columns.iter().map(|(name, _)| &**name);
            projection.check(names).map_err(|error| PyValueError::new_err(error.to_string()))?;
        }
        let batch = Arc::clone(&self.0);
        Ok(PyRows(Arc::new(py.detach(|| Rows::shown(batch, table, columns, pattern, projection))?)))
    }

    #[getter]
    fn filtered(&self) -> usize {
        self.0.hidden.len()
    }

    fn filter(&self, py: Python<'_>, pattern: &Bound<'_, PyPattern>) -> Self {
        let pattern = Arc::clone(&pattern.get().0);
        Self(Arc::new(py.detach(|| filter::leave_out(&self.0, &pattern))))
    }

    fn project(&self, py: Python<'_>, projection: &Bound<'_, PyProjection>) -> PyResult<Self> {
        let projection = &projection.get().0;
        Ok(Self(Arc::new(py.detach(|| projection.apply(&self.0))?)))
    }

    #[pyo3(signature = (form="plain", *, compression="none"))]
    fn json_lines<'py>(&self, py: Python<'py>, form: &str, compression: &str) -> PyResult<Bound<'py, PyBytes>> {
        let (form, codec) = (form_named(form)?, codec_named(compression)?);
        let out = py.detach(|| {
            let lines = json::lines(&self.0, form);
            let Some(codec) = codec else { return Ok(lines) };
            let mut out = Vec::new();
            Compressor::new(codec, None)?.compress(&lines, &mut out).map(|()| out)
        })?;
        Ok(PyBytes::new(py, &out))
    }

    #[pyo3(signature = (us, *, by_table=false))]
    fn partition(&self, py: Python<'_>, us: i64, by_table: bool) -> PyResult<Vec<(Option<String>, i64, Self)>> {
        if us <= 0 {
            return Err(PyValueError::new_err("us must be positive"));
        }
        let partitions = py.detach(|| partition(&self.0, us, by_table));
        let given = partitions.into_iter();
        Ok(given
            .map(|one| (one.table.as_deref().map(str::to_owned), one.start_us, Self(Arc::new(one.batch))))
            .collect())
    }

    fn payloads<'py>(&self, py: Python<'py>, delimiter: &[u8]) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &py.detach(|| payloads(&self.0, delimiter)))
    }

    fn misses(&self, py: Python<'_>, columns: &PyColumns) -> Vec<(String, &'static str, u64)> {
        py.detach(|| {
            let mut split = Split::new(&columns.0);
            for view in self.0.views().filter(|view| !view.change.new.is_empty()) {
                split.read(view.raw(view.change.new), |_| false);
            }
            misses(&columns.0, &split)
        })
    }

    fn unplanned(&self, py: Python<'_>, columns: &PyColumns, table: &str) -> Vec<(String, &'static str, u64)> {
        let found = py.detach(|| {
            let is_wanted =
                |view: View<'_>| self.0.tables.get(view.table as usize).is_some_and(|name| **name == *table);
            split::unplanned(&self.0, &columns.0, is_wanted)
        });
        found.iter().flat_map(|(name, counts)| by_type(name, counts)).collect()
    }

    #[cfg(feature = "parquet")]
    #[pyo3(signature = (columns=None, *, images=true, compression="zstd", level=3))]
    fn parquet<'py>(
        &self,
        py: Python<'py>,
        columns: Option<&PyColumns>,
        images: bool,
        compression: &str,
        level: i32,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let level = match compression {
            "zstd" if (1..=22).contains(&level) => Some(level),
            "none" => None,
            _ => return Err(PyValueError::new_err("compression must be 'none', or 'zstd' with a level from 1 to 22")),
        };
        let plan = plan_of(columns);
        let file = py.detach(|| crate::encode::parquet::file(&self.0, plan, images, level));
        // Nothing of a batch can make the writer fail.
        let file = file.map_err(|error| pyo3::exceptions::PyRuntimeError::new_err(error.to_string()))?;
        Ok(PyBytes::new(py, &file))
    }

    #[pyo3(signature = (
        partitions, *, form=Values::Form("plain".to_owned()), compression="none", table=None, headers=true,
        tombstones=true, batch_bytes_max=1_000_000
    ), text_signature = "($self, partitions, *, form='plain', compression='none', table=None, headers=True, \
                         tombstones=True, batch_bytes_max=1000000)")]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn kafka(
        &self,
        py: Python<'_>,
        partitions: u32,
        form: Values<'_>,
        compression: &str,
        table: Option<&str>,
        headers: bool,
        tombstones: bool,
        batch_bytes_max: usize,
    ) -> PyResult<Vec<PyKafkaBatch>> {
        if !(1..=kafka::PARTITIONS_MAX).contains(&partitions) {
            return Err(PyValueError::new_err(format!("partitions must be 1 to {}", kafka::PARTITIONS_MAX)));
        }
        if batch_bytes_max > kafka::BYTES_MAX {
            return Err(PyValueError::new_err(format!("batch_bytes_max must be at most {}", kafka::BYTES_MAX)));
        }
        let compression = codec_named(compression)?;
        let options = Options {
            partitions,
            form: form.form()?,
            schema: form.schema(),
            compression,
            table,
            headers,
            tombstones,
            bytes_max: batch_bytes_max,
        };
        let batches = py.detach(|| kafka::batches(&self.0, &options))?;
        Ok(batches.into_iter().map(PyKafkaBatch).collect())
    }

    #[pyo3(signature = (
        table, keys=Vec::new(), *, form=Values::Form("plain".to_owned()), compression="none", headers=true,
        record_bytes_max=None
    ), text_signature = "($self, table, keys=..., *, form='plain', compression='none', headers=True, \
                         record_bytes_max=None)")]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn set_aside<'py>(
        &self,
        py: Python<'py>,
        table: &str,
        keys: Vec<Vec<u8>>,
        form: Values<'_>,
        compression: &str,
        headers: bool,
        record_bytes_max: Option<usize>,
    ) -> PyResult<(Self, Vec<Bound<'py, PyBytes>>)> {
        let options = Options {
            partitions: 1,
            form: form.form()?,
            schema: form.schema(),
            compression: codec_named(compression)?,
            table: Some(table),
            headers,
            tombstones: false,
            bytes_max: kafka::BYTES_MAX,
        };
        let (made, joined) = py.detach(|| kafka_aside::set_aside(&self.0, &options, &keys, record_bytes_max))?;
        Ok((Self(Arc::new(made)), joined.iter().map(|key| PyBytes::new(py, key)).collect()))
    }
}

fn codec_named(name: &str) -> PyResult<Option<Codec>> {
    match Codec::from_name(name) {
        None if name != "none" => Err(PyValueError::new_err("compression must be 'none', 'gzip', 'lz4' or 'zstd'")),
        codec => Ok(codec),
    }
}

fn plan_of(columns: Option<&PyColumns>) -> Option<&Plan> {
    columns.map(|columns| &*columns.0)
}

#[pyfunction]
#[pyo3(signature = (records, *, table=None, keep_all=false))]
pub(super) fn decode(py: Python<'_>, records: &PyRecords, table: Option<&str>, keep_all: bool) -> PyChangeBatch {
    let records = Arc::clone(&records.0);
    PyChangeBatch(Arc::new(py.detach(|| change::decode(records, table, keep_all))))
}
