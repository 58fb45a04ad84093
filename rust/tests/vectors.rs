//! The golden records of `tests/vectors`, which the Python tests read too.

use std::path::Path;
use std::sync::Arc;

use _core::answer::{self, Kind};
use _core::change::{ChangeBatch, decode};
use _core::dedupe::Rows;
use _core::document;
use _core::encode::copy;
use _core::encode::json::{Form, lines};
use _core::error::Code;
use _core::frame::EventStream;
use _core::key::KeyType;
use _core::records::Records;
use serde_json::Value;

fn vectors(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    match serde_json::from_str(&text).unwrap() {
        Value::Array(all) => all,
        other => panic!("{name} holds no list but {other}"),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn base64(value: &Value) -> Vec<u8> {
    base64_simd::STANDARD.decode_to_vec(text(value)).unwrap()
}

fn packed<'a>(payloads: impl IntoIterator<Item = &'a [u8]>) -> Arc<Records> {
    let mut records = Records::default();
    for payload in payloads {
        records.push(payload, b"", None, 0).unwrap();
    }
    Arc::new(records)
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn changes() {
    for vector in vectors("changes.json") {
        let name = text(&vector["name"]);
        let batch = decode(packed([text(&vector["payload"]).as_bytes()]), vector["table"].as_str(), false);
        assert!(batch.rejections.is_empty(), "{name}: {:?}", batch.rejections[0].message);
        assert_eq!(shown(&lines(&batch, Form::Plain)), text(&vector["plain"]), "{name}");
        assert_eq!(shown(&lines(&batch, Form::Dynamodb)), text(&vector["dynamodb"]), "{name}");
    }
}

#[test]
fn rejections() {
    let mut seen = Vec::new();
    for vector in vectors("rejections.json") {
        let name = text(&vector["name"]);
        let payload = match &vector["payload"] {
            Value::String(payload) => payload.as_bytes().to_vec(),
            _ => base64(&vector["payload_base64"]),
        };
        let batch = decode(packed([&payload[..]]), None, false);
        assert_eq!(batch.order.len(), 0, "{name}");
        assert_eq!(&*batch.rejections[0].code, text(&vector["code"]), "{name}");
        assert!(batch.rejections[0].message.ends_with(").") && !batch.rejections[0].message.is_empty());
        if let Some(table) = vector["names"].as_str() {
            assert_eq!(batch.rejections[0].table.as_deref(), Some(table), "{name}");
        }
        seen.push(text(&vector["code"]).to_owned());
    }
    for code in Code::ALL {
        let by_sinks = matches!(
            code,
            Code::KeyMismatch
                | Code::MissingNewImage
                | Code::ProjectedKey
                | Code::RecordTooLarge
                | Code::KeyQuarantined
        );
        assert!(by_sinks || seen.iter().any(|slug| slug == code.slug()), "{} has no vector", code.slug());
    }
}

fn newest(vector: &Value) -> Rows {
    let payloads = vector["payloads"].as_array().unwrap();
    let records = packed(payloads.iter().map(|payload| text(payload).as_bytes()));
    let columns = vector["keys"].as_array().unwrap().iter().map(|key| {
        let kind = KeyType::from_letter(text(&key[1]).as_bytes()[0]).unwrap();
        (text(&key[0]).as_bytes().into(), kind)
    });
    Rows::newest(Arc::new(decode(records, None, false)), text(&vector["table"]), columns.collect())
}

#[test]
fn copies() {
    for vector in vectors("copy.json") {
        let name = text(&vector["name"]);
        let rows = newest(&vector);
        assert_eq!(copy::stream(&rows, 0, usize::MAX), base64(&vector["copy_base64"]), "{name}");
        assert_eq!(rows.rows.len() as u64, vector["rows"].as_u64().unwrap(), "{name}");
        assert_eq!(rows.deletes as u64, vector["deletes"].as_u64().unwrap(), "{name}");
        assert_eq!(rows.folded as u64, vector["folded"].as_u64().unwrap(), "{name}");
        let codes: Vec<&str> = rows.rejections.iter().map(|rejection| &*rejection.code).collect();
        let wanted: Vec<&str> = vector["codes"].as_array().unwrap().iter().map(text).collect();
        assert_eq!(codes, wanted, "{name}");
    }
}

#[test]
fn any_part_of_the_rows_is_a_stream_of_its_own() {
    for vector in vectors("copy.json") {
        let rows = newest(&vector);
        let (header, trailer) = (19, 2);
        let whole = copy::stream(&rows, 0, usize::MAX);
        let mut body = Vec::new();
        for row in 0..rows.rows.len() {
            // Alone it stands at the first place.
            let mut one = copy::stream(&rows, row, row + 1);
            let ordinal = one.len() - trailer - 4;
            assert_eq!(one[ordinal..ordinal + 4], [0; 4]);
            one[ordinal..ordinal + 4].copy_from_slice(&(row as u32).to_be_bytes());
            body.extend_from_slice(&one[header..one.len() - trailer]);
        }
        assert_eq!(body, whole[header..whole.len() - trailer]);
        assert_eq!(copy::stream(&rows, 5, 2).len(), header + trailer);
        assert_eq!(copy::stream(&rows, 1000, 2000).len(), header + trailer);
    }
}

#[test]
fn frames_whole_and_byte_by_byte() {
    for vector in vectors("frames.json") {
        let name = text(&vector["name"]);
        let body = base64(&vector["body_base64"]);
        for size in [body.len().max(1), 1, 7, 13] {
            let mut stream = EventStream::new(1 << 20);
            let mut events = Vec::new();
            let mut fault = None;
            for chunk in body.chunks(size).chain([&b""[..]]) {
                match stream.feed(chunk) {
                    Ok(more) => events.extend(more),
                    Err(error) => fault = Some(error.slug()),
                }
            }
            assert_eq!(fault, vector["error"].as_str(), "{name} by {size}");
            assert_eq!(stream.buffered_bytes() == 0, fault.is_none(), "{name} by {size}");
            let wanted = vector["events"].as_array().unwrap();
            assert_eq!(events.len(), wanted.len(), "{name} by {size}");
            for (event, wanted) in events.iter().zip(wanted) {
                let found: Vec<Value> = (0..event.records.len())
                    .map(|i| {
                        let data = event.records.payload(i).escape_ascii().to_string();
                        serde_json::json!({
                            "data": data,
                            "sequence_number": event.records.sequence_number(i),
                            "arrival_ms": event.records.entries()[i].arrival_ms,
                        })
                    })
                    .collect();
                let exception = event.exception.as_ref().map(|exception| [&exception.kind, &exception.message]);
                assert_eq!(Value::Array(found), wanted["records"], "{name}");
                assert_eq!(serde_json::json!(event.continuation_sequence_number), wanted["continuation"], "{name}");
                assert_eq!(serde_json::json!(event.millis_behind_latest), wanted["behind"], "{name}");
                assert_eq!(serde_json::json!(event.child_shards), wanted["children"], "{name}");
                assert_eq!(serde_json::json!(exception), wanted["exception"], "{name}");
            }
        }
    }
}

#[test]
fn answers() {
    for vector in vectors("answers.json") {
        let name = text(&vector["name"]);
        let body =
            vector["body"].as_str().map_or_else(|| base64(&vector["body_base64"]), |body| body.as_bytes().to_vec());
        let kind = if vector["source"] == "streams" { Kind::Streams } else { Kind::Kinesis };
        let answer = match answer::read(&body, kind) {
            Ok(answer) => answer,
            Err(fault) => {
                assert_eq!(vector["error"]["at"], fault.at, "{name}");
                continue;
            }
        };
        assert_eq!(vector["error"], Value::Null, "{name}");
        let found: Vec<Value> = (0..answer.records.len())
            .map(|i| {
                serde_json::json!({
                    "payload": answer.records.payload(i).escape_ascii().to_string(),
                    "sequence_number": answer.records.sequence_number(i),
                    "sub_sequence_number": answer.records.entries()[i].sub_sequence_number,
                    "arrival_ms": answer.records.entries()[i].arrival_ms,
                })
            })
            .collect();
        assert_eq!(Value::Array(found), vector["records"], "{name}");
        assert_eq!(serde_json::json!(answer.next), vector["next"], "{name}");
        assert_eq!(serde_json::json!(answer.millis_behind_latest), vector["behind"], "{name}");
        assert_eq!(serde_json::json!(answer.child_shards), vector["children"], "{name}");
    }
}

#[test]
fn documents() {
    for vector in vectors("documents.json") {
        let name = text(&vector["name"]);
        let records = document::read(text(&vector["document"]).as_bytes()).unwrap();
        let wanted = vector["records"].as_array().unwrap();
        assert_eq!(records.len(), wanted.len(), "{name}");
        for (i, wanted) in wanted.iter().enumerate() {
            assert_eq!(shown(records.payload(i)), text(&wanted["payload"]), "{name}");
            assert_eq!(u64::from(records.entries()[i].line), wanted["line"].as_u64().unwrap(), "{name}");
            assert_eq!(records.sequence_number(i), text(&wanted["sequence_number"]), "{name}");
        }
    }
}

/// Everything that can be decoded, in one batch with everything that can't.
#[test]
fn neighbours_survive() {
    let good = vectors("changes.json");
    let bad = vectors("rejections.json");
    let payloads: Vec<Vec<u8>> = bad
        .iter()
        .zip(good.iter().cycle())
        .flat_map(|(bad, good)| {
            let refused = match &bad["payload"] {
                Value::String(payload) => payload.as_bytes().to_vec(),
                _ => base64(&bad["payload_base64"]),
            };
            [refused, text(&good["payload"]).as_bytes().to_vec()]
        })
        .collect();
    let batch = decode(packed(payloads.iter().map(Vec::as_slice)), None, true);
    assert_eq!(batch.rejections.len(), bad.len());
    assert_eq!(batch.order.len(), bad.len());
    let odd: Vec<u32> = batch.rejections.iter().map(|rejection| rejection.index).collect();
    assert!(odd.iter().enumerate().all(|(i, &index)| index as usize == 2 * i));
    let parts: Vec<Arc<ChangeBatch>> = payloads
        .chunks(10)
        .map(|chunk| Arc::new(decode(packed(chunk.iter().map(Vec::as_slice)), None, false)))
        .collect();
    let one = decode(packed(payloads.iter().map(Vec::as_slice)), None, false);
    let many = ChangeBatch::concat(&parts);
    assert_eq!(lines(&one, Form::Plain), lines(&many, Form::Plain));
    assert_eq!((one.duplicates, one.ambiguous), (many.duplicates, many.ambiguous));
    assert_eq!(one.records(), many.records());
}
