//! The core allocates by the batch, not by the record, and holds no more than a few times the bytes in flight.
//!
//! Counted with the allocator of `allocation-counter`, in which a buffer that grows is a new one, old and new held at
//! once: no allocator does worse.
#![cfg(not(feature = "mimalloc"))]

use std::fmt::Write;
use std::hint::black_box;
use std::sync::Arc;

use _core::change::{ChangeBatch, decode};
use _core::dedupe::Rows;
use _core::encode::json::{Form, lines};
use _core::encode::{copy, crate_rows};
use _core::frame::EventStream;
use _core::key::KeyType;
use _core::records::Records;
use _core::window::{Limits, Window};
use allocation_counter::{AllocationInfo, measure};

/// How often buffers may double between a batch and one ten times its size, all together.
const GROWTH_MAX: u64 = 40;
/// Peak memory by the bytes in flight: those that came in, while they are here.
const MEMORY_MAX: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Small,
    Nested,
    Unicode,
    Large,
}

const SHAPES: [Shape; 4] = [Shape::Small, Shape::Nested, Shape::Unicode, Shape::Large];

fn item(shape: Shape, id: usize, value: usize) -> String {
    let mut item = format!(r#"{{"id":{{"S":"product-{id}"}},"Stock":{{"N":"{value}"}},"Price":{{"N":"0.35"}}"#);
    let bulk = match shape {
        Shape::Small => 0,
        Shape::Nested | Shape::Unicode => 1,
        Shape::Large => 40,
    };
    for i in 0..bulk {
        let text = match shape {
            Shape::Unicode => r#"naïve 東京都 \u00e9\ud83d\ude00 \"a\\b\" Привет"#.to_owned(),
            Shape::Large => "market nickel orange ".repeat(10),
            _ => "market nickel".to_owned(),
        };
        write!(
            item,
            r#","m{i}":{{"M":{{"n":{{"NS":["10","9","-1.5"]}},"t":{{"SS":["{text}","b {text}","a"]}},"b":{{"B":"AAEC/w=="}},"bs":{{"BS":["/wE=","AAE="]}},"l":{{"L":[{{"S":"{text}"}},{{"BOOL":true}},{{"NULL":true}},{{"N":"12345678901234567890123456789012345678"}},{{"L":[]}},{{"M":{{}}}}]}}}}}}"#
        )
        .expect("a string");
    }
    item.push('}');
    item
}

/// Changes as a busy table has them: twenty in a millisecond, three of five keys again, copies among them.
fn payloads(shape: Shape, count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|i| {
            let i = if i % 33 == 32 { i - 5 } else { i };
            let (id, us) = (i * 7919 % (count * 2 / 5), 1_706_542_773_915_000 + 50 * i);
            let (new, old) = (item(shape, id, i + 1), item(shape, id, i));
            format!(
                r#"{{"awsRegion":"eu-north-1","eventID":"5938778f-5dd2-4be0-9693-{i:012}","eventName":"MODIFY","userIdentity":null,"recordFormat":"application/json","tableName":"products","dynamodb":{{"ApproximateCreationDateTime":{us},"Keys":{{"id":{{"S":"product-{id}"}}}},"NewImage":{new},"OldImage":{old},"SizeBytes":223,"ApproximateCreationDateTimePrecision":"MICROSECOND"}},"eventSource":"aws:dynamodb"}}"#
            )
            .into_bytes()
        })
        .collect()
}

