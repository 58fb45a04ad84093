//! Rows as a PostgreSQL binary COPY stream.
//!
//! In: rows. Out: header, one tuple a row, trailer. Columns: the key attributes in the given order (S text, N
//! numeric, B bytea), `item` jsonb (NULL for a delete), `version` numeric, `deleted` bool. Invariant: every
//! field carries its exact length; numbers lose no digit.
//!
//! Format: <https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format".

use crate::change::View;
use crate::dedupe::Rows;
use crate::key::{self, KeyAttribute, KeyType};
use crate::number::{Number, write_fields};
use crate::record::{Event, Version};
use crate::value;

pub(crate) const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
pub(crate) const TRAILER: &[u8] = &(-1_i16).to_be_bytes();
pub(crate) const NULL: &[u8] = &(-1_i32).to_be_bytes();
/// Fields that `write_tail` writes.
pub(crate) const TAIL_FIELDS: u16 = 2;
/// Room for a row's lengths, version and flag; more is only slower.
pub(crate) const FIELDS_MAX: usize = 96;
/// The only version of `jsonb`'s binary form there is.
const JSONB_VERSION: u8 = 1;

/// The rows `lo` to before `hi`, cut to those there are.
pub fn stream(rows: &Rows, lo: usize, hi: usize) -> Vec<u8> {
    let hi = hi.min(rows.rows.len());
    let chosen = rows.rows.get(lo.min(hi)..hi).unwrap_or(&[]);
    let size = |view: View<'_>| view.plain().len() + view.key().len() + FIELDS_MAX;
    let room = chosen.iter().map(|&r| size(rows.batch.view(r))).sum::<usize>();
    let mut out = Vec::with_capacity(HEADER.len() + room + TRAILER.len());
    out.extend_from_slice(HEADER);
    let fields = (rows.columns.len() as u16 + 1 + TAIL_FIELDS).to_be_bytes();
    for &r in chosen {
        let view = rows.batch.view(r);
        let deleted = view.change.event == Event::Remove;
        out.extend_from_slice(&fields);
        write_key(&mut out, rows, view);
        if deleted {
            out.extend_from_slice(NULL);
        } else {
            write_jsonb(&mut out, view.plain());
        }
        write_tail(&mut out, view);
    }
    out.extend_from_slice(TRAILER);
    out
}

/// The state that each row's changes of its instant began with, as a COPY stream of its own: the key columns
/// and `before` jsonb, NULL where no item was there. Rows whose first change doesn't tell it are left out.
pub fn before(rows: &Rows) -> Vec<u8> {
    let mut out = HEADER.to_vec();
    let fields = (rows.columns.len() as u16 + 1).to_be_bytes();
    let mut plain = Vec::new();
    for first in rows.firsts() {
        let old = first.raw(first.change.old);
        if old.is_empty() && first.change.event != Event::Insert {
            continue;
        }
        plain.clear();
        if !old.is_empty() {
            value::write_plain(old, &mut plain);
        }
        if memchr::memmem::find(&plain, b"\\u0000").is_some() {
            // jsonb refuses it, so no stored item can be equal.
            continue;
        }
        out.extend_from_slice(&fields);
        write_key(&mut out, rows, first);
        if old.is_empty() {
            out.extend_from_slice(NULL);
        } else {
            write_jsonb(&mut out, &plain);
        }
    }
    out.extend_from_slice(TRAILER);
    out
}

pub(crate) fn write_key(out: &mut Vec<u8>, rows: &Rows, view: View<'_>) {
    for (name, _) in rows.columns.iter() {
        match key::attributes(view.key()).find(|attribute| *attribute.name == **name) {
            Some(KeyAttribute { kind: KeyType::N, value, .. }) => Number::read(value).write_numeric(out),
            Some(KeyAttribute { value, .. }) => {
                out.extend_from_slice(&(value.len() as u32).to_be_bytes());
                out.extend_from_slice(value);
            }
            None => out.extend_from_slice(NULL),
        }
    }
}

pub(crate) fn write_jsonb(out: &mut Vec<u8>, item: &[u8]) {
    out.extend_from_slice(&(item.len() as u32 + 1).to_be_bytes());
    out.push(JSONB_VERSION);
    out.extend_from_slice(item);
}

/// The fields that end every tuple, whatever its layout: `version` and `deleted`.
pub(crate) fn write_tail(out: &mut Vec<u8>, view: View<'_>) {
    write_version(out, view.change.version);
    out.extend_from_slice(&[0, 0, 0, 1, u8::from(view.change.event == Event::Remove)]);
}

fn write_version(out: &mut Vec<u8>, version: Version) {
    let mut groups = [0; 12];
    let groups = version.groups(&mut groups);
    let weight = (groups.len() as i16 - 1).max(0);
    let used = groups.iter().rposition(|&group| group != 0).map_or(0, |last| last + 1);
    write_fields(out, &groups[..used], weight, false, 0);
}
