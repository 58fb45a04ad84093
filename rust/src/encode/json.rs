//! Changes as JSON: the values that lines and Kafka records hold.
//!
//! In: a batch. Out: one object a change, in one of four forms. Invariants: a value holds no line break, however
//! the wire was formatted; equal keys are equal bytes, however they were spelled; what `change` writes decodes to
//! the change it came from.

use crate::change::{ChangeBatch, View};
use crate::compact;
use crate::key::{self, KeyType};
use crate::number::Number;
use crate::record::{self, Event, Precision};
use crate::value::{self, Notes};

/// What one change looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `table`, `event`, `key`, `version`, `item`, `old` (and `late` where it is) in JSON's own types: sets as sorted arrays, binary as base64.
    Plain,
    /// The same members, attribute values typed as the wire carried them.
    Dynamodb,
    /// Debezium's envelope, its images plain:
    /// <https://debezium.io/documentation/reference/stable/connectors/postgresql.html#postgresql-change-events-value>.
    Debezium,
    /// The whole change in the shape of a Kinesis payload, which `record` reads again.
    Change,
}

impl Form {
    /// The form of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "plain" => Self::Plain,
            "dynamodb" => Self::Dynamodb,
            "debezium" => Self::Debezium,
            "change" => Self::Change,
            _ => return None,
        })
    }

    const fn is_typed(self) -> bool {
        matches!(self, Self::Dynamodb | Self::Change)
    }

    /// One change's value, appended; `notes` is room for sorting its sets.
    pub fn write(self, out: &mut Vec<u8>, notes: &mut Notes, batch: &ChangeBatch, view: View<'_>) {
        match self {
            Self::Plain | Self::Dynamodb => write_images(out, notes, batch, view, self),
            Self::Debezium => write_debezium(out, notes, batch, view),
            Self::Change => write_change(out, batch, view),
        }
    }

    /// The key's attributes as one object, sorted by name, numbers in one spelling; appended.
    pub fn write_key(self, out: &mut Vec<u8>, view: View<'_>) {
        let mut open = b'{';
        for attribute in key::attributes(view.key()) {
            out.push(open);
            open = b',';
            write_string(out, attribute.name);
            out.push(b':');
            if self.is_typed() {
                out.extend_from_slice(&[b'{', b'"', attribute.kind.letter(), b'"', b':']);
            }
            match attribute.kind {
                KeyType::S => write_string(out, attribute.value),
                KeyType::N if self.is_typed() => quoted(out, |out| Number::read(attribute.value).write_decimal(out)),
                KeyType::N => Number::read(attribute.value).write_decimal(out),
                KeyType::B => quoted(out, |out| base64_simd::STANDARD.encode_append(attribute.value, out)),
            }
            if self.is_typed() {
                out.push(b'}');
            }
        }
        out.push(b'}');
    }
}

/// Room for what is around a value's images; more is only slower.
const AROUND: usize = 160;

/// All changes of a batch, in its order, each on a line.
pub fn lines(batch: &ChangeBatch, form: Form) -> Vec<u8> {
    // Images as raw text, an upper bound but for names that need escapes: grown, the output would be held twice.
    let room = |view: View<'_>| {
        let change = view.change;
        let item = if form.is_typed() || change.plain.is_empty() { change.new } else { change.plain };
        (change.keys.len + item.len + change.old.len) as usize + AROUND
    };
    let mut out = Vec::with_capacity(batch.views().map(room).sum());
    let mut notes = Notes::default();
    for view in batch.views() {
        form.write(&mut out, &mut notes, batch, view);
        out.push(b'\n');
    }
    out
}

