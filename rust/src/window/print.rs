//! What a window remembers of a change: numbers of 128 bits in place of its bytes.
//!
//! In: a decoded change. Out: the print of its `eventID`, of its key, and of the fact it states. Invariants: equal
//! things have equal prints in every spelling (law 3: whatever the order of attributes and set elements, the spelling
//! of numbers, the escapes); different things have different ones but for a chance of one in 2^64 among changes of one
//! key and microsecond, one in 2^128 else. They are stored, so their functions never change.

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use crate::change::View;
use crate::fingerprint::{GONE, UNKNOWN};
use crate::record::{Event, Precision};
use crate::value;

const ID: u64 = 1;
const FACT: u64 = 2;

/// The key, its table's name included.
pub fn key(view: View<'_>) -> u128 {
    let table =
        view.part.tables.get(view.change.table as usize).map_or(0, |name| xxh3_64_with_seed(name.as_bytes(), 1));
    xxh3_128_with_seed(view.key(), table)
}

/// The `eventID`, when there is one.
pub fn id(view: View<'_>) -> Option<u128> {
    (!view.id().is_empty()).then(|| xxh3_128_with_seed(view.id(), ID))
}

/// What makes a change another's duplicate under another `eventID`: key, instant, name and images; of DynamoDB
/// Streams the sequence number. None at millisecond precision, where two real changes may look alike.
pub fn fact(view: View<'_>, key: u128) -> Option<u128> {
    let change = view.change;
    let images = match change.precision {
        Precision::Millisecond => return None,
        Precision::Sequence => [0; 3],
        Precision::Microsecond => [change.event as u64, change.before, after(view).unwrap_or(UNKNOWN)],
    };
    let mut text = [0; 16 + 8 * 6];
    text[..16].copy_from_slice(&key.to_le_bytes());
    for (place, word) in text[16..].chunks_exact_mut(8).zip(change.version.0.into_iter().chain(images)) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    Some(xxh3_128_with_seed(&text, FACT))
}

/// The item's state before this change; None when nothing tells it.
pub fn before(view: View<'_>) -> Option<u64> {
    Some(view.change.before).filter(|&state| state != UNKNOWN)
}

/// The item's state after it.
pub fn after(view: View<'_>) -> Option<u64> {
    let new = view.raw(view.change.new);
    if new.is_empty() { (view.change.event == Event::Remove).then_some(GONE) } else { Some(value::fingerprint(new)) }
}
