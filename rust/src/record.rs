//! One record to one change: the envelope of both sources.
//!
//! In: a record's bytes (a payload of Kinesis Data Streams for DynamoDB, or a DynamoDB Streams record). Out: a
//! `Found`, whose images are checked and whose new image is already written plain. Invariants: members may
//! come in any order; unknown ones are skipped, but must be JSON; one that is `null` is absent; of a member
//! that comes twice the last counts. Nothing is allocated.
//!
//! Shapes: <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/kds_using-shards-and-metrics.html> and
//! <https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_StreamRecord.html>.

use std::borrow::Cow;

use crate::error::{Code, Fault};
use crate::fingerprint;
use crate::key;
use crate::number::Number;
use crate::records::Span;
use crate::scan::{self, Text, byte};
use crate::template::{Facts, Places, Said, Template};
use crate::value::{self, Notes, Place};

/// 9999-12-31T23:59:59.999999Z, the last instant that other tools can show.
const CREATION_US_MAX: i64 = 253_402_300_799_999_999;
const SEQUENCE_DIGITS_MAX: usize = 40;

/// What happened to the item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was new.
    Insert,
    /// It was there already.
    Modify,
    /// It is gone.
    Remove,
}

impl Event {
    /// The event of this name.
    #[inline(always)]
    pub fn named(name: &[u8]) -> Option<Self> {
        match name {
            b"MODIFY" => Some(Self::Modify),
            b"INSERT" => Some(Self::Insert),
            b"REMOVE" => Some(Self::Remove),
            _ => None,
        }
    }

    /// The wire's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Modify => "MODIFY",
            Self::Remove => "REMOVE",
        }
    }
}

/// What a version's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Creation time, exact to the microsecond.
    Microsecond,
    /// Creation time, exact to the millisecond.
    Millisecond,
    /// A sequence number of DynamoDB Streams.
    Sequence,
}

/// A version's value, up to 40 digits: limbs to the base 10^16, the greatest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub [u64; 3]);

impl Version {
    const BASE: u64 = 10_000_000_000_000_000;

    /// The version of a creation time.
    pub const fn from_us(us: u64) -> Self {
        Self([0, us / Self::BASE, us % Self::BASE])
    }

    /// The version of a sequence number.
    pub fn from_digits(digits: &[u8]) -> Option<Self> {
        if digits.is_empty() || digits.len() > SEQUENCE_DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let mut limbs = [0; 3];
        for (limb, chunk) in limbs.iter_mut().rev().zip(digits.rchunks(16)) {
            *limb = chunk.iter().fold(0, |value, c| value * 10 + u64::from(c - b'0'));
        }
        Some(Self(limbs))
    }

    /// Its decimal text, appended.
    pub fn write(self, out: &mut Vec<u8>) {
        let first = self.0.iter().position(|&limb| limb != 0).unwrap_or(2);
        for (i, &limb) in self.0.iter().enumerate().skip(first) {
            let mut buffer = itoa::Buffer::new();
            let text = buffer.format(limb).as_bytes();
            if i > first {
                out.extend_from_slice(&b"0000000000000000"[text.len()..]);
            }
            out.extend_from_slice(text);
        }
    }

    /// Its groups of four decimal digits, the greatest first, without leading ones that are 0.
    pub fn groups(self, groups: &mut [u16; 12]) -> &[u16] {
        for (four, limb) in groups.chunks_exact_mut(4).zip(self.0) {
            let mut rest = limb;
            for group in four.iter_mut().rev() {
                *group = (rest % 10_000) as u16;
                rest /= 10_000;
            }
        }
        let first = groups.iter().position(|&group| group != 0).unwrap_or(groups.len());
        &groups[first..]
    }
}

