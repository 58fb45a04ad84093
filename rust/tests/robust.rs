//! No input panics, none costs a neighbour, and what is accepted is JSON.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use _core::answer::{self, Kind};
use _core::change::{ChangeBatch, decode};
use _core::columns::{Column, Plan, Type};
use _core::dedupe::Rows;
use _core::document;
use _core::encode::dynamodb::{self, VersionAttribute};
use _core::encode::json::{Form, lines};
use _core::encode::registered::{Format, Schema, Values};
use _core::encode::{copy, copy_columns};
use _core::filter::{Pattern, leave_out};
use _core::frame::EventStream;
use _core::key::KeyType;
use _core::project::Projection;
use _core::records::Records;
use _core::split::{self, Split, Value};
use proptest::prelude::*;

/// The texts of all vectors, to mutate.
fn seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let mut seeds = Vec::new();
    for name in ["changes.json", "rejections.json", "documents.json"] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        let all: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        seeds.extend(all.iter().filter_map(|v| Some(v["payload"].as_str()?.as_bytes().to_vec())));
        seeds.extend(all.iter().filter_map(|v| Some(v["document"].as_str()?.as_bytes().to_vec())));
    }
    seeds
}

/// The texts of all patterns, good and bad.
fn patterns() -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/patterns.json");
    let all: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let good = all["patterns"].as_array().unwrap().iter().flat_map(|v| v["patterns"].as_array().unwrap());
    let bad = all["errors"].as_array().unwrap().iter().map(|v| v["pattern"].as_str().unwrap().to_owned());
    good.map(ToString::to_string).chain(bad).map(String::into_bytes).collect()
}

fn bodies() -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/frames.json");
    let all: Vec<serde_json::Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    all.iter().map(|v| base64_simd::STANDARD.decode_to_vec(v["body_base64"].as_str().unwrap()).unwrap()).collect()
}

/// Bodies of GetRecords: of both services, and what aggregates they hold.
fn answers() -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/answers.json");
    let all: Vec<serde_json::Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    all.iter().filter_map(|v| Some(v["body"].as_str()?.as_bytes().to_vec())).collect()
}

#[derive(Clone, Debug)]
enum Edit {
    Cut(prop::sample::Index),
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let piece = prop_oneof![
        any::<u8>().prop_map(|c| vec![c]),
        Just(b"{".to_vec()),
        Just(b"\"".to_vec()),
        Just(b"\\u".to_vec()),
        Just(b"\\ud83d".to_vec()),
        Just(b"{\"L\":[".to_vec()),
        Just(b"9".repeat(39)),
        Just(b"E-9".to_vec()),
        Just(b"\xe2\x82".to_vec()),
    ];
    let edit = prop_oneof![
        any::<prop::sample::Index>().prop_map(Edit::Cut),
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, c)| Edit::Set(at, c)),
        (any::<prop::sample::Index>(), piece).prop_map(|(at, piece)| Edit::Insert(at, piece)),
        any::<prop::sample::Index>().prop_map(Edit::Remove),
        (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(x, y)| Edit::Swap(x, y)),
    ];
    prop::collection::vec(edit, 0..4)
}

fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        match edit {
            Edit::Cut(at) => bytes.truncate(at.index(len)),
            Edit::Set(at, c) => bytes[at.index(len)] = *c,
            Edit::Insert(at, piece) => {
                let at = at.index(len);
                bytes.splice(at..at, piece.iter().copied());
            }
            Edit::Remove(at) => {
                bytes.remove(at.index(len));
            }
            Edit::Swap(x, y) => bytes.swap(x.index(len), y.index(len)),
        }
    }
    bytes
}

fn any_record() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => (prop::sample::select(seeds()), edits()).prop_map(|(seed, edits)| edited(seed, &edits)),
        1 => prop::collection::vec(any::<u8>(), 0..80),
    ]
}

