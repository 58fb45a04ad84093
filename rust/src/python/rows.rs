//! The newest change per key: what state sinks take.

use std::sync::Arc;

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::PyBytes;

use super::batch::{PyRejection, rejections};
use super::columns::{PyColumns, check, misses};
use crate::dedupe::{Column, Rows};
use crate::encode::dynamodb::{self, VersionAttribute};
use crate::encode::{arrays, copy, copy_columns, crate_rows};
use crate::key::KeyType;
use crate::record::{Event, Version};
use crate::settle::{self, Settled, Stored};
use crate::split::Split;

pub(super) fn column((name, letter): (String, String)) -> PyResult<Column> {
    let kind = match letter.as_bytes() {
        [letter] => KeyType::from_letter(*letter),
        _ => None,
    };
    let kind = kind.ok_or_else(|| PyValueError::new_err("a key attribute's type must be 'S', 'N' or 'B'"))?;
    Ok((name.into_bytes().into_boxed_slice(), kind))
}

/// Place of the row, item, version, chain.
type StoredRow = (usize, Option<PyBackedStr>, u64, PyBackedBytes);

#[pyclass(name = "Settled", module = "replicator._core", frozen)]
pub(super) struct PySettled(Settled);

#[pymethods]
impl PySettled {
    #[getter]
    fn later(&self) -> usize {
        self.0.later
    }

    #[getter]
    fn duplicates(&self) -> usize {
        self.0.duplicates
    }

    #[getter]
    fn superseded(&self) -> usize {
        self.0.superseded
    }

    #[getter]
    fn ambiguous(&self) -> usize {
        self.0.ambiguous
    }

    #[getter]
    fn rows(&self) -> Vec<usize> {
        self.0.updates.iter().map(|update| update.row).collect()
    }

    #[getter]
    fn items(&self) -> Vec<Option<&str>> {
        self.0.updates.iter().map(|update| update.item.as_deref()).collect()
    }

    #[getter]
    fn versions(&self) -> Vec<String> {
        let text = |version: Version| {
            let mut out = Vec::new();
            version.write(&mut out);
            String::from_utf8_lossy(&out).into_owned()
        };
        self.0.updates.iter().map(|update| text(update.version)).collect()
    }

