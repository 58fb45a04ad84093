//! Rows as a PostgreSQL binary COPY stream, by a column plan.
//!
//! In: rows and a plan. Out: header, one tuple a row, trailer. Columns: the key attributes in the given order (S
//! text, N numeric, B bytea), the plan's columns in its order, the rest as jsonb if the plan names it, then the
//! tail that every layout shares. Planned columns and the rest are NULL for a delete. Invariants: as in `copy`;
//! a key attribute is in its own column only.
//!
//! Formats: the `*_send` functions of PostgreSQL's types; of arrays `array_send` in
//! <https://github.com/postgres/postgres/blob/master/src/backend/utils/adt/arrayfuncs.c>.

use crate::binary;
use crate::columns::{Plan, Type};
use crate::dedupe::Rows;
use crate::encode::copy::{HEADER, NULL, TAIL_FIELDS, TRAILER, nbytes, write_jsonb, write_keys, write_tail};
use crate::number;
use crate::record::Event;
use crate::scan::Text;
use crate::split::{Split, Value};
use crate::value::{self, Notes};

/// 2000-01-01, where PostgreSQL's timestamps begin, in microseconds since 1970.
const EPOCH_US: i64 = 946_684_800_000_000;
/// Room for a column's length and what a number or a text gains by its form.
const COLUMN_MAX: usize = 16;

/// The rows `lo` to before `hi`, cut to those there are.
pub fn stream(rows: &Rows, plan: &Plan, lo: usize, hi: usize) -> Vec<u8> {
    let chosen = rows.range(lo, hi);
    let first = chosen.start;
    let room = nbytes(rows, lo, hi) + COLUMN_MAX * plan.columns().len() * chosen.len();
    let mut out = Vec::with_capacity(HEADER.len() + room + TRAILER.len());
    out.extend_from_slice(HEADER);
    let planned = plan.columns().len() + usize::from(plan.rest().is_some());
    let fields = ((rows.columns.len() + planned) as u16 + TAIL_FIELDS).to_be_bytes();
    let (mut split, mut scratch) = (Split::new(plan), Vec::new());
    for row in chosen {
        let view = rows.view(row);
        out.extend_from_slice(&fields);
        write_keys(&mut out, rows, view);
        if view.change.event == Event::Remove {
            for _ in 0..planned {
                out.extend_from_slice(NULL);
            }
        } else {
            let image = view.raw(view.change.new);
            split.read(image, |name| rows.columns.iter().any(|(key, _)| **key == *name));
            for (column, &value) in plan.columns().iter().zip(split.values()) {
                write_value(&mut out, &mut scratch, image, &split, column.kind, value);
            }
            if plan.rest().is_some() {
                write_jsonb(&mut out, split.rest(), view.change.escaped);
            }
        }
        write_tail(&mut out, rows, row, first);
    }
    out.extend_from_slice(TRAILER);
    out
}

/// A field: its length, then its value in the form of its type.
#[inline]
fn write_value(out: &mut Vec<u8>, scratch: &mut Vec<u8>, b: &[u8], split: &Split<'_>, kind: Type, value: Value) {
    match value {
        Value::Absent => out.extend_from_slice(NULL),
        Value::Text(text) => sized(out, |out| text.append(b, out)),
        Value::Number(text) => write_number(out, b, text),
        Value::Whole(value) => {
            out.extend_from_slice(&8_u32.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
        Value::Boolean(value) => out.extend_from_slice(&[0, 0, 0, 1, u8::from(value)]),
        Value::Binary(text) => sized(out, |out| binary::append(b, text, out)),
        Value::Instant(us) => {
            out.extend_from_slice(&8_u32.to_be_bytes());
            out.extend_from_slice(&(us - EPOCH_US).to_be_bytes());
        }
        Value::Any(start, end) => {
            scratch.clear();
            value::append_plain(b, start, end, &mut Notes::default(), scratch);
            write_jsonb(out, scratch, false);
        }
        Value::Set(first, len) => sized(out, |out| write_array(out, b, split.elements(first, len), kind)),
    }
}

/// A one-dimensional array without NULLs.
fn write_array(out: &mut Vec<u8>, b: &[u8], elements: &[Text], kind: Type) {
    // The element types' numbers, from pg_type.dat.
    let element: u32 = match kind {
        Type::NumericArray => 1700,
        Type::ByteaArray => 17,
        _ => 25,
    };
    // Dimensions, flags, type; then of the one dimension its length and first index. An empty array has none.
    out.extend_from_slice(&u32::from(!elements.is_empty()).to_be_bytes());
    out.extend_from_slice(&0_u32.to_be_bytes());
    out.extend_from_slice(&element.to_be_bytes());
    if elements.is_empty() {
        return;
    }
    out.extend_from_slice(&(elements.len() as u32).to_be_bytes());
    out.extend_from_slice(&1_u32.to_be_bytes());
    for &text in elements {
        match kind {
            Type::NumericArray => write_number(out, b, text),
            Type::ByteaArray => sized(out, |out| binary::append(b, text, out)),
            _ => sized(out, |out| text.append(b, out)),
        }
    }
}

fn write_number(out: &mut Vec<u8>, b: &[u8], text: Text) {
    number::write_numeric(&b[text.start..text.end], out);
}

/// What `write` appends, its length first.
#[inline(always)]
fn sized(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let place = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let len = (out.len() - place - 4) as u32;
    out[place..place + 4].copy_from_slice(&len.to_be_bytes());
}
