//! What must hold for any bytes: one function a fuzz target, which ordinary tests run over the kept findings too.
//!
//! In: bytes. Out: nothing, or a panic that names the law. Invariant: the core is compared with a second, slow
//! reading of the same bytes (`oracle`) that shares no code with it.

mod json;
mod oracle;

use std::sync::Arc;

use _core::aggregate as aggregates;
use _core::answer::{self as answers, Kind};
use _core::change::{ChangeBatch, decode};
use _core::compact;
use _core::dedupe::Rows;
use _core::document as documents;
use _core::encode::json::{Form, lines};
use _core::encode::{copy, crate_rows};
use _core::filter::{self, Pattern};
use _core::frame::{EventStream, ShardEvent};
use _core::key::KeyType;
use _core::record::Precision;
use _core::records::Records;
use md5::{Digest, Md5};

use self::json::{NUMBER, Node, parse};
use self::oracle::Change;

/// A check of one target.
pub type Check = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Check); 7] = [
    ("answer", answer),
    ("document", document),
    ("frames", frames),
    ("kinesis_record", kinesis_record),
    ("order", order),
    ("pattern", pattern),
    ("streams_record", streams_record),
];

fn packed<'a>(payloads: impl IntoIterator<Item = &'a [u8]>) -> Arc<Records> {
    let mut records = Records::default();
    for payload in payloads {
        records.push(payload, b"1", Some(1), 0).expect("small");
    }
    Arc::new(records)
}

/// A payload of Kinesis Data Streams for DynamoDB.
pub fn kinesis_record(data: &[u8]) {
    record(data, None);
}

/// A record of DynamoDB Streams, whose table the caller names.
pub fn streams_record(data: &[u8]) {
    record(data, Some("given"));
}

fn record(data: &[u8], table: Option<&str>) {
    if has_number_text(data) {
        // The second reading can't tell it from a number.
        return;
    }
    let batch = Arc::new(decode(packed([data]), table, false));
    assert_eq!(batch.records(), 1);
    let usual = USUAL.as_bytes();
    for neighbours in [[usual, data, usual, data], [data, data, usual, data]] {
        alone_as_together(&neighbours, table);
    }
    assert_eq!(batch.order.len() + batch.rejections.len(), 1);
    let tree = parse(data);
    let wanted = tree.as_ref().and_then(|tree| oracle::read(tree, table));
    match (batch.rejections.first(), &wanted) {
        (Some(rejection), Some(_)) => {
            // Some fields are compared as they stand on the wire, and DynamoDB writes none of them with escapes.
            let raw = ["unknown_event_name", "unknown_precision", "invalid_sequence_number", "invalid_number"];
            let escaped = data.contains(&b'\\') && raw.contains(&&*rejection.code);
            assert!(escaped || &*rejection.code == "too_deep", "refused, though good: {}", rejection.message);
        }
        (None, None) => {
            // serde_json gives up at a depth of 128.
            assert!(tree.is_none() && depth(data) >= 127, "accepted, though bad: {}", data.escape_ascii());
        }
        (None, Some(wanted)) => accepted(&batch, wanted, tree.as_ref().expect("wanted")),
        (Some(_), None) => {}
    }
}

/// What most records of a table look like.
const USUAL: &str = r#"{"awsRegion":"eu-north-1","eventID":"5938778f-5dd2-4be0-9693-5c190fec8917","eventName":"MODIFY","userIdentity":null,"recordFormat":"application/json","tableName":"products","dynamodb":{"ApproximateCreationDateTime":1706542773915835,"Keys":{"id":{"S":"6d3296ab-3baf-422c-83bf-94d94c2e8894"}},"NewImage":{"Stock":{"N":"120"},"id":{"S":"6d3296ab-3baf-422c-83bf-94d94c2e8894"}},"OldImage":{"Stock":{"N":"100"},"id":{"S":"6d3296ab-3baf-422c-83bf-94d94c2e8894"}},"SizeBytes":223,"ApproximateCreationDateTimePrecision":"MICROSECOND"},"eventSource":"aws:dynamodb"}"#;

