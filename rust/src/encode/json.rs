//! Changes as JSON lines.
//!
//! In: a batch. Out: one object a change and line: `table`, `event`, `key`, `version`, `item`, `old`. Invariant:
//! a line holds no line break inside, however the wire was formatted.

use crate::change::ChangeBatch;
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

/// All changes of a batch, in its order.
pub fn lines(batch: &ChangeBatch, form: Form) -> Vec<u8> {
    let mut out = Vec::new();
    let image = |out: &mut Vec<u8>, raw: &[u8]| match form {
        _ if raw.is_empty() => out.extend_from_slice(b"null"),
        Form::Plain => value::write_plain(raw, out),
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
        out.extend_from_slice(b"}\n");
    }
    out
}

/// A JSON string.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    write_text(out, text.as_bytes());
}

/// A JSON string of bytes that are UTF-8.
pub(crate) fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    let mut from = 0;
    for (at, &c) in text.iter().enumerate() {
        if matches!(c, b'"' | b'\\' | 0..0x20) {
            out.extend_from_slice(&text[from..at]);
            from = at + 1;
            match c {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', c]),
                _ => out.extend_from_slice(format!("\\u{c:04x}").as_bytes()),
            }
        }
    }
    out.extend_from_slice(&text[from..]);
    out.push(b'"');
}
