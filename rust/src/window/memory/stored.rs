//! A shard's memory as bytes, stored with its end for the shards that follow it.
//!
//! In: a memory, or bytes. Out: bytes, or a memory that knows more. Invariants: equal memories make equal bytes; what
//! several shards remembered of one change or one key is known once; bytes of another version are refused whole.

use super::{INSTANT_US, Memory, Newest};
use crate::record::Precision;

/// The first bytes of every version; what changes a print's function changes the last of them, too.
const MAGIC: &[u8; 8] = b"rwindow1";
const HAS_AFTER: u8 = 1;
const IS_UNSURE: u8 = 2;

struct StoredInstant {
    at: i64,
    end_us: i64,
    changes: u64,
    prints: Vec<u128>,
}

/// What the bytes say.
struct Stored {
    horizon_us: i64,
    instants: Vec<StoredInstant>,
    newest: Vec<(u128, Newest)>,
}

impl Memory {
    /// All of it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes =
            Vec::with_capacity(64 + self.prints.len() * 16 + self.instants.len() * 24 + self.newest.len() * 34);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.horizon_us.to_le_bytes());
        bytes.extend_from_slice(&(self.instants.len() as u64).to_le_bytes());
        for (at, instant) in &self.instants {
            bytes.extend_from_slice(&at.to_le_bytes());
            bytes.extend_from_slice(&instant.changes.to_le_bytes());
            bytes.extend_from_slice(&(instant.prints.len() as u64).to_le_bytes());
            for print in &instant.prints {
                bytes.extend_from_slice(&print.to_le_bytes());
            }
        }
        let mut newest: Vec<&(u128, Newest)> = self.newest.iter().collect();
        newest.sort_unstable_by_key(|(key, _)| *key);
        bytes.extend_from_slice(&(newest.len() as u64).to_le_bytes());
        for (key, newest) in newest {
            let flags = u8::from(newest.after.is_some()) * HAS_AFTER + u8::from(newest.is_unsure) * IS_UNSURE;
            bytes.extend_from_slice(&key.to_le_bytes());
            bytes.extend_from_slice(&newest.event_us.to_le_bytes());
            bytes.extend_from_slice(&[newest.precision as u8, flags]);
            bytes.extend_from_slice(&newest.after.unwrap_or_default().to_le_bytes());
        }
        bytes
    }

    /// Knows from now on what these bytes say, as of this answer; gives the end of the newest instant in them, or None
    /// (and knows nothing more) when no memory made them.
    pub fn take_in(&mut self, bytes: &[u8], answer: u32) -> Option<i64> {
        let stored = Stored::read(bytes, answer)?;
        self.horizon_us = self.horizon_us.max(stored.horizon_us);
        let newest_us = stored.instants.iter().map(|instant| instant.end_us).max().unwrap_or(stored.horizon_us);
        for StoredInstant { at, changes, prints, .. } in stored.instants {
            // Two parents may have known one grandparent's change.
            let prints: Vec<u128> = prints.into_iter().filter(|&print| self.remember(print)).collect();
            let instant = self.instants.entry(at).or_default();
            instant.changes = instant.changes.saturating_add(changes);
            instant.prints.extend(prints);
        }
        for (key, newest) in stored.newest {
            match self.newest(key) {
                Some(known) if known.event_us > newest.event_us => {}
                Some(known) if known.event_us == newest.event_us && known.after != newest.after => {
                    // Nothing tells which of the two is the item's state.
                    self.set_newest(key, Newest { after: None, ..newest });
                }
                _ => self.set_newest(key, newest),
            }
        }
        Some(newest_us)
    }
}