/// A record, read: spans are places in the record, those of `key` and `plain` in the arenas given.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// What happened.
    pub event: Event,
    /// What the version is made of.
    pub precision: Precision,
    /// The version's value.
    pub version: Version,
    /// Creation time, UTC microseconds.
    pub event_us: i64,
    /// `tableName`, or the name out of `eventSourceARN`.
    pub table: Option<TableName>,
    /// `eventID`, when there is one.
    pub event_id: Text,
    /// `Keys`.
    pub keys: Span,
    /// `NewImage`.
    pub new: Span,
    /// `OldImage`.
    pub old: Span,
    /// The new image's plain form in the output.
    pub plain: Span,
    /// The new image holds a string with an escape.
    pub escaped: bool,
    /// Fingerprint of the item before.
    pub before: u64,
}

/// The buffers that all records of a batch share.
pub struct Arenas {
    /// Canonical keys.
    pub keys: Vec<u8>,
    /// Plain new images, and room behind them.
    pub plain: Vec<u8>,
    /// End of what is used of `plain`.
    pub end: usize,
    /// What the passes over images keep.
    pub notes: Notes,
    /// The last record that was read member by member.
    template: Template,
}

impl Arenas {
    /// For records of this many bytes together.
    pub fn new(bytes: usize, records: usize) -> Self {
        Self {
            keys: Vec::with_capacity(records * 64),
            // Mostly less than half of a record is its new image, and plain it is shorter still.
            plain: Vec::with_capacity(bytes / 2 + value::SLACK),
            end: 0,
            notes: Notes::default(),
            template: Template::default(),
        }
    }

    /// Makes the output long enough for the plain form of this many bytes. (Only as far as is needed:
    /// pages that are never touched cost nothing.)
    #[inline]
    fn make_room(&mut self, bytes: usize) {
        let len = self.end + bytes + value::SLACK;
        if self.plain.len() < len {
            self.plain.resize(len, 0);
        }
    }
}

/// What the members said, before it is put together.
#[derive(Default)]
struct Members {
    event: Option<Text>,
    event_id: Text,
    time: Option<Text>,
    sequence: Option<Text>,
    keys: Span,
    new: Span,
    old: Span,
    plain: Span,
    /// What the table's records share: before `SizeBytes`, and since.
    earlier: Facts,
    facts: Facts,
    /// For the template: nothing but such facts came before the time, and no image; what was said there, unless the
    /// template says it.
    is_head: bool,
    head: Facts,
    /// The end of `SizeBytes`, and of `dynamodb`.
    size_end: usize,
    close: usize,
    /// The record's beginning fits the template: what is said there isn't among the facts yet.
    fits: bool,
    /// The record's end does, too, and this is all it says.
    said: Option<Said>,
    escaped: bool,
    before: u64,
}

/// Reads one record. What a failure left in the arenas is for the caller to cut off.
pub fn read(b: &[u8], arenas: &mut Arenas) -> Result<Found, Fault> {
    let mut found = Members::default();
    let end = if let Some(head) = arenas.template.head(b) {
        found.event = Some(head.event);
        found.event_id = head.id;
        found.fits = true;
        let at = time(b, scan::space(b, head.time), &mut found)?;
        let at = scan::more(b, at, |name, at| in_dynamodb(b, name, at, arenas, &mut found))?;
        if let Some(said) = found.said {
            return found.into_found(b, said);
        }
        // From here on it is read as one that doesn't fit: what the template says of its beginning is said here.
        let before = arenas.template.before();
        found.fits = false;
        found.head = before;
        found.close = at - 1;
        if found.size_end == 0 {
            found.facts = before.then(found.facts);
        } else {
            found.earlier = before.then(found.earlier);
        }
        scan::more(b, at, |name, at| member(b, name, at, arenas, &mut found))?
    } else {
        let start = scan::space(b, 0);
        if byte(b, start) != b'{' {
            let end = scan::space(b, scan::skip(b, start)?);
            return Err(Fault::new(if end == b.len() { Code::InvalidEnvelope } else { Code::TrailingText }, start));
        }
        scan::object(b, start, |name, at| member(b, name, at, arenas, &mut found))?
    };
    let end = scan::space(b, end);
    if end != b.len() {
        return Err(Fault::new(Code::TrailingText, end));
    }
    if let (true, Some(event), Some(time)) = (found.is_head, found.event, found.time) {
        let images = [found.keys, found.new, found.old].map(|span| (span.start + span.len) as usize);
        let sequence = found.sequence.map_or(0, |text| text.end);
        if images.iter().all(|&end| end < found.size_end) && sequence < found.size_end {
            let places = Places {
                id: found.event_id,
                event,
                time: time.start,
                tail: found.size_end,
                close: found.close,
                before: found.head,
                behind: found.facts,
                sequence: found.sequence.is_some(),
            };
            arenas.template.learn(b, places);
        }
    }
    found.check_required(b)?;
    let facts = found.earlier.then(found.facts);
    let said = Said { precision: facts.precision(b, found.sequence.is_some())?, name: facts.name() };
    found.into_found(b, said)
}

