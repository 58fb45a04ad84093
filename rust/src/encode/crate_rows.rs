//! Rows as the arguments of a CrateDB bulk request.
//!
//! In: rows. Out: the value of `bulk_args`, an array a row: the key attributes in the given order (all texts: a number in
//! fixed-point notation, binary as base64), `item` (null for a delete), `exact` (the item in plain JSON as one
//! text), `version`, `deleted`, `chain` (hexadecimal). Invariants: `exact` loses nothing, whatever becomes of `item`;
//! versions are texts of one length that sort as versions do, and up to the point they name the instant.
//!
//! `item` is what CrateDB's types can hold (<https://cratedb.com/docs/crate/reference/en/latest/general/ddl/data-types.html>):
//! - The first value of a dynamic column decides its type, and a BIGINT column cuts 5.5 to 5 without a word. So a number
//!   that a double holds in all its digits is written with a point; another whole one of 64 bits without; any other is a text.
//! - Where attributes are columns, `.`, `[`, blanks that aren't the space, and `%` are written in names as in a URL; and what
//!   would have the whole row refused is in `exact` only: lists whose elements aren't of one kind, and texts too long for
//!   the index.
//!
//! Bulk requests: <https://cratedb.com/docs/crate/reference/en/latest/interfaces/http.html#bulk-operations>.

use std::fmt::{self, Write};

use crate::change::View;
use crate::dedupe::{Column, Rows};
use crate::encode::copy::write_chain_bytes;
use crate::encode::json::write_string;
use crate::error::Fault;
use crate::key::{self, KeyAttribute, KeyType};
use crate::number::{self, Number};
use crate::record::{Event, Precision, Version};
use crate::scan::{self, byte};

/// The longest text that Lucene takes for an index, in bytes of UTF-8.
const TERM_BYTES_MAX: usize = 32_766;
/// Every decimal number of so many digits is told apart by the double next to it.
const DOUBLE_DIGITS: usize = 15;
/// Room for what a row has beside its item; more is only slower.
const AROUND: usize = 256;

/// How items become objects.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Their attributes are columns, each of one type.
    pub dynamic: bool,
    /// Counts how often versions stopped being comparable.
    pub generation: u32,
}

/// The rows `lo` to before `hi`, cut to those there are.
pub fn bulk_args(rows: &Rows, lo: usize, hi: usize, form: Form) -> Vec<u8> {
    let room = |view: View<'_>| 2 * view.plain().len() + view.plain().len() / 4 + view.key().len() + AROUND;
    let mut out = Vec::with_capacity(rows.range(lo, hi).map(|row| room(rows.view(row))).sum::<usize>() + 2);
    let mut chain = Vec::new();
    out.push(b'[');
    for row in rows.range(lo, hi) {
        let view = rows.view(row);
        let is_deleted = view.change.event == Event::Remove;
        out.extend_from_slice(if out.len() > 1 { b",[" } else { b"[" });
        for column in rows.columns.iter() {
            write_key(&mut out, view, column);
            out.push(b',');
        }
        if is_deleted {
            out.extend_from_slice(b"null,null");
        } else {
            write_item(&mut out, view.plain(), form.dynamic);
            out.push(b',');
            write_string(&mut out, view.plain());
        }
        out.extend_from_slice(b",\"");
        write_version(&mut out, form.generation, rows.version(row), view.change.precision == Precision::Sequence);
        out.extend_from_slice(if is_deleted { b"\",true,\"" } else { b"\",false,\"" });
        chain.clear();
        write_chain_bytes(&mut chain, rows, row);
        for byte in &chain {
            out.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
        }
        out.extend_from_slice(b"\"]");
    }
    out.push(b']');
    out
}

fn write_key(out: &mut Vec<u8>, view: View<'_>, column: &Column) {
    match key::attributes(view.key()).find(|attribute| *attribute.name == *column.0) {
        Some(KeyAttribute { kind: KeyType::S, value, .. }) => write_string(out, value),
        Some(_) => {
            out.push(b'"');
            write_key_text(out, view, column);
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    }
}

/// A key attribute as a text: a number in fixed-point notation, binary as base64.
pub fn write_key_text(out: &mut Vec<u8>, view: View<'_>, (name, _): &Column) {
    match key::attributes(view.key()).find(|attribute| *attribute.name == **name) {
        Some(KeyAttribute { kind: KeyType::N, value, .. }) => Number::read(value).write_fixed(out),
        Some(KeyAttribute { kind: KeyType::B, value, .. }) => base64_simd::STANDARD.encode_append(value, out),
        Some(KeyAttribute { value, .. }) => out.extend_from_slice(value),
        None => {}
    }
}

/// Ten digits of the generation, `-`, 40 of the instant, `.`, three of the microseconds in it.
pub fn write_version(out: &mut Vec<u8>, generation: u32, value: Version, is_sequence: bool) {
    write_padded::<10>(out, |out| out.extend_from_slice(itoa::Buffer::new().format(generation).as_bytes()));
    out.push(b'-');
    let start = out.len();
    if is_sequence {
        write_padded::<40>(out, |out| value.write(out));
        out.extend_from_slice(b".000");
    } else {
        write_padded::<43>(out, |out| value.write(out));
        out.insert(start + 40, b'.');
    }
}

/// What is written, with zeros before it up to this length.
fn write_padded<const LENGTH: usize>(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[b'0'; LENGTH]);
    write(out);
    let digits = out.len() - start - LENGTH;
    out.drain(start..start + digits.min(LENGTH));
}

