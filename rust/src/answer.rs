//! The JSON that a service puts around records.
//!
//! In: the payload of a SubscribeToShardEvent, or the body of GetRecords of Kinesis or of DynamoDB Streams.
//! Out: an `Answer`: the records, where reading goes on, how far behind they are, the shard's children.
//! Invariants: members may come in any order, unknown ones are skipped, one that is `null` is absent, of one
//! that comes twice the last counts; every skip ends inside its record; a record that decoding will refuse
//! stays a record, and its neighbours are safe.
//!
//! Shapes: <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShardEvent.html>,
//! <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html> and
//! <https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_GetRecords.html>.

use crate::aggregate;
use crate::error::{Code, Fault};
use crate::number::Number;
use crate::records::Records;
use crate::scan::{self, Text, byte};

/// Which answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A SubscribeToShardEvent.
    Event,
    /// GetRecords of Kinesis.
    Kinesis,
    /// GetRecords of DynamoDB Streams.
    Streams,
}

/// A child shard: its id and its parents' ids.
pub type Child = (String, Vec<String>);

/// What a service answered.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Its records.
    pub records: Records,
    /// Where reading goes on: an event's continuation sequence number, else an iterator. None at the shard's end.
    pub next: Option<String>,
    /// How far behind the tip the records are. DynamoDB Streams doesn't say.
    pub millis_behind_latest: Option<i64>,
    /// The children, when this is the end of a Kinesis shard.
    pub child_shards: Vec<Child>,
}

/// Reads an answer. The fault is at a byte of the whole.
pub fn read(b: &[u8], kind: Kind) -> Result<Answer, Fault> {
    // Records of DynamoDB Streams are looked at one by one when they are decoded: one of them costs no other.
    if kind != Kind::Streams
        && let Err(error) = simdutf8::compat::from_utf8(b)
    {
        return Err(malformed(error.valid_up_to()));
    }
    let mut answer = Answer { records: Records::with_capacity(payload_bytes_max(b, kind), 0), ..Answer::default() };
    let start = scan::space(b, 0);
    if byte(b, start) != b'{' {
        return Err(malformed(start));
    }
    let end = scan::object(b, start, |name, at| match (name, byte(b, at)) {
        (b"Records", b'[') => {
            answer.records.clear();
            match kind {
                Kind::Streams => scan::array(b, at, |at| read_element(b, at, &mut answer.records)),
                _ => scan::array(b, at, |at| read_record(b, at, &mut answer.records)),
            }
        }
        (b"MillisBehindLatest", b'-' | b'0'..=b'9') => {
            let end = scan::number(b, at)?;
            let number = Number::parse(&b[at..end]).ok().and_then(|number| number.scaled(0));
            answer.millis_behind_latest = Some(number.ok_or(malformed(at))?);
            Ok(end)
        }
        (b"ChildShards", b'[') => {
            answer.child_shards.clear();
            scan::array(b, at, |at| {
                let (child, end) = read_child(b, at)?;
                answer.child_shards.push(child);
                Ok(end)
            })
        }
        (name, b'"') if name == kind.next() => {
            let text = scan::string(b, at + 1)?;
            answer.next = Some(text.text(b)).filter(|next| !next.is_empty());
            Ok(text.end + 1)
        }
        // Of another type than these are: nothing here can be told apart.
        (b"Records" | b"MillisBehindLatest" | b"ChildShards", kind) if kind != b'n' => Err(malformed(at)),
        (name, value) if name == kind.next() && value != b'n' => Err(malformed(at)),
        _ => scan::skip(b, at),
    })?;
    let end = scan::space(b, end);
    if end != b.len() {
        return Err(malformed(end));
    }
    answer.records.shrink();
    Ok(answer)
}

impl Kind {
    const fn next(self) -> &'static [u8] {
        match self {
            Self::Event => b"ContinuationSequenceNumber",
            Self::Kinesis | Self::Streams => b"NextShardIterator",
        }
    }
}

const fn payload_bytes_max(b: &[u8], kind: Kind) -> usize {
    match kind {
        Kind::Streams => b.len(),
        // All base64.
        Kind::Event | Kind::Kinesis => b.len() / 4 * 3,
    }
}

#[cold]
const fn malformed(at: usize) -> Fault {
    Fault::new(Code::MalformedJson, at)
}

fn read_child(b: &[u8], at: usize) -> Result<(Child, usize), Fault> {
    let mut id = String::new();
    let mut parents = Vec::new();
    if byte(b, at) != b'{' {
        return Err(malformed(at));
    }
    let end = scan::object(b, at, |name, at| match (name, byte(b, at)) {
        (b"ShardId", b'"') => {
            let text = scan::string(b, at + 1)?;
            id = text.text(b);
            Ok(text.end + 1)
        }
        (b"ParentShards", b'[') => {
            parents.clear();
            scan::array(b, at, |at| {
                if byte(b, at) != b'"' {
                    return Err(malformed(at));
                }
                let text = scan::string(b, at + 1)?;
                parents.push(text.text(b));
                Ok(text.end + 1)
            })
        }
        _ => scan::skip(b, at),
    })?;
    Ok(((id, parents), end))
}