/// A member of the record.
#[inline(always)]
fn member(b: &[u8], name: &[u8], at: usize, arenas: &mut Arenas, found: &mut Members) -> Result<usize, Fault> {
    // By length first: whole words are compared then, not byte after byte.
    match name.len() {
        8 if name == b"dynamodb" && byte(b, at) == b'{' => {
            let end = scan::object(b, at, |name, at| in_dynamodb(b, name, at, arenas, found))?;
            found.close = end - 1;
            Ok(end)
        }
        9 if name == b"eventName" => text(b, at, &mut found.event),
        7 if name == b"eventID" => {
            let mut id = None;
            let end = text(b, at, &mut id)?;
            found.event_id = id.unwrap_or_default();
            Ok(end)
        }
        9 if name == b"tableName" => {
            let end = text(b, at, &mut found.facts.table)?;
            found.facts.is_kinesis |= found.facts.table.is_some();
            Ok(end)
        }
        14 if name == b"eventSourceARN" => {
            found.facts.is_streams = true;
            text(b, at, &mut found.facts.arn)
        }
        12 if name == b"eventVersion" => {
            found.facts.is_streams = true;
            scan::skip(b, at)
        }
        12 if name == b"recordFormat" => {
            found.facts.is_kinesis = true;
            scan::skip(b, at)
        }
        8 if name == b"dynamodb" && byte(b, at) != b'n' => Err(envelope(b, at)),
        _ => scan::skip(b, at),
    }
}

/// A member of `dynamodb`.
#[inline(always)]
fn in_dynamodb(b: &[u8], name: &[u8], at: usize, arenas: &mut Arenas, found: &mut Members) -> Result<usize, Fault> {
    match name.len() {
        4 if name == b"Keys" && byte(b, at) != b'n' => {
            if !found.keys.is_empty() {
                return Err(Fault::new(Code::InvalidKey, at));
            }
            let end = key::read(b, at, &mut arenas.keys)?;
            found.keys = Span::new(at, end);
            Ok(end)
        }
        8 if name == b"NewImage" && byte(b, at) != b'n' => {
            let o = arenas.end;
            arenas.make_room(b.len() - at);
            arenas.notes.escaped = false;
            let place = value::image::<true>(b, &mut arenas.plain, &mut arenas.notes, Place { at, o })?;
            found.new = Span::new(at, place.at);
            found.plain = Span::new(o, place.o);
            found.escaped = arenas.notes.escaped;
            arenas.end = place.o;
            Ok(place.at)
        }
        8 if name == b"OldImage" && byte(b, at) != b'n' => {
            let place = value::image::<false>(b, &mut [], &mut arenas.notes, Place { at, o: 0 })?;
            found.old = Span::new(at, place.at);
            found.before = place.o as u64;
            Ok(place.at)
        }
        9 if name == b"SizeBytes" => {
            let end = scan::skip(b, at)?;
            found.size_end = end;
            if found.fits
                && found.earlier.is_nothing()
                && found.facts.is_nothing()
                && let Some(tail) = arenas.template.tail(b, end, found.sequence.is_some())
            {
                found.said = Some(tail.said);
                return Ok(tail.close);
            }
            found.earlier = found.earlier.then(std::mem::take(&mut found.facts));
            Ok(end)
        }
        27 if name == b"ApproximateCreationDateTime" => time(b, at, found),
        36 if name == b"ApproximateCreationDateTimePrecision" => text(b, at, &mut found.facts.precision),
        14 if name == b"SequenceNumber" => text(b, at, &mut found.sequence),
        14 if name == b"StreamViewType" => {
            found.facts.is_streams = true;
            scan::skip(b, at)
        }
        _ => scan::skip(b, at),
    }
}