/// A plan that gives all attributes there are a column, of one type or another, in every encoder that takes one.
fn exercise_plan(batch: &ChangeBatch, rows: &Rows, seed: usize) {
    const TYPES: &str =
        "text|numeric|numeric(5,2)|bigint|boolean|bytea|timestamptz|jsonb|text[]|numeric[]|bytea[]|numeric(38,9)";
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let images = || batch.views().map(|view| view.raw(view.change.new)).filter(|image| !image.is_empty());
    let names: BTreeSet<String> =
        images().flat_map(|image| json(image).as_object().unwrap().clone()).map(|(n, _)| n).collect();
    let types = TYPES.split('|').cycle().skip(seed % 12);
    let column =
        |(name, kind): (&String, &str)| Column { attribute: (**name).into(), kind: Type::named(kind).unwrap() };
    let columns = names.iter().filter(|name| *name != "rest").zip(types).map(column).collect();
    let plan = Plan::new(columns, Some("rest".into())).unwrap();
    let mut split = Split::new(&plan);
    for image in images() {
        split.read(image, |_| false);
        let held = split.values().iter().filter(|value| **value != Value::Absent).count();
        let rest = json(split.rest()).as_object().unwrap().len();
        assert!(held + rest >= json(image).as_object().unwrap().len(), "nothing is lost");
    }
    #[cfg(feature = "parquet")]
    for plan in [Some(&plan), None] {
        assert!(_core::encode::parquet::file(batch, plan, true, Some(1)).unwrap().ends_with(b"PAR1"));
    }
    let plan = Arc::new(plan);
    for (format, is_change) in
        [(Format::Avro, true), (Format::Avro, false), (Format::Json, true), (Format::Json, false)]
    {
        let schema = Schema { id: 7, format, is_change, plan: Arc::clone(&plan) };
        let mut values = Values::new(Form::Plain, Some(&schema));
        for view in batch.views() {
            let mut value = Vec::new();
            if values.write(&mut value, batch, view) {
                assert_eq!(value[..5], [0, 0, 0, 0, 7]);
                assert!(format == Format::Avro || json(&value[5..]).is_object());
            }
        }
    }
    assert_eq!(split::unplanned(batch, &plan, |_| true).iter().filter(|(name, _)| name != "rest").count(), 0);
    let plan =
        Plan::new(plan.columns().iter().filter(|column| &*column.attribute != "id").cloned().collect(), None).unwrap();
    assert!(copy_columns::stream(rows, &plan, 0, usize::MAX).ends_with(b"\xff\xff"));
    let version = VersionAttribute { name: "v".into(), generation: 1 };
    for piece in dynamodb::items(rows, 0, usize::MAX, Some(&version)).iter() {
        assert!(piece.is_empty() || json(piece).is_object());
    }
    for body in dynamodb::transactions(rows, 0, usize::MAX, ("t", "side"), &version, 2).iter() {
        assert!(json(body)["TransactItems"].is_array());
    }
}

