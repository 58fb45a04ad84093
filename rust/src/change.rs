//! Decoded changes and the batch that holds them.
//!
//! In: `Records`. Out: a `ChangeBatch`: changes, the arenas they point into, rejections, an order. Invariants: a
//! refused record never costs a neighbour; every record is a change, a duplicate or a rejection; parts are
//! shared, never copied, when batches are put together.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::dedupe;
use crate::error::{Code, Fault};
use crate::key;
use crate::record::{self, Arenas, Event, Precision, Version};
use crate::records::{Records, Span};

/// A change names no table.
pub const NO_TABLE: u32 = u32::MAX;

/// Buffers up to this size are fitted by copying.
const COPIED_MAX: usize = 4 << 20;

/// One decoded record: small facts, and places in its part's arenas.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The version's value.
    pub version: Version,
    /// Creation time, UTC microseconds.
    pub event_us: i64,
    /// Hash of the canonical key.
    pub key_hash: u64,
    /// Hash of `eventID`.
    pub id_hash: u64,
    /// Canonical key, in the part's `keys`.
    pub key: Span,
    /// `eventID`, raw, in the payloads; empty when there is none.
    pub id: Span,
    /// `Keys`, raw, in the payloads.
    pub keys: Span,
    /// New image, raw, in the payloads.
    pub new: Span,
    /// Old image, raw, in the payloads.
    pub old: Span,
    /// New image, plain, in the part's `plain`.
    pub plain: Span,
    /// Index in the records.
    pub record: u32,
    /// Index in the part's tables, or `NO_TABLE`.
    pub table: u32,
    /// What happened.
    pub event: Event,
    /// What the version is made of.
    pub precision: Precision,
    /// The new image holds a string with an escape.
    pub escaped: bool,
    /// Fingerprint of the item before.
    pub before: u64,
}

/// A refused record.
#[derive(Clone, Debug)]
pub struct Rejection {
    /// Where its bytes are.
    pub records: Arc<Records>,
    /// Index in the records.
    pub index: u32,
    /// Which of the concatenated batches it came from.
    pub part: u32,
    /// Stable slug.
    pub code: Arc<str>,
    /// For people.
    pub message: String,
    /// The table it names.
    pub table: Option<Arc<str>>,
    /// It was marked late.
    pub late: bool,
}

/// The changes of one `Records`, in order of arrival.
#[derive(Debug)]
pub struct Part {
    /// The undecoded bytes.
    pub records: Arc<Records>,
    /// Every change, duplicates too.
    pub changes: Vec<Change>,
    /// Canonical keys.
    pub keys: Arc<Vec<u8>>,
    /// Plain new images.
    pub plain: Arc<Vec<u8>>,
    /// Names of tables.
    pub tables: Vec<Arc<str>>,
    /// Where the raw parts of the changes are, when not in the records: `project` made them.
    pub projected: Option<Arc<Vec<u8>>>,
    /// What was decoded, when these changes are made from it: order and filters look at nothing else.
    pub original: Option<Arc<Self>>,
}

impl Part {
    /// Memory held.
    pub(crate) fn nbytes(&self) -> usize {
        let own = self.changes.capacity() * size_of::<Change>();
        own + match &self.original {
            // Keys are shared.
            Some(original) => {
                let made = self.projected.as_ref().map_or(0, |projected| projected.capacity() + self.plain.capacity());
                original.nbytes() + made
            }
            None => self.records.nbytes() + self.keys.capacity() + self.plain.capacity(),
        }
    }

    /// A part to be made another of, the original kept.
    pub(crate) fn derived(self: &Arc<Self>) -> Self {
        Self {
            records: Arc::clone(&self.records),
            changes: self.changes.clone(),
            keys: Arc::clone(&self.keys),
            plain: Arc::clone(&self.plain),
            tables: self.tables.clone(),
            projected: self.projected.clone(),
            original: Some(Arc::clone(self.original.as_ref().unwrap_or(self))),
        }
    }

    /// The bytes that spans of the changes point into.
    #[inline]
    pub fn arena(&self) -> &[u8] {
        self.projected.as_ref().map_or(self.records.arena(), |projected| projected)
    }
}

