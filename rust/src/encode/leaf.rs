//! Columns of a Parquet file to be, value by value, and the file of one row group that they make.
//!
//! In: values, some made here, some shared with a batch's arenas. Out: the file's bytes. Invariant: every column has a
//! level, or a value where none may be missing, for each row.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{LogicalType, Repetition, TimeUnit, Type as Physical};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::{ByteArray, FixedLenByteArray};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::{Type as Node, TypePtr};

use crate::change::{ChangeBatch, Part};
use crate::records::{Records, Span};

/// So many values tell whether a column's values repeat.
const SAMPLE: usize = 64;

/// A file of these columns, in the schema's order.
pub(super) fn written(schema: Arc<Node>, properties: WriterProperties, leaves: Vec<Leaf>) -> Result<Vec<u8>> {
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    for leaf in leaves {
        let column = group.next_column()?.ok_or_else(|| ParquetError::General("a column is missing".to_owned()))?;
        leaf.write(column)?;
    }
    group.close()?;
    writer.into_inner()
}

pub(super) fn text(name: &str, repetition: Repetition) -> Result<TypePtr> {
    field(name, Physical::BYTE_ARRAY, Some(LogicalType::String), repetition)
}

pub(super) fn instant() -> LogicalType {
    LogicalType::timestamp(true, TimeUnit::MICROS)
}

pub(super) fn field(
    name: &str,
    physical: Physical,
    logical: Option<LogicalType>,
    repetition: Repetition,
) -> Result<TypePtr> {
    let built = Node::primitive_type_builder(name, physical).with_logical_type(logical).with_repetition(repetition);
    Ok(Arc::new(built.build()?))
}

/// A column's values to be: those of one kind, and the levels that say which rows have them.
#[derive(Default)]
pub(super) struct Leaf {
    /// Values that lie elsewhere.
    shared: Vec<ByteArray>,
    /// Values that were made, and where each ends.
    pub(super) arena: Vec<u8>,
    pub(super) ends: Vec<usize>,
    longs: Vec<i64>,
    pub(super) flags: Vec<bool>,
    pub(super) defined: Vec<i16>,
    pub(super) repeated: Vec<i16>,
}

impl Leaf {
    pub(super) fn null(&mut self) {
        self.defined.push(0);
    }

    pub(super) fn long(&mut self, value: i64) {
        self.longs.push(value);
        self.defined.push(1);
    }

    pub(super) fn flag(&mut self, value: bool) {
        self.flags.push(value);
        self.defined.push(1);
    }

    /// What `write` appends is the value.
    pub(super) fn bytes(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.arena);
        self.ends.push(self.arena.len());
        self.defined.push(1);
    }

    /// What lies at this place of an arena, which must last as long as the writer.
    pub(super) fn share(&mut self, arena: &Bytes, span: Span) {
        if span.is_empty() {
            return self.null();
        }
        let start = span.start as usize;
        self.shared.push(arena.slice(start..start + span.len as usize).into());
        self.defined.push(1);
    }

    /// Of the first values at most half are distinct, so that a dictionary pays.
    pub(super) fn repeats(&self) -> bool {
        let sample = &self.ends[..self.ends.len().min(SAMPLE)];
        let mut start = 0;
        let distinct: HashSet<&[u8]> =
            sample.iter().map(|&end| &self.arena[std::mem::replace(&mut start, end)..end]).collect();
        !sample.is_empty() && 2 * distinct.len() <= sample.len()
    }

    /// Bytes of a value, about.
    pub(super) fn mean(&self) -> usize {
        let shared = self.shared.iter().map(ByteArray::len).sum::<usize>();
        (shared + self.arena.len()) / (self.shared.len() + self.ends.len()).max(1)
    }

    fn write(mut self, mut column: SerializedColumnWriter<'_>) -> Result<()> {
        let mut values = self.shared;
        if !self.ends.is_empty() {
            let arena = Bytes::from(self.arena);
            let mut start = 0;
            values.reserve(self.ends.len());
            for end in self.ends {
                values.push(arena.slice(start..end).into());
                start = end;
            }
        }
        let repeated = Some(&*self.repeated).filter(|levels| !levels.is_empty());
        if let Some(levels) = repeated {
            debug_assert_eq!(levels.len(), self.defined.len());
        }
        match column.untyped() {
            ColumnWriter::Int64ColumnWriter(writer) => {
                let levels = (writer.get_descriptor().max_def_level() > 0).then_some(&*self.defined);
                writer.write_batch(&self.longs, levels, None)?;
            }
            ColumnWriter::BoolColumnWriter(writer) => {
                let levels = (writer.get_descriptor().max_def_level() > 0).then_some(&*self.defined);
                writer.write_batch(&self.flags, levels, None)?;
            }
            ColumnWriter::ByteArrayColumnWriter(writer) => {
                let levels = (writer.get_descriptor().max_def_level() > 0).then_some(&*self.defined);
                writer.write_batch(&values, levels, repeated)?;
            }
            ColumnWriter::FixedLenByteArrayColumnWriter(writer) => {
                let values: Vec<FixedLenByteArray> = values.into_iter().map(Into::into).collect();
                writer.write_batch(&values, Some(&self.defined), None)?;
            }
            _ => return Err(ParquetError::General("no column has this type".to_owned())),
        }
        self.defined.clear();
        column.close()
    }
}

/// Each part's plain images, for `Leaf::share`.
pub(super) fn plain_arenas(batch: &ChangeBatch) -> Vec<Bytes> {
    batch.parts.iter().map(|part| Bytes::from_owner(Plain(Arc::clone(part)))).collect()
}

/// Each part's undecoded bytes, likewise.
pub(super) fn raw_arenas(batch: &ChangeBatch) -> Vec<Bytes> {
    batch.parts.iter().map(|part| Bytes::from_owner(Raw(Arc::clone(&part.records)))).collect()
}

/// A part's plain images, shared.
struct Plain(Arc<Part>);

impl AsRef<[u8]> for Plain {
    fn as_ref(&self) -> &[u8] {
        &self.0.plain
    }
}

/// A part's undecoded bytes, shared.
struct Raw(Arc<Records>);

impl AsRef<[u8]> for Raw {
    fn as_ref(&self) -> &[u8] {
        self.0.arena()
    }
}
