//! The elements of a set by value: strings and binary by their bytes, numbers as numbers.
//!
//! In: the places of checked elements. Out: their order, their plain form or their fingerprint in it. Invariant: two
//! equal sets have one order, however they are spelled.

use std::cmp::Ordering;

use crate::binary;
use crate::error::Fault;
use crate::fingerprint;
use crate::number::{self, Number};
use crate::scan::{self, Text, load8};
use crate::value::Tag;

/// Two elements of one set, by value.
pub fn compare(b: &[u8], tag: Tag, x: Text, y: Text) -> Ordering {
    let (raw_x, raw_y) = (&b[x.start..x.end], &b[y.start..y.end]);
    match tag {
        Tag::NS => {
            let is_whole = |text: Text| scan::digits(b, text.start) == text.end - text.start;
            if is_whole(x) && is_whole(y) {
                return raw_x.len().cmp(&raw_y.len()).then_with(|| raw_x.cmp(raw_y));
            }
            Number::parse(raw_x).ok().cmp(&Number::parse(raw_y).ok())
        }
        Tag::BS if x.escaped || y.escaped => binary::decode(&x.bytes(b)).cmp(&binary::decode(&y.bytes(b))),
        // Six bits a character, the greatest first: the bytes' order is that of the characters' values.
        Tag::BS => raw_x.iter().map(|&c| sextet(c)).cmp(raw_y.iter().map(|&c| sextet(c))),
        _ if x.escaped || y.escaped => scan::unescaping(raw_x).cmp(scan::unescaping(raw_y)),
        _ => {
            // Mostly one look tells: a first difference inside both.
            let (first_x, first_y) = (load8(b, x.start), load8(b, y.start));
            let same = ((first_x ^ first_y).trailing_zeros() / 8) as usize;
            if same < raw_x.len().min(raw_y.len()).min(8) {
                return first_x.swap_bytes().cmp(&first_y.swap_bytes());
            }
            raw_x.cmp(raw_y)
        }
    }
}

/// The fingerprint of a set's elements, in their new order.
pub fn fingerprint(b: &[u8], elements: &[Text], tag: Tag) -> Result<u64, Fault> {
    elements.iter().try_fold(fingerprint::LIST, |print, text| {
        let value = if tag == Tag::NS {
            fingerprint::number(b, text.start, text.end, number::check(b, text.start)?.1)
        } else {
            fingerprint::text(b, text.start, text.end, text.escaped)
        };
        Ok(fingerprint::element(print, value))
    })
}

/// Writes a set's elements again, in their new order.
pub fn rewrite(b: &[u8], out: &mut [u8], elements: &[Text], mut o: usize, tag: Tag) {
    let quote: &[u8] = if tag == Tag::NS { b"" } else { b"\"" };
    for (i, text) in elements.iter().enumerate() {
        let comma: &[u8] = if i == 0 { b"" } else { b"," };
        for piece in [comma, quote, &b[text.start..text.end], quote] {
            if let Some(place) = out.get_mut(o..o + piece.len()) {
                place.copy_from_slice(piece);
            }
            o += piece.len();
        }
    }
}

/// Where a character stands in the alphabet of base64; its padding before all.
const fn sextet(c: u8) -> u8 {
    match c {
        b'A'..=b'Z' => c - b'A' + 1,
        b'a'..=b'z' => c - b'a' + 27,
        b'0'..=b'9' => c - b'0' + 53,
        b'+' => 63,
        b'/' => 64,
        _ => 0,
    }
}
