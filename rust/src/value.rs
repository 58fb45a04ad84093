//! Attribute values: checked and, in the same pass, written as plain JSON.
//!
//! In: the bytes of an image in DynamoDB's typed JSON. Out: the place behind it and, when `WRITE`, its plain
//! form: numbers and strings verbatim, sets as arrays sorted by value, binary as base64; else that form's
//! fingerprint. Invariants: nothing that DynamoDB couldn't hold passes; the plain form is never longer than what
//! it was made from, so an output buffer of the input's length (and `SLACK`) always suffices.

use std::cmp::Ordering;

use crate::binary::check as check_base64;
use crate::error::{Code, Fault};
use crate::fingerprint;
use crate::number;
use crate::scan::{self, Text, byte, copy_string, load4, load8, space, store8};
use crate::set;

/// Room behind the output, for whole words are stored.
pub const SLACK: usize = 64;
/// How deep lists and maps may be nested.
const DEPTH_MAX: u32 = 32;

/// A place in the input, and one in the output. A pass that writes nothing has no place there: it carries the
/// fingerprint of what it read last instead.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Input.
    pub at: usize,
    /// Output, or fingerprint.
    pub o: usize,
}

const _: () = assert!(usize::BITS == 64, "a place holds a fingerprint, which has 64 bits on every machine");

/// What a pass keeps beside its output; one for a whole batch.
#[derive(Debug, Default)]
pub struct Notes {
    /// The elements of the set being read, to sort them.
    elements: Vec<Text>,
    /// A string was written that holds an escape.
    pub escaped: bool,
}

/// DynamoDB's ten types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the wire's own names")]
pub enum Tag {
    S,
    N,
    B,
    Bool,
    Null,
    M,
    L,
    SS,
    NS,
    BS,
}

impl Tag {
    /// All of them, and their names on the wire; a tag's place here is its number.
    pub const ALL: [(Self, &str); 10] = [
        (Self::S, "S"),
        (Self::N, "N"),
        (Self::B, "B"),
        (Self::Bool, "BOOL"),
        (Self::Null, "NULL"),
        (Self::M, "M"),
        (Self::L, "L"),
        (Self::SS, "SS"),
        (Self::NS, "NS"),
        (Self::BS, "BS"),
    ];
}

const fn word(text: [u8; 8]) -> u64 {
    u64::from_le_bytes(text)
}

impl Notes {
    #[inline(always)]
    fn see(&mut self, escaped: bool) {
        if escaped {
            self.escaped = true;
        }
    }
}

/// `":{"?":"`, the type's letter left out.
const NAME_THEN_LETTER: u64 = word(*b"\":{\"\0\":\"");
const NAME_LETTER: u64 = 0xff << 32;

/// A value's beginning as AWS writes it, up to the byte that tells its kind.
#[derive(Clone, Copy)]
struct Opening {
    text: u64,
    mask: u64,
    tag: Tag,
    /// Bytes up to the content.
    len: u8,
}

/// The place of an opening in `OPENINGS`, by the first two letters of its tag (or its only one and the quote).
const fn slot(ahead: u64) -> usize {
    (((ahead >> 16) as u8 as usize) * SLOT_FIRST + ((ahead >> 24) as u8 as usize) * SLOT_SECOND) & 15
}

/// Chosen so that the ten tags fall into ten slots; the table's construction checks it.
const SLOT_FIRST: usize = 1;
const SLOT_SECOND: usize = 3;

/// One look-up and one compare tell the tag, so that the only jump nobody can predict is the one to its code.
const OPENINGS: [Opening; 16] = {
    const NONE: Opening = Opening { text: 1, mask: 0, tag: Tag::S, len: 0 };
    let texts: [(&[u8], Tag, u8); 10] = [
        (b"{\"S\":\"", Tag::S, 5),
        (b"{\"N\":\"", Tag::N, 5),
        (b"{\"B\":\"", Tag::B, 5),
        (b"{\"M\":{", Tag::M, 5),
        (b"{\"L\":[", Tag::L, 5),
        (b"{\"SS\":[", Tag::SS, 6),
        (b"{\"NS\":[", Tag::NS, 6),
        (b"{\"BS\":[", Tag::BS, 6),
        (b"{\"BOOL\":", Tag::Bool, 8),
        (b"{\"NULL\":", Tag::Null, 8),
    ];
    let mut table = [NONE; 16];
    let mut i = 0;
    while i < texts.len() {
        let (bytes, tag, len) = texts[i];
        let (mut text, mut mask, mut k) = (0, 0, 0);
        while k < bytes.len() {
            text |= (bytes[k] as u64) << (8 * k);
            mask |= 0xff << (8 * k);
            k += 1;
        }
        assert!(table[slot(text)].mask == 0, "two tags in one slot");
        table[slot(text)] = Opening { text, mask, tag, len };
        i += 1;
    }
    table
};

