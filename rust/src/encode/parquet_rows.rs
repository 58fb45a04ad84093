//! Rows as a Parquet file, for a reader that takes columns.
//!
//! In: rows, and the names of the key's columns. Out: a file of one row group, neither compressed nor with statistics:
//! those columns (all texts: a number in fixed-point notation, binary as base64), `item` (plain JSON; null for a delete),
//! `version` and `chain` as for `CrateDB` (the chain's bytes), `deleted`. Invariant: as many rows, in their order.

use std::sync::Arc;

use parquet::basic::{Repetition, Type as Physical};
use parquet::errors::Result;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::Type as Node;

use crate::dedupe::Rows;
use crate::encode::copy::write_chain_bytes;
use crate::encode::crate_rows::{write_key_text, write_version};
use crate::encode::leaf::{Leaf, field, plain_arenas, text, written};
use crate::record::{Event, Precision};

/// All rows; `names` are as many as the key has attributes.
pub fn file(rows: &Rows, names: &[String], generation: u32) -> Result<Vec<u8>> {
    let mut fields = Vec::with_capacity(names.len() + 4);
    for name in names {
        fields.push(text(name, Repetition::REQUIRED)?);
    }
    fields.push(text("item", Repetition::OPTIONAL)?);
    fields.push(text("version", Repetition::REQUIRED)?);
    fields.push(field("deleted", Physical::BOOLEAN, None, Repetition::REQUIRED)?);
    fields.push(field("chain", Physical::BYTE_ARRAY, None, Repetition::REQUIRED)?);
    let schema = Node::group_type_builder("row").with_fields(fields).build()?;
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .build();
    let mut keys: Vec<Leaf> = names.iter().map(|_| Leaf::default()).collect();
    let (mut item, mut version, mut deleted, mut chain): (Leaf, Leaf, Leaf, Leaf) = Default::default();
    let arenas = plain_arenas(&rows.batch);
    for (row, r) in rows.rows.iter().enumerate() {
        let view = rows.view(row);
        for (leaf, column) in keys.iter_mut().zip(rows.columns.iter()) {
            leaf.bytes(|out| write_key_text(out, view, column));
        }
        let is_deleted = view.change.event == Event::Remove;
        if is_deleted {
            item.null();
        } else {
            item.share(&arenas[r.part as usize], view.change.plain);
        }
        let is_sequence = view.change.precision == Precision::Sequence;
        version.bytes(|out| write_version(out, generation, rows.version(row), is_sequence));
        deleted.flag(is_deleted);
        chain.bytes(|out| write_chain_bytes(out, rows, row));
    }
    keys.extend([item, version, deleted, chain]);
    written(Arc::new(schema), properties, keys)
}
