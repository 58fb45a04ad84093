//! Undecoded records: one arena of bytes, and per record its places.
//!
//! In: payloads, as frames and documents give them. Out: slices. Invariant: payloads lie in the arena one
//! after another in order of arrival, so that a batch can be checked for UTF-8 in one run.

use std::ops::Range;

/// A range of bytes in an arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// Number of bytes.
    pub len: u32,
}

impl Span {
    /// The bytes from `start` to before `end`.
    pub const fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, len: (end - start) as u32 }
    }

    /// Nothing is here. (No value that we keep is empty.)
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The bytes.
    #[inline]
    pub fn of(self, arena: &[u8]) -> &[u8] {
        arena.get(self.start as usize..self.start as usize + self.len as usize).unwrap_or(&[])
    }
}

/// One record's places.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// In the arena of payloads.
    pub payload: Span,
    /// In the arena of sequence numbers; empty when the source gave none.
    pub sequence_number: Span,
    /// Epoch milliseconds.
    pub arrival_ms: Option<i64>,
    /// Line of the document it begins on, from 1; 0 when it came from no document.
    pub line: u32,
    /// Which user record of an aggregate it is, from 0; 0 when it was none.
    pub sub_sequence_number: u32,
}

/// Records in order of arrival.
#[derive(Clone, Debug, Default)]
pub struct Records {
    payloads: Vec<u8>,
    numbers: Vec<u8>,
    entries: Vec<Entry>,
}

/// More bytes than the arena's 32-bit offsets reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than 4 GiB of records: split them")]
pub struct TooLarge;

impl Records {
    /// With room for this many bytes of payload.
    pub fn with_capacity(bytes: usize, records: usize) -> Self {
        Self { payloads: Vec::with_capacity(bytes), numbers: Vec::new(), entries: Vec::with_capacity(records) }
    }

    /// Adds a record whose payload `write` appends to the arena.
    pub fn push_with<T>(
        &mut self,
        sequence_number: &[u8],
        arrival_ms: Option<i64>,
        line: u32,
        write: impl FnOnce(&mut Vec<u8>) -> T,
    ) -> Result<T, TooLarge> {
        let start = self.payloads.len();
        let answer = write(&mut self.payloads);
        let first = self.numbers.len();
        self.numbers.extend_from_slice(sequence_number);
        if u32::try_from(self.payloads.len()).is_err() || u32::try_from(self.numbers.len()).is_err() {
            self.payloads.truncate(start);
            self.numbers.truncate(first);
            return Err(TooLarge);
        }
        self.entries.push(Entry {
            payload: Span::new(start, self.payloads.len()),
            sequence_number: Span::new(first, self.numbers.len()),
            arrival_ms,
            line,
            sub_sequence_number: 0,
        });
        Ok(answer)
    }

    /// Adds a record.
    pub fn push(&mut self, payload: &[u8], number: &[u8], arrival_ms: Option<i64>, line: u32) -> Result<(), TooLarge> {
        self.push_with(number, arrival_ms, line, |arena| arena.extend_from_slice(payload))
    }

    /// Parts of the last record's payload, which rise, become records in its place; they share its sequence number.
    pub fn split_last(&mut self, parts: &[Range<usize>]) {
        let Some(whole) = self.entries.pop() else { return };
        let start = whole.payload.start as usize;
        let mut end = start;
        for (i, part) in parts.iter().enumerate() {
            self.payloads.copy_within(start + part.start..start + part.end, end);
            let payload = Span::new(end, end + part.len());
            end += part.len();
            self.entries.push(Entry { payload, sub_sequence_number: i as u32, ..whole });
        }
        self.payloads.truncate(end);
    }

    /// Takes all records out; their room stays.
    pub fn clear(&mut self) {
        self.payloads.clear();
        self.numbers.clear();
        self.entries.clear();
    }

    /// Gives unused room back.
    pub fn shrink(&mut self) {
        self.payloads.shrink_to_fit();
        self.numbers.shrink_to_fit();
        self.entries.shrink_to_fit();
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Memory held.
    pub fn nbytes(&self) -> usize {
        self.payloads.capacity() + self.numbers.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    /// The arena of payloads.
    pub fn arena(&self) -> &[u8] {
        &self.payloads
    }

    /// All records' places.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// A record's payload.
    pub fn payload(&self, index: usize) -> &[u8] {
        self.entries.get(index).map_or(&[], |entry| entry.payload.of(&self.payloads))
    }

    /// A record's sequence number; empty when the source gave none.
    pub fn sequence_number(&self, index: usize) -> &str {
        let bytes = self.entries.get(index).map_or(&[][..], |entry| entry.sequence_number.of(&self.numbers));
        std::str::from_utf8(bytes).unwrap_or("")
    }

    /// The first record's sequence number.
    pub fn first_sequence_number(&self) -> Option<&str> {
        Some(self.sequence_number(0)).filter(|number| !number.is_empty())
    }

    /// The last record's sequence number.
    pub fn last_sequence_number(&self) -> Option<&str> {
        Some(self.sequence_number(self.len().checked_sub(1)?)).filter(|number| !number.is_empty())
    }

    /// The last record's arrival at the stream, epoch milliseconds.
    pub fn last_arrival_ms(&self) -> Option<i64> {
        self.entries.last()?.arrival_ms
    }
}
