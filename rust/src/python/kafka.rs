//! Kafka's record batches, ready for a producer, and the schemas of their values.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::columns::PyColumns;
use crate::encode::json::Form;
use crate::encode::kafka::{Batch, Producer};
use crate::encode::registered::{Format, Schema};

#[pyclass(name = "Schema", module = "replicator._core", frozen)]
pub(super) struct PySchema(Schema);

#[pymethods]
impl PySchema {
    #[new]
    #[pyo3(signature = (id, columns, *, format="avro", value="change"))]
    fn new(id: u32, columns: &PyColumns, format: &str, value: &str) -> PyResult<Self> {
        let format = match format {
            "avro" => Format::Avro,
            "json_schema" => Format::Json,
            _ => return Err(PyValueError::new_err("format must be 'avro' or 'json_schema'")),
        };
        if !matches!(value, "change" | "item") {
            return Err(PyValueError::new_err("value must be 'change' or 'item'"));
        }
        let plan = Arc::clone(&columns.0);
        Ok(Self(Schema { id, format, is_change: value == "change", plan }))
    }

    #[getter]
    fn id(&self) -> u32 {
        self.0.id
    }
}

/// What records look like: JSON of a form, or values by a schema, whose keys are plain.
#[derive(FromPyObject)]
pub(super) enum Values<'py> {
    Form(String),
    Schema(PyRef<'py, PySchema>),
}

impl Values<'_> {
    pub(super) fn form(&self) -> PyResult<Form> {
        match self {
            Self::Form(name) => form_named(name),
            Self::Schema(_) => Ok(Form::Plain),
        }
    }

    pub(super) fn schema(&self) -> Option<&Schema> {
        match self {
            Self::Form(_) => None,
            Self::Schema(schema) => Some(&schema.0),
        }
    }
}

pub(super) fn form_named(name: &str) -> PyResult<Form> {
    let message = "form must be 'plain', 'dynamodb', 'debezium' or 'change'";
    Form::from_name(name).ok_or_else(|| PyValueError::new_err(message))
}

#[pyclass(name = "KafkaBatch", module = "replicator._core", frozen)]
pub(super) struct PyKafkaBatch(pub(super) Batch);

#[pymethods]
impl PyKafkaBatch {
    #[getter]
    fn partition(&self) -> u32 {
        self.0.partition
    }

    #[getter]
    fn count(&self) -> u32 {
        self.0.count
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.0.as_bytes().len()
    }

    #[getter]
    fn base_timestamp(&self) -> i64 {
        self.0.base_timestamp
    }

    #[getter]
    fn max_timestamp(&self) -> i64 {
        self.0.max_timestamp
    }

    // Spelled out: a negative default is shown as `...` otherwise.
    #[pyo3(
        signature = (producer_id=-1, producer_epoch=-1, base_sequence=-1, transactional=false),
        text_signature = "($self, producer_id=-1, producer_epoch=-1, base_sequence=-1, transactional=False)"
    )]
    fn bytes<'py>(
        &self,
        py: Python<'py>,
        producer_id: i64,
        producer_epoch: i16,
        base_sequence: i32,
        transactional: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let producer = Producer { id: producer_id, epoch: producer_epoch, base_sequence, transactional };
        PyBytes::new_with(py, self.0.as_bytes().len(), |out| {
            self.0.write_for(producer, out);
            Ok(())
        })
    }

    fn __repr__(&self) -> String {
        format!("<KafkaBatch of {} records for partition {}>", self.0.count, self.0.partition)
    }
}
