//! What the records of one table have in common, byte for byte.
//!
//! In: a record that was read member by member, then others. Out: where in those the few bytes lie that differ.
//! Two records of a table differ in their `eventID`, their `eventName`, their time, what lies between the time and
//! `SizeBytes` (keys and images), and `SizeBytes`. All else, half of a small record, is equal: one comparison
//! takes the place of reading it. Invariant: a record that fits is read as it would be member by member, and one that
//! doesn't fit is read so.

use crate::record::Event;
use crate::scan::{self, Text};

/// The members that a table's records share.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// `tableName`.
    pub table: Option<Text>,
    /// `eventSourceARN`.
    pub arn: Option<Text>,
    /// `ApproximateCreationDateTimePrecision`.
    pub precision: Option<Text>,
    /// A member that only Kinesis Data Streams for DynamoDB writes was there.
    pub is_kinesis: bool,
    /// Likewise DynamoDB Streams.
    pub is_streams: bool,
}

impl Facts {
    /// Both, where `later` has the last word.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        Self {
            table: later.table.or(self.table),
            arn: later.arn.or(self.arn),
            precision: later.precision.or(self.precision),
            is_kinesis: self.is_kinesis || later.is_kinesis,
            is_streams: self.is_streams || later.is_streams,
        }
    }

    /// The same in a record in which they begin at `to` in place of `from`.
    #[must_use]
    fn moved(self, from: usize, to: usize) -> Self {
        let moved = |text: Option<Text>| {
            text.map(|text| Text { start: text.start - from + to, end: text.end - from + to, ..text })
        };
        Self { table: moved(self.table), arn: moved(self.arn), precision: moved(self.precision), ..self }
    }
}

/// Where a record that was read member by member has what differs.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// `eventID`.
    pub id: Text,
    /// `eventName`.
    pub event: Text,
    /// The time's first byte.
    pub time: usize,
    /// The byte behind `SizeBytes`.
    pub tail: usize,
    /// The brace that closes `dynamodb`.
    pub close: usize,
    /// What was said before the time.
    pub before: Facts,
    /// What was said behind `SizeBytes`.
    pub behind: Facts,
}

/// A record to compare others with.
#[derive(Default)]
pub struct Template {
    places: Option<Places>,
    /// From the record's first byte to the time.
    head: Vec<u8>,
    /// From behind `SizeBytes` to the record's last byte.
    tail: Vec<u8>,
}

/// The beginning of a record that fits.
pub struct Head {
    /// `eventID`.
    pub id: Text,
    /// `eventName`.
    pub event: Text,
    /// The time's first byte.
    pub time: usize,
    /// What was said before the time.
    pub facts: Facts,
}

/// The end of a record that fits.
pub struct Tail {
    /// The brace that closes `dynamodb`.
    pub close: usize,
    /// What is said behind `SizeBytes`.
    pub facts: Facts,
}

impl Template {
    /// Compares later records with this one, if its members come in the order that the services write.
    pub fn learn(&mut self, b: &[u8], places: Places) {
        let Places { id, event, time, tail, close, .. } = places;
        let in_order = id.start > 0 && id.end < event.start && event.end < time && time < tail && tail <= close;
        self.places = (in_order && !id.escaped && close < b.len()).then_some(places);
        if self.places.is_some() {
            self.head.clear();
            self.head.extend_from_slice(&b[..time]);
            self.tail.clear();
            self.tail.extend_from_slice(&b[tail..]);
        }
    }

    /// The record up to its time, when it fits.
    #[inline(always)]
    pub fn head(&self, b: &[u8]) -> Option<Head> {
        let Places { id, event, time, before, .. } = self.places?;
        let head = b.get(..time)?;
        let fits = head[..id.start] == self.head[..id.start]
            && head[id.end..event.start] == self.head[id.end..event.start]
            && head[event.end..] == self.head[event.end..]
            && Event::named(&head[event.start..event.end]).is_some();
        // The id is as long and holds nothing that would end it earlier or escape.
        (fits && scan::string(b, id.start).is_ok_and(|found| found == id)).then_some(Head {
            id,
            event,
            time,
            facts: before,
        })
    }

    /// The record from behind `SizeBytes`, when it fits.
    #[inline(always)]
    pub fn tail(&self, b: &[u8], at: usize) -> Option<Tail> {
        let places = self.places?;
        (b[at..] == self.tail)
            .then(|| Tail { close: places.close - places.tail + at, facts: places.behind.moved(places.tail, at) })
    }
}
