//! Rows as arrays, one a column: what a prepared `unnest` takes.
//!
//! In: rows. Out: per column one text that PostgreSQL makes an array of: the columns of [`super::copy`] but `deleted`
//! (where `item` is NULL) and `ordinal`, which `unnest` counts itself. Invariant: all have one element a row.
//!
//! Keys, `version` and `chain` are array literals
//! (<https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO>). Items, which are many times longer and full of
//! quotes, are only joined by line feeds, for `string_to_array`: JSON without blanks holds none. An empty text is NULL.
//! Texts, not the binary form of arrays: drivers make that themselves, out of objects for each value.

use super::copy::{item, write_chain_bytes};
use crate::change::View;
use crate::dedupe::{Column, Rows};
use crate::key::{self, KeyAttribute, KeyType};
use crate::number::Number;
use crate::record::Event;

/// The rows `lo` to before `hi`, cut to those there are.
pub fn columns(rows: &Rows, lo: usize, hi: usize) -> Vec<Vec<u8>> {
    let literal = |write: &dyn Fn(&mut Vec<u8>, usize)| {
        let mut out = vec![b'{'];
        joined(rows, lo, hi, b',', &mut out, write);
        out.push(b'}');
        out
    };
    let keys = rows.columns.iter().map(|column| literal(&|out, row| write_key(out, rows.view(row), column)));
    let mut columns: Vec<Vec<u8>> = keys.collect();
    let mut items = Vec::with_capacity(rows.range(lo, hi).map(|row| rows.view(row).plain().len() + 1).sum());
    joined(rows, lo, hi, b'\n', &mut items, &|out, row| {
        if rows.view(row).change.event != Event::Remove {
            out.extend_from_slice(&item(rows.view(row)));
        }
    });
    columns.push(items);
    columns.push(literal(&|out, row| rows.version(row).write(out)));
    columns.push(literal(&|out, row| {
        let mut chain = Vec::with_capacity(32);
        write_chain_bytes(&mut chain, rows, row);
        write_bytea(out, &chain);
    }));
    columns
}

fn joined(rows: &Rows, lo: usize, hi: usize, by: u8, out: &mut Vec<u8>, write: &dyn Fn(&mut Vec<u8>, usize)) {
    for row in rows.range(lo, hi) {
        if row > lo {
            out.push(by);
        }
        write(out, row);
    }
}

fn write_key(out: &mut Vec<u8>, view: View<'_>, (name, _): &Column) {
    match key::attributes(view.key()).find(|attribute| *attribute.name == **name) {
        Some(KeyAttribute { kind: KeyType::N, value, .. }) => Number::read(value).write_fixed(out),
        Some(KeyAttribute { kind: KeyType::B, value, .. }) => write_bytea(out, value),
        Some(KeyAttribute { value, .. }) => {
            out.push(b'"');
            for &c in value {
                if matches!(c, b'"' | b'\\') {
                    out.push(b'\\');
                }
                out.push(c);
            }
            out.push(b'"');
        }
        None => out.extend_from_slice(b"NULL"),
    }
}

fn write_bytea(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(b"\"\\\\x");
    for byte in bytes {
        out.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
    }
    out.push(b'"');
}