fn write_images(out: &mut Vec<u8>, notes: &mut Notes, batch: &ChangeBatch, view: View<'_>, form: Form) {
    let mut image = |out: &mut Vec<u8>, raw: &[u8]| {
        if form.is_typed() { write_typed(out, raw) } else { write_plain(out, notes, raw) }
    };
    let change = view.change;
    out.extend_from_slice(b"{\"table\":");
    write_table(out, batch, view);
    out.extend_from_slice(b",\"event\":\"");
    out.extend_from_slice(change.event.name().as_bytes());
    out.extend_from_slice(b"\",\"key\":");
    image(out, view.raw(change.keys));
    out.extend_from_slice(b",\"version\":\"");
    change.version.write(out);
    out.extend_from_slice(b"\",\"item\":");
    if form.is_typed() || view.plain().is_empty() {
        image(out, view.raw(change.new));
    } else {
        out.extend_from_slice(view.plain());
    }
    out.extend_from_slice(b",\"old\":");
    image(out, view.raw(change.old));
    write_late(out, view);
    out.push(b'}');
}

/// `ts_ms` and its finer sisters are the creation time, of the envelope too: the core has no clock of its own.
fn write_debezium(out: &mut Vec<u8>, notes: &mut Notes, batch: &ChangeBatch, view: View<'_>) {
    let change = view.change;
    out.extend_from_slice(b"{\"before\":");
    write_plain(out, notes, view.raw(change.old));
    out.extend_from_slice(b",\"after\":");
    if view.plain().is_empty() {
        write_plain(out, notes, view.raw(change.new));
    } else {
        out.extend_from_slice(view.plain());
    }
    out.extend_from_slice(
        concat!(
            ",\"source\":{\"version\":\"",
            env!("CARGO_PKG_VERSION"),
            "\",\"connector\":\"dynamodb\",\"name\":\"replicator\",",
        )
        .as_bytes(),
    );
    write_instants(out, change.event_us);
    out.extend_from_slice(b",\"snapshot\":\"false\",\"db\":\"\",\"sequence\":");
    match view.sequence_number() {
        "" => out.extend_from_slice(b"null"),
        number => write_string(out, number.as_bytes()),
    }
    out.extend_from_slice(b",\"table\":");
    write_table(out, batch, view);
    out.extend_from_slice(b",\"event_id\":");
    write_id(out, view);
    out.extend_from_slice(b"},\"transaction\":null,\"op\":\"");
    out.push(match change.event {
        Event::Insert => b'c',
        Event::Modify => b'u',
        Event::Remove => b'd',
    });
    out.extend_from_slice(b"\",");
    write_instants(out, change.event_us);
    out.push(b'}');
}

fn write_instants(out: &mut Vec<u8>, event_us: i64) {
    let mut integer = itoa::Buffer::new();
    out.extend_from_slice(b"\"ts_ms\":");
    out.extend_from_slice(integer.format(event_us.div_euclid(1000)).as_bytes());
    out.extend_from_slice(b",\"ts_us\":");
    out.extend_from_slice(integer.format(event_us).as_bytes());
    out.extend_from_slice(b",\"ts_ns\":");
    out.extend_from_slice(integer.format(i128::from(event_us) * 1000).as_bytes());
}

/// Who did it, with the names that a Kinesis record has; the API of DynamoDB Streams writes them with capitals:
/// <https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_Identity.html>.
fn write_identity(out: &mut Vec<u8>, identity: &[u8]) {
    let start = out.len();
    compact::compact(identity, out);
    for name in [&b"\"PrincipalId\":"[..], b"\"Type\":"] {
        if let Some(at) = memchr::memmem::find(&out[start..], name) {
            out[start + at + 1].make_ascii_lowercase();
        }
    }
}

