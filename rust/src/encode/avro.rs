//! Changes in Avro's binary form.
//!
//! In: changes, and a column plan if there is one. Out: one value a change (what a schema registry's clients
//! exchange), or an object container file of a batch. Two shapes: the *change* (`table`, `event`, `key`,
//! `version`, `item`, `old`, as JSON lines have them; `item` is JSON text, or a record by the plan), and the *item*
//! alone, the record by the plan. Invariants: the same batch gives the same bytes; a number is never a float.
//!
//! A number is a string, all its digits in it: Avro's decimal has one scale for all values of a field, and
//! DynamoDB's numbers have scales from −125 to 130. Where the plan says `numeric(P,S)` it is a decimal.
//!
//! Formats: <https://avro.apache.org/docs/1.12.0/specification/>, and the five bytes before a value in
//! <https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format>.

use std::cell::RefCell;

use crate::binary;
use crate::change::{ChangeBatch, View};
use crate::columns::{Plan, Type};
use crate::compact;
use crate::encode::json::{Form, write_string};
use crate::number;
use crate::record::Event;
use crate::scan::Text;
use crate::split::{Split, Value};
use crate::value::{self, Notes};

/// A block of a container file ends behind the change that makes it this long.
const BLOCK_BYTES: usize = 64 << 10;
const MAGIC: &[u8] = b"Obj\x01";
const SYNC_BYTES: usize = 16;

/// What a value is of.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// The change, its item as JSON text, or by the plan if there is one.
    Change(Form),
    /// The new image, by the plan.
    Item,
}

/// Writes changes as Avro values; its buffers serve a whole batch.
#[derive(Debug)]
pub struct Avro<'p> {
    shape: Shape,
    plan: Option<&'p Plan>,
    schema_id: Option<u32>,
    /// With a buffer for plain values.
    split: Option<RefCell<(Split<'p>, Vec<u8>)>>,
    /// For images.
    scratch: RefCell<Vec<u8>>,
}

impl<'p> Avro<'p> {
    /// Whole changes. `form`, plain or DynamoDB's, is that of `key`, `old`, and `item` when there is no plan.
    pub fn changes(form: Form, plan: Option<&'p Plan>) -> Self {
        Self::new(Shape::Change(form), plan)
    }

    /// New images alone. (A change without one is written as an item without attributes; a log sends a tombstone.)
    pub fn items(plan: &'p Plan) -> Self {
        Self::new(Shape::Item, Some(plan))
    }

    fn new(shape: Shape, plan: Option<&'p Plan>) -> Self {
        let split = plan.map(|plan| RefCell::new((Split::new(plan), Vec::new())));
        Self { shape, plan, schema_id: None, split, scratch: RefCell::new(Vec::new()) }
    }

    /// The same, each value behind the number of its schema in a registry.
    #[must_use]
    pub fn with_schema_id(self, schema_id: u32) -> Self {
        Self { schema_id: Some(schema_id), ..self }
    }

    /// The schema of what is written; `name` is the item's record.
    pub fn schema(&self, name: &str) -> String {
        let item = self.plan.map(|plan| item_schema(plan, name));
        match self.shape {
            Shape::Item => item.unwrap_or_default(),
            Shape::Change(_) => {
                let item = item.unwrap_or_else(|| "\"string\"".to_owned());
                format!(
                    "{{\"type\":\"record\",\"name\":\"Change\",\"namespace\":\"replicator\",\"fields\":[\
                     {{\"name\":\"table\",\"type\":[\"null\",\"string\"],\"default\":null}},\
                     {{\"name\":\"event\",\"type\":{{\"type\":\"enum\",\"name\":\"Event\",\
                     \"symbols\":[\"INSERT\",\"MODIFY\",\"REMOVE\"]}}}},\
                     {{\"name\":\"key\",\"type\":\"string\"}},\
                     {{\"name\":\"version\",\"type\":\"string\"}},\
                     {{\"name\":\"item\",\"type\":[\"null\",{item}],\"default\":null}},\
                     {{\"name\":\"old\",\"type\":[\"null\",\"string\"],\"default\":null}}]}}"
                )
            }
        }
    }

    /// Appends one change.
    pub fn write(&self, view: View<'_>, batch: &ChangeBatch, out: &mut Vec<u8>) {
        if let Some(id) = self.schema_id {
            out.push(0);
            out.extend_from_slice(&id.to_be_bytes());
        }
        match self.shape {
            Shape::Item => self.write_item(view, out),
            Shape::Change(form) => self.write_change(view, batch, form, out),
        }
    }

    fn write_change(&self, view: View<'_>, batch: &ChangeBatch, form: Form, out: &mut Vec<u8>) {
        let change = view.change;
        let mut scratch = self.scratch.borrow_mut();
        let mut image = |out: &mut Vec<u8>, raw: &[u8]| {
            scratch.clear();
            if form == Form::Dynamodb {
                compact::compact(raw, &mut scratch);
            } else {
                value::write_plain(raw, &mut scratch);
            }
            write_bytes(out, &scratch);
        };
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
        image(out, view.raw(change.keys));
        // At most 40 digits: their count is one byte.
        let place = out.len();
        out.push(0);
        change.version.write(out);
        out[place] = 2 * (out.len() - place - 1) as u8;
        let (new, old) = (view.raw(change.new), view.raw(change.old));
        write_long(out, i64::from(!new.is_empty()));
        if !new.is_empty() {
            match form {
                _ if self.plan.is_some() => self.write_item(view, out),
                Form::Dynamodb => image(out, new),
                _ => write_bytes(out, view.plain()),
            }
        }
        write_long(out, i64::from(!old.is_empty()));
        if !old.is_empty() {
            image(out, old);
        }
    }