impl Part {
    /// Bytes that a change takes, at least.
    pub(crate) fn weight(&self, index: u32) -> usize {
        let payload = |change: &Change| self.records.payload(change.record as usize).len();
        self.changes.get(index as usize).map_or(0, |change| size_of::<Change>() + payload(change))
    }

    /// A part of its own with copies of these changes only. (Their records are numbered anew.)
    pub(crate) fn picked(&self, indexes: &[u32]) -> Self {
        let chosen = || indexes.iter().filter_map(|&index| self.changes.get(index as usize));
        let sum = |of: fn(&Change) -> usize| chosen().map(of).sum();
        let mut records = Records::with_capacity(indexes.iter().map(|&index| self.weight(index)).sum(), indexes.len());
        let mut part = Self {
            records: Arc::default(),
            changes: Vec::with_capacity(indexes.len()),
            keys: Arc::default(),
            plain: Arc::default(),
            tables: self.tables.clone(),
            projected: None,
            original: None,
        };
        let (mut keys, mut plain) = (
            Vec::with_capacity(sum(|change| change.key.len as usize)),
            Vec::with_capacity(sum(|change| change.plain.len as usize)),
        );
        for change in chosen() {
            let (start, record) = (records.arena().len() as u32, records.len() as u32);
            if records.push_copy(&self.records, change.record as usize).is_err() {
                // It can't be larger than what it is copied from.
                break;
            }
            let from = self.records.entries().get(change.record as usize).map_or(0, |entry| entry.payload.start);
            let moved =
                |span: Span| Span { start: if span.is_empty() { 0 } else { span.start - from + start }, ..span };
            part.changes.push(Change {
                key: copied(change.key, &self.keys, &mut keys),
                plain: copied(change.plain, &self.plain, &mut plain),
                id: moved(change.id),
                keys: moved(change.keys),
                new: moved(change.new),
                old: moved(change.old),
                record,
                ..*change
            });
        }
        records.shrink();
        (part.records, part.keys, part.plain) = (Arc::new(records), Arc::new(keys), Arc::new(plain));
        part
    }
}

/// The bytes of a span, appended; their new place.
fn copied(span: Span, from: &[u8], to: &mut Vec<u8>) -> Span {
    let start = to.len() as u32;
    to.extend_from_slice(span.of(from));
    Span { start, ..span }
}

/// A change of a batch: which part, and which of its changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ref {
    /// Index in the batch's parts.
    pub part: u32,
    /// Index in the part's changes.
    pub index: u32,
}

/// Changes of one or more parts, exact duplicates out, in order.
#[derive(Clone, Debug)]
pub struct ChangeBatch {
    /// The parts, shared with the batches they came from.
    pub parts: Vec<Arc<Part>>,
    /// Per part: which of the concatenated batches it came from.
    origins: Vec<u32>,
    /// Per part: its tables' indexes in `tables`.
    maps: Vec<Vec<u32>>,
    /// Names of tables.
    pub tables: Vec<Arc<str>>,
    /// The changes that count, in order.
    pub order: Arc<Vec<Ref>>,
    /// `order` is input order, duplicates too.
    pub keep_all: bool,
    /// The changes that a filter left out: they still decide the order of others.
    pub hidden: Arc<Vec<Ref>>,
    /// Exact duplicates taken out.
    pub duplicates: usize,
    /// Changes whose order nothing but their arrival decided.
    pub ambiguous: usize,
    /// Refused records.
    pub rejections: Vec<Rejection>,
    /// Those of `order` that came after a newer change of their key was given, by part and index.
    pub late: Arc<Vec<Ref>>,
}

/// A change and its part, to read from.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The part.
    pub part: &'a Part,
    /// The change.
    pub change: &'a Change,
    /// The change's index in the part.
    pub index: u32,
    /// The table's index in the batch, or `NO_TABLE`.
    pub table: u32,
    /// It came after a newer change of its key was given.
    pub late: bool,
}

