//! Rows that a sink holds already, of the same instant: which of the two states is the last.
//!
//! In: rows of a batch, and for some of them what the sink stores (item, version, chain). Out: what to store instead,
//! and how each was settled. Invariant: whatever the splits and the order of deliveries, what is stored once all of an
//! instant's changes have arrived is the last of them, unless they end where they began (see [`crate::instant`]).

use crate::dedupe::Rows;
use crate::encode::copy;
use crate::fingerprint::{self, GONE, UNKNOWN};
use crate::instant::{Certainty, Chain};
use crate::record::Version;

/// What a sink stores of the key of a row.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// The row's place.
    pub row: usize,
    /// The item in plain JSON; None: it was deleted.
    pub item: Option<&'a str>,
    /// The version, UTC microseconds.
    pub us: u64,
    /// The chain.
    pub chain: &'a [u8],
}

/// What to store instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The row's place.
    pub row: usize,
    /// The item in plain JSON; None: it is deleted.
    pub item: Option<String>,
    /// The version.
    pub version: Version,
    /// The chain.
    pub chain: Vec<u8>,
}

/// What became of rows.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// Stored rows that change.
    pub updates: Vec<Update>,
    /// Rows that came after the stored state, or by which another is the last now.
    pub later: usize,
    /// Rows that were stored already.
    pub duplicates: usize,
    /// Rows that came before the stored state.
    pub superseded: usize,
    /// Rows, later or superseded, that only the arrival put in order.
    pub ambiguous: usize,
}

/// Settles rows with what is stored of the same keys and instants. Places count from the row `lo` on. With `came_first`
/// the rows arrived before what is stored, which stays where only that decides.
pub fn settle<'a>(rows: &Rows, lo: usize, stored: impl IntoIterator<Item = Stored<'a>>, came_first: bool) -> Settled {
    let mut settled = Settled::default();
    for one in stored {
        settle_row(rows, lo + one.row, one, came_first, &mut settled);
    }
    settled
}

fn settle_row(rows: &Rows, row: usize, stored: Stored<'_>, came_first: bool, settled: &mut Settled) {
    let seen = stored.item.map_or(GONE, |item| fingerprint::of_plain(item.as_bytes()).unwrap_or(UNKNOWN));
    // A chain that can't be read isn't ours: then nothing is known but what is stored.
    let mut chain = Chain::read(stored.chain, stored.us, || seen).unwrap_or_default();
    // What is stored says itself which state it is, unless it is nothing only because it doesn't belong there.
    let is_told = chain.links.iter().any(|link| link.after == seen);
    let held = chain.state().filter(|_| !is_told).unwrap_or(seen);
    let item = (held, stored.item.unwrap_or_default().as_bytes().to_vec());
    let links = rows.links(row);
    let settle = chain.settle(item, &links, copy::items(rows, row), came_first);
    let Some(((state, item), is_later, certainty)) = settle else {
        settled.duplicates += 1;
        return;
    };
    // One that isn't the last may still prove that another, which isn't stored, is.
    let is_later = is_later || state != held;
    settled.later += usize::from(is_later);
    settled.superseded += usize::from(!is_later);
    settled.ambiguous += usize::from(certainty == Certainty::Ambiguous);
    let mut bytes = Vec::new();
    chain.write(&mut bytes);
    settled.updates.push(Update {
        row: stored.row,
        // Empty: there is none, or it doesn't belong there.
        item: (!item.is_empty()).then(|| String::from_utf8_lossy(&item).into_owned()),
        version: Version::from_us(chain.us().max(stored.us)),
        chain: bytes,
    });
}
