//! Exact duplicates out, order per key, newest per key.
//!
//! In: changes in order of arrival. Out: those that count, ordered by version; of changes of one key at one
//! instant, the one whose old image equals another's new image comes later ([`crate::instant`] says which is the
//! last). Invariants: a redelivered copy never wins, wherever it arrives; what images can't decide follows the
//! arrival and is counted.

use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::change::{Change, ChangeBatch, Ref, Rejection, View};
use crate::error::Code;
use crate::filter::Pattern;
use crate::fingerprint::{GONE, UNKNOWN};
use crate::instant::{self, Link};
use crate::key::{self, KeyType};
use crate::project::Projection;
use crate::record::{Event, Precision, Version};
use crate::records::TooLarge;
use crate::value;

/// Beyond this many steps the search for a chain gives up: the changes count as ambiguous.
const CHAIN_STEPS_MAX: u32 = 10_000;

/// What `arrange` made of a batch's changes.
pub struct Arranged {
    /// The changes that count, in order.
    pub order: Vec<Ref>,
    /// How many were exact duplicates.
    pub duplicates: usize,
    /// How many only their arrival put in order.
    pub ambiguous: usize,
}

/// Takes exact duplicates out of changes in order of arrival, and orders the rest.
pub fn arrange(batch: &ChangeBatch, refs: Vec<Ref>) -> Arranged {
    let arrived = refs.len();
    let mut order = without_repeated_ids(batch, refs);
    let by_version = |r: &Ref| batch.change(*r).version;
    if !order.is_sorted_by_key(by_version) {
        order.sort_by_key(by_version);
    }
    let mut state = Instants { batch, places: Vec::new(), dropped: Vec::new(), ambiguous: 0 };
    let mut start = 0;
    while start < order.len() {
        let first = batch.change(order[start]);
        let mut end = start + 1;
        while end < order.len() && may_tie(first, batch.change(order[end])) {
            end += 1;
        }
        if end - start > 1 {
            state.settle(&mut order, start, end);
        }
        start = end;
    }
    let Instants { mut dropped, ambiguous, .. } = state;
    if !dropped.is_empty() {
        dropped.sort_unstable();
        let mut place = 0;
        order.retain(|_| {
            place += 1;
            dropped.binary_search(&(place - 1)).is_err()
        });
    }
    Arranged { duplicates: arrived - order.len(), order, ambiguous }
}

fn without_repeated_ids(batch: &ChangeBatch, refs: Vec<Ref>) -> Vec<Ref> {
    let mut seen: HashTable<Ref> = HashTable::with_capacity(refs.len());
    let mut kept = refs;
    kept.retain(|&r| {
        let change = batch.change(r);
        if change.id.is_empty() {
            return true;
        }
        let same = |&other: &Ref| {
            batch.change(other).id_hash == change.id_hash && batch.view(other).id() == batch.view(r).id()
        };
        match seen.entry(change.id_hash, same, |&other| batch.change(other).id_hash) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(r);
                true
            }
        }
    });
    kept
}

/// Two changes lie so near that their versions alone may not order them: one millisecond, or one sequence
/// number.
fn may_tie(x: &Change, y: &Change) -> bool {
    match (x.precision, y.precision) {
        (Precision::Sequence, _) | (_, Precision::Sequence) => x.version == y.version,
        _ => x.event_us / 1000 == y.event_us / 1000,
    }
}

struct Instants<'a> {
    batch: &'a ChangeBatch,
    /// Of the millisecond being settled; kept for its room.
    places: Vec<usize>,
    /// Places in the order.
    dropped: Vec<usize>,
    ambiguous: usize,
}

