//! Changes apart by their table and by the period of their creation: what a sink writes into one place.
//!
//! In: a batch. Out: batches that share its parts and keep its order, by table, then by period. Invariant: each change
//! of the batch is in exactly one of them, and nothing else of it (duplicates, rejections) is in any.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::change::{ChangeBatch, Ref};

/// Changes of one table (of all, when they weren't told apart) in one period.
#[derive(Debug)]
pub struct Partition {
    /// The table; None when it isn't told apart or a change names none.
    pub table: Option<Arc<str>>,
    /// The period's begin, UTC microseconds.
    pub start_us: i64,
    /// Its changes.
    pub batch: ChangeBatch,
}

/// The changes by periods of `us` microseconds since the epoch, and by table if that is wanted.
pub fn partition(batch: &ChangeBatch, us: i64, by_table: bool) -> Vec<Partition> {
    let mut apart: BTreeMap<(Option<Arc<str>>, i64), Vec<Ref>> = BTreeMap::new();
    for &r in batch.order.iter() {
        let view = batch.view(r);
        let table = batch.tables.get(view.table as usize).filter(|_| by_table).cloned();
        let start_us = view.change.event_us.div_euclid(us).saturating_mul(us);
        apart.entry((table, start_us)).or_default().push(r);
    }
    let partitions = apart.into_iter();
    partitions.map(|((table, start_us), refs)| Partition { table, start_us, batch: picked(batch, refs) }).collect()
}

fn picked(batch: &ChangeBatch, refs: Vec<Ref>) -> ChangeBatch {
    let mut part = batch.clone();
    if !part.late.is_empty() {
        // (What lies in other partitions would be counted.)
        let mut late: Vec<Ref> = refs.iter().filter(|&&r| batch.view(r).late).copied().collect();
        late.sort_unstable();
        part.late = Arc::new(late);
    }
    part.order = Arc::new(refs);
    part.hidden = Arc::default();
    part.rejections = Vec::new();
    (part.duplicates, part.ambiguous) = (0, 0);
    part
}

/// The payloads of the changes as they came, in the batch's order, each followed by the delimiter.
pub fn payloads(batch: &ChangeBatch, delimiter: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(batch.views().map(|view| view.payload().len() + delimiter.len()).sum());
    for view in batch.views() {
        joined.extend_from_slice(view.payload());
        joined.extend_from_slice(delimiter);
    }
    joined
}