impl Stored {
    fn read(bytes: &[u8], answer: u32) -> Option<Self> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let horizon_us = i64::from_le_bytes(array(&mut rest)?);
        let mut instants = Vec::new();
        for _ in 0..count(&mut rest)? {
            let at = i64::from_le_bytes(array(&mut rest)?);
            let end_us = at.checked_add(1)?.checked_mul(INSTANT_US)?;
            let changes = u64::from_le_bytes(array(&mut rest)?);
            let mut prints = Vec::new();
            for _ in 0..count(&mut rest)? {
                prints.push(u128::from_le_bytes(array(&mut rest)?));
            }
            instants.push(StoredInstant { at, end_us, changes, prints });
        }
        let mut newest = Vec::new();
        for _ in 0..count(&mut rest)? {
            let key = u128::from_le_bytes(array(&mut rest)?);
            let event_us = i64::from_le_bytes(array(&mut rest)?);
            let [precision, flags] = array(&mut rest)?;
            let precision = precision_of(precision)?;
            let after = u64::from_le_bytes(array(&mut rest)?);
            let after = (flags & HAS_AFTER > 0).then_some(after);
            let is_unsure = flags & IS_UNSURE > 0;
            newest.push((key, Newest { event_us, precision, after, answer, is_tied: false, is_unsure }));
        }
        rest.is_empty().then_some(Self { horizon_us, instants, newest })
    }
}

const fn precision_of(byte: u8) -> Option<Precision> {
    match byte {
        0 => Some(Precision::Microsecond),
        1 => Some(Precision::Millisecond),
        _ => None,
    }
}

fn count(rest: &mut &[u8]) -> Option<u64> {
    array(rest).map(u64::from_le_bytes)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, others) = rest.split_first_chunk()?;
    *rest = others;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(event_us: i64, after: Option<u64>) -> Newest {
        Newest { event_us, precision: Precision::Microsecond, after, answer: 0, is_tied: false, is_unsure: false }
    }

    #[test]
    fn what_was_stored_is_known_again_and_once() {
        let mut memory = Memory::new();
        assert!(memory.learn(0, &[1, 2]) && memory.learn(INSTANT_US, &[3]));
        memory.set_newest(7, newest(5, Some(9)));
        memory.set_newest(8, newest(INSTANT_US, None));
        memory.forget_before(1);
        let bytes = memory.to_bytes();
        let mut child = Memory::new();
        assert_eq!(child.take_in(&bytes, 3), Some(2 * INSTANT_US));
        assert_eq!(child.take_in(&bytes, 4), Some(2 * INSTANT_US));
        assert_eq!(child.prints.len(), 3);
        assert_eq!((child.to_bytes() == bytes, child.horizon_us()), (false, 1)); // changes are counted twice
        assert!(!child.learn(0, &[2]) && !child.learn(0, &[3]) && child.learn(0, &[4]));
        assert_eq!(child.newest(7).map(|newest| (newest.event_us, newest.after, newest.answer)), Some((5, Some(9), 4)));
        let mut whole = Memory::new();
        whole.take_in(&bytes, 0);
        assert_eq!(whole.to_bytes(), bytes);
    }

    #[test]
    fn a_key_of_two_parents_has_its_newest() {
        let mut one = Memory::new();
        one.set_newest(7, newest(5, Some(1)));
        one.set_newest(8, newest(6, Some(1)));
        one.set_newest(9, newest(5, Some(1)));
        let mut other = Memory::new();
        other.set_newest(7, newest(6, Some(2)));
        other.set_newest(8, newest(5, Some(2)));
        other.set_newest(9, newest(5, Some(2)));
        let mut child = Memory::new();
        for parent in [one, other] {
            child.take_in(&parent.to_bytes(), 0);
        }
        let states = [7, 8, 9].map(|key| child.newest(key).and_then(|newest| newest.after));
        assert_eq!(states, [Some(2), Some(1), None]);
    }

    #[test]
    fn other_bytes_are_refused() {
        let mut memory = Memory::new();
        memory.learn(0, &[1]);
        let bytes = memory.to_bytes();
        for cut in 0..bytes.len() {
            assert_eq!(Memory::new().take_in(&bytes[..cut], 0), None);
        }
        assert_eq!(Memory::new().take_in(&[&bytes[..], b"x"].concat(), 0), None);
        assert_eq!(Memory::new().take_in(b"rwindow0", 0), None);
        // An instant that no time has.
        let mut far = bytes;
        far[24..32].copy_from_slice(&i64::MAX.to_le_bytes());
        assert_eq!(Memory::new().take_in(&far, 0), None);
    }
}