/// An item in plain JSON as an object of CrateDB, appended.
pub fn write_item(out: &mut Vec<u8>, plain: &[u8], dynamic: bool) {
    let start = out.len();
    let mut writer = Writer { plain, out, dynamic };
    // It is the core's own JSON, or what was stored of it.
    if !matches!(writer.value(scan::space(plain, 0)), Ok((_, Some(Kind::Object)))) {
        out.truncate(start);
        out.extend_from_slice(b"{}");
    }
}

/// What CrateDB would take a value for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Null,
    Text,
    Bool,
    Double,
    Whole,
    Object,
    List,
}

struct Writer<'a> {
    plain: &'a [u8],
    out: &'a mut Vec<u8>,
    dynamic: bool,
}

impl Writer<'_> {
    /// Writes the value that begins here: the place behind it, and what it is; None: it has no place in the object.
    fn value(&mut self, at: usize) -> Result<(usize, Option<Kind>), Fault> {
        let end = match byte(self.plain, at) {
            b'{' => return self.object(at),
            b'[' => return self.list(at),
            b'"' => {
                let text = scan::string(self.plain, at + 1)?;
                let end = text.end + 1;
                if self.dynamic && end - at > TERM_BYTES_MAX && text.bytes(self.plain).len() > TERM_BYTES_MAX {
                    return Ok((end, None));
                }
                self.out.extend_from_slice(&self.plain[at..end]);
                return Ok((end, Some(Kind::Text)));
            }
            b't' | b'f' | b'n' => scan::skip(self.plain, at)?,
            _ => return self.number(at),
        };
        self.out.extend_from_slice(&self.plain[at..end]);
        Ok((end, Some(if byte(self.plain, at) == b'n' { Kind::Null } else { Kind::Bool })))
    }

    fn object(&mut self, at: usize) -> Result<(usize, Option<Kind>), Fault> {
        let plain = self.plain;
        self.out.push(b'{');
        let mut is_first = true;
        let end = scan::object(plain, at, |name, at| {
            let before = self.out.len();
            if !is_first {
                self.out.push(b',');
            }
            write_name(self.out, name, self.dynamic);
            self.out.push(b':');
            let (end, kind) = self.value(at)?;
            if kind.is_none() {
                self.out.truncate(before);
            } else {
                is_first = false;
            }
            Ok(end)
        })?;
        self.out.push(b'}');
        Ok((end, Some(Kind::Object)))
    }

    /// A list has a place when all its elements are of one kind.
    fn list(&mut self, at: usize) -> Result<(usize, Option<Kind>), Fault> {
        let plain = self.plain;
        let start = self.out.len();
        let mut kinds = None;
        let mut fits = true;
        self.out.push(b'[');
        let end = scan::array(plain, at, |at| {
            if self.out.len() > start + 1 {
                self.out.push(b',');
            }
            let (end, kind) = self.value(at)?;
            fits &= match kind {
                Some(Kind::Null) => true,
                Some(kind) => *kinds.get_or_insert(kind) == kind,
                None => false,
            } || !self.dynamic;
            Ok(end)
        })?;
        if !fits {
            self.out.truncate(start);
            return Ok((end, None));
        }
        self.out.push(b']');
        Ok((end, Some(Kind::List)))
    }

    fn number(&mut self, at: usize) -> Result<(usize, Option<Kind>), Fault> {
        let end = scan::number(self.plain, at)?;
        let text = &self.plain[at..end];
        let whole = number::whole(text);
        let kind = match whole {
            Some(_) if !self.dynamic => Kind::Whole,
            _ if is_double(text) => Kind::Double,
            Some(_) => Kind::Whole,
            None => Kind::Text,
        };
        match (kind, whole) {
            (Kind::Whole, Some(whole)) => self.out.extend_from_slice(itoa::Buffer::new().format(whole).as_bytes()),
            (Kind::Double, _) => {
                self.out.extend_from_slice(text);
                if !text.iter().any(|c| matches!(c, b'.' | b'e' | b'E')) {
                    self.out.extend_from_slice(b".0");
                }
            }
            _ => {
                self.out.push(b'"');
                Number::read(text).write_decimal(self.out);
                self.out.push(b'"');
            }
        }
        Ok((end, Some(kind)))
    }
}

/// A double holds the number: written as short as can be, it is the same number again.
fn is_double(text: &[u8]) -> bool {
    // Leading zeros, points and exponents are counted too: then it takes the longer way.
    if text.len() <= DOUBLE_DIGITS {
        return true;
    }
    let Ok(number) = Number::parse(text) else { return false };
    let Some(double) = std::str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok()) else { return false };
    let mut shortest = Shortest { text: [0; 32], len: 0 };
    write!(shortest, "{double:e}").is_ok() && Number::parse(&shortest.text[..shortest.len]) == Ok(number)
}

