//! Records that the Kinesis Producer Library put several user records into.
//!
//! In: the last record of `Records`. Out: the user records in its place, when it is such an aggregate: the magic
//! number, a protobuf message, the MD5 of the message. Invariants: no length of the message is believed beyond
//! the message; what is no aggregate in every respect stays the one record it was, so that decoding refuses
//! it with all its bytes; a user record isn't looked into again.
//!
//! Format: <https://github.com/awslabs/amazon-kinesis-producer/blob/master/aggregation-format.md>; wire types:
//! <https://protobuf.dev/programming-guides/encoding/>. Keys, hash keys and tags say nothing to us. A user record
//! that the producer sent to another shard too, because of a reshard, is kept: it is a duplicate like any other.

use std::ops::Range;

use md5::{Digest, Md5};

use crate::records::Records;

const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];
const CHECKSUM: usize = 16;
/// `AggregatedRecord.records`, and `Record.data` in it.
const FIELD: u64 = 3;
/// A user record takes this much of its aggregate at least, on average: no change is nearly as short, and the
/// places of shorter ones would take more memory than they do.
const USER_RECORD_BYTES_MIN: usize = 32;

/// Puts the user records in the place of the last record, when that is an aggregate.
#[inline]
pub fn take_apart(records: &mut Records) {
    let last = records.payload(records.len().wrapping_sub(1));
    if last.starts_with(&MAGIC)
        && let Some(places) = user_records(last)
    {
        records.split_last(&places);
    }
}

/// The places of the user records' data; None when this is no aggregate.
#[cold]
fn user_records(payload: &[u8]) -> Option<Vec<Range<usize>>> {
    let (message, checksum) = payload.split_at_checked(payload.len().checked_sub(CHECKSUM)?)?;
    if Md5::digest(message.get(MAGIC.len()..)?).as_slice() != checksum {
        return None;
    }
    let mut places = Vec::new();
    fields(message, MAGIC.len(), |number, record| {
        if number == FIELD {
            // Of a field that comes twice the last counts; this one must come.
            let mut data = None;
            fields(&message[..record.end], record.start, |number, bytes| {
                if number == FIELD {
                    data = Some(bytes);
                }
                Some(())
            })?;
            places.push(data?);
        }
        (places.len() * USER_RECORD_BYTES_MIN <= payload.len()).then_some(())
    })?;
    Some(places).filter(|places| !places.is_empty())
}

/// Calls `field` with the number of each field from `at` on and the place of its bytes; fields of fixed length
/// are passed over. None when the bytes are no protobuf message, or `field` says so.
fn fields(b: &[u8], mut at: usize, mut field: impl FnMut(u64, Range<usize>) -> Option<()>) -> Option<()> {
    while at < b.len() {
        let tag = varint(b, &mut at)?;
        let len = match tag & 7 {
            0 => {
                varint(b, &mut at)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(b, &mut at)?).ok()?,
            5 => 4,
            // Groups, long deprecated, and what doesn't exist.
            _ => return None,
        };
        let end = at.checked_add(len).filter(|&end| end <= b.len())?;
        if tag & 7 == 2 {
            field(tag >> 3, at..end)?;
        }
        at = end;
    }
    Some(())
}

fn varint(b: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let c = *b.get(*at)?;
        *at += 1;
        value |= u64::from(c & 0x7F) << shift;
        if c < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delimited(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2];
        let mut len = bytes.len();
        while len > 0x7F {
            field.push(len as u8 | 0x80);
            len >>= 7;
        }
        field.push(len as u8);
        field.extend_from_slice(bytes);
        field
    }

    fn user_record(data: &[u8]) -> Vec<u8> {
        delimited(3, &[&[8, 0][..], &delimited(3, data)].concat())
    }

    fn sealed(message: &[u8]) -> Vec<u8> {
        [&MAGIC[..], message, &Md5::digest(message)].concat()
    }

    /// What becomes of a payload between two others.
    fn taken_apart(payload: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Records::default();
        records.push(b"before", b"1", None, 0).unwrap();
        records.push(payload, b"2", Some(7), 3).unwrap();
        take_apart(&mut records);
        let end = records.len();
        records.push(b"behind", b"3", None, 0).unwrap();
        for (i, entry) in records.entries()[1..end].iter().enumerate() {
            assert_eq!(entry.sub_sequence_number as usize, i);
            assert_eq!((entry.arrival_ms, entry.line), (Some(7), 3));
            assert_eq!(records.sequence_number(1 + i), "2");
        }
        assert_eq!((records.payload(0), records.payload(end)), (&b"before"[..], &b"behind"[..]));
        let lens = records.entries().iter().map(|entry| entry.payload.len as usize);
        assert_eq!(records.arena().len(), lens.sum::<usize>(), "payloads lie one after another");
        (1..end).map(|i| records.payload(i).to_vec()).collect()
    }

    fn stays_whole(payload: &[u8]) {
        assert_eq!(taken_apart(payload), [payload], "{}", payload.escape_ascii());
    }

    #[test]
    fn user_records_take_the_aggregates_place() {
        let [one, two, nothing] = [&[b'x'; 200][..], &[b'y'; 40], &[]];
        let mut message = delimited(1, b"partition key");
        message.extend(user_record(one));
        message.extend(delimited(2, b"0"));
        message.extend(user_record(nothing));
        // A number and fixed lengths: unknown, and passed over.
        message.extend([0x20, 0xFF, 0x01, 0x29, 1, 2, 3, 4, 5, 6, 7, 8, 0x35, 1, 2, 3, 4]);
        // Data before the index, and twice.
        message.extend(delimited(3, &[delimited(3, one), delimited(3, two), vec![8, 0], delimited(4, b"")].concat()));
        assert_eq!(taken_apart(&sealed(&message)), [one, nothing, two]);
    }

    #[test]
    fn an_aggregate_in_an_aggregate_is_left_alone() {
        let inner = sealed(&user_record(&[b'x'; 50]));
        assert_eq!(taken_apart(&sealed(&user_record(&inner))), [inner]);
    }

    #[test]
    fn what_is_no_aggregate_in_every_respect_stays_whole() {
        let good = sealed(&user_record(&[b'x'; 50]));
        assert_eq!(taken_apart(&good), [[b'x'; 50]]);
        for end in 0..good.len() {
            stays_whole(&good[..end]);
        }
        for bit in 0..good.len() * 8 {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            stays_whole(&flipped);
        }
        let long = [b'x'; 100];
        for message in [
            &[][..],
            // No user record; one without data; one whose data has another type.
            &delimited(1, &long),
            &delimited(3, &[8, 0]),
            &delimited(3, &[8, 0, 0x18, 0]),
            // Lengths beyond the message, beyond the user record, beyond everything.
            &[3 << 3 | 2, 0x7F],
            &[&[3 << 3 | 2, 4, 3 << 3 | 2, 100][..], &long].concat(),
            &[&[3 << 3 | 2][..], &[0xFF; 9], &[1], &long].concat(),
            &[&[3 << 3 | 2][..], &[0xFF; 9], &[0x7F], &long].concat(),
            &[&[3 << 3 | 2][..], &[0xFF; 12], &long].concat(),
            &[0xFF],
            // A group.
            &[&user_record(&long)[..], &[0x0B, 0x0C]].concat(),
            // Many that are next to nothing.
            &user_record(b"").repeat(1000),
        ] {
            stays_whole(&sealed(message));
        }
    }
}
