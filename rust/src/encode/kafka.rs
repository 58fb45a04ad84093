//! Changes as Kafka's record batches, format 2, one partition each.
//!
//! In: a batch of changes. Out: finished batches, which a producer only has to sign with its id. Invariants: the
//! changes of a key go to one partition, the one that Java's default partitioner picks, and keep their order; a
//! batch holds no more than `bytes_max` before compression, or a single record.
//!
//! Format: <https://kafka.apache.org/documentation/#recordbatch>.

use std::ops::Range;

use crate::change::{ChangeBatch, View};
use crate::compress::{Codec, CompressFault, Compressor};
use crate::encode::json::Form;
use crate::encode::registered::{Schema, Values};
use crate::record::Event;
use crate::scan;

/// What the records look like, and how they are packed.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// Partitions of the topic, at least 1.
    pub partitions: u32,
    /// Of keys and values.
    pub form: Form,
    /// Values by this schema instead.
    pub schema: Option<&'a Schema>,
    /// Of the batches; None leaves them as they are.
    pub compression: Option<Codec>,
    /// Only changes of this table.
    pub table: Option<&'a str>,
    /// Each record says where it came from.
    pub headers: bool,
    /// A delete is followed by a record without a value, which compaction takes as "forget the key".
    pub tombstones: bool,
    /// Of a batch, before compression.
    pub bytes_max: usize,
}

/// A finished batch of one partition.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The partition.
    pub partition: u32,
    /// Records in it.
    pub count: u32,
    /// Creation time of its first record, epoch milliseconds.
    pub base_timestamp: i64,
    /// Latest creation time, epoch milliseconds.
    pub max_timestamp: i64,
    bytes: Vec<u8>,
}

/// What a producer knows about itself; all -1 when it is not idempotent.
#[derive(Clone, Copy, Debug)]
pub struct Producer {
    /// Its id.
    pub id: i64,
    /// Its epoch.
    pub epoch: i16,
    /// The sequence of the batch's first record.
    pub base_sequence: i32,
    /// The batch belongs to a transaction.
    pub transactional: bool,
}

// Places in a batch.
const LENGTH: Range<usize> = 8..12;
const CHECKSUM: Range<usize> = 17..21;
const ATTRIBUTES: Range<usize> = 21..23;
const PRODUCER_ID: Range<usize> = 43..51;
const PRODUCER_EPOCH: Range<usize> = 51..53;
const BASE_SEQUENCE: Range<usize> = 53..57;
const HEADER_LEN: usize = 61;

/// More than a cluster has; each costs some memory here.
pub const PARTITIONS_MAX: u32 = 100_000;
/// Lengths in a batch are 32-bit, with a sign.
pub const BYTES_MAX: usize = 1 << 30;

const MAGIC: u8 = 2;
const TRANSACTIONAL: i16 = 0x10;

const fn attributes(compression: Option<Codec>) -> i16 {
    match compression {
        None => 0,
        Some(Codec::Gzip) => 1,
        Some(Codec::Lz4) => 3,
        Some(Codec::Zstd) => 4,
    }
}

impl Batch {
    /// As a producer that isn't idempotent sends it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes the batch into `out`, which has its length, in the name of a producer.
    pub fn write_for(&self, producer: Producer, out: &mut [u8]) {
        out.copy_from_slice(&self.bytes);
        let attributes = i16::from_be_bytes([out[ATTRIBUTES.start], out[ATTRIBUTES.start + 1]]);
        let attributes = attributes | if producer.transactional { TRANSACTIONAL } else { 0 };
        out[ATTRIBUTES].copy_from_slice(&attributes.to_be_bytes());
        out[PRODUCER_ID].copy_from_slice(&producer.id.to_be_bytes());
        out[PRODUCER_EPOCH].copy_from_slice(&producer.epoch.to_be_bytes());
        out[BASE_SEQUENCE].copy_from_slice(&producer.base_sequence.to_be_bytes());
        seal(out);
    }
}

