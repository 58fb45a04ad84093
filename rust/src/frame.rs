//! Event-stream frames of SubscribeToShard.
//!
//! In: the raw body, in chunks as the network cuts them. Out: events, whose JSON `answer` reads.
//! Invariants: every byte is looked at a fixed number of times, however small the chunks; no more than one
//! unfinished frame is kept, and its room is given back; nothing of a frame is believed before its checksum.
//!
//! Format: <https://docs.aws.amazon.com/transcribe/latest/dg/event-stream.html>.

use crate::answer::{self, Answer, Child, Kind};
use crate::error::BodyFault;
use crate::records::Records;
use crate::scan::{self, byte};

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

impl From<Answer> for ShardEvent {
    fn from(answer: Answer) -> Self {
        Self {
            records: answer.records,
            continuation_sequence_number: answer.next,
            millis_behind_latest: answer.millis_behind_latest.unwrap_or(0),
            child_shards: answer.child_shards,
            exception: None,
        }
    }
}

/// Takes a body apart.
#[derive(Debug)]
pub struct EventStream {
    frame_bytes_max: u64,
    buffer: Vec<u8>,
    broken: Option<BodyFault>,
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
    pub fn feed(&mut self, chunk: &[u8]) -> Result<Vec<ShardEvent>, BodyFault> {
        let mut events = Vec::new();
        if self.broken.is_none() {
            self.broken = self.take(chunk, &mut events).err();
        }
        match &self.broken {
            Some(fault) if events.is_empty() => Err(fault.clone()),
            _ => Ok(events),
        }
    }

    fn take(&mut self, mut chunk: &[u8], events: &mut Vec<ShardEvent>) -> Result<(), BodyFault> {
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
    fn frame_length(&self, bytes: &[u8]) -> Result<Option<usize>, BodyFault> {
        let Some(prelude) = bytes.first_chunk::<PRELUDE>() else { return Ok(None) };
        let (length, headers, checksum) = (u32_at(prelude, 0), u32_at(prelude, 4), u32_at(prelude, 8));
        if crc32fast::hash(&prelude[..8]) != checksum {
            return Err(BodyFault::PreludeChecksum);
        }
        let least = (PRELUDE + CHECKSUM) as u64 + u64::from(headers);
        if u64::from(length) < least || u64::from(length) > self.frame_bytes_max {
            return Err(BodyFault::Length { length, headers, max: self.frame_bytes_max });
        }
        Ok(Some(length as usize))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk::<4>).map_or(0, |chunk| u32::from_be_bytes(*chunk))
}

/// Reads a whole frame whose prelude was checked.
fn read_frame(frame: &[u8], events: &mut Vec<ShardEvent>) -> Result<(), BodyFault> {
    let body = frame.len() - CHECKSUM;
    if crc32fast::hash(&frame[..body]) != u32_at(frame, body) {
        return Err(BodyFault::MessageChecksum);
    }
    let payload = PRELUDE + u32_at(frame, 4) as usize;
    let headers = Headers::read(&frame[PRELUDE..payload]).ok_or(BodyFault::Headers)?;
    let payload = &frame[payload..body];
    match headers.message_type.ok_or(BodyFault::MissingHeader(":message-type"))? {
        b"event" => {
            let kind = headers.event_type.ok_or(BodyFault::MissingHeader(":event-type"))?;
            // `initial-response`, and whatever the service may add, tells us nothing.
            if kind == b"SubscribeToShardEvent" {
                let answer = answer::read(payload, Kind::Event).map_err(|fault| BodyFault::Envelope(fault.at))?;
                events.push(answer.into());
            }
        }
        b"exception" => {
            let kind = headers.exception_type.ok_or(BodyFault::MissingHeader(":exception-type"))?;
            events.push(exception(kind, message(payload)));
        }
        b"error" => {
            let kind = headers.error_code.ok_or(BodyFault::MissingHeader(":error-code"))?;
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