impl<'a> View<'a> {
    /// Canonical key.
    pub fn key(&self) -> &'a [u8] {
        self.change.key.of(&self.part.keys)
    }

    /// `eventID`, raw.
    pub fn id(&self) -> &'a [u8] {
        self.raw(self.change.id)
    }

    /// The whole record.
    pub fn payload(&self) -> &'a [u8] {
        self.part.records.payload(self.change.record as usize)
    }

    /// The record's sequence number; empty when the source gave none.
    pub fn sequence_number(&self) -> &'a str {
        self.part.records.sequence_number(self.change.record as usize)
    }

    /// What the change says here, as a sink may see it.
    #[inline]
    pub fn raw(&self, span: Span) -> &'a [u8] {
        span.of(self.part.arena())
    }

    /// The change as it was decoded, whatever a projection or a filter made of it.
    #[inline]
    #[must_use]
    pub fn original(self) -> Self {
        let Some(original) = &self.part.original else { return self };
        Self { part: original, change: &original.changes[self.index as usize], ..self }
    }

    /// New image, plain; empty when absent.
    pub fn plain(&self) -> &'a [u8] {
        self.change.plain.of(&self.part.plain)
    }
}

/// Decodes, checks, takes out exact duplicates and orders.
pub fn decode(records: Arc<Records>, table: Option<&str>, keep_all: bool) -> ChangeBatch {
    let (part, rejections) = decode_part(records, table);
    let tables = part.tables.clone();
    let maps = vec![(0..tables.len() as u32).collect()];
    let refs = (0..part.changes.len() as u32).map(|index| Ref { part: 0, index }).collect();
    let mut batch = ChangeBatch {
        parts: vec![Arc::new(part)],
        origins: vec![0],
        maps,
        tables,
        order: Arc::new(Vec::new()),
        hidden: Arc::new(Vec::new()),
        keep_all,
        duplicates: 0,
        ambiguous: 0,
        rejections,
        late: Arc::default(),
    };
    batch.arrange(refs);
    batch
}

fn decode_part(records: Arc<Records>, default: Option<&str>) -> (Part, Vec<Rejection>) {
    let arena = records.arena();
    let mut arenas = Arenas::new(arena.len(), records.len());
    let mut changes = Vec::with_capacity(records.len());
    let mut tables = Tables { names: Vec::new(), default };
    let mut refused = Vec::new();
    let all_utf8 = simdutf8::basic::from_utf8(arena).is_ok();
    for (index, entry) in records.entries().iter().enumerate() {
        let base = entry.payload.start;
        let b = entry.payload.of(arena);
        let (key, plain) = (arenas.keys.len(), arenas.end);
        // All valid and begun at a character: valid, and so is the one before.
        let utf8 = if all_utf8 && !ends_inside_character(arena, entry.payload) {
            Ok(())
        } else {
            std::str::from_utf8(b).map(|_| ()).map_err(|error| Fault::new(Code::InvalidUtf8, error.valid_up_to()))
        };
        match utf8.and_then(|()| record::read(b, &mut arenas)) {
            Ok(found) => {
                let shift = |span: Span| Span { start: if span.is_empty() { 0 } else { base + span.start }, ..span };
                let id = Span::new(found.event_id.start, found.event_id.end);
                let key = Span::new(key, arenas.keys.len());
                changes.push(Change {
                    version: found.version,
                    event_us: found.event_us,
                    key_hash: key::hash(key.of(&arenas.keys)),
                    id_hash: key::hash(id.of(b)),
                    key,
                    id: shift(id),
                    keys: shift(found.keys),
                    new: shift(found.new),
                    old: shift(found.old),
                    plain: found.plain,
                    record: index as u32,
                    table: tables.index(found.table.map(|name| name.bytes(b)).as_deref()),
                    event: found.event,
                    precision: found.precision,
                    escaped: found.escaped,
                    before: found.before,
                });
            }
            Err(fault) => {
                arenas.keys.truncate(key);
                arenas.end = plain;
                refused.push((index as u32, fault));
            }
        }
    }
    arenas.plain.truncate(arenas.end);
    let (keys, plain) = (fitted(arenas.keys), fitted(arenas.plain));
    let rejections = refused
        .into_iter()
        .map(|(index, fault)| Rejection {
            table: record::table_named(records.payload(index as usize)).as_deref().or(default).map(Arc::from),
            records: Arc::clone(&records),
            index,
            part: 0,
            code: Arc::from(fault.code.slug()),
            message: fault.message(),
            late: false,
        })
        .collect();
    let part = Part {
        records,
        changes,
        keys: Arc::new(keys),
        plain: Arc::new(plain),
        tables: tables.names,
        projected: None,
        original: None,
    };
    (part, rejections)
}