/// Sets the checksum over all that follows it.
fn seal(bytes: &mut [u8]) {
    let checksum = crc32c::crc32c(&bytes[ATTRIBUTES.start..]);
    bytes[CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
}

/// The changes as batches: by partition, in each in order.
pub fn batches(changes: &ChangeBatch, options: &Options<'_>) -> Result<Vec<Batch>, CompressFault> {
    let compressor = options.compression.map(|codec| Compressor::new(codec, None)).transpose()?;
    let room = (changes.nbytes() / options.partitions as usize).min(options.bytes_max);
    let mut writer = Writer { options, compressor, room, open: Vec::new(), finished: Vec::new() };
    writer.open.resize_with(options.partitions as usize, Open::default);
    let table = options.table.map(|name| changes.tables.iter().position(|known| **known == *name));
    let (mut key, mut value, mut version, mut headers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut record = Vec::new();
    let mut values = Values::new(options.form, options.schema);
    for view in changes.views() {
        if table.is_some_and(|table| table != Some(view.table as usize)) {
            continue;
        }
        key.clear();
        options.form.write_key(&mut key, view);
        value.clear();
        let has_value = values.write(&mut value, changes, view);
        headers.clear();
        if options.headers {
            version.clear();
            view.change.version.write(&mut version);
            write_headers(&mut headers, changes, view, &version);
        } else {
            varint(&mut headers, 0);
        }
        let partition = (murmur2(&key) & 0x7fff_ffff) % options.partitions;
        let timestamp = view.change.event_us.div_euclid(1000);
        let mut push = |value| writer.push(partition, timestamp, &key, value, &headers, &mut record);
        if has_value {
            push(Some(&value[..]))?;
        }
        if options.tombstones && view.change.event == Event::Remove {
            push(None)?;
        }
    }
    writer.finish()
}

/// Records of one partition that are not a batch yet.
#[derive(Default)]
struct Open {
    records: Vec<u8>,
    count: u32,
    base_timestamp: i64,
    max_timestamp: i64,
}

struct Writer<'a> {
    options: &'a Options<'a>,
    compressor: Option<Compressor>,
    /// What a partition's records are expected to need.
    room: usize,
    open: Vec<Open>,
    finished: Vec<Batch>,
}

impl Writer<'_> {
    #[inline]
    fn push(
        &mut self,
        partition: u32,
        timestamp: i64,
        key: &[u8],
        value: Option<&[u8]>,
        headers: &[u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), CompressFault> {
        // Ten bytes at most for each of the five numbers around key, value and headers.
        let size_max = key.len() + value.map_or(0, <[u8]>::len) + headers.len() + 50;
        let full = self.options.bytes_max.saturating_sub(HEADER_LEN + size_max);
        if self.open[partition as usize].records.len() > full {
            self.close(partition)?;
        }
        let open = &mut self.open[partition as usize];
        if open.count == 0 {
            open.records.reserve(self.room);
            open.base_timestamp = timestamp;
            open.max_timestamp = timestamp;
        }
        open.max_timestamp = open.max_timestamp.max(timestamp);
        scratch.clear();
        scratch.push(0);
        varint(scratch, timestamp - open.base_timestamp);
        varint(scratch, i64::from(open.count));
        varint(scratch, key.len() as i64);
        scratch.extend_from_slice(key);
        varint(scratch, value.map_or(-1, |value| value.len() as i64));
        let rest = value.unwrap_or_default();
        varint(&mut open.records, (scratch.len() + rest.len() + headers.len()) as i64);
        open.records.extend_from_slice(scratch);
        open.records.extend_from_slice(rest);
        open.records.extend_from_slice(headers);
        open.count += 1;
        Ok(())
    }

    /// Makes a batch of what a partition holds, if anything.
    fn close(&mut self, partition: u32) -> Result<(), CompressFault> {
        let open = &mut self.open[partition as usize];
        if open.count == 0 {
            return Ok(());
        }
        let room = if self.compressor.is_some() { open.records.len() / 2 } else { open.records.len() };
        let mut bytes = Vec::with_capacity(HEADER_LEN + room);
        bytes.extend_from_slice(&[0; 12]); // base offset: the broker's to give; length: below
        bytes.extend_from_slice(&(-1_i32).to_be_bytes()); // partition leader's epoch: the broker's
        bytes.push(MAGIC);
        bytes.extend_from_slice(&[0; 4]); // checksum
        bytes.extend_from_slice(&attributes(self.options.compression).to_be_bytes());
        bytes.extend_from_slice(&(open.count - 1).to_be_bytes()); // offset of the last record
        bytes.extend_from_slice(&open.base_timestamp.to_be_bytes());
        bytes.extend_from_slice(&open.max_timestamp.to_be_bytes());
        bytes.extend_from_slice(&[0xff; 8 + 2 + 4]); // no producer
        bytes.extend_from_slice(&open.count.to_be_bytes());
        match &mut self.compressor {
            Some(compressor) => compressor.compress(&open.records, &mut bytes)?,
            None => bytes.extend_from_slice(&open.records),
        }
        let length = (bytes.len() - LENGTH.end) as u32;
        bytes[LENGTH].copy_from_slice(&length.to_be_bytes());
        seal(&mut bytes);
        self.finished.push(Batch {
            partition,
            count: open.count,
            base_timestamp: open.base_timestamp,
            max_timestamp: open.max_timestamp,
            bytes,
        });
        open.records.clear();
        open.count = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Batch>, CompressFault> {
        for partition in 0..self.options.partitions {
            self.close(partition)?;
        }
        self.finished.sort_by_key(|batch| batch.partition); // stable: the order in a partition stays
        Ok(self.finished)
    }
}

/// Where a record came from: `table`, `event`, `version` and, where the source tells, `position` (its sequence
/// number) and `event_id`.
fn write_headers(out: &mut Vec<u8>, changes: &ChangeBatch, view: View<'_>, version: &[u8]) {
    let table = changes.tables.get(view.table as usize).map_or(&b""[..], |name| name.as_bytes());
    let unescaped;
    let id = if memchr::memchr(b'\\', view.id()).is_some() {
        unescaped = scan::unescaped(view.id());
        &unescaped
    } else {
        view.id()
    };
    let headers = [
        ("table", table),
        ("event", view.change.event.name().as_bytes()),
        ("version", version),
        ("position", view.sequence_number().as_bytes()),
        ("event_id", id),
    ];
    let present = headers.iter().filter(|(_, value)| !value.is_empty());
    varint(out, present.clone().count() as i64);
    for (name, value) in present {
        varint(out, name.len() as i64);
        out.extend_from_slice(name.as_bytes());
        varint(out, value.len() as i64);
        out.extend_from_slice(value);
    }
}

/// A number as Kafka's records write it: zigzag, seven bits a byte, the lowest first.
#[inline(always)]
fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = (value << 1 ^ value >> 63).cast_unsigned();
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Kafka's hash of keys, 32-bit Murmur 2 with Kafka's seed.
///
/// <https://github.com/apache/kafka/blob/trunk/clients/src/main/java/org/apache/kafka/common/utils/Utils.java>.
pub fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = 0x9747_b28c ^ key.len() as u32;
    let (words, tail) = key.as_chunks::<4>();
    for word in words {
        let k = u32::from_le_bytes(*word).wrapping_mul(M);
        h = h.wrapping_mul(M) ^ (k ^ k >> 24).wrapping_mul(M);
    }
    if !tail.is_empty() {
        let mut last = [0; 4];
        last[..tail.len()].copy_from_slice(tail);
        h = (h ^ u32::from_le_bytes(last)).wrapping_mul(M);
    }
    h = (h ^ h >> 13).wrapping_mul(M);
    h ^ h >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of Kafka's own `UtilsTest`.
    #[test]
    fn hashes_as_java_does() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    #[test]
    fn numbers_are_zigzag() {
        for (value, bytes) in [
            (0, &[0][..]),
            (-1, &[1]),
            (1, &[2]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 1]),
            (i64::MAX, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        ] {
            let mut out = Vec::new();
            varint(&mut out, value);
            assert_eq!(out, bytes, "{value}");
        }
    }
}
