//! Kafka's record batches, ready for a producer.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::encode::kafka::{Batch, Producer};

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