/// The buffer without unused room worth the trouble. What is left of a small one is copied: shrinking it would
/// hand its pages back to the system with every batch, and the next batch would pay for getting them again.
fn fitted(mut buffer: Vec<u8>) -> Vec<u8> {
    if buffer.capacity() / 2 <= buffer.len() {
        return buffer;
    }
    if buffer.capacity() <= COPIED_MAX {
        return buffer.as_slice().to_vec();
    }
    buffer.shrink_to_fit();
    buffer
}

/// The byte behind the payload, or its first one, continues a character.
fn ends_inside_character(arena: &[u8], payload: Span) -> bool {
    let continues = |at: usize| arena.get(at).is_some_and(|c| c & 0xC0 == 0x80);
    continues(payload.start as usize) || continues(payload.start as usize + payload.len as usize)
}

/// The tables seen so far; a batch has few.
struct Tables<'a> {
    names: Vec<Arc<str>>,
    default: Option<&'a str>,
}

impl Tables<'_> {
    #[inline]
    fn index(&mut self, name: Option<&[u8]>) -> u32 {
        let name = name.filter(|name| !name.is_empty());
        let Some(name) = name.or(self.default.map(str::as_bytes)) else { return NO_TABLE };
        if let Some(index) = self.names.iter().position(|known| known.as_bytes() == name) {
            return index as u32;
        }
        self.names.push(Arc::from(String::from_utf8_lossy(name)));
        self.names.len() as u32 - 1
    }
}

impl ChangeBatch {
    /// One batch over several, ordered and deduped across them.
    pub fn concat(batches: &[Arc<Self>]) -> Self {
        let mut all = Self {
            parts: Vec::new(),
            origins: Vec::new(),
            maps: Vec::new(),
            tables: Vec::new(),
            order: Arc::new(Vec::new()),
            hidden: Arc::new(Vec::new()),
            keep_all: false,
            duplicates: 0,
            ambiguous: 0,
            rejections: Vec::new(),
            late: Arc::default(),
        };
        let mut late = Vec::new();
        let mut refs = Vec::with_capacity(batches.iter().map(|batch| batch.order.len()).sum());
        let mut hidden = Vec::new();
        for (part, batch) in batches.iter().enumerate() {
            let first = all.parts.len() as u32;
            for (from, map) in batch.parts.iter().zip(&batch.maps) {
                all.parts.push(Arc::clone(from));
                all.origins.push(part as u32);
                let map = map.iter().map(|&index| all.table(&batch.tables[index as usize])).collect();
                all.maps.push(map);
            }
            let from = refs.len();
            let moved = |r: &Ref| Ref { part: first + r.part, index: r.index };
            refs.extend(batch.order.iter().chain(batch.hidden.iter()).map(moved));
            hidden.extend(batch.hidden.iter().map(moved));
            late.extend(batch.late.iter().map(moved));
            // What arrival decides, decide it again by arrival.
            refs[from..].sort_unstable_by_key(|r: &Ref| (r.part, r.index));
            all.duplicates += batch.duplicates;
            all.rejections.extend(batch.rejections.iter().cloned().map(|r| Rejection { part: part as u32, ..r }));
        }
        all.late = Arc::new(late);
        all.arrange(refs);
        if !hidden.is_empty() {
            hidden.sort_unstable();
            let (left, kept) = all.order.iter().partition(|r| hidden.binary_search(r).is_ok());
            (all.order, all.hidden) = (Arc::new(kept), Arc::new(left));
        }
        all
    }

    /// The batch with these changes made deletes. What was decoded stays their original.
    pub(crate) fn with_deletes(&self, refs: &[Ref]) -> Self {
        let mut made: Vec<Option<Part>> = self.parts.iter().map(|_| None).collect();
        for &Ref { part, index } in refs {
            let from = &self.parts[part as usize];
            let made = made[part as usize].get_or_insert_with(|| from.derived());
            let change = &mut made.changes[index as usize];
            change.event = Event::Remove;
            change.new = Span::default();
            change.plain = Span::default();
        }
        let parts = self.parts.iter().zip(made).map(|(from, made)| made.map_or(Arc::clone(from), Arc::new)).collect();
        Self { parts, ..self.clone() }
    }

