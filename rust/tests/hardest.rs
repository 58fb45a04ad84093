//! Items as large, as deep and as odd as DynamoDB lets them be, against the second reading.

#[allow(dead_code, reason = "one of the checks is enough here")]
mod checks;

use std::sync::Arc;

use _core::change::decode;
use _core::encode::json::{Form, lines};
use _core::records::Records;

/// An item's size limit, names and values together.
const ITEM_BYTES_MAX: usize = 400 * 1024;

fn record(image: &str) -> Vec<u8> {
    format!(
        r#"{{"eventID":"e","eventName":"MODIFY","tableName":"t","dynamodb":{{"ApproximateCreationDateTime":1706542773915835,"ApproximateCreationDateTimePrecision":"MICROSECOND","Keys":{{"id":{{"S":"k"}}}},"NewImage":{image},"OldImage":{image}}}}}"#
    )
    .into_bytes()
}

/// Accepted, and equal in every form.
fn holds(name: &str, image: &str) {
    let record = record(image);
    let mut records = Records::default();
    records.push(&record, b"1", None, 0).expect("small");
    let batch = decode(Arc::new(records), None, false);
    assert!(batch.rejections.is_empty(), "{name}: {}", batch.rejections[0].message);
    assert!(lines(&batch, Form::Dynamodb).len() >= 2 * image.len(), "{name}");
    checks::kinesis_record(&record);
}

fn joined(count: usize, one: impl Fn(usize) -> String) -> String {
    (0..count).map(one).collect::<Vec<_>>().join(",")
}

