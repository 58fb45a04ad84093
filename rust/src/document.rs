//! The records of a whole file.
//!
//! In: JSON lines, and objects that follow each other on one line, as Firehose writes them without a delimiter
//! (<https://docs.aws.amazon.com/firehose/latest/dev/create-destination.html>); or one object with `Records` (an answer of GetRecords, a
//! Lambda event), formatted in any way; or one record formatted over several lines. Out: `Records` with the line on which each begins.
//! Invariant: no byte is lost: what can't be told apart becomes one record, which decoding refuses.

use crate::answer::{push_base64, seconds_as_ms};
use crate::error::{Code, Fault};
use crate::records::{Records, TooLarge};
use crate::scan::{self, Text, byte};

/// The records of a document.
pub fn read(data: &[u8]) -> Result<Records, TooLarge> {
    if u32::try_from(data.len()).is_err() {
        return Err(TooLarge);
    }
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let start = scan::space(data, 0);
    let mut records = Records::with_capacity(data.len(), 0);
    match kind(data, start) {
        Kind::Lines => lines(data, &mut records)?,
        Kind::Event => {
            let mut event = Records::default();
            match read_event(data, start, &mut event) {
                Some(()) => records = event,
                None => whole(data, start, &mut records)?,
            }
        }
        Kind::Whole => whole(data, start, &mut records)?,
    }
    records.shrink();
    Ok(records)
}

enum Kind {
    Lines,
    Event,
    Whole,
}

fn kind(b: &[u8], start: usize) -> Kind {
    if byte(b, start) != b'{' {
        return Kind::Lines;
    }
    let mut has_records = false;
    let end = scan::object(b, start, |name, at| {
        if name == b"Records" {
            has_records = true;
        }
        scan::skip(b, at)
    });
    match end {
        _ if has_records => Kind::Event,
        // One record, over several lines.
        Ok(end) if memchr::memchr(b'\n', &b[start..end]).is_some() => Kind::Whole,
        _ => Kind::Lines,
    }
}

fn whole(b: &[u8], start: usize, records: &mut Records) -> Result<(), TooLarge> {
    let end = b.len() - b.iter().rev().take_while(|c| c.is_ascii_whitespace()).count();
    let line = 1 + newlines(&b[..start]);
    records.push(&b[start..end.max(start)], b"", None, line)
}

fn newlines(b: &[u8]) -> u32 {
    memchr::memchr_iter(b'\n', b).count() as u32
}

fn lines(b: &[u8], records: &mut Records) -> Result<(), TooLarge> {
    for (i, line) in b.split(|&c| c == b'\n').enumerate() {
        let mut rest = line.trim_ascii();
        while let Some(end) = end_before_another(rest) {
            records.push(&rest[..end], b"", None, i as u32 + 1)?;
            rest = rest[end..].trim_ascii_start();
        }
        if !rest.is_empty() {
            records.push(rest, b"", None, i as u32 + 1)?;
        }
    }
    Ok(())
}

/// Where the object at the beginning ends, if another follows it.
fn end_before_another(b: &[u8]) -> Option<usize> {
    if byte(b, 0) != b'{' {
        return None;
    }
    let end = scan::object(b, 0, |_, at| scan::skip(b, at)).ok()?;
    (byte(b, scan::space(b, end)) == b'{').then_some(end)
}

/// The records of an object with `Records`; None when they can't be told apart.
fn read_event(b: &[u8], start: usize, records: &mut Records) -> Option<()> {
    let (mut seen, mut line) = (start, 1 + newlines(&b[..start]));
    let end = scan::object(b, start, |name, at| {
        if name != b"Records" {
            return scan::skip(b, at);
        }
        if byte(b, at) != b'[' {
            return Err(Fault::new(Code::InvalidEnvelope, at));
        }
        scan::array(b, at, |at| {
            line += newlines(&b[seen..at]);
            seen = at;
            read_record(b, at, line, records)
        })
    });
    end.ok().filter(|&end| scan::space(b, end) == b.len()).map(|_| ())
}

/// What an element of `Records` says about itself.
#[derive(Default)]
struct Element {
    data: Option<Text>,
    number: Text,
    arrival_ms: Option<i64>,
}

fn read_record(b: &[u8], at: usize, line: u32, records: &mut Records) -> Result<usize, Fault> {
    let mut element = Element::default();
    let end = if byte(b, at) == b'{' {
        scan::object(b, at, |name, at| match (name, byte(b, at)) {
            (b"kinesis" | b"dynamodb", b'{') => scan::object(b, at, |name, at| element.member(b, name, at)),
            _ => element.member(b, name, at),
        })?
    } else {
        scan::skip(b, at)?
    };
    let number = element.number.bytes(b);
    let pushed = match element.data {
        Some(data) => push_base64(b, data, &number, element.arrival_ms, line, records),
        None => records.push(&b[at..end], &number, element.arrival_ms, line).ok(),
    };
    pushed.ok_or(Fault::new(Code::MalformedJson, at))?;
    Ok(end)
}

impl Element {
    fn member(&mut self, b: &[u8], name: &[u8], at: usize) -> Result<usize, Fault> {
        match (name, byte(b, at)) {
            (b"data" | b"Data", b'"') => {
                let text = scan::string(b, at + 1)?;
                self.data = Some(text);
                Ok(text.end + 1)
            }
            (b"sequenceNumber" | b"SequenceNumber", b'"') => {
                self.number = scan::string(b, at + 1)?;
                Ok(self.number.end + 1)
            }
            (
                b"approximateArrivalTimestamp" | b"ApproximateArrivalTimestamp" | b"ApproximateCreationDateTime",
                b'-' | b'0'..=b'9',
            ) => {
                let end = scan::number(b, at)?;
                self.arrival_ms = seconds_as_ms(&b[at..end]);
                Ok(end)
            }
            _ => scan::skip(b, at),
        }
    }
}