/// Room for a double's shortest decimal.
struct Shortest {
    text: [u8; 32],
    len: usize,
}

impl Write for Shortest {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        let room = self.text.get_mut(self.len..self.len + piece.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(piece.as_bytes());
        self.len += piece.len();
        Ok(())
    }
}

/// A name as CrateDB takes it.
fn write_name(out: &mut Vec<u8>, name: &[u8], dynamic: bool) {
    let is_bad = |c: &u8| matches!(c, b'.' | b'[' | b'%' | b'\t' | b'\n' | b'\r');
    if !dynamic || !name.iter().any(is_bad) {
        return write_string(out, name);
    }
    let mut safe = Vec::with_capacity(name.len() + 8);
    for c in name {
        if is_bad(c) {
            safe.extend_from_slice(format!("%{c:02X}").as_bytes());
        } else {
            safe.push(*c);
        }
    }
    write_string(out, &safe);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(plain: &str, dynamic: bool) -> String {
        let mut out = Vec::new();
        write_item(&mut out, plain.as_bytes(), dynamic);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_keep_every_digit() {
        for (number, dynamic, ignored) in [
            ("5", "5.0", "5"),
            ("-0.1", "-0.1", "-0.1"),
            ("1E5", "1E5", "100000"),
            ("1E+30", "1E+30", "1E+30"),
            ("999999999999999", "999999999999999.0", "999999999999999"),
            ("9007199254740992", "9007199254740992.0", "9007199254740992"),
            ("9007199254740993", "9007199254740993", "9007199254740993"),
            ("9223372036854775807", "9223372036854775807", "9223372036854775807"),
            ("9223372036854775808", "\"9223372036854775808\"", "\"9223372036854775808\""),
            ("0.30000000000000004", "0.30000000000000004", "0.30000000000000004"),
            ("0.1234567890123456789", "\"0.1234567890123456789\"", "\"0.1234567890123456789\""),
            ("1234567890123456789012.50", "\"1234567890123456789012.5\"", "\"1234567890123456789012.5\""),
        ] {
            assert_eq!(item(&format!("{{\"n\":{number}}}"), true), format!("{{\"n\":{dynamic}}}"));
            assert_eq!(item(&format!("{{\"n\":{number}}}"), false), format!("{{\"n\":{ignored}}}"));
        }
    }

    #[test]
    fn names_that_columns_cannot_have_are_escaped_and_stay_different() {
        let plain = r#"{"a.b":"x","a[0]":{"":true,"%":false},"a%2Eb":null,"tab\there":"x","é":[]}"#;
        let wanted = r#"{"a%2Eb":"x","a%5B0]":{"":true,"%25":false},"a%252Eb":null,"tab%09here":"x","é":[]}"#;
        assert_eq!(item(plain, true), wanted);
        assert_eq!(item(plain, false), plain.replace("\\t", "\\u0009"));
    }

    #[test]
    fn what_has_no_one_type_stays_out_of_dynamic_columns() {
        let plain = r#"{"mixed":[1,"a"],"in":[[1,2],[null,3],[true,"x"]],"maps":[{"a":1},{"b":[1,{}]}],"last":[null]}"#;
        assert_eq!(item(plain, true), r#"{"maps":[{"a":1.0},{}],"last":[null]}"#);
        assert_eq!(item(plain, false), plain);
    }

    #[test]
    fn a_text_too_long_for_the_index_stays_out_of_dynamic_columns() {
        let text = |length| format!("\"{}\"", "é".repeat(length / 2));
        let fits = format!("{{\"text\":{}}}", text(TERM_BYTES_MAX));
        let too_long =
            format!("{{\"a\":1,\"text\":{},\"z\":[{}]}}", text(TERM_BYTES_MAX + 2), text(TERM_BYTES_MAX + 2));
        assert_eq!(item(&fits, true), fits);
        assert_eq!(item(&too_long, true), "{\"a\":1.0}");
        assert_eq!(item(&too_long, false), too_long);
    }

    #[test]
    fn versions_sort_as_texts() {
        let text = |generation, value: &[u8], is_sequence| {
            let mut out = Vec::new();
            write_version(&mut out, generation, Version::from_digits(value).unwrap(), is_sequence);
            String::from_utf8(out).unwrap()
        };
        let zeros = "0".repeat(27);
        assert_eq!(text(7, b"1700000000000123", false), format!("0000000007-{zeros}1700000000000.123"));
        assert_eq!(text(0, b"7", false), format!("0000000000-{}.007", "0".repeat(40)));
        assert_eq!(text(0, b"7", true), format!("0000000000-{}7.000", "0".repeat(39)));
        let longest = "9".repeat(40);
        assert_eq!(text(u32::MAX, longest.as_bytes(), true), format!("4294967295-{longest}.000"));
    }
}
