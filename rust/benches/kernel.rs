//! The kernel's steps one by one, over the payloads that `make bench` measures the whole with.
//!
//! In: the files that `python -m bench.records target/bench` writes. Out: MB/s of what each step reads, or changes a second. It explains
//! what `make bench ARGS=core` decides. Run: `cargo bench --no-default-features [-- NAME]`.

use std::path::Path;
use std::sync::Arc;

use _core::change::{ChangeBatch, decode};
use _core::dedupe::{Rows, arrange};
use _core::encode::copy;
use _core::key::KeyType;
use _core::record::{self, Arenas};
use _core::records::Records;
use _core::value::{self, Notes, Place, SLACK};
use _core::{number, scan};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use memchr::memmem;

const SHAPES: [&str; 4] = ["small", "nested", "unicode", "large"];

fn main() {
    divan::main();
}

/// A shape's records: each behind its length in four bytes.
fn records(shape: &str) -> Arc<Records> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench").join(shape);
    let file = std::fs::read(&path).expect("first run: python -m bench.records target/bench");
    let (mut records, mut rest) = (Records::default(), &file[..]);
    while let Some((len, after)) = rest.split_first_chunk() {
        let (payload, after) = after.split_at(u32::from_le_bytes(*len) as usize);
        records.push(payload, b"", None, 0).expect("some megabytes");
        rest = after;
    }
    Arc::new(records)
}

fn payloads(records: &Records) -> impl Iterator<Item = &[u8]> {
    records.entries().iter().map(|entry| entry.payload.of(records.arena()))
}

fn batch(shape: &str) -> Arc<ChangeBatch> {
    Arc::new(decode(records(shape), None, false))
}

/// Of every batch's record: where its images are.
fn images(batch: &ChangeBatch) -> Vec<&[u8]> {
    let both = batch.views().flat_map(|view| [view.raw(view.change.new), view.raw(view.change.old)]);
    both.filter(|image| !image.is_empty()).collect()
}

/// The places behind every `before`, each with the rest of its payload.
fn places<'a>(records: &'a Records, before: &str) -> Vec<&'a [u8]> {
    let of = |payload: &'a [u8]| {
        memmem::find_iter(payload, before).map(|at| &payload[at + before.len()..]).collect::<Vec<_>>()
    };
    payloads(records).flat_map(of).collect()
}

/// The values of strings.
#[divan::bench(args = SHAPES)]
fn strings(bencher: Bencher, shape: &str) {
    let records = records(shape);
    let strings = places(&records, "{\"S\":\"");
    let end = |b: &&[u8]| scan::string(b, 0).map_or(0, |text| text.end);
    let bytes: usize = strings.iter().map(end).sum();
    bencher.counter(BytesCount::new(bytes)).bench_local(|| strings.iter().map(end).sum::<usize>());
}

#[divan::bench(args = SHAPES)]
fn numbers(bencher: Bencher, shape: &str) {
    let records = records(shape);
    let numbers = places(&records, "{\"N\":\"");
    let end = |b: &&[u8]| number::check(b, 0).map_or(0, |(end, _)| end);
    let bytes: usize = numbers.iter().map(end).sum();
    bencher.counter(BytesCount::new(bytes)).bench_local(|| numbers.iter().map(end).sum::<usize>());
}

/// Both images of every change, checked only or written plain, too.
#[divan::bench(args = SHAPES, consts = [false, true])]
fn image<const WRITE: bool>(bencher: Bencher, shape: &str) {
    let batch = batch(shape);
    let images = images(&batch);
    let longest = images.iter().map(|image| image.len()).max().unwrap_or(0);
    let (mut out, mut notes) = (vec![0; longest + SLACK], Notes::default());
    bencher.counter(BytesCount::new(images.iter().map(|image| image.len()).sum::<usize>())).bench_local(|| {
        for image in &images {
            let _ = black_box(value::image::<WRITE>(image, &mut out, &mut notes, Place { at: 0, o: 0 }));
        }
    });
}

/// Whole records, the buffers there already.
#[divan::bench(args = SHAPES)]
fn read(bencher: Bencher, shape: &str) {
    let records = records(shape);
    let mut arenas = Arenas::new(records.arena().len(), records.len());
    bencher.counter(BytesCount::new(records.arena().len())).bench_local(|| {
        arenas.keys.clear();
        arenas.end = 0;
        payloads(&records).filter(|payload| record::read(payload, &mut arenas).is_ok()).count()
    });
}

/// Duplicates, order, newest, over changes that are decoded.
#[divan::bench(args = SHAPES)]
fn dedupe(bencher: Bencher, shape: &str) {
    let all = decode(records(shape), None, true);
    bencher
        .counter(ItemsCount::new(all.order.len()))
        .with_inputs(|| all.order.to_vec())
        .bench_local_values(|order| arrange(&all, order));
}

fn newest(batch: &Arc<ChangeBatch>) -> Rows {
    Rows::newest(Arc::clone(batch), "products", vec![(Box::from(*b"id"), KeyType::S)])
}

/// The newest changes as COPY bytes: MB/s of what is written.
#[divan::bench(args = SHAPES)]
fn copy_stream(bencher: Bencher, shape: &str) {
    let rows = newest(&batch(shape));
    let bytes = BytesCount::new(copy::stream(&rows, 0, usize::MAX).len());
    bencher.counter(bytes).bench_local(|| copy::stream(&rows, 0, usize::MAX));
}

/// All of it.
#[divan::bench(args = SHAPES)]
fn whole(bencher: Bencher, shape: &str) {
    let records = records(shape);
    bencher.counter(BytesCount::new(records.arena().len())).bench_local(|| {
        let rows = newest(&Arc::new(decode(Arc::clone(&records), None, false)));
        copy::stream(&rows, 0, usize::MAX)
    });
}