/// The time's value.
#[inline(always)]
fn time(b: &[u8], at: usize, found: &mut Members) -> Result<usize, Fault> {
    if matches!(byte(b, at), b'-' | b'0'..=b'9') {
        let end = scan::number(b, at)?;
        found.time = Some(Text { start: at, end, escaped: false });
        let is_first = found.size_end == 0 && found.keys.is_empty() && found.new.is_empty() && found.old.is_empty();
        found.is_head = is_first && found.sequence.is_none();
        if !found.fits {
            found.head = found.facts;
        }
        Ok(end)
    } else if byte(b, at) == b'n' {
        scan::skip(b, at)
    } else {
        scan::skip(b, at)?;
        Err(Fault::new(Code::InvalidCreationTime, at))
    }
}

/// A field that is a string or null.
#[inline(always)]
fn text(b: &[u8], at: usize, into: &mut Option<Text>) -> Result<usize, Fault> {
    match byte(b, at) {
        b'"' => {
            let text = scan::string(b, at + 1)?;
            *into = Some(text);
            Ok(text.end + 1)
        }
        b'n' => scan::skip(b, at),
        _ => Err(envelope(b, at)),
    }
}

#[cold]
fn envelope(b: &[u8], at: usize) -> Fault {
    match scan::skip(b, at) {
        Ok(_) => Fault::new(Code::InvalidEnvelope, at),
        Err(fault) => fault,
    }
}

impl Members {
    /// What every record has.
    fn check_required(&self, b: &[u8]) -> Result<(), Fault> {
        match self.event {
            None => Err(Fault::new(Code::MissingEventName, b.len())),
            Some(text) if Event::named(&b[text.start..text.end]).is_none() => {
                Err(Fault::new(Code::UnknownEventName, text.start))
            }
            Some(_) if self.keys.is_empty() => Err(Fault::new(Code::MissingKeys, b.len())),
            Some(_) => Ok(()),
        }
    }

    #[inline(always)]
    fn into_found(self, b: &[u8], said: Said) -> Result<Found, Fault> {
        let event = self.event.and_then(|text| Event::named(&b[text.start..text.end]));
        let event = event.ok_or(Fault::new(Code::MissingEventName, b.len()))?;
        if self.keys.is_empty() {
            return Err(Fault::new(Code::MissingKeys, b.len()));
        }
        let (mut precision, power) = said.precision;
        let time = self.time.ok_or(Fault::new(Code::MissingCreationTime, b.len()))?;
        let event_us = instant(&b[time.start..time.end], power)
            .filter(|us| (0..=CREATION_US_MAX).contains(us))
            .ok_or(Fault::new(Code::InvalidCreationTime, time.start))?;
        let version = match self.sequence {
            Some(text) => {
                precision = Precision::Sequence;
                Version::from_digits(&b[text.start..text.end])
                    .ok_or(Fault::new(Code::InvalidSequenceNumber, text.start))?
            }
            None => Version::from_us(event_us.unsigned_abs()),
        };
        Ok(Found {
            event,
            precision,
            version,
            event_us,
            table: said.name,
            event_id: self.event_id,
            keys: self.keys,
            new: self.new,
            old: self.old,
            plain: self.plain,
            escaped: self.escaped,
            before: match event {
                _ if !self.old.is_empty() => self.before,
                Event::Insert => fingerprint::GONE,
                _ => fingerprint::UNKNOWN,
            },
        })
    }
}