#[inline(always)]
fn put<const WRITE: bool>(out: &mut [u8], o: usize, c: u8) {
    if WRITE && let Some(place) = out.get_mut(o) {
        *place = c;
    }
}

/// An image: the object whose opening brace is here.
#[inline]
pub fn image<const WRITE: bool>(b: &[u8], out: &mut [u8], notes: &mut Notes, place: Place) -> Result<Place, Fault> {
    if byte(b, place.at) != b'{' {
        return Err(wrong_kind(b, place.at));
    }
    members::<WRITE>(b, out, notes, place, 0)
}

/// The members of an image or a map, from its opening brace on.
fn members<const WRITE: bool>(
    b: &[u8],
    out: &mut [u8],
    notes: &mut Notes,
    Place { mut at, mut o }: Place,
    depth: u32,
) -> Result<Place, Fault> {
    // Of the members' fingerprints: their order has no say.
    let mut sum = 0_u64;
    put::<WRITE>(out, o, b'{');
    o += 1;
    at = space(b, at + 1);
    if byte(b, at) == b'}' {
        put::<WRITE>(out, o, b'}');
        return Ok(Place { at: at + 1, o: behind::<WRITE>(o, || fingerprint::object(sum)) });
    }
    loop {
        if byte(b, at) != b'"' {
            return Err(Fault::new(Code::MalformedJson, at));
        }
        put::<WRITE>(out, o, b'"');
        let start = at + 1;
        let mut escaped;
        (at, o, escaped) = copy_string::<WRITE>(b, out, start, o + 1)?;
        let name = if WRITE { 0 } else { fingerprint::text(b, start, at, escaped) };
        if WRITE {
            store8(out, o, word(*b"\":\"\0\0\0\0\0"));
            notes.see(escaped);
            o += 2;
        }
        // The shape that most attributes have: `":{"S":"…"},"`.
        let ahead = load8(b, at);
        if ahead & !NAME_LETTER == NAME_THEN_LETTER && matches!((ahead >> 32) as u8, b'S' | b'N') {
            if (ahead >> 32) as u8 == b'S' {
                let start = at + 8;
                (at, o, escaped) = copy_string::<WRITE>(b, out, start, o + 1)?;
                o = closed::<WRITE>(b, out, notes, Text { start, end: at, escaped }, o);
            } else {
                (at, o) = copy_number::<WRITE>(b, out, at + 8, o)?;
            }
            if !WRITE {
                sum = sum.wrapping_add(fingerprint::member(name, o as u64));
            }
            if load4(b, at) == u32::from_le_bytes(*b"\"},\"") {
                put::<WRITE>(out, o, b',');
                o += 1;
                at += 3;
                continue;
            }
            at = close(b, at + 1)?;
        } else {
            at = space(b, at + 1);
            if byte(b, at) != b':' {
                return Err(Fault::new(Code::MalformedJson, at));
            }
            at = space(b, at + 1);
            Place { at, o } = value::<WRITE>(b, out, notes, Place { at, o }, depth)?;
            if !WRITE {
                sum = sum.wrapping_add(fingerprint::member(name, o as u64));
            }
        }
        if load4(b, at) & 0xffff == u32::from_le_bytes(*b",\"\0\0") {
            put::<WRITE>(out, o, b',');
            o += 1;
            at += 1;
            continue;
        }
        at = space(b, at);
        match byte(b, at) {
            b',' => {
                put::<WRITE>(out, o, b',');
                o += 1;
                at = space(b, at + 1);
            }
            b'}' => {
                put::<WRITE>(out, o, b'}');
                return Ok(Place { at: at + 1, o: behind::<WRITE>(o, || fingerprint::object(sum)) });
            }
            _ => return Err(Fault::new(Code::MalformedJson, at)),
        }
    }
}

