//! The memory of a log sink: changes of one shard sorted within a time, each distinct one given once.
//!
//! In: batches in order of arrival. Out: the changes that are due, in order per key; duplicates counted, those that
//! come after a newer one of their key marked late. Invariants: every change that comes in is held, given, a counted
//! duplicate or (late, when compacted) counted as left out; all that was added with an event time before `given_us`
//! is no longer held; memory stays under its limit, one batch apart.
//!
//! Two precisions may share a millisecond, and then only their images order them. So it is cut between milliseconds,
//! never inside one.

mod memory;
mod print;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use self::memory::{Memory, Newest};
use crate::change::{Change, ChangeBatch, Part, Ref, View};
use crate::record::Precision;

/// A part that keeps more than this many times the bytes of what is held of it is copied, and so let go.
const PINNED_MAX: usize = 4;
/// Copying smaller parts frees too little.
const COPIED_MIN: usize = 4096;
/// A held change by itself; its list may have grown to twice its need.
const HELD_BYTES: usize = size_of::<Held>() * 2;

/// How long, and how much, a window remembers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Changes are sorted within this time.
    pub reorder_us: i64,
    /// Duplicates are known for this time; no less than `reorder_us`.
    pub duplicate_us: i64,
    /// Memory for both.
    pub bytes_max: usize,
    /// Late changes are left out.
    pub compacted: bool,
}

/// A part, as long as something of it is held.
#[derive(Debug)]
struct Source {
    part: Option<Arc<Part>>,
    call: u64,
    held: usize,
    /// Payloads of what is held.
    bytes: usize,
}

/// A held change: its source's number, and its index in the part.
#[derive(Clone, Copy, Debug)]
struct Held {
    source: u64,
    index: u32,
}

/// What was counted since the window began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Changes that came after a newer one of their key.
    pub late: u64,
    /// Those of them that were left out.
    pub left_out: u64,
    /// Given before their time, for want of memory.
    pub early: u64,
    /// Changes no longer known, for want of memory.
    pub forgotten: u64,
}

/// Changes that are not due yet, and what is known of those before.
#[derive(Debug)]
pub struct Window {
    limits: Limits,
    memory: Memory,
    /// Held changes by the millisecond of their event.
    held: BTreeMap<i64, Vec<Held>>,
    sources: VecDeque<Source>,
    /// The number of the first source.
    first: u64,
    calls: u64,
    /// Answers given, to tell the changes of one from those before.
    answers: u32,
    /// Some change came by a stream that makes copies.
    has_copies: bool,
    /// The greatest event time seen.
    seen_us: i64,
    /// Everything before this millisecond was given.
    given_ms: i64,
    held_count: usize,
    held_bytes: usize,
    /// What was counted.
    pub counts: Counts,
}

