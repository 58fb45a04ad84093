//! A batch's changes as a Parquet file.
//!
//! In: a batch, and a column plan if there is one. Out: a file of one row group, a row a change: `table`, `event`,
//! `event_id`, `key` (JSON), `version` (decimal text), `event_time` (µs, UTC), `sequence_number`, then the plan's
//! columns and its rest (of the new image), `item` and `old`. The images are JSON: plain, or, beside columns, as the
//! wire carried them. Invariants: the same batch gives the same bytes; a number is never a float: it is text, or a
//! decimal where the plan says `numeric(P,S)`.
//!
//! The images' bytes are not copied on their way to the compressor: the file's writer shares the batch's arenas.

use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical, ZstdLevel};
use parquet::errors::Result;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::{ColumnPath, SchemaDescriptor, Type as Node, TypePtr};

use crate::binary;
use crate::change::{ChangeBatch, View};
use crate::columns::{Plan, Type};
use crate::encode::leaf::{Leaf, field, instant, plain_arenas, raw_arenas, text, written};
use crate::number;
use crate::scan::{self, Text};
use crate::split::{Split, Value};
use crate::value::{self, Notes};

/// The columns that come before and behind the plan's.
const HEAD: [&str; 7] = ["table", "event", "event_id", "key", "version", "event_time", "sequence_number"];
const TAIL: [&str; 2] = ["item", "old"];
/// A page ends about here.
const PAGE_BYTES: usize = 1 << 20;
/// Bytes of a decimal beyond 18 digits.
const DECIMAL_BYTES: usize = 16;
/// Digits that 64 bits hold.
const LONG_DIGITS: u8 = 18;

/// All changes of a batch, in its order, with `item` and `old` if the images are wanted; pages compressed by zstd
/// at this level, or not at all.
pub fn file(batch: &ChangeBatch, plan: Option<&Plan>, images: bool, zstd_level: Option<i32>) -> Result<Vec<u8>> {
    let tail = if images { &TAIL[..] } else { &[] };
    let columns = plan.map_or(&[][..], Plan::columns);
    let names = plan.map(|plan| plan.names(&[&HEAD[..], &TAIL].concat())).unwrap_or_default();
    let leaves = leaves(batch, plan, images);
    let mut fields = Vec::with_capacity(HEAD.len() + names.len() + TAIL.len());
    for name in HEAD {
        fields.push(match name {
            "event_time" => field(name, Physical::INT64, Some(instant()), Repetition::REQUIRED)?,
            "event" | "key" | "version" => text(name, Repetition::REQUIRED)?,
            _ => text(name, Repetition::OPTIONAL)?,
        });
    }
    for (i, name) in names.iter().enumerate() {
        // Behind the columns comes the rest.
        fields.push(columns.get(i).map_or_else(|| text(name, Repetition::OPTIONAL), |column| node(name, column.kind))?);
    }
    for name in tail {
        fields.push(text(name, Repetition::OPTIONAL)?);
    }
    let schema = Node::group_type_builder("change").with_fields(fields).build()?;
    let compression = match zstd_level {
        Some(level) => Compression::ZSTD(ZstdLevel::try_new(level)?),
        None => Compression::UNCOMPRESSED,
    };
    // The writer looks at a page's size only between steps of so many values.
    let widest = leaves.iter().map(Leaf::mean).max().unwrap_or(0);
    let mut properties = WriterProperties::builder()
        .set_compression(compression)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_write_batch_size((PAGE_BYTES / widest.max(1)).clamp(1, 1024));
    // The least and the greatest of JSON and of numbers as text tell a reader nothing.
    let is_opaque = |kind| matches!(kind, Type::Numeric | Type::Jsonb | Type::NumericArray | Type::ByteaArray);
    let opaque = names.iter().zip(columns).filter(|(_, column)| is_opaque(column.kind)).map(|(name, _)| &**name);
    let rest = names.get(columns.len()).map(|name| &**name);
    for name in ["event_id", "key"].into_iter().chain(opaque).chain(rest).chain(tail.iter().copied()) {
        let path = ColumnPath::new(vec![name.to_owned()]);
        properties = properties.set_column_statistics_enabled(path, EnabledStatistics::None);
    }
    let schema = Arc::new(schema);
    for (leaf, column) in leaves.iter().zip(SchemaDescriptor::new(Arc::clone(&schema)).columns()) {
        if leaf.repeats() {
            properties = properties.set_column_dictionary_enabled(column.path().clone(), true);
        }
    }
    written(schema, properties.build(), leaves)
}

/// A planned column.
fn node(name: &str, kind: Type) -> Result<TypePtr> {
    let list = |element: TypePtr| {
        let list = Node::group_type_builder("list").with_repetition(Repetition::REPEATED).with_fields(vec![element]);
        let outer = Node::group_type_builder(name)
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(Some(LogicalType::List))
            .with_fields(vec![Arc::new(list.build()?)]);
        Ok(Arc::new(outer.build()?))
    };
    match kind {
        Type::Text | Type::Numeric | Type::Jsonb => text(name, Repetition::OPTIONAL),
        Type::Decimal { precision, scale } => {
            let (physical, len) = if precision <= LONG_DIGITS {
                (Physical::INT64, 0)
            } else {
                (Physical::FIXED_LEN_BYTE_ARRAY, DECIMAL_BYTES)
            };
            let (precision, scale) = (i32::from(precision), i32::from(scale));
            let built = Node::primitive_type_builder(name, physical)
                .with_repetition(Repetition::OPTIONAL)
                .with_length(len as i32)
                .with_precision(precision)
                .with_scale(scale)
                .with_logical_type(Some(LogicalType::decimal(scale, precision)));
            Ok(Arc::new(built.build()?))
        }
        Type::Bigint => field(name, Physical::INT64, None, Repetition::OPTIONAL),
        Type::Boolean => field(name, Physical::BOOLEAN, None, Repetition::OPTIONAL),
        Type::Bytea => field(name, Physical::BYTE_ARRAY, None, Repetition::OPTIONAL),
        Type::Timestamp => field(name, Physical::INT64, Some(instant()), Repetition::OPTIONAL),
        Type::TextArray | Type::NumericArray => list(text("element", Repetition::REQUIRED)?),
        Type::ByteaArray => list(field("element", Physical::BYTE_ARRAY, None, Repetition::REQUIRED)?),
    }
}

