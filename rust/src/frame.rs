//! Event-stream frames of SubscribeToShard.
//!
//! In: the raw body, in chunks as the network cuts them. Out: events whose records are decoded from base64.
//! Invariants: every byte is looked at a fixed number of times, however small the chunks; no more than one
//! unfinished frame is kept, and its room is given back; nothing of a frame is believed before its checksum.
//!
//! Format: <https://docs.aws.amazon.com/transcribe/latest/dg/event-stream.html>; content:
//! <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShardEvent.html>.

use crate::error::{Code, Fault, FrameFault};
use crate::number::Number;
use crate::records::Records;
use crate::scan::{self, Text, byte};

const PRELUDE: usize = 12;
const CHECKSUM: usize = 4;
/// A kept buffer's room beyond this is given back.
const BUFFER_KEPT_MAX: usize = 1 << 20;

/// An exception or error that the service sent in place of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its type, such as `ResourceInUseException`.
    pub kind: String,
    /// What the service says.
    pub message: String,
}

/// A child shard: its id and its parents' ids.
pub type Child = (String, Vec<String>);

/// One event of a SubscribeToShard answer.
#[derive(Clone, Debug, Default)]
pub struct ShardEvent {
    /// Its records.
    pub records: Records,
    /// Where the next subscription goes on; None at the shard's end.
    pub continuation_sequence_number: Option<String>,
    /// How far behind the tip the records are.
    pub millis_behind_latest: i64,
    /// The children, in the shard's last event.
    pub child_shards: Vec<Child>,
    /// Set when the frame is an exception or an error; nothing else is then.
    pub exception: Option<Exception>,
}

/// Takes a body apart.
#[derive(Debug)]
pub struct EventStream {
    frame_bytes_max: u64,
    buffer: Vec<u8>,
    broken: Option<FrameFault>,
}

impl EventStream {
    /// A stream whose frames may be this long.
    pub const fn new(frame_bytes_max: u64) -> Self {
        Self { frame_bytes_max, buffer: Vec::new(), broken: None }
    }

    /// Bytes of an unfinished frame.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Room held for unfinished frames.
    pub fn room_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// The events that this chunk completes. Those before a broken frame are given first; its fault follows
    /// with the next call.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<Vec<ShardEvent>, FrameFault> {
        let mut events = Vec::new();
        if self.broken.is_none() {
            self.broken = self.take(chunk, &mut events).err();
        }
        match &self.broken {
            Some(fault) if events.is_empty() => Err(fault.clone()),
            _ => Ok(events),
        }
    }

    fn take(&mut self, mut chunk: &[u8], events: &mut Vec<ShardEvent>) -> Result<(), FrameFault> {
        // Finish the frame that was begun.
        while !self.buffer.is_empty() {
            let wanted = match self.frame_length(&self.buffer)? {
                None => PRELUDE,
                Some(length) => length,
            };
            let missing = wanted - self.buffer.len();
            if missing > chunk.len() {
                self.buffer.extend_from_slice(chunk);
                return Ok(());
            }
            let (piece, rest) = chunk.split_at(missing);
            self.buffer.extend_from_slice(piece);
            chunk = rest;
            if wanted > PRELUDE {
                let frame = std::mem::take(&mut self.buffer);
                let read = read_frame(&frame, events);
                self.buffer = frame;
                read?;
                self.buffer.clear();
                self.buffer.shrink_to(BUFFER_KEPT_MAX);
            } else if let Some(length) = self.frame_length(&self.buffer)? {
                // The checksum vouches for the length, and `frame_bytes_max` bounds it: one allocation.
                self.buffer.reserve_exact(length - PRELUDE);
            }
        }
        // Read whole frames where they lie.
        while let Some(length) = self.frame_length(chunk).inspect_err(|_| self.buffer.extend_from_slice(chunk))? {
            let Some((frame, rest)) = chunk.split_at_checked(length) else { break };
            if let Err(fault) = read_frame(frame, events) {
                self.buffer.extend_from_slice(frame);
                return Err(fault);
            }
            chunk = rest;
        }
        self.buffer.extend_from_slice(chunk);
        Ok(())
    }

    /// The length of the frame that begins here; None when even that is not all here.
    fn frame_length(&self, bytes: &[u8]) -> Result<Option<usize>, FrameFault> {
        let Some(prelude) = bytes.first_chunk::<PRELUDE>() else { return Ok(None) };
        let (length, headers, checksum) = (u32_at(prelude, 0), u32_at(prelude, 4), u32_at(prelude, 8));
        if crc32fast::hash(&prelude[..8]) != checksum {
            return Err(FrameFault::PreludeChecksum);
        }
        let least = (PRELUDE + CHECKSUM) as u64 + u64::from(headers);
        if u64::from(length) < least || u64::from(length) > self.frame_bytes_max {
            return Err(FrameFault::Length { length, headers, max: self.frame_bytes_max });
        }
        Ok(Some(length as usize))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk::<4>).map_or(0, |chunk| u32::from_be_bytes(*chunk))
}

