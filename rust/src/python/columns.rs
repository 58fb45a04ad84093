//! A column plan.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::columns::{Column, Plan, Type};
use crate::dedupe::Rows;
use crate::split::{Misses, Split};
use crate::value::Tag;

#[pyclass(name = "Columns", module = "replicator._core", frozen)]
pub(super) struct PyColumns(pub(super) Arc<Plan>);

#[pymethods]
impl PyColumns {
    #[new]
    #[pyo3(signature = (columns, rest=Some("extra".to_owned())), text_signature = "(columns, rest='extra')")]
    fn new(columns: Vec<(String, String)>, rest: Option<String>) -> PyResult<Self> {
        let column = |(attribute, name): (String, String)| match Type::named(&name) {
            Some(kind) => Ok(Column { attribute: attribute.into(), kind }),
            None => Err(PyValueError::new_err(format!(
                "{attribute:?} has the type {name:?}: it must be text, numeric, numeric(P,S) with P up to 38, bigint, \
                 boolean, bytea, timestamptz, jsonb, text[], numeric[] or bytea[]"
            ))),
        };
        let columns = columns.into_iter().map(column).collect::<PyResult<Vec<_>>>()?;
        let plan =
            Plan::new(columns, rest.map(Into::into)).map_err(|fault| PyValueError::new_err(fault.to_string()))?;
        Ok(Self(Arc::new(plan)))
    }

    #[getter]
    fn columns(&self) -> Vec<(&str, String)> {
        self.0.columns().iter().map(|column| (&*column.attribute, column.kind.name())).collect()
    }

    #[getter]
    fn rest(&self) -> Option<&str> {
        self.0.rest()
    }
}

/// A row has the key attributes in columns of their own.
pub(super) fn check(plan: &Plan, rows: &Rows) -> PyResult<()> {
    for (name, _) in rows.columns.iter() {
        let name = String::from_utf8_lossy(name);
        if plan.place(name.as_bytes()).is_some() || plan.rest() == Some(&*name) {
            return Err(PyValueError::new_err(format!(
                "the key attribute {name:?} has a column already: leave it out"
            )));
        }
    }
    Ok(())
}

/// (attribute, type on the wire, how often) of what has not fitted.
pub(super) fn misses(plan: &Plan, split: &Split<'_>) -> Vec<(String, &'static str, u64)> {
    let names = plan.columns().iter().map(|column| &*column.attribute);
    names.zip(split.misses()).flat_map(|(name, counts)| by_type(name, counts)).collect()
}

/// (attribute, type on the wire, how often).
pub(super) fn by_type(attribute: &str, counts: &Misses) -> Vec<(String, &'static str, u64)> {
    let met = Tag::ALL.iter().zip(*counts).filter(|&(_, count)| count != 0);
    met.map(|(&(_, name), count)| (attribute.to_owned(), name, count)).collect()
}