    #[getter]
    fn chains<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.0.updates.iter().map(|update| PyBytes::new(py, &update.chain)).collect()
    }
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
    fn nbytes(&self) -> usize {
        copy::nbytes(&self.0, 0, usize::MAX)
    }

    #[getter]
    fn rejections(&self) -> Vec<PyRejection> {
        rejections(&self.0.rejections)
    }

    #[pyo3(signature = (lo=0, hi=None, *, columns=None))]
    fn copy<'py>(
        &self,
        py: Python<'py>,
        lo: usize,
        hi: Option<usize>,
        columns: Option<&PyColumns>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let hi = hi.unwrap_or(usize::MAX);
        let stream = if let Some(PyColumns(plan)) = columns {
            check(plan, &self.0)?;
            py.detach(|| copy_columns::stream(&self.0, plan, lo, hi))
        } else {
            py.detach(|| copy::stream(&self.0, lo, hi))
        };
        Ok(PyBytes::new(py, &stream))
    }

    fn misses(&self, py: Python<'_>, columns: &PyColumns) -> PyResult<Vec<(String, &'static str, u64)>> {
        let (rows, plan) = (&*self.0, &*columns.0);
        check(plan, rows)?;
        Ok(py.detach(|| {
            let mut split = Split::new(plan);
            for view in rows.rows.iter().map(|&r| rows.batch.view(r)).filter(|view| view.change.event != Event::Remove)
            {
                split.read(view.raw(view.change.new), |_| false);
            }
            misses(plan, &split)
        }))
    }

    #[pyo3(signature = (lo=0, hi=None))]
    fn arrays<'py>(&self, py: Python<'py>, lo: usize, hi: Option<usize>) -> Vec<Bound<'py, PyBytes>> {
        let columns = py.detach(|| arrays::columns(&self.0, lo, hi.unwrap_or(usize::MAX)));
        columns.iter().map(|column| PyBytes::new(py, column)).collect()
    }

    #[pyo3(signature = (stored, lo=0, *, came_first=false))]
    fn settle(&self, py: Python<'_>, stored: Vec<StoredRow>, lo: usize, came_first: bool) -> PyResult<PySettled> {
        let count = self.0.range(lo, usize::MAX).len();
        if stored.iter().any(|one| one.0 >= count) {
            return Err(PyIndexError::new_err("no such row"));
        }
        Ok(PySettled(py.detach(|| {
            settle::settle(
                &self.0,
                lo,
                stored.iter().map(|(row, item, us, chain)| Stored { row: *row, item: item.as_deref(), us: *us, chain }),
                came_first,
            )
        })))
    }

    #[pyo3(signature = (lo=0, hi=None, *, version_attribute=None, generation=0))]
    fn dynamodb_items<'py>(
        &self,
        py: Python<'py>,
        lo: usize,
        hi: Option<usize>,
        version_attribute: Option<String>,
        generation: u32,
    ) -> Vec<(Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>)> {
        let version = version_attribute.map(|name| VersionAttribute { name, generation });
        let requests = py.detach(|| dynamodb::items(&self.0, lo, hi.unwrap_or(usize::MAX), version.as_ref()));
        let mut pieces = requests.iter();
        let pair = || Some((PyBytes::new(py, pieces.next()?), present(py, pieces.next()?)));
        std::iter::from_fn(pair).collect()
    }

    #[pyo3(signature = (table, lo=0, hi=None, *, version_attribute, generation=0))]
    fn dynamodb_puts<'py>(
        &self,
        py: Python<'py>,
        table: &str,
        lo: usize,
        hi: Option<usize>,
        version_attribute: String,
        generation: u32,
    ) -> Vec<Option<Bound<'py, PyBytes>>> {
        let version = VersionAttribute { name: version_attribute, generation };
        let bodies = py.detach(|| dynamodb::puts(&self.0, lo, hi.unwrap_or(usize::MAX), table, &version));
        bodies.iter().map(|body| present(py, body)).collect()
    }

    #[pyo3(signature = (table, side, lo=0, hi=None, *, version_attribute, generation=0, rows_max=1))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn dynamodb_transactions<'py>(
        &self,
        py: Python<'py>,
        table: &str,
        side: &str,
        lo: usize,
        hi: Option<usize>,
        version_attribute: String,
        generation: u32,
        rows_max: usize,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        if !(1..=dynamodb::TRANSACTION_ROWS_MAX).contains(&rows_max) {
            return Err(PyValueError::new_err(
                "rows_max must be 1 to 50: a transaction has 100 actions, a row takes two",
            ));
        }
        let version = VersionAttribute { name: version_attribute, generation };
        let hi = hi.unwrap_or(usize::MAX);
        let bodies = py.detach(|| dynamodb::transactions(&self.0, lo, hi, (table, side), &version, rows_max));
        Ok(bodies.iter().map(|body| PyBytes::new(py, body)).collect())
    }

    #[pyo3(signature = (lo=0, hi=None, *, generation=0, dynamic=true))]
    fn crate_args<'py>(
        &self,
        py: Python<'py>,
        lo: usize,
        hi: Option<usize>,
        generation: u32,
        dynamic: bool,
    ) -> Bound<'py, PyBytes> {
        let form = crate_rows::Form { dynamic, generation };
        PyBytes::new(py, &py.detach(|| crate_rows::bulk_args(&self.0, lo, hi.unwrap_or(usize::MAX), form)))
    }

    #[cfg(feature = "parquet")]
    #[pyo3(signature = (names, *, generation=0))]
    fn parquet<'py>(&self, py: Python<'py>, names: Vec<String>, generation: u32) -> PyResult<Bound<'py, PyBytes>> {
        if names.len() != self.0.columns.len() {
            return Err(PyValueError::new_err("a name for each key attribute, and no other"));
        }
        let file = py.detach(|| crate::encode::parquet_rows::file(&self.0, &names, generation));
        // Nothing of rows can make the writer fail.
        let file = file.map_err(|error| pyo3::exceptions::PyRuntimeError::new_err(error.to_string()))?;
        Ok(PyBytes::new(py, &file))
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

#[pyfunction]
#[pyo3(signature = (plain, *, dynamic=true))]
pub(super) fn crate_item<'py>(py: Python<'py>, plain: &str, dynamic: bool) -> Bound<'py, PyBytes> {
    let mut out = Vec::with_capacity(plain.len() + plain.len() / 4);
    crate_rows::write_item(&mut out, plain.as_bytes(), dynamic);
    PyBytes::new(py, &out)
}

/// A piece, if there is one.
fn present<'py>(py: Python<'py>, piece: &[u8]) -> Option<Bound<'py, PyBytes>> {
    (!piece.is_empty()).then(|| PyBytes::new(py, piece))
}