/// Reads a whole frame whose prelude was checked.
fn read_frame(frame: &[u8], events: &mut Vec<ShardEvent>) -> Result<(), FrameFault> {
    let body = frame.len() - CHECKSUM;
    if crc32fast::hash(&frame[..body]) != u32_at(frame, body) {
        return Err(FrameFault::MessageChecksum);
    }
    let payload = PRELUDE + u32_at(frame, 4) as usize;
    let headers = Headers::read(&frame[PRELUDE..payload]).ok_or(FrameFault::Headers)?;
    let payload = &frame[payload..body];
    match headers.message_type.ok_or(FrameFault::MissingHeader(":message-type"))? {
        b"event" => {
            let kind = headers.event_type.ok_or(FrameFault::MissingHeader(":event-type"))?;
            // `initial-response`, and whatever the service may add, tells us nothing.
            if kind == b"SubscribeToShardEvent" {
                events.push(read_event(payload).map_err(|fault| FrameFault::Envelope(fault.at))?);
            }
        }
        b"exception" => {
            let kind = headers.exception_type.ok_or(FrameFault::MissingHeader(":exception-type"))?;
            events.push(exception(kind, message(payload)));
        }
        b"error" => {
            let kind = headers.error_code.ok_or(FrameFault::MissingHeader(":error-code"))?;
            let said = headers.error_message.map(lossy);
            events.push(exception(kind, said.unwrap_or_else(|| message(payload))));
        }
        _ => {}
    }
    Ok(())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn exception(kind: &[u8], message: String) -> ShardEvent {
    ShardEvent { exception: Some(Exception { kind: lossy(kind), message }), ..ShardEvent::default() }
}

/// The message of an exception's payload; the payload itself when it has another form.
fn message(payload: &[u8]) -> String {
    let mut found = None;
    let read = scan::object(payload, scan::space(payload, 0), |name, at| {
        if name.eq_ignore_ascii_case(b"message") && byte(payload, at) == b'"' {
            let text = scan::string(payload, at + 1)?;
            found = Some(text.text(payload));
            return Ok(text.end + 1);
        }
        scan::skip(payload, at)
    });
    match (read, found) {
        (Ok(_), Some(text)) => text,
        _ => lossy(payload),
    }
}

/// The headers that matter here.
#[derive(Default)]
struct Headers<'a> {
    message_type: Option<&'a [u8]>,
    event_type: Option<&'a [u8]>,
    exception_type: Option<&'a [u8]>,
    error_code: Option<&'a [u8]>,
    error_message: Option<&'a [u8]>,
}

impl<'a> Headers<'a> {
    fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let mut headers = Self::default();
        while let Some((&len, rest)) = bytes.split_first() {
            let (name, rest) = rest.split_at_checked(usize::from(len))?;
            let (&kind, rest) = rest.split_first()?;
            let (len, rest) = match kind {
                0 | 1 => (0, rest),
                2 => (1, rest),
                3 => (2, rest),
                4 => (4, rest),
                5 | 8 => (8, rest),
                6 | 7 => {
                    let (len, rest) = rest.split_first_chunk::<2>()?;
                    (usize::from(u16::from_be_bytes(*len)), rest)
                }
                9 => (16, rest),
                _ => return None,
            };
            let (value, rest) = rest.split_at_checked(len)?;
            if kind == 7 {
                match name {
                    b":message-type" => headers.message_type = Some(value),
                    b":event-type" => headers.event_type = Some(value),
                    b":exception-type" => headers.exception_type = Some(value),
                    b":error-code" => headers.error_code = Some(value),
                    b":error-message" => headers.error_message = Some(value),
                    _ => {}
                }
            }
            bytes = rest;
        }
        Some(headers)
    }
}

