//! Rows as a PostgreSQL binary COPY stream.
//!
//! In: rows. Out: header, one tuple a row, trailer. Columns: the key attributes in the given order (S text, N
//! numeric, B bytea), `item` jsonb (NULL for a delete), `version` numeric, `deleted` bool, `chain` bytea (see
//! [`crate::instant`]), `ordinal` integer (the row's place from `lo` on). Invariant: every field carries its exact
//! length; numbers lose no digit.
//!
//! Format: <https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format".

use std::borrow::Cow;

use crate::change::View;
use crate::dedupe::{Column, Rows};
use crate::instant::{self, Chain, Item, Kind};
use crate::key::{self, KeyAttribute, KeyType};
use crate::nul;
use crate::number::{Number, write_fields};
use crate::record::{Event, Precision, Version};

pub(super) const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
pub(super) const TRAILER: &[u8] = &(-1_i16).to_be_bytes();
pub(super) const NULL: &[u8] = &(-1_i32).to_be_bytes();
/// Room for a row's lengths and our own columns; more is only slower.
const FIELDS_MAX: usize = 112;
/// Fields that `write_tail` writes.
pub(super) const TAIL_FIELDS: u16 = 4;
/// The only version of `jsonb`'s binary form there is.
const JSONB_VERSION: u8 = 1;

/// Room for the rows `lo` to before `hi`.
pub fn nbytes(rows: &Rows, lo: usize, hi: usize) -> usize {
    let size = |view: View<'_>| view.plain().len() + view.key().len() + FIELDS_MAX;
    rows.range(lo, hi).map(|row| size(rows.view(row))).sum()
}

/// The rows `lo` to before `hi`, cut to those there are.
pub fn stream(rows: &Rows, lo: usize, hi: usize) -> Vec<u8> {
    let chosen = rows.range(lo, hi);
    let first = chosen.start;
    let room = nbytes(rows, lo, hi);
    let mut out = Vec::with_capacity(HEADER.len() + room + TRAILER.len());
    out.extend_from_slice(HEADER);
    let fields = (rows.columns.len() as u16 + 1 + TAIL_FIELDS).to_be_bytes();
    for row in chosen {
        let view = rows.view(row);
        out.extend_from_slice(&fields);
        write_keys(&mut out, rows, view);
        write_item(&mut out, view);
        write_tail(&mut out, rows, row, first);
    }
    out.extend_from_slice(TRAILER);
    out
}

/// The fields of the key.
pub(super) fn write_keys(out: &mut Vec<u8>, rows: &Rows, view: View<'_>) {
    for column in rows.columns.iter() {
        write_key(out, view, column);
    }
}

/// The fields that end every tuple, whatever its layout: `version`, `deleted`, `chain` and `ordinal`.
pub(super) fn write_tail(out: &mut Vec<u8>, rows: &Rows, row: usize, first: usize) {
    write_version(out, rows.version(row));
    write_deleted(out, rows.view(row));
    write_chain(out, rows, row);
    out.extend_from_slice(&4_u32.to_be_bytes());
    out.extend_from_slice(&((row - first) as u32).to_be_bytes());
}

/// A key column's field.
fn write_key(out: &mut Vec<u8>, view: View<'_>, (name, _): &Column) {
    match key::attributes(view.key()).find(|attribute| *attribute.name == **name) {
        Some(KeyAttribute { kind: KeyType::N, value, .. }) => Number::read(value).write_numeric(out),
        Some(KeyAttribute { value, .. }) => {
            out.extend_from_slice(&(value.len() as u32).to_be_bytes());
            out.extend_from_slice(value);
        }
        None => out.extend_from_slice(NULL),
    }
}

/// The field `item`.
fn write_item(out: &mut Vec<u8>, view: View<'_>) {
    if view.change.event == Event::Remove {
        out.extend_from_slice(NULL);
        return;
    }
    write_jsonb(out, view.plain(), view.change.escaped);
}

/// A field of type jsonb. `escaped`: there may be a U+0000 in it, which jsonb refuses.
pub(super) fn write_jsonb(out: &mut Vec<u8>, plain: &[u8], escaped: bool) {
    let replaced = if escaped { nul::replaced(plain) } else { None };
    let plain = replaced.as_deref().unwrap_or(plain);
    out.extend_from_slice(&(plain.len() as u32 + 1).to_be_bytes());
    out.push(JSONB_VERSION);
    out.extend_from_slice(plain);
}

/// The field `deleted`.
fn write_deleted(out: &mut Vec<u8>, view: View<'_>) {
    out.extend_from_slice(&[0, 0, 0, 1, u8::from(view.change.event == Event::Remove)]);
}

/// The field `chain`.
fn write_chain(out: &mut Vec<u8>, rows: &Rows, row: usize) {
    let start = out.len() + 4;
    out.extend_from_slice(&[0; 4]);
    write_chain_bytes(out, rows, row);
    let len = ((out.len() - start) as u32).to_be_bytes();
    if let Some(place) = out.get_mut(start - 4..start) {
        place.copy_from_slice(&len);
    }
}

/// A row's chain.
pub(super) fn write_chain_bytes(out: &mut Vec<u8>, rows: &Rows, row: usize) {
    let change = rows.view(row).change;
    if change.precision == Precision::Sequence {
        out.push(Kind::Sequence as u8);
    } else if rows.tie_of(row).is_some() {
        chain(rows, row).write(out);
    } else {
        let is_exact = change.precision == Precision::Microsecond;
        // The item beside it tells what was after, unless there is none only because it doesn't belong there.
        let (id, tells) = if change.id.is_empty() { (0, false) } else { (change.id_hash, !rows.is_filtered(row)) };
        let after = if tells { None } else { Some(rows.after(rows.view(row))) };
        instant::write_one(out, is_exact, id, change.before, after);
    }
}

/// What is known of a row's instant.
fn chain(rows: &Rows, row: usize) -> Chain {
    Chain::begin(rows.links(row), items(rows, row)).1
}

/// The items that a row's changes of its instant left, in order of arrival.
pub fn items(rows: &Rows, row: usize) -> impl Iterator<Item = Item> {
    let tied = rows.tie_of(row).into_iter().flat_map(|tie| &tie.changes);
    let items = tied.map(|(r, link)| (link.after, item(rows.batch.view(*r)).into_owned()));
    let own = if rows.tie_of(row).is_some() { None } else { Some(row) };
    items.chain(own.map(|row| (rows.links(row)[0].after, item(rows.view(row)).into_owned())))
}

/// The item after a change, as it is stored; empty where there is none.
pub(super) fn item(view: View<'_>) -> Cow<'_, [u8]> {
    if view.change.event == Event::Remove {
        return Cow::Borrowed(&[]);
    }
    let replaced = if view.change.escaped { nul::replaced(view.plain()) } else { None };
    replaced.map_or(Cow::Borrowed(view.plain()), Cow::Owned)
}

/// The field `version`.
fn write_version(out: &mut Vec<u8>, version: Version) {
    let mut groups = [0; 12];
    let groups = version.groups(&mut groups);
    let weight = (groups.len() as i16 - 1).max(0);
    let used = groups.iter().rposition(|&group| group != 0).map_or(0, |last| last + 1);
    write_fields(out, &groups[..used], weight, false, 0);
}