/// A creation time's text × 10^power as microseconds.
#[inline(always)]
fn instant(text: &[u8], power: i32) -> Option<i64> {
    if text.len() <= 18 && text.iter().all(u8::is_ascii_digit) {
        let value = text.iter().fold(0_i64, |value, c| value * 10 + i64::from(c - b'0'));
        return value.checked_mul(10_i64.pow(power.unsigned_abs()));
    }
    Number::parse(text).ok()?.scaled(power)
}

/// Where a record names its table.
#[derive(Clone, Copy, Debug)]
pub enum TableName {
    /// In a field of its own.
    Plain(Text),
    /// In `arn:aws:dynamodb:…:table/NAME/stream/…`.
    InArn(Text),
}

impl TableName {
    /// The field.
    pub const fn text(self) -> Text {
        match self {
            Self::Plain(text) | Self::InArn(text) => text,
        }
    }

    /// The same in a record in which what lay at `from` lies at `to`.
    #[must_use]
    pub fn moved(self, from: usize, to: usize) -> Self {
        let moved = |text: Text| Text { start: text.start - from + to, end: text.end - from + to, ..text };
        match self {
            Self::Plain(text) => Self::Plain(moved(text)),
            Self::InArn(text) => Self::InArn(moved(text)),
        }
    }

    /// The name; empty when there is none.
    pub fn bytes<'a>(&self, b: &'a [u8]) -> Cow<'a, [u8]> {
        match self {
            Self::Plain(text) => text.bytes(b),
            // First the escapes, for a slash may be one.
            Self::InArn(text) => match text.bytes(b) {
                Cow::Borrowed(arn) => Cow::Borrowed(table_of(arn)),
                Cow::Owned(arn) => Cow::Owned(table_of(&arn).to_vec()),
            },
        }
    }
}

fn table_of(arn: &[u8]) -> &[u8] {
    let start = memchr::memmem::find(arn, b":table/").map_or(arn.len(), |at| at + 7);
    let name = &arn[start..];
    &name[..memchr::memchr(b'/', name).unwrap_or(name.len())]
}

/// The `userIdentity` of a record that has been read, raw; few changes have one, so it isn't kept with each.
pub fn user_identity(b: &[u8]) -> Option<&[u8]> {
    let name = &b"\"userIdentity\""[..];
    // By its rarest letter: a searcher for the whole name costs more to make than this takes.
    let at = memchr::memchr_iter(b'I', b).filter_map(|at| at.checked_sub(5)).find(|at| b[*at..].starts_with(name))?;
    // Where the wire has it, behind strings alone, it is found without a walk. (In a string it would have backslashes.)
    if memchr::memchr3_iter(b'{', b'[', b'\\', &b[..at]).count() == 1 {
        let colon = scan::space(b, at + name.len());
        let start = scan::space(b, colon + 1);
        if b.get(colon) == Some(&b':')
            && let Ok(end) = scan::skip(b, start)
        {
            return Some(&b[start..end]).filter(|value| *value != b"null");
        }
    }
    let mut found = None;
    // An error only ends the search, as it does where the member was found.
    let _ = scan::object(b, scan::space(b, 0), |name, at| {
        let end = scan::skip(b, at)?;
        if name == b"userIdentity" {
            found = Some(&b[at..end]);
            return Err(Fault::new(Code::MalformedJson, at));
        }
        Ok(end)
    });
    found.filter(|value| *value != b"null")
}

/// The table a refused record names, if that much can be read.
#[cold]
pub fn table_named(b: &[u8]) -> Option<String> {
    let (mut table, mut arn) = (None, None);
    // An error only ends the search: what was found until then stands.
    let _ = scan::object(b, scan::space(b, 0), |name, at| match name {
        b"tableName" => text(b, at, &mut table),
        b"eventSourceARN" => text(b, at, &mut arn),
        _ => scan::skip(b, at),
    });
    let found = table.map(TableName::Plain).or(arn.map(TableName::InArn))?;
    Some(String::from_utf8_lossy(&found.bytes(b)).into_owned()).filter(|name| !name.is_empty())
}