/// One Kinesis record, added to `records`.
fn read_record(b: &[u8], at: usize, records: &mut Records) -> Result<usize, Fault> {
    if byte(b, at) != b'{' {
        return Err(malformed(at));
    }
    let (mut data, mut number, mut arrival_ms) = (Text::default(), Text::default(), None);
    let end = scan::object(b, at, |name, at| match (name.len(), byte(b, at)) {
        (4, b'"') if name == b"Data" => {
            data = long_string(b, at + 1)?;
            Ok(data.end + 1)
        }
        (14, b'"') if name == b"SequenceNumber" => {
            number = scan::string(b, at + 1)?;
            Ok(number.end + 1)
        }
        (27, b'-' | b'0'..=b'9') if name == b"ApproximateArrivalTimestamp" => {
            let end = scan::number(b, at)?;
            arrival_ms = seconds_as_ms(&b[at..end]);
            Ok(end)
        }
        _ => scan::skip(b, at),
    })?;
    push_base64(b, data, &number.bytes(b), arrival_ms, 0, records).ok_or(malformed(at))?;
    Ok(end)
}

/// One record of DynamoDB Streams, which is its own payload, added to `records`. Its creation time stands for
/// its arrival, which this service doesn't tell.
fn read_element(b: &[u8], at: usize, records: &mut Records) -> Result<usize, Fault> {
    let (mut number, mut created_ms) = (Text::default(), None);
    let mut dynamodb = |name: &[u8], at| match (name.len(), byte(b, at)) {
        (14, b'"') if name == b"SequenceNumber" => {
            number = scan::string(b, at + 1)?;
            Ok(number.end + 1)
        }
        (27, b'-' | b'0'..=b'9') if name == b"ApproximateCreationDateTime" => {
            let end = scan::number(b, at)?;
            created_ms = seconds_as_ms(&b[at..end]);
            Ok(end)
        }
        _ => scan::extent(b, at),
    };
    let walked = match byte(b, at) {
        b'{' => scan::object(b, at, |name, at| match byte(b, at) {
            b'{' if name == b"dynamodb" => scan::object(b, at, &mut dynamodb),
            _ => scan::extent(b, at),
        }),
        _ => scan::extent(b, at),
    };
    // What isn't JSON inside may still have an end: then it is this record alone that decoding refuses.
    let end = walked.or_else(|_| scan::extent(b, at))?;
    records.push(&b[at..end], &number.bytes(b), created_ms, 0).map_err(|_| malformed(at))?;
    Ok(end)
}

/// Epoch seconds, as text, in milliseconds.
pub fn seconds_as_ms(text: &[u8]) -> Option<i64> {
    // Epoch seconds with three decimals: what the service writes.
    if let Some((seconds, [b'.', decimals @ ..])) = text.split_at_checked(10)
        && decimals.len() <= 3
        && seconds.iter().chain(decimals).all(u8::is_ascii_digit)
    {
        let value = seconds.iter().chain(decimals).fold(0, |value, c| value * 10 + i64::from(c - b'0'));
        return Some(value * 10_i64.pow(3 - decimals.len() as u32));
    }
    Number::parse(text).ok()?.scaled(3)
}

/// Adds a record whose payload is this base64, or the user records of an aggregate. What is no base64 becomes
/// the payload as it stands: decoding refuses it, and its neighbours are safe. None when the arena is full.
pub fn push_base64(
    b: &[u8],
    data: Text,
    number: &[u8],
    arrival_ms: Option<i64>,
    line: u32,
    records: &mut Records,
) -> Option<()> {
    let text = data.bytes(b);
    let pushed = records.push_with(number, arrival_ms, line, |arena| {
        let start = arena.len();
        if base64_simd::STANDARD.decode_append(&*text, arena).is_err() {
            arena.truncate(start);
            arena.extend_from_slice(&text);
        }
    });
    pushed.ok()?;
    aggregate::take_apart(records);
    Some(())
}

/// A string that is mostly long and plain: base64.
fn long_string(b: &[u8], at: usize) -> Result<Text, Fault> {
    if let Some(len) = b.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest))
        && b[at + len] == b'"'
    {
        // A control character inside is no base64, so that decoding refuses it.
        return Ok(Text { start: at, end: at + len, escaped: false });
    }
    scan::string(b, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrival_times_are_exact_in_every_spelling() {
        for (text, ms) in [
            ("1706542773.915", Some(1_706_542_773_915)),
            ("1706542773.9", Some(1_706_542_773_900)),
            ("1706542773", Some(1_706_542_773_000)),
            ("1.706542773915E9", Some(1_706_542_773_915)),
            ("1706542773.9159", Some(1_706_542_773_915)),
            ("0", Some(0)),
        ] {
            assert_eq!(seconds_as_ms(text.as_bytes()), ms, "{text}");
        }
    }
}
