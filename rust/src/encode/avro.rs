//! Changes in Avro's binary form.
//!
//! In: changes and a column plan. Out: one value a change, as a schema registry's clients exchange them. Two shapes:
//! the *change* (`table`, `event`, `key`, `version`, `late`, `item`, `old`), and the *item* alone; an item is a record
//! by the plan. Invariants: a value is read by the schema that `core/schemas.py` writes of the same plan, field by
//! field; a number is never a float.
//!
//! A number is a string, all its digits in it: Avro's decimal has one scale for all values of a field, and
//! DynamoDB's numbers have scales from −125 to 130. Where the plan says `numeric(P,S)` it is a decimal.
//!
//! Format: <https://avro.apache.org/docs/1.12.0/specification/>.

use crate::binary;
use crate::change::{ChangeBatch, View};
use crate::columns::{Plan, Type};
use crate::encode::json::Form;
use crate::number;
use crate::record::Event;
use crate::scan::Text;
use crate::split::{Split, Value};
use crate::value::{self, Notes};

/// Writes changes as Avro values; its buffers serve a whole batch.
#[derive(Debug)]
pub struct Avro<'p> {
    split: Split<'p>,
    /// For keys and documents.
    buffer: Vec<u8>,
}

impl<'p> Avro<'p> {
    /// By this plan.
    pub fn new(plan: &'p Plan) -> Self {
        Self { split: Split::new(plan), buffer: Vec::new() }
    }

    /// Appends one whole change.
    pub fn write_change(&mut self, view: View<'_>, batch: &ChangeBatch, out: &mut Vec<u8>) {
        let change = view.change;
        match batch.tables.get(view.table as usize) {
            Some(name) => {
                write_long(out, 1);
                write_bytes(out, name.as_bytes());
            }
            None => write_long(out, 0),
        }
        write_long(
            out,
            match change.event {
                Event::Insert => 0,
                Event::Modify => 1,
                Event::Remove => 2,
            },
        );
        self.buffer.clear();
        Form::Plain.write_key(&mut self.buffer, view);
        write_bytes(out, &self.buffer);
        // At most 40 digits: their count is one byte.
        let place = out.len();
        out.push(0);
        change.version.write(out);
        out[place] = 2 * (out.len() - place - 1) as u8;
        out.push(u8::from(view.late));
        for image in [change.new, change.old].map(|span| view.raw(span)) {
            write_long(out, i64::from(!image.is_empty()));
            if !image.is_empty() {
                self.write_item(image, out);
            }
        }
    }

    /// Appends one item, raw; an empty one has no attributes.
    pub fn write_item(&mut self, image: &[u8], out: &mut Vec<u8>) {
        let Self { split, buffer } = self;
        let plan = split.plan();
        split.read(image, |_| false);
        for (column, &value) in plan.columns().iter().zip(split.values()) {
            write_value(out, buffer, image, split, column.kind, value);
        }
        if plan.rest().is_some() {
            write_bytes(out, split.rest());
        }
    }
}

/// A field: which branch of its union, then the value.
#[inline]
fn write_value(out: &mut Vec<u8>, buffer: &mut Vec<u8>, b: &[u8], split: &Split<'_>, kind: Type, value: Value) {
    if value == Value::Absent {
        return write_long(out, 0);
    }
    write_long(out, 1);
    match value {
        Value::Absent => {}
        Value::Text(text) => write_text(out, buffer, b, text),
        Value::Number(text) => match kind {
            Type::Decimal { scale, .. } => {
                let unscaled = number::unscaled(&b[text.start..text.end], scale).unwrap_or(0);
                write_bytes(out, shortest(&unscaled.to_be_bytes()));
            }
            _ => write_bytes(out, &b[text.start..text.end]),
        },
        Value::Whole(value) | Value::Instant(value) => write_long(out, value),
        Value::Boolean(value) => out.push(u8::from(value)),
        Value::Binary(text) => write_binary(out, b, text),
        Value::Any(start, end) => {
            buffer.clear();
            value::append_plain(b, start, end, &mut Notes::default(), buffer);
            write_bytes(out, buffer);
        }
        Value::Set(first, len) => {
            if len > 0 {
                write_long(out, len as i64);
            }
            for &text in split.elements(first, len) {
                match kind {
                    Type::ByteaArray => write_binary(out, b, text),
                    _ => write_text(out, buffer, b, text),
                }
            }
            write_long(out, 0);
        }
    }
}

/// A whole number's bytes without those in front that only repeat its sign.
fn shortest(bytes: &[u8]) -> &[u8] {
    let spare = bytes.windows(2).take_while(|pair| matches!(pair, [0, 0..=0x7f] | [0xff, 0x80..=0xff])).count();
    &bytes[spare..]
}

fn write_text(out: &mut Vec<u8>, buffer: &mut Vec<u8>, b: &[u8], text: Text) {
    if text.escaped {
        buffer.clear();
        text.append(b, buffer);
        write_bytes(out, buffer);
    } else {
        write_bytes(out, &b[text.start..text.end]);
    }
}

fn write_binary(out: &mut Vec<u8>, b: &[u8], text: Text) {
    write_long(out, binary::len(b, text) as i64);
    binary::append(b, text, out);
}

/// Bytes or a string: the length, then the bytes.
fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_long(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

/// A whole number: zigzag, seven bits a byte, the lowest first.
#[inline]
fn write_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::change;
    use crate::columns::tests::plan;
    use crate::document;

    const RECORD: &str = concat!(
        r#"{"eventID":"1","eventName":"INSERT","tableName":"t","dynamodb":{"ApproximateCreationDateTime":7,"#,
        r#""ApproximateCreationDateTimePrecision":"MICROSECOND","Keys":{"id":{"S":"k"}},"#,
        r#""NewImage":{"id":{"S":"k"},"n":{"N":"-1.5"}}}}"#
    );

    #[test]
    fn longs_are_those_of_the_specification() {
        for (value, bytes) in [
            (0, &[0][..]),
            (-1, &[1]),
            (1, &[2]),
            (-64, &[0x7f]),
            (64, &[0x80, 1]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        ] {
            let mut out = Vec::new();
            write_long(&mut out, value);
            assert_eq!(out, bytes, "{value}");
        }
    }

    #[test]
    fn whole_numbers_lose_only_bytes_that_repeat_the_sign() {
        for (value, bytes) in
            [(0_i128, &[0][..]), (127, &[127]), (128, &[0, 128]), (-128, &[128]), (-129, &[255, 127]), (-1, &[255])]
        {
            assert_eq!(shortest(&value.to_be_bytes()), bytes, "{value}");
        }
    }

    #[test]
    fn an_item_alone_is_the_one_in_its_change() {
        let records = Arc::new(document::read(RECORD.as_bytes()).unwrap());
        let batch = change::decode(records, None, false);
        let plan = plan(&[("n", "numeric(5,2)")], Some("extra"));
        let mut avro = Avro::new(&plan);
        let (mut item, mut change) = (Vec::new(), Vec::new());
        let view = batch.views().next().unwrap();
        avro.write_item(view.raw(view.change.new), &mut item);
        assert_eq!(item, [&[2, 4, 0xff, 0x6a, 20][..], br#"{"id":"k"}"#].concat());
        avro.write_change(view, &batch, &mut change);
        assert_eq!(change, [&b"\x02\x02t\x00\x14{\"id\":\"k\"}\x027\0\x02"[..], &item, &[0]].concat());
    }
}