/// Runs all there is to run over a batch and checks what must hold for any.
fn exercise(payloads: &[Vec<u8>]) {
    let mut records = Records::default();
    for payload in payloads {
        records.push(payload, b"1", Some(1), 0).unwrap();
    }
    let records = Arc::new(records);
    let batch = Arc::new(decode(Arc::clone(&records), Some("t"), false));
    assert_eq!(batch.records(), payloads.len());
    let all = decode(records, Some("t"), true);
    for form in [Form::Plain, Form::Dynamodb] {
        let text = lines(&all, form);
        let mut count = 0;
        for line in text.split(|&c| c == b'\n').filter(|line| !line.is_empty()) {
            count += 1;
            let value = serde_json::from_slice::<serde_json::Value>(line);
            assert!(value.is_ok(), "{:?}", String::from_utf8_lossy(line));
        }
        assert_eq!(count, all.order.len());
    }
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let (mask, hash) = (names(&["name", "Price"]), names(&["Stock", "a.b"]));
    let projection = Projection::new(None, &names(&["SKU"]), &mask, &hash, b"0123456789abcdef").unwrap();
    let projected = projection.apply(&all).unwrap();
    assert_eq!(projected.records(), all.records());
    for line in lines(&projected, Form::Plain).split(|&c| c == b'\n').filter(|line| !line.is_empty()) {
        assert!(serde_json::from_slice::<serde_json::Value>(line).is_ok(), "{:?}", String::from_utf8_lossy(line));
    }
    for view in all.views() {
        assert!(serde_json::from_slice::<serde_json::Value>(&payloads[view.change.record as usize]).is_ok());
    }
    let rows = Rows::newest(Arc::clone(&batch), "t", vec![((*b"id").into(), KeyType::S)]);
    assert!(rows.rows.len() + rows.folded + rows.rejections.len() <= batch.order.len());
    assert!(copy::stream(&rows, 0, usize::MAX).ends_with(b"\xff\xff"));
    exercise_plan(&batch, &rows, payloads.iter().map(Vec::len).sum());
    let less = rows.without(&(0..rows.rows.len()).collect::<Vec<_>>()).unwrap();
    assert_eq!(less.rows.len() + less.folded + rows.rows.len(), rows.rows.len() + rows.folded);
    let twice = ChangeBatch::concat(&[Arc::clone(&batch), Arc::clone(&batch)]);
    assert!(twice.order.len() >= batch.order.len() && twice.order.len() <= 2 * batch.order.len());
}

/// JSON whose known members have the types they should have.
fn is_answer(body: &[u8]) -> bool {
    let Ok(serde_json::Value::Object(answer)) = serde_json::from_slice(body) else { return false };
    let is =
        |name, of: fn(&serde_json::Value) -> bool| answer.get(name).is_none_or(|value| value.is_null() || of(value));
    is("Records", serde_json::Value::is_array)
        && is("ChildShards", |value| value.as_array().is_some_and(|all| all.iter().all(serde_json::Value::is_object)))
        && is("MillisBehindLatest", serde_json::Value::is_u64)
        && is("NextShardIterator", serde_json::Value::is_string)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_batch(payloads in prop::collection::vec(any_record(), 0..6)) {
        exercise(&payloads);
    }

    #[test]
    fn any_document(data in any_record()) {
        let records = document::read(&data).unwrap();
        let payloads: Vec<_> = (0..records.len()).map(|i| records.payload(i).to_vec()).collect();
        exercise(&payloads);
    }

    #[test]
    fn any_pattern(
        text in (prop::sample::select(patterns()), edits()).prop_map(|(seed, edits)| edited(seed, &edits)),
        payloads in prop::collection::vec(any_record(), 1..4),
    ) {
        let Ok(pattern) = Pattern::compile(&[&String::from_utf8_lossy(&text)]) else { return Ok(()) };
        let mut records = Records::default();
        for payload in &payloads {
            records.push(payload, b"", None, 0).unwrap();
        }
        let batch = Arc::new(decode(Arc::new(records), Some("t"), true));
        let kept = leave_out(&batch, &pattern);
        prop_assert_eq!(kept.order.len() + kept.hidden.len(), batch.order.len());
        let columns = vec![((*b"id").into(), KeyType::S)];
        let rows = Rows::shown(Arc::clone(&batch), "t", columns, Some(Arc::new(pattern)), None).unwrap();
        prop_assert!(rows.filtered <= rows.deletes && rows.deletes <= rows.rows.len());
    }

    #[test]
    fn any_answer(body in (prop::sample::select(answers()), edits()).prop_map(|(seed, edits)| edited(seed, &edits))) {
        for kind in [Kind::Kinesis, Kind::Streams] {
            if let Ok(answer) = answer::read(&body, kind) {
                let payloads: Vec<_> = (0..answer.records.len()).map(|i| answer.records.payload(i).to_vec()).collect();
                prop_assert_eq!(answer.records.arena().len(), payloads.iter().map(Vec::len).sum::<usize>());
                // No record ends in blanks, which belong to nobody, and none holds what isn't its own.
                for payload in payloads.iter().filter(|_| kind == Kind::Streams) {
                    prop_assert_eq!(payload.trim_ascii(), payload.as_slice());
                }
                // What JSON says otherwise is one and the same.
                if let Ok(value) = serde_json::from_slice::<serde_json::Value>(&body)
                    && let Some(all) = value["Records"].as_array()
                    && kind == Kind::Streams
                {
                    let ours: Vec<serde_json::Value> = payloads.iter().map(|payload| serde_json::from_slice(payload).unwrap()).collect();
                    prop_assert_eq!(&ours, all);
                }
                exercise(&payloads);
            } else if kind == Kind::Streams {
                prop_assert!(!is_answer(&body), "refused: {}", body.escape_ascii());
            }
        }
    }

    #[test]
    fn any_body(body in (prop::sample::select(bodies()), edits()).prop_map(|(seed, edits)| edited(seed, &edits)), size in 1_usize..50) {
        let feed = |size: usize| {
            let mut stream = EventStream::new(4096);
            let mut events = Vec::new();
            let mut fault = None;
            for chunk in body.chunks(size).chain([&b""[..]]) {
                match stream.feed(chunk) {
                    Ok(more) => events.extend(more.iter().map(|event| format!("{event:?}"))),
                    Err(error) => fault = Some(error),
                }
            }
            (events.len(), fault)
        };
        prop_assert_eq!(feed(size), feed(body.len().max(1)));
    }
}