/// A record is read as the same change, or refused for the same reason, whatever its neighbours are.
pub fn alone_as_together(payloads: &[&[u8]], table: Option<&str>) {
    let read = |payloads: &[&[u8]]| {
        let batch = decode(packed(payloads.iter().copied()), table, true);
        let refused: Vec<_> = batch.rejections.iter().map(|r| (r.message.clone(), r.table.clone())).collect();
        (lines(&batch, Form::Plain), lines(&batch, Form::Change), refused)
    };
    let (mut plain, mut change, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for payload in payloads {
        let alone = read(&[payload]);
        plain.extend(alone.0);
        change.extend(alone.1);
        refused.extend(alone.2);
    }
    assert!(read(payloads) == (plain, change, refused), "neighbours change what a record is");
}

/// No less deep than the text is nested.
fn depth(data: &[u8]) -> usize {
    let (mut now, mut most) = (0_usize, 0);
    for c in data {
        match c {
            b'{' | b'[' => now += 1,
            b'}' | b']' => now = now.saturating_sub(1),
            _ => {}
        }
        most = most.max(now);
    }
    most
}

fn member<'a>(node: &'a Node, name: &str) -> &'a Node {
    let Node::Object(members) = node else { panic!("no object: {node:?}") };
    members.iter().rev().find(|(n, v)| n == name && *v != Node::Null).map_or(&Node::Null, |(_, value)| value)
}

fn accepted(batch: &Arc<ChangeBatch>, wanted: &Change, tree: &Node) {
    let view = batch.views().next().expect("one");
    assert_eq!(view.change.event.name(), wanted.event);
    assert_eq!(view.change.event_us, wanted.event_us);
    assert!(view.plain().is_empty() || parse(view.plain()).as_ref() == Some(&wanted.new));

    let line = one_line(&lines(batch, Form::Plain));
    for (name, image) in [("key", &wanted.keys), ("item", &wanted.new), ("old", &wanted.old)] {
        assert_eq!(member(&line, name), image, "{name}");
    }
    assert_eq!(member(&line, "version"), &Node::Text(wanted.version.clone()));
    assert_eq!(member(&line, "table"), &wanted.table.clone().map_or(Node::Null, Node::Text));

    // The typed form is the wire's own.
    let typed = one_line(&lines(batch, Form::Dynamodb));
    let Node::Object(members) = tree else { panic!("no object") };
    let mut inner = Vec::new();
    for (name, value) in members {
        if let (true, Node::Object(found)) = (name == "dynamodb", value) {
            inner.extend(found.iter().cloned());
        }
    }
    let inner = Node::Object(inner);
    for (ours, theirs) in [("key", "Keys"), ("item", "NewImage"), ("old", "OldImage")] {
        assert_eq!(member(&typed, ours), member(&inner, theirs), "{ours}");
    }
    rows(batch, wanted);
}

fn one_line(text: &[u8]) -> Node {
    let line = text.strip_suffix(b"\n").expect("a line ends");
    assert!(!line.contains(&b'\n'), "a line holds no line break");
    parse(line).expect("a line is JSON")
}

/// The row of a table that has the record's own key attributes, field by field.
fn rows(batch: &Arc<ChangeBatch>, wanted: &Change) {
    let Some(table) = &wanted.table else { return };
    let columns = wanted
        .key_types
        .iter()
        .map(|(name, kind)| (name.as_bytes().into(), KeyType::from_letter(*kind as u8).expect("a key type")))
        .collect();
    let rows = Rows::newest(Arc::clone(batch), table, columns);
    let writes = wanted.event != "REMOVE";
    let refused = writes && wanted.new == Node::Null;
    assert_eq!((rows.rows.len(), rows.rejections.len()), (usize::from(!refused), usize::from(refused)));
    let stream = copy::stream(&rows, 0, usize::MAX);
    let fields = tuples(&stream);
    assert_eq!(fields.len(), rows.rows.len());
    let Some(fields) = fields.first() else { return };
    assert_eq!(fields.len(), wanted.key_types.len() + 5);
    for ((name, kind), field) in wanted.key_types.iter().zip(fields) {
        let Node::Text(text) = member(&wanted.keys, name) else { continue };
        match kind {
            'S' => assert_eq!(*field, Some(text.as_bytes())),
            'B' => assert_eq!(field.map(<[u8]>::to_vec), oracle::base64(text)),
            _ => {}
        }
    }
    let item = fields[wanted.key_types.len()];
    assert_eq!(item.is_some(), writes);
    if let Some(item) = item {
        assert_eq!(item[0], 1, "jsonb's version");
        let item = parse(&item[1..]).expect("an item is JSON");
        // `\u0000`, which jsonb refuses, may be written in another form.
        assert!(item == wanted.new || memchr_nul(&wanted.new));
    }
    assert_eq!(fields[wanted.key_types.len() + 2], Some(&[u8::from(!writes)][..]));
    bulk_args(&rows, wanted);
}