/// The JSON of one SubscribeToShardEvent.
fn read_event(b: &[u8]) -> Result<ShardEvent, Fault> {
    let malformed = |at| Fault::new(Code::MalformedJson, at);
    if let Err(error) = simdutf8::compat::from_utf8(b) {
        return Err(malformed(error.valid_up_to()));
    }
    // Base64 and what is around it: an upper bound.
    let records = Records::with_capacity(b.len() / 4 * 3, 0);
    let mut event = ShardEvent { records, ..ShardEvent::default() };
    let start = scan::space(b, 0);
    if byte(b, start) != b'{' {
        return Err(malformed(start));
    }
    let end = scan::object(b, start, |name, at| match (name, byte(b, at)) {
        (b"Records", b'[') => scan::array(b, at, |at| read_record(b, at, &mut event.records)),
        (b"ContinuationSequenceNumber", b'"') => {
            let text = scan::string(b, at + 1)?;
            event.continuation_sequence_number = Some(text.text(b)).filter(|number| !number.is_empty());
            Ok(text.end + 1)
        }
        (b"MillisBehindLatest", b'-' | b'0'..=b'9') => {
            let end = scan::number(b, at)?;
            let number = Number::parse(&b[at..end]).ok().and_then(|number| number.scaled(0));
            event.millis_behind_latest = number.ok_or(malformed(at))?;
            Ok(end)
        }
        (b"ChildShards", b'[') => scan::array(b, at, |at| {
            let (child, end) = read_child(b, at)?;
            event.child_shards.push(child);
            Ok(end)
        }),
        // Of another kind than these are: nothing here can be told apart.
        (b"Records" | b"ContinuationSequenceNumber" | b"MillisBehindLatest" | b"ChildShards", kind) if kind != b'n' => {
            Err(malformed(at))
        }
        _ => scan::skip(b, at),
    })?;
    let end = scan::space(b, end);
    if end != b.len() {
        return Err(malformed(end));
    }
    event.records.shrink();
    Ok(event)
}

fn read_child(b: &[u8], at: usize) -> Result<(Child, usize), Fault> {
    let mut id = String::new();
    let mut parents = Vec::new();
    if byte(b, at) != b'{' {
        return Err(Fault::new(Code::MalformedJson, at));
    }
    let end = scan::object(b, at, |name, at| match (name, byte(b, at)) {
        (b"ShardId", b'"') => {
            let text = scan::string(b, at + 1)?;
            id = text.text(b);
            Ok(text.end + 1)
        }
        (b"ParentShards", b'[') => scan::array(b, at, |at| {
            if byte(b, at) != b'"' {
                return Err(Fault::new(Code::MalformedJson, at));
            }
            let text = scan::string(b, at + 1)?;
            parents.push(text.text(b));
            Ok(text.end + 1)
        }),
        _ => scan::skip(b, at),
    })?;
    Ok(((id, parents), end))
}

/// One Kinesis record (of an event here, or of a GetRecords answer), added to `records`.
pub fn read_record(b: &[u8], at: usize, records: &mut Records) -> Result<usize, Fault> {
    if byte(b, at) != b'{' {
        return Err(Fault::new(Code::MalformedJson, at));
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
    push_base64(b, data, &number.bytes(b), arrival_ms, 0, records).ok_or(Fault::new(Code::MalformedJson, at))?;
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

/// Adds a record whose payload is this base64. What is no base64 becomes the payload as it stands: decoding
/// refuses it, and its neighbours are safe. None when the arena is full.
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
    pushed.ok()
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
