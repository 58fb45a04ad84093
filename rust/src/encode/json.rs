//! Changes as JSON lines.
//!
//! In: a batch. Out: one object a change and line: `table`, `event`, `key`, `version`, `item`, `old`, and `late` where it is. Invariant:
//! a line holds no line break inside, however the wire was formatted.

use crate::change::{ChangeBatch, View};
use crate::scan;
use crate::value;

/// How attribute values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// JSON's own types; sets as sorted arrays, binary as base64.
    Plain,
    /// Typed, as the wire carried them.
    Dynamodb,
}

/// Room for what is around a line's images; more is only slower.
const LINE_MAX: usize = 160;

/// All changes of a batch, in its order.
pub fn lines(batch: &ChangeBatch, form: Form) -> Vec<u8> {
    // Images as raw text, an upper bound for all but a name that needs escapes: grown, the output would be held twice.
    let room = |view: View<'_>| {
        let change = view.change;
        let item = if form == Form::Plain { change.plain } else { change.new };
        (change.keys.len + item.len + change.old.len) as usize + LINE_MAX
    };
    let mut out = Vec::with_capacity(batch.views().map(room).sum());
    let mut elements = value::Elements::new();
    let mut image = |out: &mut Vec<u8>, raw: &[u8]| match form {
        _ if raw.is_empty() => out.extend_from_slice(b"null"),
        Form::Plain => value::write_plain_with(raw, &mut elements, out),
        Form::Dynamodb => scan::compact(raw, out),
    };
    for view in batch.views() {
        let change = view.change;
        out.extend_from_slice(b"{\"table\":");
        match batch.tables.get(view.table as usize) {
            Some(name) => write_string(&mut out, name),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"event\":\"");
        out.extend_from_slice(change.event.name().as_bytes());
        out.extend_from_slice(b"\",\"key\":");
        image(&mut out, view.raw(change.keys));
        out.extend_from_slice(b",\"version\":\"");
        change.version.write(&mut out);
        out.extend_from_slice(b"\",\"item\":");
        match form {
            Form::Plain if !change.plain.is_empty() => out.extend_from_slice(view.plain()),
            _ => image(&mut out, view.raw(change.new)),
        }
        out.extend_from_slice(b",\"old\":");
        image(&mut out, view.raw(change.old));
        if view.late {
            out.extend_from_slice(b",\"late\":true");
        }
        out.extend_from_slice(b"}\n");
    }
    out
}

/// A JSON string.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for &c in text.as_bytes() {
        match c {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', c]),
            0..0x20 => out.extend_from_slice(format!("\\u{c:04x}").as_bytes()),
            _ => out.push(c),
        }
    }
    out.push(b'"');
}