/// Behind the last byte of a piece, which is written at `o`; or its fingerprint.
#[inline(always)]
fn behind<const WRITE: bool>(o: usize, fingerprint: impl FnOnce() -> u64) -> usize {
    if WRITE { o + 1 } else { fingerprint() as usize }
}

/// A string's closing quote, and the place behind it; or the string's fingerprint.
#[inline(always)]
fn closed<const WRITE: bool>(b: &[u8], out: &mut [u8], notes: &mut Notes, text: Text, o: usize) -> usize {
    if WRITE {
        notes.see(text.escaped);
        put::<WRITE>(out, o, b'"');
    }
    behind::<WRITE>(o, || fingerprint::text(b, text.start, text.end, text.escaped))
}

/// The place behind the brace that closes a value, from behind its content.
#[inline(always)]
pub(crate) fn close(b: &[u8], at: usize) -> Result<usize, Fault> {
    let at = space(b, at);
    match byte(b, at) {
        b'}' => Ok(at + 1),
        b',' => Err(Fault::new(Code::TwoTypeTags, at)),
        _ => Err(Fault::new(Code::MalformedJson, at)),
    }
}

/// The type tag of the value that begins here, and the place of its content, which has the tag's kind. (Before
/// `true` and `false`, whose kind isn't looked at, there may still be blanks.)
#[inline(always)]
pub(crate) fn tag(b: &[u8], at: usize) -> Result<(Tag, usize), Fault> {
    let ahead = load8(b, at);
    let opening = &OPENINGS[slot(ahead)];
    if ahead & opening.mask == opening.text {
        Ok((opening.tag, at + usize::from(opening.len)))
    } else {
        spaced_tag(b, at)
    }
}

#[inline(never)]
fn spaced_tag(b: &[u8], at: usize) -> Result<(Tag, usize), Fault> {
    if byte(b, at) != b'{' {
        return Err(wrong_kind(b, at));
    }
    let open = space(b, at + 1);
    match byte(b, open) {
        b'"' => {}
        b'}' => return Err(Fault::new(Code::NoTypeTag, at)),
        _ => return Err(Fault::new(Code::MalformedJson, open)),
    }
    let name = scan::string(b, open + 1)?;
    let colon = space(b, name.end + 1);
    if byte(b, colon) != b':' {
        return Err(Fault::new(Code::MalformedJson, colon));
    }
    let tag = match &*name.bytes(b) {
        b"S" => Tag::S,
        b"N" => Tag::N,
        b"B" => Tag::B,
        b"BOOL" => Tag::Bool,
        b"NULL" => Tag::Null,
        b"M" => Tag::M,
        b"L" => Tag::L,
        b"SS" => Tag::SS,
        b"NS" => Tag::NS,
        b"BS" => Tag::BS,
        _ => return Err(Fault::new(Code::UnknownTypeTag, open)),
    };
    let at = space(b, colon + 1);
    let wanted = match tag {
        Tag::S | Tag::N | Tag::B => b'"',
        Tag::M => b'{',
        Tag::L | Tag::SS | Tag::NS | Tag::BS => b'[',
        Tag::Bool | Tag::Null => return Ok((tag, at)),
    };
    match byte(b, at) {
        kind if kind == wanted => Ok((tag, at)),
        _ if tag == Tag::N => Err(no_number(b, at)),
        _ => Err(wrong_kind(b, at)),
    }
}

/// What is wrong with a value of another kind: its kind, if it is JSON at all.
#[cold]
fn wrong_kind(b: &[u8], at: usize) -> Fault {
    match scan::skip(b, at) {
        Ok(_) => Fault::new(Code::WrongKind, at),
        Err(fault) => fault,
    }
}

#[cold]
fn no_number(b: &[u8], at: usize) -> Fault {
    match byte(b, at) {
        b'-' | b'0'..=b'9' => Fault::new(Code::UnquotedNumber, at),
        _ => wrong_kind(b, at),
    }
}