impl Instants<'_> {
    /// Settles the changes of one millisecond, key by key.
    fn settle(&mut self, order: &mut [Ref], start: usize, end: usize) {
        let batch = self.batch;
        let hash = |place: usize| batch.change(order[place]).key_hash;
        if end - start <= 8 {
            // Mostly no two are of one key: find that out without allocating.
            let twice = (start..end).any(|i| (i + 1..end).any(|j| hash(i) == hash(j)));
            if !twice {
                return;
            }
        }
        let mut places = std::mem::take(&mut self.places);
        places.clear();
        places.extend(start..end);
        places.sort_unstable_by_key(|&place| (hash(place), place));
        // All exact, and no two of one microsecond: their versions have ordered them.
        let is_settled = |run: &[usize]| {
            let change = |place: usize| batch.change(order[place]);
            run.iter().all(|&place| change(place).precision == Precision::Microsecond)
                && run.is_sorted_by(|&i, &j| change(i).version < change(j).version)
        };
        let mut groups = Vec::new();
        for run in places.chunk_by(|&i, &j| hash(i) == hash(j)).filter(|run| run.len() > 1 && !is_settled(run)) {
            // Equal hashes are mostly equal keys, but only mostly.
            let mut rest = run.to_vec();
            while let Some(&first) = rest.first() {
                let of = |place: usize| {
                    let view = batch.view(order[place]);
                    (view.table, view.key())
                };
                let (same, other): (Vec<_>, Vec<_>) = rest.iter().partition(|&&place| of(place) == of(first));
                if same.len() > 1 {
                    groups.push(same);
                }
                rest = other;
            }
        }
        self.places = places;
        for places in groups {
            self.settle_key(order, &places);
        }
    }

    /// Settles one key's changes of one millisecond; `places` rise.
    fn settle_key(&mut self, order: &mut [Ref], places: &[usize]) {
        let batch = self.batch;
        let mut kept: Vec<(usize, Link)> = Vec::with_capacity(places.len());
        for &place in places {
            let link = link(batch.view(order[place]));
            if kept.iter().any(|(_, other)| other.repeats(&link)) {
                self.dropped.push(place);
            } else {
                kept.push((place, link));
            }
        }
        if kept.iter().any(|(_, link)| !link.is_exact) {
            self.settle_instant(order, &kept);
        } else {
            for run in kept.chunk_by(|(_, x), (_, y)| x.us == y.us) {
                self.settle_instant(order, run);
            }
        }
    }

    /// Puts one key's changes of one instant in order, in the places they already hold.
    fn settle_instant(&mut self, order: &mut [Ref], changes: &[(usize, Link)]) {
        if changes.len() < 2 {
            return;
        }
        let mut arrived: Vec<(Ref, Link)> = changes.iter().map(|&(place, link)| (order[place], link)).collect();
        arrived.sort_unstable_by_key(|(r, _)| (r.part, r.index));
        let (refs, links): (Vec<Ref>, Vec<Link>) = arrived.into_iter().unzip();
        let batch = self.batch;
        let states: Vec<(u64, u64)> = links.iter().map(|link| (link.before, link.after)).collect();
        let versions = |i: usize| {
            let change = batch.change(refs[i]);
            (change.precision == Precision::Microsecond).then_some(change.version)
        };
        let exact_in_order = |chain: &[usize]| chain.iter().filter_map(|&i| versions(i)).is_sorted();
        let sequence: Vec<usize> = if let Some(chain) = single_chain(&states).filter(|chain| exact_in_order(chain)) {
            chain
        } else {
            self.ambiguous += refs.len();
            // By arrival; but what is exact to the microsecond keeps its own order among itself.
            let exact: Vec<usize> = (0..refs.len()).filter(|&i| versions(i).is_some()).collect();
            let mut sorted = exact.clone();
            sorted.sort_by_key(|&i| versions(i));
            let mut sequence: Vec<usize> = (0..refs.len()).collect();
            for (&slot, &from) in exact.iter().zip(&sorted) {
                sequence[slot] = from;
            }
            let (last, _) = instant::last(&links);
            sequence.retain(|&i| i != last);
            sequence.push(last);
            sequence
        };
        for (&(place, _), &i) in changes.iter().zip(&sequence) {
            order[place] = refs[i];
        }
    }
}

/// The change as a link of its instant: what the item was before and after it.
fn link(view: View<'_>) -> Link {
    let view = view.original();
    let change = view.change;
    Link {
        is_exact: change.precision != Precision::Millisecond,
        us: if change.precision == Precision::Sequence { 0 } else { change.event_us.unsigned_abs() },
        id: if change.id.is_empty() { 0 } else { change.id_hash },
        before: change.before,
        after: after(view),
    }
}

/// What the item is after a change.
fn after(view: View<'_>) -> u64 {
    let new = view.raw(view.change.new);
    match view.change.event {
        Event::Remove => GONE,
        _ if new.is_empty() => UNKNOWN,
        _ => value::fingerprint(new),
    }
}