#[test]
fn items_of_400_kilobytes() {
    for (name, unit) in [
        ("letters", "x"),
        ("of two bytes", "é"),
        ("of three", "€"),
        ("of four", "😀"),
        ("escapes", r#"\""#),
        ("escaped slashes", r"\/"),
        ("NULs", r"\u0000"),
        ("pairs", r"\ud83d\ude00"),
        ("mixed", r"a\né😀\u00e9"),
    ] {
        // Beginning at every place in a word.
        for shift in 0..9 {
            let text = ".".repeat(shift) + &unit.repeat(ITEM_BYTES_MAX / unit.len());
            holds(name, &format!(r#"{{"a":{{"S":"{text}"}},"z":{{"BOOL":true}}}}"#));
        }
    }
    for len in [ITEM_BYTES_MAX - 2, ITEM_BYTES_MAX - 1, ITEM_BYTES_MAX] {
        let base64 = base64_simd::STANDARD.encode_to_string(vec![0xfb; len]);
        holds("binary", &format!(r#"{{"a":{{"B":"{base64}"}},"b":{{"BS":["{base64}","AA=="]}}}}"#));
    }
    let name = "n".repeat(64 * 1024 - 1);
    holds(
        "the longest name",
        &format!(r#"{{"{name}":{{"S":"v"}},"m":{{"M":{{"{name}":{{"M":{{"\u0061{name}":{{"N":"1"}}}}}}}}}}}}"#),
    );
}

#[test]
fn items_of_many_attributes_and_wide_sets() {
    holds("attributes", &format!("{{{}}}", joined(20_000, |i| format!(r#""a{i}":{{"N":"{i}"}}"#))));
    holds("members", &format!(r#"{{"m":{{"M":{{{}}}}}}}"#, joined(20_000, |i| format!(r#""a{i}":{{"S":"{i}"}}"#))));
    holds("elements", &format!(r#"{{"l":{{"L":[{}]}}}}"#, joined(20_000, |_| r#"{"NULL":true}"#.to_owned())));
    for (tag, one) in [
        ("SS", (|i| format!(r#""é{}""#, 40_000 - i)) as fn(usize) -> String),
        ("SS", |i| format!(r#""\u00e9\/{}""#, i * 7919 % 30_011)),
        ("NS", |i| format!(r#""{}""#, 40_000 - i)),
        ("NS", |i| format!(r#""-{}.{}E-{}""#, i % 7, i, i % 90)),
        ("BS", |i| format!(r#""{}""#, base64_simd::STANDARD.encode_to_string((i * 7919 % 30_011).to_be_bytes()))),
    ] {
        holds(tag, &format!(r#"{{"s":{{"{tag}":[{}]}}}}"#, joined(30_000, one)));
    }
}

#[test]
fn the_deepest_items() {
    let lists = |depth: usize, inner: &str| r#"{"L":["#.repeat(depth) + inner + &"]}".repeat(depth);
    let maps = |depth: usize, inner: &str| r#"{"M":{"a":"#.repeat(depth) + inner + &"}}".repeat(depth);
    for inner in [r#"{"S":"x"}"#, r#"{"NS":["2","1"]}"#, r#"{"NULL":true}"#] {
        holds("lists", &format!(r#"{{"a":{}}}"#, lists(32, inner)));
        holds("maps", &format!(r#"{{"a":{}}}"#, maps(32, inner)));
        holds("both", &format!(r#"{{"a":{}}}"#, lists(16, &maps(16, inner))));
        for (depth, code) in [(33, "too_deep"), (100, "too_deep"), (100_000, "too_deep")] {
            let image = format!(r#"{{"a":{}}}"#, lists(depth - 1, &maps(1, inner)));
            let mut records = Records::default();
            records.push(&record(&image), b"1", None, 0).expect("small");
            let batch = decode(Arc::new(records), None, false);
            assert_eq!(&*batch.rejections[0].code, code, "{depth}");
        }
    }
}

#[test]
fn numbers_at_every_limit() {
    let nines = "9".repeat(38);
    let mut texts = vec!["-0".to_owned(), "0E125".to_owned(), "0E-130".to_owned(), format!("{nines}E88")];
    for exponent in -130..=125 {
        texts.push(format!("1E{exponent}"));
        texts.push(format!("-1e{exponent:+}"));
    }
    for digits in 1..=38 {
        texts.push("9".repeat(digits));
        texts.push(format!("-{}.{}", "1".repeat(digits), "1".repeat(38 - digits)).trim_end_matches('.').to_owned());
        texts.push(format!("0.{}{}", "0".repeat(38), "7".repeat(digits)));
    }
    let values = texts.iter().map(|text| format!(r#"{{"N":"{text}"}}"#)).collect::<Vec<_>>().join(",");
    holds("numbers", &format!(r#"{{"l":{{"L":[{values}]}}}}"#));
    let set = texts.iter().map(|text| format!(r#""{text}""#)).collect::<Vec<_>>().join(",");
    holds("a set of numbers", &format!(r#"{{"s":{{"NS":[{set}]}}}}"#));
}

/// Blanks at a record's end are its own: what follows in the arena is another record.
#[test]
fn nothing_is_read_past_a_records_end() {
    let whole = record(r#"{"id":{"S":"k"},"n":{"N":"1"}}"#);
    for tail in ["", " ", "\n\t \r", "        \n        "] {
        let payload = [&whole[..], tail.as_bytes()].concat();
        for next in ["", " ", "}", "\"", "0", "{}", "\u{0}\u{0}\u{0}\u{9}"] {
            let mut records = Records::default();
            for (payload, number) in [(&payload[..], b"1"), (next.as_bytes(), b"2"), (&payload, b"3")] {
                records.push(payload, number, None, 0).expect("small");
            }
            let batch = decode(Arc::new(records), None, true);
            assert_eq!((batch.order.len(), batch.rejections.len()), (2, 1), "{tail:?} {next:?}");
            assert_eq!(batch.rejections[0].index, 1);
        }
    }
    // Cut anywhere, with its own rest as the neighbour: two records, both refused.
    for at in 1..whole.len() {
        let mut records = Records::default();
        for (payload, number) in [(&whole[..at], b"1"), (&whole[at..], b"2")] {
            records.push(payload, number, None, 0).expect("small");
        }
        assert_eq!(decode(Arc::new(records), None, true).rejections.len(), 2, "{at}");
    }
}
