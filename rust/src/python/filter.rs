//! Patterns and projections: made once, used for every batch.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};

use crate::filter::Pattern;
use crate::project::Projection;

#[derive(FromPyObject)]
pub(super) enum Texts {
    One(PyBackedStr),
    Many(Vec<PyBackedStr>),
}

#[pyclass(name = "Pattern", module = "replicator._core", frozen)]
pub(super) struct PyPattern(pub(super) Arc<Pattern>);

#[pymethods]
impl PyPattern {
    #[new]
    fn new(patterns: Texts) -> PyResult<Self> {
        let texts: Vec<&str> = match &patterns {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts.iter().map(|text| &**text).collect(),
        };
        let pattern = Pattern::compile(&texts).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self(Arc::new(pattern)))
    }

    #[getter]
    fn names(&self) -> Vec<&str> {
        self.0.names().iter().map(String::as_str).collect()
    }
}

/// The pattern, if it says which items belong somewhere.
pub(super) fn of_items(pattern: Option<&Bound<'_, PyPattern>>) -> PyResult<Option<Arc<Pattern>>> {
    let Some(pattern) = pattern.map(|pattern| Arc::clone(&pattern.get().0)) else { return Ok(None) };
    match pattern.name_of_change() {
        Some(name) => Err(PyValueError::new_err(format!(
            "{name}: where the newest item of each key is kept, a pattern says which items belong there, and can \
             speak of dynamodb.Keys and dynamodb.NewImage only"
        ))),
        None => Ok(Some(pattern)),
    }
}

#[pyclass(name = "Projection", module = "replicator._core", frozen)]
pub(super) struct PyProjection(pub(super) Arc<Projection>);

#[pymethods]
impl PyProjection {
    #[new]
    #[pyo3(
        signature = (*, include=None, exclude=vec![], mask=vec![], hash=vec![], key=None),
        text_signature = "(*, include=None, exclude=(), mask=(), hash=(), key=None)"
    )]
    fn new(
        include: Option<Vec<String>>,
        exclude: Vec<String>,
        mask: Vec<String>,
        hash: Vec<String>,
        key: Option<PyBackedBytes>,
    ) -> PyResult<Self> {
        let key = key.as_deref().unwrap_or(&[]);
        Projection::new(include.as_deref(), &exclude, &mask, &hash, key)
            .map(|projection| Self(Arc::new(projection)))
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    fn check(&self, keys: Vec<String>) -> PyResult<()> {
        self.0.check(keys.iter().map(String::as_bytes)).map_err(|error| PyValueError::new_err(error.to_string()))
    }
}
