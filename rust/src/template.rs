//! What the records of one table have in common, byte for byte.
//!
//! In: a record that was read member by member, then others. Out: where in those the few bytes lie that differ.
//! Two records of a table differ in their `eventID`, their `eventName`, their time, what lies between the time and
//! `SizeBytes` (keys and images), and `SizeBytes`. All else, half of a small record, is equal: one comparison
//! takes the place of reading it. Invariant: a record that fits is read as it would be member by member, and one that
//! doesn't fit is read so.

use crate::error::{Code, Fault};
use crate::record::{Event, Precision, TableName};
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

    /// Nothing was said.
    #[inline(always)]
    pub const fn is_nothing(&self) -> bool {
        self.table.is_none() && self.arn.is_none() && self.precision.is_none() && !self.is_kinesis && !self.is_streams
    }

    /// Where the table's name is.
    pub fn name(&self) -> Option<TableName> {
        self.table.map(TableName::Plain).or(self.arn.map(TableName::InArn))
    }

    /// What the creation time is exact to and what power of ten makes microseconds of it, in the record `b` with a
    /// sequence number or without.
    pub fn precision(&self, b: &[u8], sequence: bool) -> Result<(Precision, i32), Fault> {
        match self.precision {
            Some(text) => match &b[text.start..text.end] {
                b"MICROSECOND" => Ok((Precision::Microsecond, 0)),
                b"MILLISECOND" => Ok((Precision::Millisecond, 3)),
                _ => Err(Fault::new(Code::UnknownPrecision, text.start)),
            },
            None if sequence => Ok((Precision::Sequence, 6)),
            None if self.is_streams && !self.is_kinesis => Err(Fault::new(Code::MissingSequenceNumber, b.len())),
            None => Ok((Precision::Millisecond, 3)),
        }
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
    /// The record has a sequence number.
    pub sequence: bool,
}

/// A record to compare others with.
#[derive(Default)]
pub struct Template {
    places: Option<Places>,
    /// What the facts come to, and whether the name lies behind `SizeBytes`.
    said: Option<(Said, bool)>,
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
}

/// The end of a record that fits.
pub struct Tail {
    /// The brace that closes `dynamodb`.
    pub close: usize,
    /// What all of the record says, unless it says something between the time and `SizeBytes`.
    pub said: Said,
}

/// What a record's facts come to.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    /// See `Facts::precision`.
    pub precision: (Precision, i32),
    /// Where the table's name is.
    pub name: Option<TableName>,
}

impl Template {
    /// Compares later records with this one, if its members come in the order that the services write.
    pub fn learn(&mut self, b: &[u8], places: Places) {
        let Places { id, event, time, tail, close, .. } = places;
        let in_order = id.start > 0 && id.end < event.start && event.end < time && time < tail && tail <= close;
        self.places = (in_order && !id.escaped && close < b.len()).then_some(places);
        if self.places.is_some() {
            let facts = places.before.then(places.behind);
            let name = facts.name();
            let moves = name.is_some_and(|name| name.text().start > tail);
            self.said = facts.precision(b, places.sequence).ok().map(|precision| (Said { precision, name }, moves));
            self.head.clear();
            self.head.extend_from_slice(&b[..time]);
            self.tail.clear();
            self.tail.extend_from_slice(&b[tail..]);
        }
    }

    /// The record up to its time, when it fits.
    #[inline(always)]
    pub fn head(&self, b: &[u8]) -> Option<Head> {
        let Places { id, event, time, .. } = self.places?;
        let head = b.get(..time)?;
        let fits = head[..id.start] == self.head[..id.start]
            && head[id.end..event.start] == self.head[id.end..event.start]
            && head[event.end..] == self.head[event.end..]
            && Event::named(&head[event.start..event.end]).is_some();
        // The id is as long and holds nothing that would end it earlier or escape.
        (fits && scan::string(b, id.start).is_ok_and(|found| found == id)).then_some(Head { id, event, time })
    }

    /// What a record says before its time whose beginning fits.
    pub fn before(&self) -> Facts {
        self.places.map_or_else(Facts::default, |places| places.before)
    }

    /// The record from behind `SizeBytes`, when it fits as its beginning does, with a sequence number as there or
    /// without.
    #[inline(always)]
    pub fn tail(&self, b: &[u8], at: usize, sequence: bool) -> Option<Tail> {
        let places = self.places.as_ref()?;
        let (mut said, moves) = self.said?;
        if places.sequence != sequence || b[at..] != self.tail {
            return None;
        }
        if moves {
            said.name = said.name.map(|name| name.moved(places.tail, at));
        }
        Some(Tail { close: places.close - places.tail + at, said })
    }
}