/// The only sequence of all changes in which each begins where the one before ended; equal changes are
/// interchangeable and keep their order. None when there is no such sequence, or more than one.
fn single_chain(links: &[(u64, u64)]) -> Option<Vec<usize>> {
    struct Search<'a> {
        links: &'a [(u64, u64)],
        used: Vec<bool>,
        path: Vec<usize>,
        found: Vec<Vec<usize>>,
        steps: u32,
    }
    impl Search<'_> {
        fn go(&mut self, at: Option<u64>) {
            self.steps += 1;
            if self.path.len() == self.links.len() {
                self.found.push(self.path.clone());
                return;
            }
            for i in 0..self.links.len() {
                let fits = !self.used[i] && at.is_none_or(|at| at == self.links[i].0 && at != UNKNOWN);
                let tried = || (0..i).any(|j| !self.used[j] && self.links[j] == self.links[i]);
                if !fits || tried() {
                    continue;
                }
                self.used[i] = true;
                self.path.push(i);
                self.go(Some(self.links[i].1));
                self.path.pop();
                self.used[i] = false;
                if self.found.len() > 1 || self.steps > CHAIN_STEPS_MAX {
                    return;
                }
            }
        }
    }
    // A long chain is searched as deep as it is long: no more than this.
    if links.len() > 64 {
        return None;
    }
    let mut search = Search { links, used: vec![false; links.len()], path: Vec::new(), found: Vec::new(), steps: 0 };
    search.go(None);
    if search.steps > CHAIN_STEPS_MAX || search.found.len() != 1 { None } else { search.found.pop() }
}

/// A key column: its attribute's name and type.
pub type Column = (Box<[u8]>, KeyType);

/// The changes of one key that share their instant with its newest one.
#[derive(Clone, Debug)]
pub struct Tie {
    /// The row's place among the rows.
    pub row: u32,
    /// The changes and their links, in order of arrival, the row's own among them.
    pub changes: Vec<(Ref, Link)>,
}

/// The newest change per key of one table.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The batch that the rows point into: in it, what doesn't belong here is a delete, and images are as they may be
    /// seen here.
    pub batch: Arc<ChangeBatch>,
    /// The key columns, in their order.
    pub columns: Arc<[Column]>,
    /// The rows' changes, in the batch's order.
    pub rows: Vec<Ref>,
    /// Rows that are deletes.
    pub deletes: usize,
    /// Rows that are deletes because the new image doesn't match.
    pub filtered: usize,
    /// Changes left out because a newer one of the same key is here.
    pub folded: usize,
    /// Changes that can be no row.
    pub rejections: Vec<Rejection>,
    /// The batch as it came.
    source: Arc<ChangeBatch>,
    /// Which items belong here.
    pattern: Option<Arc<Pattern>>,
    /// What is seen of them.
    projection: Option<Arc<Projection>>,
    /// Rows of several changes at one instant, by their places among the rows.
    pub ties: Vec<Tie>,
    table: u32,
    decided: Arc<Vec<Ref>>,
    /// Changes left out by `without`.
    left_out: Vec<Ref>,
}

impl Rows {
    /// The newest change per key of one table.
    pub fn newest(batch: Arc<ChangeBatch>, table: &str, columns: Vec<Column>) -> Self {
        let mut rows = Self::of(batch, table, columns, None);
        rows.choose();
        rows
    }

    /// The same, where only items belong whose new image matches (any other change deletes), and only what the
    /// projection shows is seen of them. The projection leaves the columns alone: see `Projection::check`.
    pub fn shown(
        batch: Arc<ChangeBatch>,
        table: &str,
        columns: Vec<Column>,
        pattern: Option<Arc<Pattern>>,
        projection: Option<Arc<Projection>>,
    ) -> Result<Self, TooLarge> {
        let mut rows = Self { projection, ..Self::of(batch, table, columns, pattern) };
        rows.choose();
        rows.show()?;
        Ok(rows)
    }

    fn of(batch: Arc<ChangeBatch>, table: &str, columns: Vec<Column>, pattern: Option<Arc<Pattern>>) -> Self {
        let index = batch.tables.iter().position(|name| &**name == table);
        Self {
            decided: batch.decided(),
            source: Arc::clone(&batch),
            batch,
            pattern,
            projection: None,
            columns: columns.into(),
            rows: Vec::new(),
            deletes: 0,
            filtered: 0,
            folded: 0,
            rejections: Vec::new(),
            ties: Vec::new(),
            // No table has this number, `NO_TABLE` included.
            table: index.map_or(u32::MAX - 1, |index| index as u32),
            left_out: Vec::new(),
        }
    }

    /// These rows' changes left out; the next newest change of each key takes its place.
    pub fn without(&self, rows: &[usize]) -> Result<Self, TooLarge> {
        let mut less = self.clone();
        less.left_out.extend(rows.iter().filter_map(|&row| self.rows.get(row)));
        less.choose();
        less.show()?;
        Ok(less)
    }