    fn write_item(&self, view: View<'_>, out: &mut Vec<u8>) {
        let Some(taking_apart) = &self.split else { return };
        let (split, buffer) = &mut *taking_apart.borrow_mut();
        let plan = split.plan();
        let image = view.raw(view.change.new);
        split.read(image, |_| false);
        for (column, &value) in plan.columns().iter().zip(split.values()) {
            write_value(out, buffer, image, split, column.kind, value);
        }
        if plan.rest().is_some() {
            write_bytes(out, split.rest());
        }
    }
}

/// A batch as an object container file, uncompressed; `name` is the item's record.
///
/// The sync marker is made of the content, so that the same batch gives the same bytes.
pub fn container(batch: &ChangeBatch, avro: &Avro<'_>, name: &str) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    write_long(&mut out, 2);
    for (key, value) in [("avro.schema", &*avro.schema(name)), ("avro.codec", "null")] {
        write_bytes(&mut out, key.as_bytes());
        write_bytes(&mut out, value.as_bytes());
    }
    write_long(&mut out, 0);
    let mut markers = vec![out.len()];
    out.extend_from_slice(&[0; SYNC_BYTES]);
    let (mut block, mut count) = (Vec::with_capacity(2 * BLOCK_BYTES), 0);
    let mut flush = |block: &mut Vec<u8>, count: &mut i64| {
        write_long(&mut out, *count);
        write_bytes(&mut out, block);
        markers.push(out.len());
        out.extend_from_slice(&[0; SYNC_BYTES]);
        block.clear();
        *count = 0;
    };
    for view in batch.views() {
        avro.write(view, batch, &mut block);
        count += 1;
        if block.len() >= BLOCK_BYTES {
            flush(&mut block, &mut count);
        }
    }
    if count > 0 {
        flush(&mut block, &mut count);
    }
    let marker = xxhash_rust::xxh3::xxh3_128(&out).to_le_bytes();
    for place in markers {
        out[place..place + SYNC_BYTES].copy_from_slice(&marker);
    }
    out
}

/// A record with a field for each column, each with null for what isn't there, and one for the rest.
fn item_schema(plan: &Plan, name: &str) -> String {
    let mut out = Vec::new();
    out.extend_from_slice(b"{\"type\":\"record\",\"name\":");
    write_string(&mut out, name.as_bytes());
    out.extend_from_slice(b",\"fields\":[");
    let names = plan.names(&[], true);
    for (i, (column, field)) in plan.columns().iter().zip(&names).enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"name\":");
        write_string(&mut out, field.as_bytes());
        if **field != *column.attribute {
            // Avro's names have letters, digits and `_` only.
            out.extend_from_slice(b",\"doc\":");
            write_string(&mut out, format!("the attribute {:?}", column.attribute).as_bytes());
        }
        let kind = match column.kind {
            Type::Text | Type::Numeric | Type::Jsonb => "\"string\"".to_owned(),
            Type::Decimal { precision, scale } => format!(
                "{{\"type\":\"bytes\",\"logicalType\":\"decimal\",\"precision\":{precision},\"scale\":{scale}}}"
            ),
            Type::Bigint => "\"long\"".to_owned(),
            Type::Boolean => "\"boolean\"".to_owned(),
            Type::Bytea => "\"bytes\"".to_owned(),
            Type::Timestamp => "{\"type\":\"long\",\"logicalType\":\"timestamp-micros\"}".to_owned(),
            Type::TextArray | Type::NumericArray => "{\"type\":\"array\",\"items\":\"string\"}".to_owned(),
            Type::ByteaArray => "{\"type\":\"array\",\"items\":\"bytes\"}".to_owned(),
        };
        out.extend_from_slice(format!(",\"type\":[\"null\",{kind}],\"default\":null}}").as_bytes());
    }
    if let (Some(_), Some(field)) = (plan.rest(), names.last()) {
        if !plan.columns().is_empty() {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"name\":");
        write_string(&mut out, field.as_bytes());
        out.extend_from_slice(b",\"type\":\"string\",\"default\":\"{}\",\"doc\":\"all other attributes, JSON\"}");
    }
    out.extend_from_slice(b"]}");
    String::from_utf8(out).unwrap_or_default()
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
    use crate::columns::Column;
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
    fn an_item_alone_is_the_one_in_its_change_and_a_schema_id_only_stands_before() {
        let records = Arc::new(document::read(RECORD.as_bytes()).unwrap());
        let batch = change::decode(records, None, false);
        let column = Column { attribute: "n".into(), kind: Type::named("numeric(5,2)").unwrap() };
        let plan = Plan::new(vec![column], Some("extra".into())).unwrap();
        let written = |avro: &Avro<'_>| {
            let mut out = Vec::new();
            avro.write(batch.views().next().unwrap(), &batch, &mut out);
            out
        };
        let item = written(&Avro::items(&plan));
        assert_eq!(item, [&[2, 4, 0xff, 0x6a, 20][..], br#"{"id":"k"}"#].concat());
        assert_eq!(written(&Avro::items(&plan).with_schema_id(258)), [&[0, 0, 0, 1, 2][..], &item].concat());
        let change = written(&Avro::changes(Form::Plain, Some(&plan)));
        assert_eq!(change, [&b"\x02\x02t\x00\x14{\"id\":\"k\"}\x027\x02"[..], &item, &[0]].concat());
    }
}
