//! Rows as requests to DynamoDB.
//!
//! In: rows. Out: keys and items in DynamoDB's JSON, and whole bodies (AWS JSON 1.0) of writes that happen only if
//! the stored item is older. Invariants: images are cut out of the wire's bytes, only blanks between tokens are
//! lost, so no value changes its type or its spelling; an attribute of the version's name gives way to the version.
//!
//! A version is written as a text of one length, ten digits of the generation, `-`, 40 of the value, which sorts as
//! versions do. A number would not do: it has 38 digits, a sequence number up to 40.
//!
//! Bodies: <https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_PutItem.html>, and
//! `API_TransactWriteItems.html` there.

use crate::change::View;
use crate::compact;
use crate::dedupe::Rows;
use crate::encode::json::write_string;
use crate::record::{Event, Version};
use crate::scan;

/// A transaction has at most 100 actions, and a row takes two.
pub const TRANSACTION_ROWS_MAX: usize = 50;

/// Room for a version's value and what stands around it.
const VERSION_BYTES: usize = 80;
/// Room for what a write has beside names, version and image.
const HEAD_BYTES: usize = 256;

/// How versions are kept in items.
#[derive(Clone, Debug)]
pub struct VersionAttribute {
    /// The attribute's name.
    pub name: String,
    /// Counts how often versions stopped being comparable.
    pub generation: u32,
}

/// Pieces of one buffer: keys, items, bodies.
#[derive(Debug, Default)]
pub struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Pieces {
    fn with_room(bytes: usize, pieces: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(pieces) }
    }

    /// What was written since the piece before is a piece.
    fn end(&mut self) {
        self.ends.push(self.bytes.len());
    }

    /// The pieces, in order; one that is not there is empty.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.bytes[std::mem::replace(&mut start, end)..end])
    }
}

/// Bytes of a row's images, and of the version in them.
fn size(view: View<'_>, version: Option<&VersionAttribute>) -> usize {
    (view.change.new.len + 2 * view.change.keys.len) as usize
        + version.map_or(0, |version| 2 * version.name.len() + VERSION_BYTES)
}

/// Per row its key, then its item, which a delete has not.
pub fn items(rows: &Rows, lo: usize, hi: usize, version: Option<&VersionAttribute>) -> Pieces {
    let room = rows.range(lo, hi).map(|row| size(rows.view(row), version)).sum();
    let mut out = Pieces::with_room(room, 2 * rows.rows.len());
    for row in rows.range(lo, hi) {
        let (view, value) = (rows.view(row), rows.version(row));
        compact::compact(view.raw(view.change.keys), &mut out.bytes);
        out.end();
        if view.change.event != Event::Remove {
            write_image(&mut out.bytes, view.raw(view.change.new), version, value);
        }
        out.end();
    }
    out
}

/// Per row the body of a `PutItem` that replaces an existing, older item; a delete has none.
pub fn puts(rows: &Rows, lo: usize, hi: usize, table: &str, version: &VersionAttribute) -> Pieces {
    let target = Target::new(table, version);
    let fixed = target.head.len() + HEAD_BYTES;
    let room = rows.range(lo, hi).map(|row| size(rows.view(row), Some(version)) + fixed).sum();
    let mut out = Pieces::with_room(room, rows.rows.len());
    for row in rows.range(lo, hi) {
        let (view, value) = (rows.view(row), rows.version(row));
        if view.change.event != Event::Remove {
            out.bytes.push(b'{');
            target.write_put(&mut out.bytes, view.raw(view.change.new), value, "#v < :v", "ALL_OLD");
            out.bytes.push(b'}');
        }
        out.end();
    }
    out
}