/// Records as frames bring them.
fn records(payloads: &[Vec<u8>]) -> Arc<Records> {
    let mut records = Records::with_capacity(payloads.iter().map(Vec::len).sum(), payloads.len());
    for (i, payload) in payloads.iter().enumerate() {
        records.push(payload, i.to_string().as_bytes(), Some(1), 0).expect("small");
    }
    records.shrink();
    Arc::new(records)
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let headers = b"\x0d:message-type\x07\x00\x05event\x0b:event-type\x07\x00\x15SubscribeToShardEvent";
    let mut frame = (16 + (headers.len() + payload.len()) as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(&(headers.len() as u32).to_be_bytes());
    frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
    frame.extend_from_slice(headers);
    frame.extend_from_slice(payload);
    frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
    frame
}

/// The payloads as the frames of a body, `each` to a frame.
fn body(payloads: &[Vec<u8>], each: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for chunk in payloads.chunks(each) {
        let records: Vec<String> = chunk
            .iter()
            .map(|payload| {
                let data = base64_simd::STANDARD.encode_to_string(payload);
                format!(r#"{{"ApproximateArrivalTimestamp":1706542773.915,"Data":"{data}","PartitionKey":"p","SequenceNumber":"49"}}"#)
            })
            .collect();
        let event = format!(
            r#"{{"ContinuationSequenceNumber":"49","MillisBehindLatest":0,"Records":[{}]}}"#,
            records.join(",")
        );
        body.extend(frame(event.as_bytes()));
    }
    body
}

fn counted<T>(name: &str, shape: Shape, count: usize, bytes: usize, run: impl FnOnce() -> T) -> (AllocationInfo, T) {
    let mut answer = None;
    let info = measure(|| answer = Some(black_box(run())));
    let percent = info.bytes_max * 100 / bytes as u64;
    println!("{shape:?} {count} {name}: {} allocations, peak {percent} % of the bytes", info.count_total);
    (info, answer.expect("it ran"))
}

/// What each step allocated, and the most that was held on the way from the records to the sink's bytes.
fn steps(shape: Shape, count: usize) -> (Vec<(&'static str, u64)>, u64) {
    let payloads = payloads(shape, count);
    let bytes: usize = payloads.iter().map(Vec::len).sum();
    let records = records(&payloads);
    let held = records.nbytes() as u64;
    let (decoding, batch) =
        counted("decode", shape, count, bytes, || Arc::new(decode(Arc::clone(&records), None, false)));
    assert!(batch.rejections.is_empty() && batch.duplicates > count / 40);
    let rows = || Rows::newest(Arc::clone(&batch), "products", vec![((*b"id").into(), KeyType::S)]);
    let (folding, rows) = counted("newest", shape, count, bytes, rows);
    let (copying, stream) = counted("copy", shape, count, bytes, || copy::stream(&rows, 0, usize::MAX));
    let kept = |info: &AllocationInfo| u64::try_from(info.bytes_current).expect("nothing of before is freed");
    let narrow = kept(&decoding) + folding.bytes_max.max(kept(&folding) + copying.bytes_max);
    drop(stream);
    let form = crate_rows::Form { dynamic: true, generation: 0 };
    let (bulk, _) = counted("crate", shape, count, bytes, || crate_rows::bulk_args(&rows, 0, usize::MAX, form));
    drop(rows);
    let (plain, _) = counted("json lines", shape, count, bytes, || lines(&batch, Form::Plain));
    let (typed, _) = counted("typed lines", shape, count, bytes, || lines(&batch, Form::Dynamodb));
    let halves: Vec<_> =
        payloads.chunks(count.div_ceil(2)).map(|half| Arc::new(decode(self::records(half), None, false))).collect();
    let (joining, _) = counted("concat", shape, count, bytes, || ChangeBatch::concat(&halves));
    let steps = vec![
        ("decode", decoding.count_total),
        ("newest", folding.count_total),
        ("copy", copying.count_total),
        ("crate", bulk.count_total),
        ("json lines", plain.count_total),
        ("typed lines", typed.count_total),
        ("concat", joining.count_total),
    ];
    let wide = kept(&decoding) + plain.bytes_max.max(typed.bytes_max);
    let most = held + decoding.bytes_max.max(narrow).max(wide);
    println!("{shape:?} {count}: {} % of the bytes in flight", most * 100 / bytes as u64);
    assert!(most <= MEMORY_MAX * bytes as u64, "{shape:?} {count}: {most} bytes for {bytes}");
    (steps, most)
}

/// Small batches for large records: the same number of bytes.
fn counts(shape: Shape) -> [usize; 2] {
    if shape == Shape::Large { [100, 1_000] } else { [1_000, 10_000] }
}

#[test]
fn no_step_allocates_by_the_record() {
    for shape in SHAPES {
        let [few, many] = counts(shape).map(|count| steps(shape, count).0);
        for ((name, few), (_, many)) in few.into_iter().zip(many) {
            assert!(many <= few + GROWTH_MAX, "{shape:?} {name}: {few} allocations, {many} for ten times the records");
        }
    }
}

#[test]
fn a_frame_is_taken_apart_without_an_allocation_by_the_record() {
    for shape in SHAPES {
        let found = counts(shape).map(|count| {
            let body = body(&payloads(shape, count), count);
            let (info, events) = counted("feed whole", shape, count, body.len(), || {
                EventStream::new(1 << 30).feed(&body).expect("good frames")
            });
            assert_eq!(events[0].records.len(), count);
            assert!(info.bytes_max <= MEMORY_MAX * body.len() as u64);
            let (info_cut, events) = counted("feed cut", shape, count, body.len(), || {
                let mut stream = EventStream::new(1 << 30);
                body.chunks(64 << 10).flat_map(|chunk| stream.feed(chunk).expect("good frames")).collect::<Vec<_>>()
            });
            assert_eq!(events[0].records.len(), count);
            assert!(info_cut.bytes_max <= MEMORY_MAX * body.len() as u64);
            [info.count_total, info_cut.count_total]
        });
        let [few, many] = found;
        assert!(many[0] <= few[0] + GROWTH_MAX && many[1] <= few[1] + GROWTH_MAX, "{shape:?} {few:?} {many:?}");
    }
}

/// A frame after the other, as a busy shard sends them: each costs the same, whatever came before.
#[test]
fn a_frame_costs_the_same_whenever_it_comes() {
    let body = body(&payloads(Shape::Small, 4000), 500);
    let mut stream = EventStream::new(1 << 30);
    let mut costs = Vec::new();
    let mut rest = &body[..];
    while !rest.is_empty() {
        let length = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let (one, after) = rest.split_at(length);
        rest = after;
        costs.push(measure(|| drop(black_box(stream.feed(one)))).count_total);
    }
    assert_eq!(costs.len(), 8);
    assert!(costs.iter().all(|&cost| cost <= costs[0] + 2), "{costs:?}");
}

/// A window in its steady state: its tables have their size, batches come and go.
#[test]
fn a_window_allocates_by_the_instant() {
    let limits = Limits { reorder_us: 20_000, duplicate_us: 100_000, bytes_max: 1 << 26, compacted: false };
    let mut window = Window::new(limits);
    let all = payloads(Shape::Small, 20_000);
    let batches: Vec<_> = all.chunks(500).map(|chunk| decode(records(chunk), None, false)).collect();
    let mut costs = Vec::new();
    for batch in &batches {
        costs.push(measure(|| drop(black_box(window.add(batch)))).count_total);
    }
    // 500 records of 25 milliseconds: lists that grow by millisecond, not by record.
    let most = costs[10..].iter().max().copied().unwrap_or(0);
    println!("window: at most {most} allocations for 500 records: {costs:?}");
    assert!(most < 400, "{costs:?}");
}
