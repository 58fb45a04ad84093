//! U+0000 in documents: DynamoDB holds it, `jsonb` refuses it.
//!
//! In: an item in plain JSON. Out: the same item without it, from which the first can be had again. Invariant:
//! nothing is lost. Each U+0000 becomes a character that the item doesn't hold, mostly U+2400 (`␀`), and a last
//! member tells which: its name is empty, as no attribute's name in DynamoDB can be.

use memchr::memmem;

use crate::scan::{self, byte};

const ESCAPED: &[u8] = b"\\u0000";
/// `,"":"` and `"}`, around the character.
const MEMBER: [&[u8]; 2] = [b",\"\":\"", b"\"}"];

/// The item without U+0000; None where there is none. (Nor where it can't be done, since no character is free or
/// a member has that name already: whoever takes the item will refuse it.)
pub fn replaced(plain: &[u8]) -> Option<Vec<u8>> {
    memmem::find(plain, ESCAPED)?;
    let mut has_empty_name = false;
    scan::object(plain, 0, |name, at| {
        has_empty_name |= name.is_empty();
        scan::skip(plain, at)
    })
    .ok()?;
    if has_empty_name {
        return None;
    }
    let mut utf8 = [0; 4];
    let stand_in = (0x2400..0x2500).filter_map(char::from_u32).find(|&free| {
        // JSON may spell it in three ways.
        let number = u32::from(free);
        let spellings = [format!("\\u{number:04x}"), format!("\\u{number:04X}"), free.to_string()];
        spellings.iter().all(|spelling| memmem::find(plain, spelling.as_bytes()).is_none())
    })?;
    let stand_in = stand_in.encode_utf8(&mut utf8).as_bytes();
    let mut out = Vec::with_capacity(plain.len() + 16);
    let mut at = 0;
    let mut is_there = false;
    while let Some(slash) = memchr::memchr(b'\\', &plain[at..]) {
        out.extend_from_slice(&plain[at..at + slash]);
        at += slash;
        if plain[at..].starts_with(ESCAPED) {
            is_there = true;
            out.extend_from_slice(stand_in);
            at += ESCAPED.len();
        } else {
            out.extend_from_slice(&[b'\\', byte(plain, at + 1)]);
            at += 2;
        }
    }
    // A backslash of its own before `u0000` is none.
    if !is_there {
        return None;
    }
    out.extend_from_slice(plain[at..].strip_suffix(b"}")?);
    for piece in [MEMBER[0], stand_in, MEMBER[1]] {
        out.extend_from_slice(piece);
    }
    Some(out)
}

/// What stands for U+0000 in this stored item, if anything does: a character's UTF-8.
pub fn stand_in(stored: &[u8]) -> Option<Vec<u8>> {
    memmem::find(stored, b"\"\"")?;
    let mut found = None;
    scan::object(stored, scan::space(stored, 0), |name, at| {
        if name.is_empty() && byte(stored, at) == b'"' {
            found = Some(scan::string(stored, at + 1)?.bytes(stored).into_owned());
        }
        scan::skip(stored, at)
    })
    .ok()?;
    found.filter(|text| std::str::from_utf8(text).is_ok_and(|text| text.chars().count() == 1))
}

/// The stored item with U+0000 where `stand_in` stands for it. Its last member stays.
pub fn restored(stored: &[u8], stand_in: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(stored.len() + 16);
    let mut at = 0;
    for place in memmem::find_iter(stored, stand_in) {
        out.extend_from_slice(&stored[at..place]);
        out.extend_from_slice(ESCAPED);
        at = place + stand_in.len();
    }
    out.extend_from_slice(&stored[at..]);
    out
}