    /// A batch of changes of these parts, given in order of arrival; the parts are `part` 0, 1, 2 of a rejection.
    pub(crate) fn gathered(parts: Vec<Arc<Part>>, refs: Vec<Ref>) -> Self {
        let mut batch = Self::concat(&[]);
        for (origin, part) in parts.iter().enumerate() {
            let map = part.tables.iter().map(|name| batch.table(name)).collect();
            batch.origins.push(origin as u32);
            batch.maps.push(map);
        }
        batch.parts = parts;
        batch.arrange(refs);
        batch
    }

    fn table(&mut self, name: &Arc<str>) -> u32 {
        if let Some(index) = self.tables.iter().position(|known| known == name) {
            return index as u32;
        }
        self.tables.push(Arc::clone(name));
        self.tables.len() as u32 - 1
    }

    /// Takes duplicates out of the changes given in order of arrival, and orders the rest.
    fn arrange(&mut self, refs: Vec<Ref>) {
        if self.keep_all {
            self.order = Arc::new(refs);
            return;
        }
        let arranged = dedupe::arrange(self, refs);
        self.order = Arc::new(arranged.order);
        self.duplicates += arranged.duplicates;
        self.ambiguous = arranged.ambiguous;
    }

    /// The changes in the order that decides what is newest, also where the batch keeps all.
    pub fn decided(&self) -> Arc<Vec<Ref>> {
        if self.keep_all { Arc::new(dedupe::arrange(self, self.order.to_vec()).order) } else { Arc::clone(&self.order) }
    }

    /// A projection made what it shows.
    pub fn is_projected(&self) -> bool {
        self.parts.iter().any(|part| part.projected.is_some())
    }

    /// A change alone: less work than its `view`.
    #[inline(always)]
    pub fn change(&self, r: Ref) -> &Change {
        &self.parts[r.part as usize].changes[r.index as usize]
    }

    /// A change and its part.
    #[inline]
    pub fn view(&self, r: Ref) -> View<'_> {
        let part = &self.parts[r.part as usize];
        let change = &part.changes[r.index as usize];
        let table = self.maps[r.part as usize].get(change.table as usize).copied().unwrap_or(NO_TABLE);
        let late = !self.late.is_empty() && {
            let place = |other: &Ref| (other.part, other.index).cmp(&(r.part, r.index));
            self.late.binary_search_by(place).is_ok()
        };
        View { part, change, index: r.index, table, late }
    }

    /// All changes, in order.
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        self.order.iter().map(|&r| self.view(r))
    }

    /// The change as a rejection with this code and message.
    pub fn reject(&self, r: Ref, code: &str, message: String) -> Rejection {
        let view = self.view(r);
        Rejection {
            records: Arc::clone(&view.part.records),
            index: view.change.record,
            part: self.origins.get(r.part as usize).copied().unwrap_or(0),
            code: Arc::from(code),
            message,
            table: self.tables.get(view.table as usize).cloned(),
            late: view.late,
        }
    }

    /// The batch with all of its changes marked late.
    #[must_use]
    pub fn marked_late(&self) -> Self {
        let mut late = self.order.to_vec();
        late.sort_unstable();
        Self { late: Arc::new(late), ..self.clone() }
    }

    /// Memory held.
    pub fn nbytes(&self) -> usize {
        self.parts.iter().map(|part| part.nbytes()).sum::<usize>() + self.order.capacity() * size_of::<Ref>()
    }

    /// Records decoded.
    pub fn records(&self) -> usize {
        self.order.len() + self.hidden.len() + self.duplicates + self.rejections.len()
    }

    /// Changes per table.
    pub fn table_counts(&self) -> BTreeMap<Option<Arc<str>>, usize> {
        let mut counts = BTreeMap::new();
        for view in self.views() {
            *counts.entry(self.tables.get(view.table as usize).cloned()).or_default() += 1;
        }
        counts
    }

    /// Earliest and latest creation time, UTC microseconds.
    pub fn event_us(&self) -> Option<(i64, i64)> {
        self.views().map(|view| view.change.event_us).fold(None, |range, us| {
            let (first, last) = range.unwrap_or((us, us));
            Some((us.min(first), us.max(last)))
        })
    }
}