/// One value, from its opening brace on.
#[inline(always)]
fn value<const WRITE: bool>(
    b: &[u8],
    out: &mut [u8],
    notes: &mut Notes,
    Place { at, mut o }: Place,
    depth: u32,
) -> Result<Place, Fault> {
    let (tag, mut at) = tag(b, at)?;
    match tag {
        Tag::S => {
            put::<WRITE>(out, o, b'"');
            let start = at + 1;
            let escaped;
            (at, o, escaped) = copy_string::<WRITE>(b, out, start, o + 1)?;
            o = closed::<WRITE>(b, out, notes, Text { start, end: at, escaped }, o);
            at += 1;
        }
        Tag::N => {
            (at, o) = copy_number::<WRITE>(b, out, at + 1, o)?;
            at += 1;
        }
        Tag::B => {
            put::<WRITE>(out, o, b'"');
            let start = at + 1;
            let escaped;
            (at, o, escaped) = copy_string::<WRITE>(b, out, start, o + 1)?;
            let text = Text { start, end: at, escaped };
            check_base64(b, text)?;
            o = closed::<WRITE>(b, out, notes, text, o);
            at += 1;
        }
        Tag::Bool => {
            at = space(b, at);
            let ahead = load4(b, at);
            let len = if ahead == u32::from_le_bytes(*b"true") {
                4
            } else if ahead == u32::from_le_bytes(*b"fals") && byte(b, at + 4) == b'e' {
                5
            } else {
                return Err(wrong_kind(b, at));
            };
            if WRITE {
                store8(out, o, load8(b, at));
                o += len;
            } else {
                o = (if len == 4 { fingerprint::TRUE } else { fingerprint::FALSE }) as usize;
            }
            at += len;
        }
        Tag::Null => {
            at = space(b, at);
            if load4(b, at) != u32::from_le_bytes(*b"true") {
                return Err(wrong_kind(b, at));
            }
            if WRITE {
                store8(out, o, word(*b"null\0\0\0\0"));
                o += 4;
            } else {
                o = fingerprint::NULL as usize;
            }
            at += 4;
        }
        Tag::M | Tag::L => {
            if depth == DEPTH_MAX {
                return Err(Fault::new(Code::TooDeep, at));
            }
            let place = Place { at, o };
            Place { at, o } = if tag == Tag::M {
                members::<WRITE>(b, out, notes, place, depth + 1)?
            } else {
                list::<WRITE>(b, out, notes, place, depth + 1)?
            };
        }
        Tag::SS | Tag::NS | Tag::BS => {
            Place { at, o } = set::<WRITE>(b, out, notes, Place { at, o }, tag)?;
        }
    }
    Ok(Place { at: close(b, at)?, o })
}

fn list<const WRITE: bool>(
    b: &[u8],
    out: &mut [u8],
    notes: &mut Notes,
    Place { mut at, mut o }: Place,
    depth: u32,
) -> Result<Place, Fault> {
    let mut print = fingerprint::LIST;
    put::<WRITE>(out, o, b'[');
    o += 1;
    at = space(b, at + 1);
    if byte(b, at) == b']' {
        put::<WRITE>(out, o, b']');
        return Ok(Place { at: at + 1, o: behind::<WRITE>(o, || print) });
    }
    loop {
        Place { at, o } = value::<WRITE>(b, out, notes, Place { at, o }, depth)?;
        if !WRITE {
            print = fingerprint::element(print, o as u64);
        }
        at = space(b, at);
        match byte(b, at) {
            b',' => put::<WRITE>(out, o, b','),
            b']' => {
                put::<WRITE>(out, o, b']');
                return Ok(Place { at: at + 1, o: behind::<WRITE>(o, || print) });
            }
            _ => return Err(Fault::new(Code::MalformedJson, at)),
        }
        o += 1;
        at = space(b, at + 1);
    }
}

/// A number's text from behind its quote, without quotes in the output. Gives the place of its closing quote, and
/// that behind the output or the fingerprint.
#[inline(always)]
fn copy_number<const WRITE: bool>(b: &[u8], out: &mut [u8], start: usize, o: usize) -> Result<(usize, usize), Fault> {
    let (end, form) = number::check(b, start)?;
    let len = end - start;
    if !WRITE {
        return Ok((end, fingerprint::number(b, start, end, form) as usize));
    }
    let mut done = 0;
    while done < len {
        store8(out, o + done, load8(b, start + done));
        done += 8;
    }
    Ok((end, o + len))
}

