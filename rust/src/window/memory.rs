//! What a window remembers, by instants: prints of changes, and the newest given change of each key.
//!
//! In: prints and event times. Out: whether a print is known; a key's newest. Invariants: what is older than the
//! window's time is forgotten, and no more than was asked for; all of one instant is forgotten together, the oldest
//! first; `horizon_us` says from when on the memory is whole. `stored.rs` makes bytes of it, and takes them in again.

mod stored;

use std::collections::BTreeMap;

use hashbrown::HashTable;

use crate::record::Precision;

/// Instants are forgotten as a whole; this many of them make a minute of memory.
const INSTANT_US: i64 = 100_000;
/// A print in the table (at its emptiest) and in its instant (a list may have grown to twice its need).
const PRINT_BYTES: usize = (size_of::<u128>() + 1) * 16 / 7 + size_of::<u128>() * 2;
const NEWEST_BYTES: usize = (size_of::<(u128, Newest)>() + 1) * 16 / 7;
/// A key in an instant; a key may be in many.
const KEY_BYTES: usize = size_of::<u128>() * 2;
/// What one instant costs by itself, its place in the tree included.
const INSTANT_BYTES: usize = size_of::<Instant>() * 2;

/// The newest given change of a key.
#[derive(Clone, Copy, Debug)]
pub struct Newest {
    /// Its event time.
    pub event_us: i64,
    /// How exact that is.
    pub precision: Precision,
    /// The item's state after it, when something tells it.
    pub after: Option<u64>,
    /// The answer that gave it.
    pub answer: u32,
    /// In that answer its instant went on from one that an earlier answer gave.
    pub is_tied: bool,
    /// A newer one may have been given and forgotten.
    pub is_unsure: bool,
}

#[derive(Debug, Default)]
struct Instant {
    changes: u64,
    prints: Vec<u128>,
    keys: Vec<u128>,
}

/// Prints of changes, and the newest change of each key.
#[derive(Debug)]
pub struct Memory {
    prints: HashTable<u128>,
    newest: HashTable<(u128, Newest)>,
    instants: BTreeMap<i64, Instant>,
    /// Keys in all instants.
    keys: usize,
    horizon_us: i64,
}

// A print is a hash already.
const fn hash(print: u128) -> u64 {
    print as u64
}

impl Memory {
    /// That knows nothing.
    pub const fn new() -> Self {
        Self {
            prints: HashTable::new(),
            newest: HashTable::new(),
            instants: BTreeMap::new(),
            keys: 0,
            horizon_us: i64::MIN,
        }
    }

    /// Before this time something may have been forgotten.
    pub const fn horizon_us(&self) -> i64 {
        self.horizon_us
    }

    /// Bytes held, at most.
    pub fn nbytes(&self) -> usize {
        self.prints.len() * PRINT_BYTES
            + self.newest.len() * NEWEST_BYTES
            + self.keys * KEY_BYTES
            + self.instants.len() * INSTANT_BYTES
    }

    /// None of a change's prints is known; they are from now on.
    pub fn learn(&mut self, event_us: i64, prints: &[u128]) -> bool {
        if prints.iter().any(|print| self.prints.find(hash(*print), |known| known == print).is_some()) {
            return false;
        }
        for &print in prints {
            self.prints.insert_unique(hash(print), print, |&print| hash(print));
        }
        let instant = self.instants.entry(event_us.div_euclid(INSTANT_US)).or_default();
        instant.changes += 1;
        instant.prints.extend_from_slice(prints);
        true
    }

    /// The print was not known; it is from now on.
    fn remember(&mut self, print: u128) -> bool {
        let is_new = self.prints.find(hash(print), |&known| known == print).is_none();
        if is_new {
            self.prints.insert_unique(hash(print), print, |&print| hash(print));
        }
        is_new
    }

    /// It knows nothing.
    pub fn is_empty(&self) -> bool {
        self.instants.is_empty()
    }