fn write_change(out: &mut Vec<u8>, batch: &ChangeBatch, view: View<'_>) {
    let change = view.change;
    out.extend_from_slice(b"{\"eventID\":");
    write_id(out, view);
    out.extend_from_slice(b",\"eventName\":\"");
    out.extend_from_slice(change.event.name().as_bytes());
    out.extend_from_slice(b"\",\"tableName\":");
    write_table(out, batch, view);
    if let Some(identity) = record::user_identity(view.payload()) {
        out.extend_from_slice(b",\"userIdentity\":");
        write_identity(out, identity);
    }
    out.extend_from_slice(b",\"version\":\"");
    change.version.write(out);
    out.push(b'"');
    if !view.sequence_number().is_empty() {
        out.extend_from_slice(b",\"position\":");
        write_string(out, view.sequence_number().as_bytes());
    }
    out.extend_from_slice(b",\"dynamodb\":{");
    write_creation(out, view);
    for (name, image) in
        [("Keys", change.keys), ("NewImage", change.new), ("OldImage", change.old)].map(|(n, span)| (n, view.raw(span)))
    {
        if !image.is_empty() {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            compact::compact(image, out);
        }
    }
    out.push(b'}');
    write_late(out, view);
    out.push(b'}');
}

/// The creation time in the unit that keeps the version's meaning.
fn write_creation(out: &mut Vec<u8>, view: View<'_>) {
    let us = view.change.event_us;
    let mut integer = itoa::Buffer::new();
    out.extend_from_slice(b"\"ApproximateCreationDateTime\":");
    if view.change.precision == Precision::Millisecond {
        out.extend_from_slice(integer.format(us.div_euclid(1000)).as_bytes());
        let rest = us.rem_euclid(1000);
        if rest != 0 {
            out.push(b'.');
            out.extend_from_slice(&integer.format(rest + 1000).as_bytes()[1..]);
        }
        out.extend_from_slice(b",\"ApproximateCreationDateTimePrecision\":\"MILLISECOND\"");
        return;
    }
    out.extend_from_slice(integer.format(us).as_bytes());
    out.extend_from_slice(b",\"ApproximateCreationDateTimePrecision\":\"MICROSECOND\"");
    if view.change.precision == Precision::Sequence {
        out.extend_from_slice(b",\"SequenceNumber\":\"");
        view.change.version.write(out);
        out.push(b'"');
    }
}

fn write_table(out: &mut Vec<u8>, batch: &ChangeBatch, view: View<'_>) {
    match batch.tables.get(view.table as usize) {
        Some(name) => write_string(out, name.as_bytes()),
        None => out.extend_from_slice(b"null"),
    }
}

/// `eventID` as the wire spelled it, escapes included.
fn write_id(out: &mut Vec<u8>, view: View<'_>) {
    if view.id().is_empty() {
        return out.extend_from_slice(b"null");
    }
    quoted(out, |out| out.extend_from_slice(view.id()));
}

/// What came after a newer change of its key.
fn write_late(out: &mut Vec<u8>, view: View<'_>) {
    if view.late {
        out.extend_from_slice(b",\"late\":true");
    }
}

fn write_plain(out: &mut Vec<u8>, notes: &mut Notes, image: &[u8]) {
    if image.is_empty() { out.extend_from_slice(b"null") } else { value::write_plain_with(image, notes, out) }
}

fn write_typed(out: &mut Vec<u8>, image: &[u8]) {
    if image.is_empty() { out.extend_from_slice(b"null") } else { compact::compact(image, out) }
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    write(out);
    out.push(b'"');
}

/// A JSON string of UTF-8 text.
pub fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    let is_special = |c: &u8| *c < 0x20 || matches!(c, b'"' | b'\\');
    let mut rest = text;
    out.push(b'"');
    // Names and numbers, nearly always: all of it is looked at at once.
    if !text.iter().fold(false, |found, c| found | is_special(c)) {
        out.extend_from_slice(text);
        return out.push(b'"');
    }
    while let Some(place) = rest.iter().position(is_special) {
        out.extend_from_slice(&rest[..place]);
        match rest[place] {
            c @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', c]),
            c => out.extend_from_slice(format!("\\u{c:04x}").as_bytes()),
        }
        rest = &rest[place + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}