/// A set, from its opening bracket on.
fn set<const WRITE: bool>(
    b: &[u8],
    out: &mut [u8],
    notes: &mut Notes,
    Place { mut at, o: begin }: Place,
    tag: Tag,
) -> Result<Place, Fault> {
    let mut o = begin + 1;
    let mut sorted = true;
    let mut print = fingerprint::LIST;
    notes.elements.clear();
    put::<WRITE>(out, begin, b'[');
    at = space(b, at + 1);
    if byte(b, at) == b']' {
        put::<WRITE>(out, o, b']');
        return Ok(Place { at: at + 1, o: behind::<WRITE>(o, || print) });
    }
    loop {
        if byte(b, at) != b'"' {
            return Err(if tag == Tag::NS { no_number(b, at) } else { wrong_kind(b, at) });
        }
        let start = at + 1;
        let mut escaped = false;
        if tag == Tag::NS {
            (at, o) = copy_number::<WRITE>(b, out, start, o)?;
        } else {
            put::<WRITE>(out, o, b'"');
            (at, o, escaped) = copy_string::<WRITE>(b, out, start, o + 1)?;
            o = closed::<WRITE>(b, out, notes, Text { start, end: at, escaped }, o);
        }
        let text = Text { start, end: at, escaped };
        if tag == Tag::BS {
            check_base64(b, text)?;
        }
        if !WRITE {
            print = fingerprint::element(print, o as u64);
        }
        let last = notes.elements.last();
        sorted = sorted && last.is_none_or(|&last| set::compare(b, tag, last, text) != Ordering::Greater);
        notes.elements.push(text);
        at = space(b, at + 1);
        match byte(b, at) {
            b',' => put::<WRITE>(out, o, b','),
            b']' => break,
            _ => return Err(Fault::new(Code::MalformedJson, at)),
        }
        o += 1;
        at = space(b, at + 1);
    }
    if !sorted {
        notes.elements.sort_by(|&x, &y| set::compare(b, tag, x, y));
        if WRITE {
            set::rewrite(b, out, &notes.elements, begin + 1, tag);
        } else {
            print = set::fingerprint(b, &notes.elements, tag)?;
        }
    }
    put::<WRITE>(out, o, b']');
    Ok(Place { at: at + 1, o: behind::<WRITE>(o, || print) })
}

/// A checked value's plain form, appended to `out`; it begins at `start` and ends before `end`.
pub fn append_plain(b: &[u8], start: usize, end: usize, notes: &mut Notes, out: &mut Vec<u8>) {
    let o = out.len();
    out.resize(o + (end - start) + SLACK, 0);
    let end = plain(b, out, notes, Place { at: start, o }).map_or(o, |place| place.o);
    out.truncate(end);
}

/// A checked image's plain form, appended to `out`.
pub fn write_plain(raw: &[u8], out: &mut Vec<u8>) {
    write_plain_with(raw, &mut Notes::default(), out);
}

/// As `write_plain`, with room for sorting sets that a caller keeps for many images.
pub fn write_plain_with(raw: &[u8], notes: &mut Notes, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + raw.len() + SLACK, 0);
    let end = image::<true>(raw, out, notes, Place { at: 0, o: start }).map_or(start, |place| place.o);
    out.truncate(end);
}

/// A checked image's fingerprint.
pub fn fingerprint(raw: &[u8]) -> u64 {
    image::<false>(raw, &mut [], &mut Notes::default(), Place { at: 0, o: 0 })
        .map_or(fingerprint::UNKNOWN, |place| place.o as u64)
}

/// A checked value's plain form, from its opening brace on; `out` has room for it and for `SLACK`.
pub(crate) fn plain(b: &[u8], out: &mut [u8], notes: &mut Notes, place: Place) -> Result<Place, Fault> {
    value::<true>(b, out, notes, place, 0)
}

/// A value of a key: its type, the text of its content, and the place behind it. The content is checked.
pub fn key_value(b: &[u8], at: usize) -> Result<(Tag, Text, usize), Fault> {
    let (tag, at) = tag(b, at)?;
    if !matches!(tag, Tag::S | Tag::N | Tag::B) {
        return Err(Fault::new(Code::InvalidKey, at));
    }
    let text = if tag == Tag::N {
        Text { start: at + 1, end: number::check(b, at + 1)?.0, escaped: false }
    } else {
        scan::string(b, at + 1)?
    };
    if tag == Tag::B {
        check_base64(b, text)?;
    }
    Ok((tag, text, close(b, text.end + 1)?))
}