/// Every column's values, in the schema's order.
fn leaves(batch: &ChangeBatch, plan: Option<&Plan>, images: bool) -> Vec<Leaf> {
    let planned = plan.map_or(0, |plan| plan.columns().len() + usize::from(plan.rest().is_some()));
    let mut leaves: Vec<Leaf> =
        (0..HEAD.len() + planned + if images { TAIL.len() } else { 0 }).map(|_| Leaf::default()).collect();
    let (plain_arenas, raw_arenas) = (plain_arenas(batch), raw_arenas(batch));
    let mut split = plan.map(Split::new);
    for &r in batch.order.iter() {
        let view = batch.view(r);
        let part = r.part as usize;
        let (head, others) = leaves.split_at_mut(HEAD.len());
        let (middle, tail) = others.split_at_mut(planned);
        write_head(head, view, batch);
        if let Some(split) = &mut split {
            write_planned(middle, view, split);
        }
        let [item, old] = tail else { continue };
        if plan.is_some() {
            item.share(&raw_arenas[part], view.change.new);
            old.share(&raw_arenas[part], view.change.old);
            continue;
        }
        item.share(&plain_arenas[part], view.change.plain);
        if view.change.old.is_empty() {
            old.null();
        } else {
            old.bytes(|out| value::write_plain(view.raw(view.change.old), out));
        }
    }
    leaves
}

fn write_head(head: &mut [Leaf], view: View<'_>, batch: &ChangeBatch) {
    let [table, event, event_id, key, version, event_time, sequence_number] = head else { return };
    match batch.tables.get(view.table as usize) {
        Some(name) => table.bytes(|out| out.extend_from_slice(name.as_bytes())),
        None => table.null(),
    }
    event.bytes(|out| out.extend_from_slice(view.change.event.name().as_bytes()));
    match view.id() {
        b"" => event_id.null(),
        id => event_id.bytes(|out| scan::unescape(id, out)),
    }
    key.bytes(|out| value::write_plain(view.raw(view.change.keys), out));
    version.bytes(|out| view.change.version.write(out));
    event_time.long(view.change.event_us);
    match view.part.records.sequence_number(view.change.record as usize) {
        "" => sequence_number.null(),
        number => sequence_number.bytes(|out| out.extend_from_slice(number.as_bytes())),
    }
}

/// The plan's columns, and the rest, of the new image.
fn write_planned(leaves: &mut [Leaf], view: View<'_>, split: &mut Split<'_>) {
    let image = view.raw(view.change.new);
    let is_list = |kind| matches!(kind, Type::TextArray | Type::NumericArray | Type::ByteaArray);
    if image.is_empty() {
        for (i, leaf) in leaves.iter_mut().enumerate() {
            leaf.null();
            if split.plan().columns().get(i).is_some_and(|column| is_list(column.kind)) {
                leaf.repeated.push(0);
            }
        }
        return;
    }
    split.read(image, |_| false);
    let columns = split.plan().columns();
    for ((leaf, column), &value) in leaves.iter_mut().zip(columns).zip(split.values()) {
        write_value(leaf, image, split, column.kind, value);
    }
    if let (Some(rest), Some(_)) = (leaves.last_mut(), split.plan().rest()) {
        rest.bytes(|out| out.extend_from_slice(split.rest()));
    }
}

#[inline]
fn write_value(leaf: &mut Leaf, b: &[u8], split: &Split<'_>, kind: Type, value: Value) {
    let raw = |text: Text| &b[text.start..text.end];
    match value {
        Value::Absent => {
            leaf.null();
            if matches!(kind, Type::TextArray | Type::NumericArray | Type::ByteaArray) {
                leaf.repeated.push(0);
            }
        }
        Value::Text(text) => leaf.bytes(|out| text.append(b, out)),
        Value::Number(text) => match kind {
            Type::Decimal { precision, scale } => {
                let unscaled = number::unscaled(raw(text), scale).unwrap_or(0);
                match i64::try_from(unscaled) {
                    Ok(long) if precision <= LONG_DIGITS => leaf.long(long),
                    _ => leaf.bytes(|out| out.extend_from_slice(&unscaled.to_be_bytes())),
                }
            }
            _ => leaf.bytes(|out| out.extend_from_slice(raw(text))),
        },
        Value::Whole(value) | Value::Instant(value) => leaf.long(value),
        Value::Boolean(value) => {
            leaf.flag(value);
        }
        Value::Binary(text) => leaf.bytes(|out| binary::append(b, text, out)),
        Value::Any(start, end) => leaf.bytes(|out| value::append_plain(b, start, end, &mut Notes::default(), out)),
        Value::Set(first, len) => {
            for (i, &text) in split.elements(first, len).iter().enumerate() {
                match kind {
                    Type::ByteaArray => binary::append(b, text, &mut leaf.arena),
                    _ => text.append(b, &mut leaf.arena),
                }
                leaf.ends.push(leaf.arena.len());
                leaf.defined.push(2);
                leaf.repeated.push(i16::from(i > 0));
            }
            if len == 0 {
                leaf.defined.push(1);
                leaf.repeated.push(0);
            }
        }
    }
}