impl Window {
    /// A window that has seen nothing.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            memory: Memory::new(),
            held: BTreeMap::new(),
            sources: VecDeque::new(),
            first: 0,
            calls: 0,
            answers: 0,
            has_copies: false,
            seen_us: i64::MIN,
            given_ms: i64::MIN,
            held_count: 0,
            held_bytes: 0,
            counts: Counts::default(),
        }
    }

    /// Takes the changes of one fetch, and gives all that are due.
    pub fn add(&mut self, batch: &ChangeBatch) -> ChangeBatch {
        let mut given = Given::default();
        let duplicates = self.take(batch, i64::MIN, &mut given);
        let mut answer = self.give_due(given);
        answer.duplicates += duplicates + batch.duplicates;
        answer.rejections.extend(batch.rejections.iter().cloned());
        answer
    }

    /// Takes changes that were taken before a restart: those before `given_us` were given then, the others are held
    /// again. Nothing is given.
    pub fn refill(&mut self, batch: &ChangeBatch, given_us: Option<i64>) {
        let mut before = i64::MAX;
        if let Some(us) = given_us {
            before = us.div_euclid(1000);
            self.given_ms = self.given_ms.max(before);
        }
        let mut given = Given::default();
        self.take(batch, before, &mut given);
        self.answers = self.answers.wrapping_add(1);
        for view in given.gathered().views().map(View::original) {
            self.place(view);
        }
        self.forget();
    }

    /// Gives what is due when the clock of the source shows this time, though no change tells it.
    pub fn advance(&mut self, event_us: i64) -> ChangeBatch {
        self.seen_us = self.seen_us.max(event_us);
        self.give_due(Given::default())
    }

    /// Gives everything that is held.
    pub fn flush(&mut self) -> ChangeBatch {
        if let Some((&last, _)) = self.held.last_key_value() {
            self.given_ms = self.given_ms.max(last + 1);
        }
        self.give_due(Given::default())
    }

    /// What is remembered, as bytes for the shards that follow this one; none of a stream that makes no copies.
    /// What is held isn't in it.
    pub fn remembered(&self) -> Vec<u8> {
        if self.has_copies && !self.memory.is_empty() { self.memory.to_bytes() } else { Vec::new() }
    }

    /// Takes in what another window remembered: of a shard before this one. Gives the newest event time in it (to a
    /// tenth of a second, never too early), or None when these are no such bytes.
    pub fn inherit(&mut self, remembered: &[u8]) -> Option<i64> {
        self.answers = self.answers.wrapping_add(1);
        let newest_us = self.memory.take_in(remembered, self.answers)?;
        self.has_copies = true;
        Some(newest_us)
    }

    /// From here on it holds and remembers no more than this: what is remembered goes at once, what is held with the
    /// next answer.
    pub fn limit(&mut self, bytes_max: usize) {
        self.limits.bytes_max = bytes_max;
        self.forget();
    }

    /// Changes held.
    pub const fn held(&self) -> usize {
        self.held_count
    }

    /// The call (of `add` and `refill` together, from 0) whose changes are the oldest that are still held.
    pub fn oldest(&self) -> Option<u64> {
        self.sources.iter().find(|source| source.held > 0).map(|source| source.call)
    }

    /// Every change added with an earlier event time was given.
    pub fn given_us(&self) -> Option<i64> {
        (self.given_ms > i64::MIN).then(|| self.given_ms.saturating_mul(1000))
    }

    /// Memory held: what is remembered, and the parts of what is not given yet.
    pub fn nbytes(&self) -> usize {
        self.memory.nbytes() + self.held_bytes + self.held_count * HELD_BYTES
    }

    /// Takes the changes of a batch: known ones are counted, those before this millisecond or without need of sorting
    /// go to `given`, the others are held.
    fn take(&mut self, batch: &ChangeBatch, before: i64, given: &mut Given) -> usize {
        let mut refs: Vec<Ref> = batch.order.to_vec();
        refs.sort_unstable();
        let call = self.calls;
        self.calls += 1;
        let mut duplicates = 0;
        for refs in refs.chunk_by(|x, y| x.part == y.part) {
            let part = &batch.parts[refs[0].part as usize];
            let number = self.first + self.sources.len() as u64;
            let (mut held, mut bytes) = (0, 0);
            for &r in refs {
                let view = batch.view(r);
                if !self.is_new(view) {
                    duplicates += 1;
                    continue;
                }
                self.seen_us = self.seen_us.max(view.change.event_us);
                let ms = view.change.event_us.div_euclid(1000);
                if view.change.precision == Precision::Sequence || ms < before {
                    given.push(number, part, r.index);
                } else {
                    self.held.entry(ms).or_default().push(Held { source: number, index: r.index });
                    held += 1;
                    bytes += part.weight(r.index);
                }
            }
            let part = (held > 0).then(|| Arc::clone(part));
            self.held_bytes += part.as_ref().map_or(0, |part| part.nbytes());
            self.held_count += held;
            self.sources.push_back(Source { part, call, held, bytes });
        }
        duplicates
    }

    fn is_new(&mut self, view: View<'_>) -> bool {
        let view = view.original();
        self.has_copies |= view.change.precision != Precision::Sequence;
        let (id, fact) = (print::id(view), print::fact(view, print::key(view)));
        match (id, fact) {
            // A sequence number says all there is to say.
            (_, Some(fact)) if view.change.precision == Precision::Sequence => {
                self.memory.learn(view.change.event_us, &[fact])
            }
            (Some(id), Some(fact)) => self.memory.learn(view.change.event_us, &[id, fact]),
            (Some(print), None) | (None, Some(print)) => self.memory.learn(view.change.event_us, &[print]),
            (None, None) => true,
        }
    }

    /// Gives what is due, in order, besides what is given already.
    fn give_due(&mut self, mut given: Given) -> ChangeBatch {
        if self.seen_us > i64::MIN {
            let due_ms = self.seen_us.saturating_sub(self.limits.reorder_us).div_euclid(1000);
            self.given_ms = self.given_ms.max(due_ms);
        }
        self.release(&mut given);
        while self.held_bytes + self.held_count * HELD_BYTES > self.limits.bytes_max
            && let Some((&ms, changes)) = self.held.first_key_value()
        {
            self.counts.early += changes.len() as u64;
            self.given_ms = ms + 1;
            self.release(&mut given);
        }
        let mut answer = given.gathered();
        self.mark_late(&mut answer);
        self.copy_out();
        self.forget();
        answer
    }

    /// Moves what is due from the held changes to the given ones.
    fn release(&mut self, given: &mut Given) {
        while let Some(entry) = self.held.first_entry().filter(|entry| *entry.key() < self.given_ms) {
            for change in entry.remove() {
                let source = &mut self.sources[(change.source - self.first) as usize];
                if let Some(part) = &source.part {
                    given.push(change.source, part, change.index);
                    source.bytes -= part.weight(change.index);
                }
                source.held -= 1;
                self.held_count -= 1;
                if source.held == 0 {
                    self.held_bytes -= source.part.take().map_or(0, |part| part.nbytes());
                }
            }
        }
        while self.sources.front().is_some_and(|source| source.held == 0) {
            self.sources.pop_front();
            self.first += 1;
        }
    }

    /// Forgets what is too old to be asked for, and the oldest of the rest for want of memory.
    fn forget(&mut self) {
        if self.seen_us > i64::MIN {
            self.memory.forget_before(self.seen_us.saturating_sub(self.limits.duplicate_us));
        }
        // (Of what is held, a copy is still noticed: both are given together.)
        while self.nbytes() > self.limits.bytes_max
            && let Some(changes) = self.memory.forget_oldest()
        {
            self.counts.forgotten += changes;
        }
    }

    /// Marks the changes that come after newer ones of their keys, or leaves them out, and remembers the others.
    fn mark_late(&mut self, answer: &mut ChangeBatch) {
        self.answers = self.answers.wrapping_add(1);
        let (mut kept, mut late) = (Vec::with_capacity(answer.order.len()), Vec::new());
        for &r in answer.order.iter() {
            let comes = self.place(answer.view(r).original());
            self.counts.late += u64::from(comes != Comes::Newer);
            if comes == Comes::Older && self.limits.compacted {
                self.counts.left_out += 1;
                continue;
            }
            if comes != Comes::Newer {
                late.push(r);
            }
            kept.push(r);
        }
        late.sort_unstable();
        answer.late = Arc::new(late);
        answer.order = Arc::new(kept);
    }

    /// How a change that is given now stands to those of its key that were given before; it is remembered unless it
    /// is older.
    fn place(&mut self, view: View<'_>) -> Comes {
        let change = view.change;
        if change.precision == Precision::Sequence {
            return Comes::Newer;
        }
        let key = print::key(view);
        let newest = self.memory.newest(key);
        let is_of_this = newest.is_some_and(|newest| newest.answer == self.answers);
        let is_tied = newest.is_some_and(|newest| (!is_of_this || newest.is_tied) && ties(view.change, newest));
        // The changes of one answer are in order already, so of an instant that begins in it all are newer. Those of
        // an instant that an earlier answer gave are newer link by link.
        let is_judged = !is_of_this || is_tied;
        if is_judged && newest.is_some_and(|newest| is_older(view, newest)) {
            return Comes::Older;
        }
        let is_known = newest.is_some_and(|newest| !newest.is_unsure);
        let is_unsure = !is_known && change.event_us < self.memory.horizon_us();
        let newest = Newest {
            event_us: change.event_us,
            precision: change.precision,
            after: print::after(view),
            answer: self.answers,
            is_tied,
            is_unsure,
        };
        self.memory.set_newest(key, newest);
        if is_unsure { Comes::Unsure } else { Comes::Newer }
    }

    /// Copies what is held out of parts that hold mostly other things.
    fn copy_out(&mut self) {
        let is_pinned = |source: &Source| {
            // (A part that a filter or a projection made keeps its original: it is left as it is.)
            let nbytes = source.part.as_ref().filter(|part| part.original.is_none()).map_or(0, |part| part.nbytes());
            nbytes > COPIED_MIN && source.bytes * PINNED_MAX < nbytes
        };
        if !self.sources.iter().any(is_pinned) {
            return;
        }
        let mut indexes: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for change in self.held.values().flatten() {
            if is_pinned(&self.sources[(change.source - self.first) as usize]) {
                indexes.entry(change.source).or_default().push(change.index);
            }
        }
        for (number, indexes) in &mut indexes {
            indexes.sort_unstable();
            let source = &mut self.sources[(*number - self.first) as usize];
            if let Some(part) = &source.part {
                let copy = Arc::new(part.picked(indexes));
                self.held_bytes = self.held_bytes - part.nbytes() + copy.nbytes();
                source.part = Some(copy);
            }
        }
        for change in self.held.values_mut().flatten() {
            if let Some(indexes) = indexes.get(&change.source) {
                change.index = indexes.partition_point(|&index| index < change.index) as u32;
            }
        }
    }
}

