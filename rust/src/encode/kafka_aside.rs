//! What a topic won't take is set aside, and with it all that comes later of its key.
//!
//! In: a batch of changes, the keys that were set aside before, the largest record that the topic takes. Out: the batch
//! without those changes, which are rejections now, and the keys that joined. Invariant: of a key, what is set aside
//! comes after everything that isn't.

use std::collections::HashSet;
use std::sync::Arc;

use crate::change::{ChangeBatch, Ref, View};
use crate::compress::CompressFault;
use crate::encode::json::Form;
use crate::encode::kafka::{self, Options};
use crate::encode::registered::Values;
use crate::error::Code;

/// Sets aside, of the table of `options`, the changes of these keys (typed JSON), and each change whose record is
/// larger than `bytes_max` in a batch of its own. Gives the keys of the latter, in order.
pub fn set_aside(
    changes: &ChangeBatch,
    options: &Options<'_>,
    keys: &[Vec<u8>],
    bytes_max: Option<usize>,
) -> Result<(ChangeBatch, Vec<Vec<u8>>), CompressFault> {
    let mut aside: HashSet<Vec<u8>> = keys.iter().cloned().collect();
    let (mut kept, mut joined) = (Vec::with_capacity(changes.order.len()), Vec::new());
    let mut made = changes.clone();
    let (mut key, mut value) = (Vec::new(), Vec::new());
    let mut values = Values::new(options.form, options.schema);
    for &r in changes.order.iter() {
        let view = changes.view(r);
        if !is_of(changes, view, options.table) {
            kept.push(r);
            continue;
        }
        key.clear();
        Form::Dynamodb.write_key(&mut key, view);
        let code = if aside.contains(&key) {
            Code::KeyQuarantined
        } else if let Some(max) = bytes_max
            && is_larger(changes, r, options, max, {
                value.clear();
                values.write(&mut value, changes, view);
                value.len()
            })?
        {
            aside.insert(key.clone());
            joined.push(key.clone());
            Code::RecordTooLarge
        } else {
            kept.push(r);
            continue;
        };
        made.rejections.push(changes.reject(r, code.slug(), code.meaning().to_owned()));
    }
    made.order = Arc::new(kept);
    Ok((made, joined))
}

fn is_of(changes: &ChangeBatch, view: View<'_>, table: Option<&str>) -> bool {
    table.is_none_or(|table| changes.tables.get(view.table as usize).is_some_and(|name| **name == *table))
}

fn is_larger(
    changes: &ChangeBatch,
    r: Ref,
    options: &Options<'_>,
    max: usize,
    value_len: usize,
) -> Result<bool, CompressFault> {
    // What is around a value (key, headers, the batch's own) is less than that: a key has 2 KB, a table's name 255.
    if value_len + AROUND_MAX <= max {
        return Ok(false);
    }
    let mut alone = changes.clone();
    alone.order = Arc::new(vec![r]);
    let batches = kafka::batches(&alone, &Options { partitions: 1, tombstones: false, ..options.clone() })?;
    Ok(batches.iter().any(|batch| batch.as_bytes().len() > max))
}

const AROUND_MAX: usize = 32_768;