/// Every prefix of every vector: the scanner never reads past the end.
#[test]
fn every_prefix() {
    for body in answers().into_iter().filter(|body| body.len() < 1500 && is_answer(body)) {
        for end in 0..body.trim_ascii_end().len() {
            for kind in [Kind::Kinesis, Kind::Streams] {
                assert!(answer::read(&body[..end], kind).is_err(), "{}", body[..end].escape_ascii());
            }
        }
    }
    for seed in seeds().into_iter().filter(|seed| seed.len() < 1500) {
        for end in 0..seed.len() {
            let mut records = Records::default();
            records.push(&seed[..end], b"", None, 0).unwrap();
            records.push(&seed[end..], b"", None, 0).unwrap();
            let batch = decode(Arc::new(records), None, true);
            assert_eq!(batch.records(), 2);
        }
    }
}

/// A frame of more than ten megabytes in small chunks: every byte is copied once, and the room is given back.
#[test]
fn a_giant_frame_in_small_chunks() {
    let mut payload = b"{\"Records\":[{\"SequenceNumber\":\"1\",\"Data\":\"".to_vec();
    payload.extend(std::iter::repeat_n(b'A', 12_000_000));
    payload.extend_from_slice(b"\"}]}");
    let mut frame = Vec::new();
    let mut headers = Vec::new();
    for (name, value) in [(":message-type", "event"), (":event-type", "SubscribeToShardEvent")] {
        headers.push(name.len() as u8);
        headers.extend_from_slice(name.as_bytes());
        headers.push(7);
        headers.extend_from_slice(&(value.len() as u16).to_be_bytes());
        headers.extend_from_slice(value.as_bytes());
    }
    frame.extend_from_slice(&(16 + headers.len() as u32 + payload.len() as u32).to_be_bytes());
    frame.extend_from_slice(&(headers.len() as u32).to_be_bytes());
    frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
    frame.extend_from_slice(&headers);
    frame.extend_from_slice(&payload);
    frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());

    let mut stream = EventStream::new(32 << 20);
    let mut events = 0;
    for chunk in frame.chunks(1024) {
        events +=
            stream.feed(chunk).unwrap().iter().filter(|event| event.records.payload(0).len() == 9_000_000).count();
    }
    assert_eq!((events, stream.buffered_bytes()), (1, 0));
    assert!(stream.room_bytes() <= 1 << 20);
}