/// The same row as CrateDB's arguments.
fn bulk_args(rows: &Rows, wanted: &Change) {
    let writes = wanted.event != "REMOVE";
    for dynamic in [true, false] {
        let args = crate_rows::bulk_args(rows, 0, usize::MAX, crate_rows::Form { dynamic, generation: 0 });
        let Node::List(rows) = parse(&args).expect("arguments are JSON") else { panic!("a list") };
        let [Node::List(row)] = &rows[..] else { panic!("a row") };
        let [_, _, exact, version, deleted, _] = &row[wanted.key_types.len() - 1..] else { panic!("its fields") };
        assert_eq!(*deleted, Node::Bool(!writes));
        assert!(matches!(version, Node::Text(text) if text.len() == 55));
        match exact {
            Node::Text(exact) => assert!(parse(exact.as_bytes()).expect("an item is JSON") == wanted.new),
            _ => assert!(!writes),
        }
    }
}

fn memchr_nul(node: &Node) -> bool {
    match node {
        Node::Text(text) => text.contains('\0'),
        Node::List(list) => list.iter().any(memchr_nul),
        Node::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || memchr_nul(value)),
        _ => false,
    }
}

/// The tuples of a binary COPY stream; every length is checked.
fn tuples(stream: &[u8]) -> Vec<Vec<Option<&[u8]>>> {
    let mut rest = stream.strip_prefix(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0").expect("a header");
    let mut found = Vec::new();
    loop {
        let (count, after) = rest.split_first_chunk::<2>().expect("a tuple or the trailer");
        rest = after;
        let count = i16::from_be_bytes(*count);
        if count == -1 {
            assert!(rest.is_empty(), "nothing follows the trailer");
            return found;
        }
        let mut fields = Vec::new();
        for _ in 0..count {
            let (len, after) = rest.split_first_chunk::<4>().expect("a length");
            rest = after;
            let len = i32::from_be_bytes(*len);
            fields.push(usize::try_from(len).ok().map(|len| {
                let (field, after) = rest.split_at(len);
                rest = after;
                field
            }));
        }
        found.push(fields);
    }
}

/// A whole file.
pub fn document(data: &[u8]) {
    let records = documents::read(data).expect("small");
    let body = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let lines = body.split(|&c| c == b'\n').count();
    let first = body.iter().position(|c| !matches!(c, b' ' | b'\n' | b'\r' | b'\t'));
    if first.is_none_or(|first| body[first] != b'{') {
        let wanted: Vec<&[u8]> =
            body.split(|&c| c == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()).collect();
        // A line of several objects gives several records: together they are the line.
        let black = |bytes: &[u8]| bytes.iter().copied().filter(|c| !c.is_ascii_whitespace()).collect::<Vec<_>>();
        let found: Vec<_> = records
            .entries()
            .chunk_by(|a, b| a.line == b.line)
            .scan(0, |at, of_line| {
                let from = *at;
                *at += of_line.len();
                Some((from..*at).flat_map(|i| black(records.payload(i))).collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(found, wanted.into_iter().map(black).collect::<Vec<_>>());
    }
    alone_as_together(&(0..records.len()).map(|i| records.payload(i)).collect::<Vec<_>>(), None);
    let mut before = 0;
    for (index, entry) in records.entries().iter().enumerate() {
        assert!(entry.line as usize <= lines && entry.line >= before.max(1), "lines rise");
        before = entry.line;
        record(records.payload(index), None);
    }
    if let Some(tree) = parse(body)
        && let Node::Object(members) = &tree
        && !has_number_text(data)
    {
        let lists: Vec<_> = members.iter().filter(|(name, _)| name == "Records").map(|(_, value)| value).collect();
        match lists[..] {
            [Node::List(list)] if list.is_empty() => assert!(records.is_empty()),
            // The base64 of an aggregate's magic: such an element may be several records, or stay one.
            [Node::List(list)] if memchr::memmem::find(data, b"84mawg").is_some() || data.contains(&b'\\') => {
                assert!(records.len() >= list.len(), "every element is a record, if not more");
            }
            [Node::List(list)] => assert_eq!(records.len(), list.len(), "every element is a record"),
            [] => assert_eq!(records.len(), 1, "no byte is lost"),
            _ => assert!(lists.len() > 1 || records.len() == 1, "what can't be told apart is one record"),
        }
    }
}

/// A body of SubscribeToShard: its first byte says how it is cut, and whether its checksums are set right first
/// (no fuzzer finds them by itself).
pub fn frames(data: &[u8]) {
    let Some((&how, body)) = data.split_first() else { return };
    let body = if how & 0x80 == 0 { repaired(body) } else { body.to_vec() };
    let size = usize::from(how & 0x7f) + 1;
    let whole = fed(&body, body.len().max(1));
    let cut = fed(&body, size);
    assert_eq!(format!("{:?}", (&whole.0, &whole.1)), format!("{:?}", (&cut.0, &cut.1)));
    if size > 1 && body.len() < 4096 {
        assert_eq!(format!("{:?}", (&whole.0, &whole.1)), format!("{:?}", fed(&body, 1)));
    }
    let mut events = whole.0.iter().filter(|event| event.exception.is_none());
    for payload in payloads(&body) {
        let Some(tree) = parse(payload) else { continue };
        let has_text = has_number_text(payload);
        let Some(event) = events.next() else { return };
        if !has_text {
            compare(event, &tree);
        }
    }
}

fn fed(body: &[u8], size: usize) -> (Vec<ShardEvent>, Option<String>) {
    let mut stream = EventStream::new(1 << 16);
    let (mut events, mut fault) = (Vec::new(), None);
    for chunk in body.chunks(size).chain([&b""[..]]) {
        match stream.feed(chunk) {
            Ok(more) => {
                assert!(fault.is_none(), "a broken body stays broken");
                events.extend(more);
            }
            Err(error) => fault = Some(error.to_string()),
        }
        assert!(stream.room_bytes() <= body.len() + (1 << 20));
    }
    (events, fault)
}

/// The body with every checksum set right, as far as its lengths allow.
fn repaired(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    let mut at = 0;
    while let Some(prelude) = body.get(at..at + 12) {
        let length = u32::from_be_bytes([prelude[0], prelude[1], prelude[2], prelude[3]]) as usize;
        let checksum = crc32fast::hash(&prelude[..8]).to_be_bytes();
        body[at + 8..at + 12].copy_from_slice(&checksum);
        if length < 16 || at + length > body.len() {
            break;
        }
        let checksum = crc32fast::hash(&body[at..at + length - 4]).to_be_bytes();
        body[at + length - 4..at + length].copy_from_slice(&checksum);
        at += length;
    }
    body
}

/// The payloads of the events in a body whose frames are whole, up to the first that is not.
fn payloads(mut body: &[u8]) -> Vec<&[u8]> {
    let number = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let mut found = Vec::new();
    while body.len() >= 16 {
        let (length, headers) = (number(body), number(&body[4..]));
        if length > body.len() || length < headers.saturating_add(16) {
            break;
        }
        let event = b"\x0b:event-type\x07\x00\x15SubscribeToShardEvent";
        let kind = b"\x0d:message-type\x07\x00\x05event";
        let bytes = &body[12..12 + headers];
        // Only headers that are written the usual way are looked at here.
        if bytes.len() == event.len() + kind.len()
            && (bytes == [&event[..], kind].concat() || bytes == [&kind[..], event].concat())
        {
            found.push(&body[12 + headers..length - 4]);
        } else {
            break;
        }
        body = &body[length..];
    }
    found
}

fn compare(event: &ShardEvent, tree: &Node) {
    let Node::Object(members) = tree else { panic!("an event is an object") };
    let records: Vec<&Node> = members
        .iter()
        .filter(|(name, _)| name == "Records")
        .flat_map(|(_, list)| if let Node::List(list) = list { &list[..] } else { &[] })
        .collect();
    assert_eq!(event.records.len(), records.len());
    for (index, record) in records.into_iter().enumerate() {
        let data = member_text(record, "Data");
        let payload = oracle::base64(&data).unwrap_or_else(|| data.into_bytes());
        assert_eq!(event.records.payload(index), payload, "{index}");
        assert_eq!(event.records.sequence_number(index), member_text(record, "SequenceNumber"));
    }
}

/// A body of GetRecords, its first byte says whose; or an aggregate, whose frame is put around it first.
pub fn answer(data: &[u8]) {
    let Some((&how, body)) = data.split_first() else { return };
    let kind = match how % 3 {
        0 => Kind::Kinesis,
        1 => Kind::Streams,
        _ => return aggregate(body),
    };
    let (Ok(found), false) = (answers::read(body, kind), has_number_text(body)) else { return };
    let Some(Node::Object(members)) = parse(body) else {
        // A record that is no JSON costs no other: decoding refuses it.
        let count = found.records.len();
        assert_eq!(decode(Arc::new(found.records), Some("t"), true).records(), count);
        return;
    };
    let last = |name: &str| members.iter().rev().find(|(n, v)| n == name && *v != Node::Null).map(|(_, value)| value);
    let records = match last("Records") {
        Some(Node::List(records)) => &records[..],
        None => &[],
        Some(_) => panic!("no list was read as one"),
    };
    match last("NextShardIterator") {
        Some(Node::Text(next)) => assert_eq!(found.next.as_ref(), Some(next).filter(|next| !next.is_empty())),
        other => assert!(found.next.is_none() && other.is_none()),
    }
    let mut at = 0;
    for record in records {
        let payload = found.records.payload(at);
        if kind == Kind::Streams {
            assert_eq!(parse(payload).as_ref(), Some(record), "a record's own bytes");
        } else {
            let data = member_text(record, "Data");
            let bytes = oracle::base64(&data).unwrap_or_else(|| data.into_bytes());
            if found.records.entries()[at].sub_sequence_number == 0 && bytes.starts_with(&MAGIC) && payload != bytes {
                // An aggregate: its pieces are looked at below.
                return;
            }
            assert_eq!(payload, bytes);
            assert_eq!(found.records.sequence_number(at), member_text(record, "SequenceNumber"));
        }
        at += 1;
    }
    assert_eq!(found.records.len(), at);
    drop(decode(Arc::new(found.records), Some("t"), true));
}

const MAGIC: [u8; 4] = [0xf3, 0x89, 0x9a, 0xc2];

/// An aggregate is its pieces, in their order, or stays one record with all its bytes.
fn aggregate(message: &[u8]) {
    let whole = [&MAGIC[..], message, &Md5::digest(message)].concat();
    let mut records = Records::default();
    records.push(b"before", b"1", Some(1), 0).expect("small");
    records.push(&whole, b"2", Some(2), 0).expect("small");
    aggregates::take_apart(&mut records);
    assert_eq!((records.payload(0), records.sequence_number(0)), (&b"before"[..], "1"));
    if records.len() == 2 && records.payload(1) == whole {
        return;
    }
    let mut rest = message;
    for index in 1..records.len() {
        let piece = records.payload(index);
        let entry = &records.entries()[index];
        assert_eq!((records.sequence_number(index), entry.sub_sequence_number), ("2", index as u32 - 1));
        let at = memchr::memmem::find(rest, piece).expect("pieces lie in the message, one after the other");
        rest = &rest[at + piece.len()..];
    }
}

fn has_number_text(text: &[u8]) -> bool {
    text.windows(NUMBER.len()).any(|window| window == NUMBER.as_bytes())
}

/// The last text of this name; empty when there is none.
fn member_text(node: &Node, wanted: &str) -> String {
    let Node::Object(members) = node else { panic!("a record is an object") };
    let mut texts = members.iter().filter(|(name, _)| name == wanted).filter_map(|(_, value)| match value {
        Node::Text(text) => Some(text.clone()),
        _ => None,
    });
    texts.next_back().unwrap_or_default()
}

/// A pattern, a NUL, and a record that it may match.
pub fn pattern(data: &[u8]) {
    let Some(at) = data.iter().position(|&c| c == 0) else { return };
    let (Ok(text), record) = (std::str::from_utf8(&data[..at]), &data[at + 1..]) else { return };
    let Ok(one) = Pattern::compile(&[text]) else { return };
    assert!(serde_json::from_str::<serde_json::Value>(text).is_ok(), "a pattern is JSON");
    let batch = decode(packed([record]), Some("t"), true);
    let matches = |pattern: &Pattern, batch: &ChangeBatch| {
        let mut matcher = pattern.matcher();
        batch.views().map(|view| matcher.matches(view)).collect::<Vec<_>>()
    };
    let found = matches(&one, &batch);
    // Asked twice, and beside others that it says nothing of, it answers the same.
    assert_eq!(Pattern::compile(&[text, text]).map(|both| matches(&both, &batch)), Ok(found.clone()));
    let mut less_blank = Vec::new();
    if !found.is_empty() {
        compact::compact(record, &mut less_blank);
        assert_eq!(matches(&one, &decode(packed([&less_blank[..]]), Some("t"), true)), found, "blanks say nothing");
    }
    let twice = decode(packed([record, USUAL.as_bytes(), record]), Some("t"), true);
    let answers = matches(&one, &twice);
    if let [alone] = found[..] {
        assert_eq!((answers[0], answers[2]), (alone, alone), "neighbours say nothing");
    }
    let less = filter::leave_out(&twice, &one);
    assert_eq!(less.order.len(), answers.iter().filter(|matches| **matches).count());
    assert_eq!(less.order.len() + less.hidden.len(), twice.order.len());
}

/// A small history, three bytes a change; whatever its order of arrival and its cuts, where nothing is ambiguous
/// the changes of a key come out in one order.
pub fn order(data: &[u8]) {
    let payloads: Vec<Vec<u8>> = data.chunks_exact(3).take(5).map(history_change).collect();
    if payloads.len() < 2 {
        return;
    }
    let batch_of = |some: &[Vec<u8>]| Arc::new(decode(packed(some.iter().map(Vec::as_slice)), Some("t"), false));
    let first = batch_of(&payloads);
    assert!(first.rejections.is_empty());
    // What two precisions share may be settled by arrival.
    let exact = first.views().filter(|view| view.change.precision == Precision::Microsecond).count();
    let is_mixed = exact != 0 && exact != first.order.len();
    let wanted = of_keys(&first);
    let mut turned = payloads.clone();
    for turn in 0..payloads.len() {
        turned.rotate_left(1);
        if turn % 2 == 1 {
            turned.swap(0, 1);
        }
        let other = batch_of(&turned);
        if !is_mixed {
            assert_eq!(other.ambiguous == 0, first.ambiguous == 0, "it doesn't hang on the arrival");
            assert!(first.ambiguous != 0 || of_keys(&other) == wanted);
        }
        for cut in 1..turned.len() {
            let parts = [batch_of(&turned[..cut]), batch_of(&turned[cut..])];
            let joined = ChangeBatch::concat(&parts);
            assert_eq!(of_keys(&joined), of_keys(&other), "cut at {cut}");
            assert_eq!((joined.duplicates, joined.ambiguous), (other.duplicates, other.ambiguous));
        }
    }
    let rows = Rows::newest(Arc::clone(&first), "t", vec![((*b"id").into(), KeyType::S)]);
    assert_eq!(rows.rows.len() + rows.folded, first.order.len());
}

/// The lines of each key, in order.
fn of_keys(batch: &ChangeBatch) -> [Vec<Vec<u8>>; 2] {
    let mut keys = [Vec::new(), Vec::new()];
    for line in lines(batch, Form::Plain).split(|&c| c == b'\n').filter(|line| !line.is_empty()) {
        let second = line.windows(8).any(|window| window == br#""id":"b""#);
        keys[usize::from(second)].push(line.to_vec());
    }
    keys
}

fn history_change(bytes: &[u8]) -> Vec<u8> {
    let key = if bytes[0] & 1 == 0 { "a" } else { "b" };
    let exact = bytes[0] & 6 != 0;
    let us = 1_706_542_773_915_000 + u64::from(bytes[0] >> 3 & 3) * if bytes[0] & 32 == 0 { 1 } else { 1000 };
    let image = |state: u8| match state & 3 {
        0 => "null".to_owned(),
        n => format!(r#"{{"id":{{"S":"{key}"}},"n":{{"N":"{n}"}}}}"#),
    };
    let old = bytes[1] & 3;
    // What isn't there can't be deleted.
    let new = if old == 0 { (bytes[1] >> 2 & 3).max(1) } else { bytes[1] >> 2 & 3 };
    let event = match (old, new) {
        (0, _) => "INSERT",
        (_, 0) => "REMOVE",
        _ => "MODIFY",
    };
    // Equal ids have equal content; equal content may come under another id.
    format!(
        r#"{{"eventID":"{}-{}-{}","eventName":"{event}","tableName":"t","dynamodb":{{"ApproximateCreationDateTime":{},"ApproximateCreationDateTimePrecision":"{}","Keys":{{"id":{{"S":"{key}"}}}},"NewImage":{},"OldImage":{}}}}}"#,
        bytes[0],
        bytes[1] & 15,
        bytes[2] & 3,
        if exact { us } else { us / 1000 },
        if exact { "MICROSECOND" } else { "MILLISECOND" },
        image(new),
        image(old),
    )
    .into_bytes()
}