    /// Shows the rows only as they may be seen, and links what is seen: nothing of what isn't may be stored, not
    /// even its fingerprint. (What is seen of a walk is a walk, too, and ends in what is seen of its end.)
    fn show(&mut self) -> Result<(), TooLarge> {
        if let Some(projection) = &self.projection {
            let mut refs: Vec<Ref> = self.rows.iter().copied().chain(self.tied()).collect();
            refs.sort_unstable();
            refs.dedup();
            self.batch = Arc::new(projection.rows(&self.batch, &refs)?);
        } else if !self.source.is_projected() {
            return Ok(());
        }
        let seen: Vec<(u64, u64)> =
            self.tied().map(|r| self.batch.view(r)).map(|view| (view.change.before, self.after(view))).collect();
        for ((_, link), seen) in self.ties.iter_mut().flat_map(|tie| &mut tie.changes).zip(seen) {
            (link.before, link.after) = seen;
        }
        Ok(())
    }

    /// Makes deletes of the changes whose new image doesn't match: of rows, and of what shares their instant.
    fn delete_others(&mut self) {
        let Some(pattern) = &self.pattern else { return };
        let mut matcher = pattern.matcher();
        let mut is_other = |r: &Ref| {
            let view = self.batch.view(*r).original();
            let change = view.change;
            change.event != Event::Remove && !matcher.belongs(view.raw(change.keys), view.raw(change.new))
        };
        let mut others: Vec<Ref> = self.rows.iter().copied().filter(&mut is_other).collect();
        self.filtered = others.len();
        self.deletes += others.len();
        others.extend(self.tied().filter(is_other));
        if !others.is_empty() {
            self.batch = Arc::new(self.batch.with_deletes(&others));
        }
    }

    /// The changes of several at one instant.
    fn tied(&self) -> impl Iterator<Item = Ref> {
        self.ties.iter().flat_map(|tie| tie.changes.iter().map(|(r, _)| *r))
    }

    fn choose(&mut self) {
        let source = Arc::clone(&self.source);
        let batch = &*source;
        self.batch = Arc::clone(&source);
        self.rows.clear();
        self.rejections.clear();
        (self.deletes, self.filtered, self.folded) = (0, 0, 0);
        let left_out: std::collections::HashSet<(u32, u32)> = self.left_out.iter().map(|r| (r.part, r.index)).collect();
        // Per key, the place of its row.
        let mut seen: HashTable<u32> = HashTable::with_capacity(self.decided.len());
        let mut refused = Vec::new();
        let mut tied = Vec::new();
        for &r in self.decided.iter().rev() {
            let view = batch.view(r);
            if view.table != self.table || (!left_out.is_empty() && left_out.contains(&(r.part, r.index))) {
                continue;
            }
            if !self.fits(view.key()) {
                refused.push((r, Code::KeyMismatch));
                continue;
            }
            if view.change.event != Event::Remove && view.change.new.is_empty() {
                refused.push((r, Code::MissingNewImage));
                continue;
            }
            let hash = view.change.key_hash;
            let row = |place: u32| batch.view(self.rows[place as usize]);
            let hash_of = |place: u32| batch.change(self.rows[place as usize]).key_hash;
            let same = |&place: &u32| hash_of(place) == hash && row(place).key() == view.key();
            match seen.entry(hash, same, |&place| hash_of(place)) {
                Entry::Occupied(place) => {
                    self.folded += 1;
                    let newest = row(*place.get());
                    if newest.change.precision != Precision::Sequence && may_tie(newest.change, view.change) {
                        tied.push((*place.get(), r));
                    }
                    continue;
                }
                Entry::Vacant(place) => place.insert(self.rows.len() as u32),
            };
            self.deletes += usize::from(view.change.event == Event::Remove);
            self.rows.push(r);
        }
        self.tie(tied);
        self.rows.reverse();
        refused.reverse();
        self.rejections =
            refused.into_iter().map(|(r, code)| batch.reject(r, code.slug(), code.meaning().to_owned())).collect();
        self.delete_others();
    }