    /// The newest given change of this key.
    pub fn newest(&self, key: u128) -> Option<&Newest> {
        self.newest.find(hash(key), |(known, _)| *known == key).map(|(_, newest)| newest)
    }

    /// Sets it.
    pub fn set_newest(&mut self, key: u128, newest: Newest) {
        let instant = newest.event_us.div_euclid(INSTANT_US);
        let found = self.newest.find_mut(hash(key), |(known, _)| *known == key);
        let known = found.is_some_and(|(_, known)| {
            let same = known.event_us.div_euclid(INSTANT_US) == instant;
            *known = newest;
            same
        });
        if known {
            return;
        }
        if self.newest(key).is_none() {
            self.newest.insert_unique(hash(key), (key, newest), |(key, _)| hash(*key));
        }
        self.instants.entry(instant).or_default().keys.push(key);
        self.keys += 1;
    }

    /// Forgets the instants that ended before this time.
    pub fn forget_before(&mut self, us: i64) {
        self.horizon_us = self.horizon_us.max(us);
        let mut forgotten = false;
        while self.first_end().is_some_and(|end| end <= us) {
            self.forget_first();
            forgotten = true;
        }
        if forgotten {
            self.shrink();
        }
    }

    /// Forgets the oldest instant; gives the number of its changes, or None when nothing is known.
    pub fn forget_oldest(&mut self) -> Option<u64> {
        let end = self.first_end()?;
        self.horizon_us = self.horizon_us.max(end);
        let changes = self.forget_first();
        self.shrink();
        Some(changes)
    }

    fn first_end(&self) -> Option<i64> {
        self.instants.first_key_value().map(|(&instant, _)| (instant + 1).saturating_mul(INSTANT_US))
    }

    fn forget_first(&mut self) -> u64 {
        let Some((at, instant)) = self.instants.pop_first() else { return 0 };
        for print in instant.prints {
            if let Ok(entry) = self.prints.find_entry(hash(print), |known| *known == print) {
                entry.remove();
            }
        }
        self.keys -= instant.keys.len();
        for key in instant.keys {
            // A key that changed since is remembered by its newest instant.
            let old = |(known, newest): &(u128, Newest)| *known == key && newest.event_us.div_euclid(INSTANT_US) <= at;
            if let Ok(entry) = self.newest.find_entry(hash(key), old) {
                entry.remove();
            }
        }
        instant.changes
    }

    fn shrink(&mut self) {
        if self.prints.capacity() > 4 * self.prints.len() {
            self.prints.shrink_to(2 * self.prints.len(), |&print| hash(print));
        }
        if self.newest.capacity() > 4 * self.newest.len() {
            self.newest.shrink_to(2 * self.newest.len(), |(key, _)| hash(*key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_is_new_again_and_a_changed_key_stays() {
        let mut memory = Memory::new();
        let newest = |event_us| Newest {
            event_us,
            precision: Precision::Microsecond,
            after: None,
            answer: 0,
            is_tied: false,
            is_unsure: false,
        };
        assert!(memory.learn(0, &[1, 2]) && memory.learn(INSTANT_US, &[3]));
        assert!(!memory.learn(5, &[9, 2]) && !memory.learn(5, &[3]));
        memory.set_newest(7, newest(0));
        memory.set_newest(8, newest(1));
        memory.set_newest(7, newest(INSTANT_US));
        memory.forget_before(INSTANT_US);
        assert_eq!(memory.horizon_us(), INSTANT_US);
        assert!(memory.newest(7).is_some() && memory.newest(8).is_none());
        assert!(memory.learn(0, &[2]) && !memory.learn(0, &[3]));
        assert_eq!(memory.forget_oldest(), Some(1));
        assert_eq!(memory.forget_oldest(), Some(1));
        assert_eq!((memory.forget_oldest(), memory.nbytes()), (None, 0));
    }
}