/// Bodies of `TransactWriteItems` over so many rows each: the item, and beside it in `side` its tombstone. What is
/// stored may be absent or older.
pub fn transactions(
    rows: &Rows,
    lo: usize,
    hi: usize,
    (table, side): (&str, &str),
    version: &VersionAttribute,
    rows_max: usize,
) -> Pieces {
    const NEWER: &str = "attribute_not_exists(#v) OR #v < :v";
    let (table, side) = (Target::new(table, version), Target::new(side, version));
    let fixed = table.head.len() + side.head.len() + 2 * HEAD_BYTES;
    let room = rows.range(lo, hi).map(|row| 2 * size(rows.view(row), Some(version)) + fixed).sum();
    let mut out = Pieces::with_room(room, rows.rows.len());
    let mut count = 0;
    for row in rows.range(lo, hi) {
        let (view, value) = (rows.view(row), rows.version(row));
        let (keys, bytes) = (view.raw(view.change.keys), &mut out.bytes);
        bytes.extend_from_slice(if count == 0 { b"{\"TransactItems\":[" } else { b"," });
        if view.change.event == Event::Remove {
            bytes.extend_from_slice(b"{\"Delete\":{");
            table.write_delete(bytes, keys, value, NEWER, "NONE");
            bytes.extend_from_slice(b"}},{\"Put\":{");
            side.write_put(bytes, keys, value, NEWER, "NONE");
        } else {
            bytes.extend_from_slice(b"{\"Put\":{");
            table.write_put(bytes, view.raw(view.change.new), value, NEWER, "NONE");
            bytes.extend_from_slice(b"}},{\"Delete\":{");
            side.write_delete(bytes, keys, value, NEWER, "NONE");
        }
        bytes.extend_from_slice(b"}}");
        count += 1;
        if count == rows_max {
            bytes.extend_from_slice(b"]}");
            out.end();
            count = 0;
        }
    }
    if count > 0 {
        out.bytes.extend_from_slice(b"]}");
        out.end();
    }
    out
}

/// A table, and what every write to it begins with.
struct Target<'a> {
    head: Vec<u8>,
    version: &'a VersionAttribute,
}

impl<'a> Target<'a> {
    fn new(table: &str, version: &'a VersionAttribute) -> Self {
        let mut head = b"\"TableName\":".to_vec();
        write_string(&mut head, table.as_bytes());
        head.extend_from_slice(b",\"ExpressionAttributeNames\":{\"#v\":");
        write_string(&mut head, version.name.as_bytes());
        head.extend_from_slice(b"},\"ExpressionAttributeValues\":{\":v\":");
        Self { head, version }
    }

    fn write_put(&self, out: &mut Vec<u8>, image: &[u8], value: Version, condition: &str, on_failure: &str) {
        self.write_head(out, value, condition, on_failure);
        out.extend_from_slice(b",\"Item\":");
        write_image(out, image, Some(self.version), value);
    }

    fn write_delete(&self, out: &mut Vec<u8>, key: &[u8], value: Version, condition: &str, on_failure: &str) {
        self.write_head(out, value, condition, on_failure);
        out.extend_from_slice(b",\"Key\":");
        compact::compact(key, out);
    }

    fn write_head(&self, out: &mut Vec<u8>, value: Version, condition: &str, on_failure: &str) {
        out.extend_from_slice(&self.head);
        write_version(out, self.version, value);
        for piece in ["},\"ConditionExpression\":\"", condition] {
            out.extend_from_slice(piece.as_bytes());
        }
        for piece in ["\",\"ReturnValuesOnConditionCheckFailure\":\"", on_failure, "\""] {
            out.extend_from_slice(piece.as_bytes());
        }
    }
}

/// An image, with the version in it if it has a name.
fn write_image(out: &mut Vec<u8>, raw: &[u8], version: Option<&VersionAttribute>, value: Version) {
    let Some(version) = version else { return compact::compact(raw, out) };
    out.push(b'{');
    write_name(out, version.name.as_bytes());
    write_version(out, version, value);
    // The image was checked before, so that nothing can fail here.
    let _ = scan::object(raw, 0, |name, at| {
        if name == version.name.as_bytes() {
            return scan::skip(raw, at);
        }
        out.push(b',');
        write_name(out, name);
        Ok(compact::compact_at(raw, at, out))
    });
    out.push(b'}');
}

/// A member's name and its colon.
fn write_name(out: &mut Vec<u8>, name: &[u8]) {
    write_string(out, name);
    out.push(b':');
}

/// The version as an attribute value.
fn write_version(out: &mut Vec<u8>, version: &VersionAttribute, value: Version) {
    let zeros = |out: &mut Vec<u8>, start: usize, wanted: usize| {
        let missing = wanted.saturating_sub(out.len() - start);
        out.splice(start..start, std::iter::repeat_n(b'0', missing));
    };
    out.extend_from_slice(b"{\"S\":\"");
    let start = out.len();
    out.extend_from_slice(itoa::Buffer::new().format(version.generation).as_bytes());
    zeros(out, start, 10);
    out.push(b'-');
    let start = out.len();
    value.write(out);
    zeros(out, start, 40);
    out.extend_from_slice(b"\"}");
}