/// How a change stands to those of its key that were given before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    /// After all of them.
    Newer,
    /// Before the newest of them.
    Older,
    /// Nobody knows any more.
    Unsure,
}

/// Their times alone don't tell which of the two comes later.
fn ties(change: &Change, newest: &Newest) -> bool {
    if [newest.precision, change.precision].contains(&Precision::Millisecond) {
        newest.event_us.div_euclid(1000) == change.event_us.div_euclid(1000)
    } else {
        newest.event_us == change.event_us
    }
}

/// The newest given change of its key comes later than this one: by version, and at one instant when this one doesn't
/// begin where that one ended.
fn is_older(view: View<'_>, newest: &Newest) -> bool {
    if ties(view.change, newest) {
        let before = print::before(view);
        before.is_some() && newest.after.is_some() && before != newest.after
    } else {
        view.change.event_us < newest.event_us
    }
}

/// Changes to be given, by source: in order of arrival.
#[derive(Default)]
struct Given {
    sources: BTreeMap<u64, (Arc<Part>, Vec<u32>)>,
}

impl Given {
    fn push(&mut self, number: u64, part: &Arc<Part>, index: u32) {
        self.sources.entry(number).or_insert_with(|| (Arc::clone(part), Vec::new())).1.push(index);
    }

    /// They as a batch, in order.
    fn gathered(self) -> ChangeBatch {
        let mut refs = Vec::with_capacity(self.sources.values().map(|(_, indexes)| indexes.len()).sum());
        let mut parts = Vec::with_capacity(self.sources.len());
        for (part, mut indexes) in self.sources.into_values() {
            indexes.sort_unstable();
            refs.extend(indexes.into_iter().map(|index| Ref { part: parts.len() as u32, index }));
            parts.push(part);
        }
        ChangeBatch::gathered(parts, refs)
    }
}
