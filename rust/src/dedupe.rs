//! Exact duplicates out, order per key, newest per key.
//!
//! In: changes in order of arrival. Out: those that count, ordered by version; of changes of one key at one
//! instant, the one whose old image equals another's new image comes later. Invariants: a redelivered copy
//! never wins, wherever it arrives; what images can't decide follows the arrival and is counted.

use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::canonical;
use crate::change::{ChangeBatch, Ref, Rejection, View};
use crate::error::Code;
use crate::filter::Pattern;
use crate::key::{self, KeyType};
use crate::project::Projection;
use crate::record::{Event, Precision};
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
    let by_version = |r: &Ref| batch.view(*r).change.version;
    if !order.is_sorted_by_key(by_version) {
        order.sort_by_key(by_version);
    }
    let mut state = Instants { batch, places: Vec::new(), dropped: Vec::new(), ambiguous: 0 };
    let mut start = 0;
    while start < order.len() {
        let first = batch.view(order[start]);
        let mut end = start + 1;
        while end < order.len() && may_tie(first, batch.view(order[end])) {
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
        let view = batch.view(r);
        if view.change.id.is_empty() {
            return true;
        }
        let same = |other: &Ref| {
            let other = batch.view(*other);
            other.change.id_hash == view.change.id_hash && other.id() == view.id()
        };
        match seen.entry(view.change.id_hash, same, |other| batch.view(*other).change.id_hash) {
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
fn may_tie(x: View<'_>, y: View<'_>) -> bool {
    match (x.change.precision, y.change.precision) {
        (Precision::Sequence, _) | (_, Precision::Sequence) => x.change.version == y.change.version,
        _ => x.change.event_us / 1000 == y.change.event_us / 1000,
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
        let hash = |place: usize| batch.view(order[place]).change.key_hash;
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
            let change = |place: usize| batch.view(order[place]).change;
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
        let mut kept: Vec<usize> = Vec::with_capacity(places.len());
        for &place in places {
            let view = batch.view(order[place]);
            if kept.iter().any(|&other| is_duplicate(batch.view(order[other]), view)) {
                self.dropped.push(place);
            } else {
                kept.push(place);
            }
        }
        let coarse = kept.iter().any(|&place| batch.view(order[place]).change.precision == Precision::Millisecond);
        if coarse {
            self.settle_instant(order, &kept);
        } else {
            let version = |place: usize| batch.view(order[place]).change.version;
            let runs: Vec<Vec<usize>> =
                kept.chunk_by(|&i, &j| version(i) == version(j)).map(<[usize]>::to_vec).collect();
            for run in runs {
                self.settle_instant(order, &run);
            }
        }
    }

    /// Puts one key's changes of one instant in order, in the places they already hold.
    fn settle_instant(&mut self, order: &mut [Ref], places: &[usize]) {
        if places.len() < 2 {
            return;
        }
        let mut refs: Vec<Ref> = places.iter().map(|&place| order[place]).collect();
        refs.sort_unstable_by_key(|r| (r.part, r.index));
        let batch = self.batch;
        let links: Vec<(State, State)> = states(&refs.iter().map(|&r| batch.view(r)).collect::<Vec<_>>());
        let versions = |i: usize| {
            let change = batch.view(refs[i]).change;
            (change.precision == Precision::Microsecond).then_some(change.version)
        };
        let exact_in_order = |chain: &[usize]| chain.iter().filter_map(|&i| versions(i)).is_sorted();
        let sequence: Vec<usize> = if let Some(chain) = single_chain(&links).filter(|chain| exact_in_order(chain)) {
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
            sequence
        };
        for (&place, &i) in places.iter().zip(&sequence) {
            order[place] = refs[i];
        }
    }
}

/// Equal key (the caller saw to that), microsecond, name and images. At millisecond precision two real
/// changes may look alike.
fn is_duplicate(x: View<'_>, y: View<'_>) -> bool {
    let (x, y) = (x.original(), y.original());
    x.change.precision != Precision::Millisecond
        && y.change.precision == x.change.precision
        && x.change.version == y.change.version
        && x.change.event == y.change.event
        && images_equal(x.raw(x.change.new), y.raw(y.change.new))
        && images_equal(x.raw(x.change.old), y.raw(y.change.old))
}

fn images_equal(x: &[u8], y: &[u8]) -> bool {
    x == y || (!x.is_empty() && !y.is_empty() && canonical(x) == canonical(y))
}

fn canonical(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    canonical::write_canonical(raw, &mut out);
    out
}

/// A state of an item, by number; states that nothing tells are all different.
type State = u32;

/// Per change, the item's state before and after.
fn states(views: &[View<'_>]) -> Vec<(State, State)> {
    const GONE: State = 0;
    let mut known: Vec<Vec<u8>> = Vec::new();
    let mut unknown = State::MAX;
    let mut state = |raw: &[u8], gone: bool| {
        if !raw.is_empty() {
            let image = canonical(raw);
            let index = known.iter().position(|other| *other == image).unwrap_or_else(|| {
                known.push(image);
                known.len() - 1
            });
            index as State + 1
        } else if gone {
            GONE
        } else {
            unknown -= 1;
            unknown
        }
    };
    views
        .iter()
        .map(|view| {
            let view = view.original();
            let change = view.change;
            let before = state(view.raw(change.old), change.event == Event::Insert);
            (before, state(view.raw(change.new), change.event == Event::Remove))
        })
        .collect()
}

/// The only sequence of all changes in which each begins where the one before ended; equal changes are
/// interchangeable and keep their order. None when there is no such sequence, or more than one.
fn single_chain(links: &[(State, State)]) -> Option<Vec<usize>> {
    struct Search<'a> {
        links: &'a [(State, State)],
        used: Vec<bool>,
        path: Vec<usize>,
        found: Vec<Vec<usize>>,
        steps: u32,
    }
    impl Search<'_> {
        fn go(&mut self, at: Option<State>) {
            self.steps += 1;
            if self.path.len() == self.links.len() {
                self.found.push(self.path.clone());
                return;
            }
            for i in 0..self.links.len() {
                let fits = !self.used[i] && at.is_none_or(|at| at == self.links[i].0);
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
        rows.project()?;
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
        less.project()?;
        Ok(less)
    }

    /// Per row, the first of its key's changes that has the row's version, as it came: where the chain of that
    /// instant began.
    pub fn firsts(&self) -> impl Iterator<Item = View<'_>> {
        let batch = &*self.source;
        let hash = |r: &Ref| batch.view(*r).change.key_hash;
        let same_key = |view: View<'_>, other: &Ref| {
            let other = batch.view(*other);
            other.change.key_hash == view.change.key_hash && other.key() == view.key()
        };
        let mut row_of: HashTable<Ref> = HashTable::with_capacity(self.rows.len());
        for &r in &self.rows {
            row_of.insert_unique(hash(&r), r, hash);
        }
        let mut first_of: HashTable<Ref> = HashTable::with_capacity(self.rows.len());
        for &r in self.decided.iter() {
            let view = batch.view(r);
            if view.table != self.table || self.left_out.contains(&r) {
                continue;
            }
            let row = row_of.find(view.change.key_hash, |row| same_key(view, row));
            if row.is_some_and(|row| batch.view(*row).change.version == view.change.version)
                && first_of.find(view.change.key_hash, |first| same_key(view, first)).is_none()
            {
                first_of.insert_unique(view.change.key_hash, r, hash);
            }
        }
        first_of.into_iter().map(move |r| batch.view(r))
    }

    /// Writes the item that one of the `firsts` began with, plain and as it is seen here. False: there was none here.
    pub fn write_before(&self, first: View<'_>, out: &mut Vec<u8>) -> bool {
        let original = first.original();
        let (keys, old) = (original.raw(original.change.keys), original.raw(original.change.old));
        if old.is_empty() || self.pattern.as_ref().is_some_and(|pattern| !pattern.matcher().belongs(keys, old)) {
            return false;
        }
        let old = first.raw(first.change.old);
        match &self.projection {
            Some(projection) => value::write_plain(&projection.image(old, first.key()), out),
            None => value::write_plain(old, out),
        }
        true
    }

    /// Shows the rows only as they may be seen.
    fn project(&mut self) -> Result<(), TooLarge> {
        if let Some(projection) = &self.projection {
            self.batch = Arc::new(projection.rows(&self.batch, &self.rows)?);
        }
        Ok(())
    }

    /// Makes deletes of the rows whose new image doesn't match.
    fn delete_others(&mut self) {
        let Some(pattern) = &self.pattern else { return };
        let mut matcher = pattern.matcher();
        let others = self.rows.iter().copied().filter(|&r| {
            let view = self.batch.view(r).original();
            let change = view.change;
            change.event != Event::Remove && !matcher.belongs(view.raw(change.keys), view.raw(change.new))
        });
        let others: Vec<Ref> = others.collect();
        self.filtered = others.len();
        self.deletes += others.len();
        if !others.is_empty() {
            self.batch = Arc::new(self.batch.with_deletes(&others));
        }
    }

    fn choose(&mut self) {
        self.batch = Arc::clone(&self.source);
        let batch = &*self.batch;
        self.rows.clear();
        self.rejections.clear();
        (self.deletes, self.filtered, self.folded) = (0, 0, 0);
        let left_out: std::collections::HashSet<(u32, u32)> = self.left_out.iter().map(|r| (r.part, r.index)).collect();
        let mut seen: HashTable<Ref> = HashTable::with_capacity(self.decided.len());
        let mut refused = Vec::new();
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
            let same = |other: &Ref| {
                let other = batch.view(*other);
                other.change.key_hash == hash && other.key() == view.key()
            };
            match seen.entry(hash, same, |other| batch.view(*other).change.key_hash) {
                Entry::Occupied(_) => {
                    self.folded += 1;
                    continue;
                }
                Entry::Vacant(place) => place.insert(r),
            };
            self.deletes += usize::from(view.change.event == Event::Remove);
            self.rows.push(r);
        }
        self.rows.reverse();
        refused.reverse();
        self.rejections =
            refused.into_iter().map(|(r, code)| batch.reject(r, code.slug(), code.meaning().to_owned())).collect();
        self.delete_others();
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
        assert_eq!(single_chain(&[(2, 3), (0, 1), (1, 2)]), Some(vec![1, 2, 0]));
        // Put and delete at one instant: a circle.
        assert_eq!(single_chain(&[(0, 1), (1, 0)]), None);
        // A fork, and a gap.
        assert_eq!(single_chain(&[(0, 1), (0, 2)]), None);
        assert_eq!(single_chain(&[(0, 1), (2, 3)]), None);
        // Put, delete, put something else: only one way through.
        assert_eq!(single_chain(&[(0, 2), (1, 0), (0, 1)]), Some(vec![2, 1, 0]));
        // Equal changes may stand for each other.
        assert_eq!(single_chain(&[(1, 2), (2, 1), (1, 2)]), Some(vec![0, 1, 2]));
    }

    #[test]
    fn a_search_ends() {
        let links: Vec<_> = (0..60).map(|i| (i % 2, (i * 7 + 1) % 2)).collect();
        single_chain(&links);
        let many: Vec<_> = (0..1000).map(|i| (i, i + 1)).collect();
        assert_eq!(single_chain(&many), None);
    }
}
