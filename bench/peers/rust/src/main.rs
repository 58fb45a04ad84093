//! Peers in Rust. `peers VARIANT FILE COUNT` reads that many payloads, prints what a first round found
//! (payloads, images, the sum of their `Stock`), then, for each line of stdin, runs a round and prints a line.

use std::error::Error;
use std::hint::black_box;
use std::io::{BufRead, Write};

use serde::Deserialize;
use serde_dynamo::Item;
use simd_json::prelude::{ValueAsScalar, ValueObjectAccess};
use sonic_rs::JsonValueTrait;

mod plain;
use plain::Plain;

/// The core's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const IMAGES: [&str; 2] = ["NewImage", "OldImage"];

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, variant, file, count] = &arguments[..] else {
        return Err("usage: peers VARIANT FILE COUNT".into());
    };
    let file = std::fs::read(file)?;
    let payloads = payloads(&file, count.parse()?)?;
    match variant.as_str() {
        "sonic-rs" => rounds(&payloads, |payload, tally| {
            let record: sonic_rs::Value = black_box(sonic_rs::from_slice(payload)?);
            tally.images(|image| Some(record["dynamodb"].get(image)?["Stock"]["N"].as_str()))
        }),
        "simd-json" => {
            // It parses in place, so that each payload is copied first.
            let (mut copy, mut buffers) = (Vec::new(), simd_json::Buffers::default());
            rounds(&payloads, |payload, tally| {
                copy.clear();
                copy.extend_from_slice(payload);
                let record = black_box(simd_json::to_borrowed_value_with_buffers(&mut copy, &mut buffers)?);
                tally.images(|image| Some(record["dynamodb"].get(image)?["Stock"]["N"].as_str()))
            })
        }
        "serde_json" => rounds(&payloads, |payload, tally| {
            let record: serde_json::Value = black_box(serde_json::from_slice(payload)?);
            tally.images(|image| Some(record["dynamodb"].get(image)?["Stock"]["N"].as_str()))
        }),
        "serde_dynamo" => rounds(&payloads, |payload, tally| {
            let Record { dynamodb } = serde_json::from_slice(payload)?;
            black_box(plain(dynamodb.keys)?);
            let images = black_box([dynamodb.new.map(plain).transpose()?, dynamodb.old.map(plain).transpose()?]);
            tally.images(|image| Some(images[usize::from(image == IMAGES[1])].as_ref()?.member("Stock")))
        }),
        _ => Err(format!("no peer is called {variant}").into()),
    }
}

fn plain(item: Item) -> serde_dynamo::Result<Plain> {
    serde_dynamo::from_item(item)
}

/// What a consumer would write.
#[derive(Deserialize)]
struct Record {
    dynamodb: Change,
}

#[derive(Deserialize)]
struct Change {
    #[serde(rename = "Keys")]
    keys: Item,
    #[serde(rename = "NewImage")]
    new: Option<Item>,
    #[serde(rename = "OldImage")]
    old: Option<Item>,
}

/// The payloads of a file: each behind its length in four bytes, little-endian.
fn payloads(mut file: &[u8], count: usize) -> Outcome<Vec<&[u8]>> {
    let mut payloads = Vec::with_capacity(count);
    while payloads.len() < count {
        let (length, rest) = file.split_first_chunk().ok_or("the file holds fewer payloads")?;
        let (payload, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or("the file is cut")?;
        payloads.push(payload);
        file = rest;
    }
    Ok(payloads)
}

/// What the first round found. The later ones don't look.
#[derive(Default)]
struct Tally {
    is_done: bool,
    images: usize,
    stock: u64,
}

impl Tally {
    /// Adds the `Stock` of both images; `of` gives None for an image that isn't there.
    #[inline]
    fn images<S: ToString>(&mut self, of: impl Fn(&'static str) -> Option<Option<S>>) -> Outcome {
        if !self.is_done {
            for stock in IMAGES.into_iter().filter_map(of) {
                self.images += 1;
                self.stock += stock.ok_or("an image has no Stock")?.to_string().parse::<u64>()?;
            }
        }
        Ok(())
    }
}

/// A round to see that each payload is really decoded, then one a line.
fn rounds(payloads: &[&[u8]], mut decode: impl FnMut(&[u8], &mut Tally) -> Outcome) -> Outcome {
    let mut tally = Tally::default();
    let mut round = |tally: &mut Tally| payloads.iter().try_for_each(|payload| decode(payload, tally));
    round(&mut tally)?;
    tally.is_done = true;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} {} {}", payloads.len(), tally.images, tally.stock)?;
    for line in std::io::stdin().lock().lines() {
        line?;
        round(&mut tally)?;
        writeln!(out, "done")?;
    }
    Ok(())
}