    /// Finds the last of the changes that share their instant with a row's: (place of the row, change). The rows are
    /// still in reverse.
    fn tie(&mut self, mut tied: Vec<(u32, Ref)>) {
        self.ties.clear();
        tied.sort_by_key(|(place, _)| std::cmp::Reverse(*place));
        let batch = &*self.batch;
        let is_delete = |r: Ref| batch.view(r).change.event == Event::Remove;
        for others in tied.chunk_by(|(x, _), (y, _)| x == y) {
            let row = &mut self.rows[others[0].0 as usize];
            let mut refs: Vec<Ref> = others.iter().map(|(_, r)| *r).chain([*row]).collect();
            refs.sort_unstable_by_key(|r| (r.part, r.index));
            let changes: Vec<(Ref, Link)> = refs.into_iter().map(|r| (r, link(batch.view(r)))).collect();
            let links: Vec<Link> = changes.iter().map(|(_, link)| *link).collect();
            let after = |r: Ref| changes.iter().find(|(other, _)| *other == r).map(|(_, link)| link.after);
            // Of changes that left the same item the order of the batch chose already.
            let last = Some(changes[instant::last(&links).0].0).filter(|r| after(*r) != after(*row)).unwrap_or(*row);
            self.deletes = self.deletes + usize::from(is_delete(last)) - usize::from(is_delete(*row));
            *row = last;
            self.ties.push(Tie { row: 0, changes });
        }
        let count = self.rows.len() as u32;
        for (tie, others) in self.ties.iter_mut().zip(tied.chunk_by(|(x, _), (y, _)| x == y)) {
            tie.row = count - 1 - others[0].0;
        }
    }

    /// The places `lo` to before `hi`, cut to those there are.
    pub fn range(&self, lo: usize, hi: usize) -> std::ops::Range<usize> {
        let hi = hi.min(self.rows.len());
        lo.min(hi)..hi
    }

    /// A row's change.
    #[inline]
    pub fn view(&self, row: usize) -> View<'_> {
        self.batch.view(self.rows[row])
    }

    /// The changes that share their instant with a row's.
    pub fn tie_of(&self, row: usize) -> Option<&Tie> {
        self.ties.binary_search_by_key(&row, |tie| tie.row as usize).ok().map(|found| &self.ties[found])
    }

    /// A row's version: the greatest of its instant.
    pub fn version(&self, row: usize) -> Version {
        let own = self.batch.view(self.rows[row]).change.version;
        let versions = self.tie_of(row).into_iter().flat_map(|tie| &tie.changes);
        versions.map(|(r, _)| self.batch.view(*r).change.version).fold(own, Version::max)
    }

    /// The row deletes an item that is there, because it doesn't belong here.
    pub fn is_filtered(&self, row: usize) -> bool {
        let view = self.view(row);
        view.change.new.is_empty() && !view.original().change.new.is_empty()
    }

    /// What is seen of the item after a change, also where it doesn't belong here.
    pub fn after(&self, view: View<'_>) -> u64 {
        let original = view.original();
        match &self.projection {
            Some(projection) if view.change.new.is_empty() && !original.change.new.is_empty() => {
                value::fingerprint(&projection.image(original.raw(original.change.new), view.key()))
            }
            None if !self.source.is_projected() => after(original),
            _ => after(view),
        }
    }

    /// A row's links, in order of arrival. Its version is no sequence number.
    pub fn links(&self, row: usize) -> Vec<Link> {
        if let Some(tie) = self.tie_of(row) {
            return tie.changes.iter().map(|(_, link)| *link).collect();
        }
        let view = self.view(row);
        vec![Link { before: view.change.before, after: self.after(view), ..link(view) }]
    }

    /// The key has exactly these attributes, in these types.
    #[inline]
    fn fits(&self, canonical: &[u8]) -> bool {
        let mut count = 0;
        key::attributes(canonical).all(|attribute| {
            count += 1;
            self.columns.iter().any(|(name, kind)| *kind == attribute.kind && **name == *attribute.name)
        }) && count == self.columns.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_found_only_when_it_is_the_only_one() {
        assert_eq!(single_chain(&[(4, 5), (2, 3), (3, 4)]), Some(vec![1, 2, 0]));
        // Put and delete at one instant: a circle.
        assert_eq!(single_chain(&[(2, 3), (3, 2)]), None);
        // A fork, and a gap.
        assert_eq!(single_chain(&[(2, 3), (2, 4)]), None);
        assert_eq!(single_chain(&[(2, 3), (4, 5)]), None);
        // Put, delete, put something else: only one way through.
        assert_eq!(single_chain(&[(2, 4), (3, 2), (2, 3)]), Some(vec![2, 1, 0]));
        // Equal changes may stand for each other.
        assert_eq!(single_chain(&[(3, 4), (4, 3), (3, 4)]), Some(vec![0, 1, 2]));
    }

    #[test]
    fn a_search_ends() {
        let links: Vec<_> = (0..60).map(|i| (i % 2, (i * 7 + 1) % 2)).collect();
        single_chain(&links);
        let many: Vec<_> = (0..1000).map(|i| (i, i + 1)).collect();
        assert_eq!(single_chain(&many), None);
    }
}
