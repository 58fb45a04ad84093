//! The JSON scanner: strings, blanks, skipping, members of an object.
//!
//! In: one record's bytes, already known to be UTF-8, and a place in them. Out: the place behind what was
//! read, or a `Fault`. Invariant: nothing is read past the slice's end; a byte beyond it reads as 0, which
//! is valid nowhere in JSON. The scanner never allocates but to undo escapes.

use std::borrow::Cow;

use wide::u8x16;

use crate::error::{Code, Fault};
use crate::escape;
pub use crate::escape::{unescape, unescaped, unescaping};

/// How deep fields may be nested that we don't know.
const UNKNOWN_DEPTH_MAX: u32 = 128;

const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// A string's place between its quotes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// First byte behind the opening quote.
    pub start: usize,
    /// The closing quote.
    pub end: usize,
    /// It holds a backslash.
    pub escaped: bool,
}

impl Text {
    /// The bytes between the quotes, escapes undone.
    pub fn bytes<'a>(&self, b: &'a [u8]) -> Cow<'a, [u8]> {
        let raw = &b[self.start..self.end];
        if self.escaped { Cow::Owned(unescaped(raw)) } else { Cow::Borrowed(raw) }
    }

    /// Appends the bytes between the quotes, escapes undone.
    #[inline]
    pub fn append(&self, b: &[u8], out: &mut Vec<u8>) {
        let raw = &b[self.start..self.end];
        if self.escaped {
            unescape(raw, out);
        } else {
            out.extend_from_slice(raw);
        }
    }

    /// The text between the quotes, escapes undone.
    pub fn text(&self, b: &[u8]) -> String {
        String::from_utf8_lossy(&self.bytes(b)).into_owned()
    }
}

/// The byte at this place, 0 behind the end.
#[inline(always)]
pub fn byte(b: &[u8], at: usize) -> u8 {
    b.get(at).copied().unwrap_or(0)
}

/// Eight bytes from this place as a little-endian word; those behind the end are 0.
#[inline(always)]
pub fn load8(b: &[u8], at: usize) -> u64 {
    match b.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        Some(chunk) => u64::from_le_bytes(*chunk),
        None => load_tail(b, at),
    }
}

#[cold]
#[inline(never)]
fn load_tail(b: &[u8], at: usize) -> u64 {
    let mut chunk = [0; 8];
    let tail = b.get(at..).unwrap_or(&[]);
    chunk[..tail.len()].copy_from_slice(tail);
    u64::from_le_bytes(chunk)
}

/// Four bytes from this place as a little-endian word; those behind the end are 0.
#[inline(always)]
pub fn load4(b: &[u8], at: usize) -> u32 {
    match b.get(at..).and_then(<[u8]>::first_chunk::<4>) {
        Some(chunk) => u32::from_le_bytes(*chunk),
        None => load_tail(b, at) as u32,
    }
}

/// Sets the high bit of the first byte that ends a run of plain string bytes (a quote, a backslash, a
/// control character). Bits above the lowest set one mean nothing.
#[inline(always)]
pub(crate) const fn stops(word: u64) -> u64 {
    let quote = word ^ (LOW * b'"' as u64);
    let slash = word ^ (LOW * b'\\' as u64);
    (quote.wrapping_sub(LOW) & !quote | slash.wrapping_sub(LOW) & !slash | word.wrapping_sub(LOW * 0x20) & !word) & HIGH
}

/// The same for sixteen bytes at once: a bit for each byte, the first the lowest.
#[inline(always)]
fn stops16(chunk: [u8; 16]) -> u32 {
    let bytes = u8x16::new(chunk);
    let quote = bytes.simd_eq(u8x16::splat(b'"'));
    let slash = bytes.simd_eq(u8x16::splat(b'\\'));
    let control = bytes.min(u8x16::splat(0x1f)).simd_eq(bytes);
    (quote | slash | control).to_bitmask()
}

/// Number of decimal digits from this place on.
#[inline(always)]
pub fn digits(b: &[u8], at: usize) -> usize {
    let mut n = 0;
    loop {
        let word = load8(b, at + n) ^ (LOW * u64::from(b'0'));
        let other = (((word & !HIGH) + LOW * 0x76) | word) & HIGH;
        if other != 0 {
            return n + (other.trailing_zeros() >> 3) as usize;
        }
        n += 8;
    }
}

/// The first place from here on that is no blank.
#[inline(always)]
pub fn space(b: &[u8], at: usize) -> usize {
    if byte(b, at) > b' ' { at } else { spaces(b, at) }
}

#[inline(never)]
fn spaces(b: &[u8], mut at: usize) -> usize {
    while matches!(byte(b, at), b' ' | b'\n' | b'\r' | b'\t') {
        at += 1;
    }
    at
}

/// Writes eight bytes to `out`, which the caller made larger than everything it can hold.
#[inline(always)]
pub fn store8(out: &mut [u8], o: usize, word: u64) {
    if let Some(place) = out.get_mut(o..).and_then(<[u8]>::first_chunk_mut::<8>) {
        *place = word.to_le_bytes();
    } else {
        debug_assert!(false, "the output is never longer than the input");
    }
}

#[inline(always)]
fn store16(out: &mut [u8], o: usize, chunk: &[u8; 16]) {
    if let Some(place) = out.get_mut(o..).and_then(<[u8]>::first_chunk_mut::<16>) {
        *place = *chunk;
    } else {
        debug_assert!(false, "the output is never longer than the input");
    }
}

/// A string's body, from behind its opening quote to its closing quote; copied verbatim to `out` when `WRITE`.
/// Gives the place of the closing quote, the end of the output, and whether there were escapes.
#[inline(always)]
pub fn copy_string<const WRITE: bool>(
    b: &[u8],
    out: &mut [u8],
    mut at: usize,
    mut o: usize,
) -> Result<(usize, usize, bool), Fault> {
    let mut escaped = false;
    while let Some(chunk) = b.get(at..).and_then(<[u8]>::first_chunk::<16>) {
        if WRITE {
            store16(out, o, chunk);
        }
        let stop = stops16(*chunk);
        if stop == 0 {
            at += 16;
            o += 16;
            continue;
        }
        let n = stop.trailing_zeros() as usize;
        at += n;
        o += n;
        match chunk[n & 15] {
            b'"' => return Ok((at, o, escaped)),
            b'\\' => {
                escaped = true;
                (at, o) = copy_escape::<WRITE>(b, out, at, o)?;
            }
            _ => return Err(Fault::new(Code::ControlCharacter, at)),
        }
    }
    let (at, o, more) = copy_last_string::<WRITE>(b, out, at, o)?;
    Ok((at, o, escaped | more))
}

/// The same for what is left of a string that ends so near the record's end that whole chunks don't fit.
#[inline(never)]
fn copy_last_string<const WRITE: bool>(
    b: &[u8],
    out: &mut [u8],
    mut at: usize,
    mut o: usize,
) -> Result<(usize, usize, bool), Fault> {
    let mut escaped = false;
    loop {
        let word = load8(b, at);
        if WRITE {
            store8(out, o, word);
        }
        let stop = stops(word);
        if stop == 0 {
            at += 8;
            o += 8;
            continue;
        }
        let n = stop.trailing_zeros() >> 3;
        at += n as usize;
        o += n as usize;
        match (word >> (n * 8)) as u8 {
            b'"' => return Ok((at, o, escaped)),
            b'\\' => {
                escaped = true;
                (at, o) = copy_escape::<WRITE>(b, out, at, o)?;
            }
            _ if at >= b.len() => return Err(Fault::new(Code::MalformedJson, at)),
            _ => return Err(Fault::new(Code::ControlCharacter, at)),
        }
    }
}

#[inline(always)]
fn copy_escape<const WRITE: bool>(b: &[u8], out: &mut [u8], at: usize, o: usize) -> Result<(usize, usize), Fault> {
    let n = escape::length(b, at)?;
    if WRITE {
        store8(out, o, load8(b, at));
        if n > 8 {
            store8(out, o + 8, load8(b, at + 8));
        }
    }
    Ok((at + n, o + n))
}

/// A string from behind its opening quote; `end` of the answer is its closing quote.
#[inline(always)]
pub fn string(b: &[u8], at: usize) -> Result<Text, Fault> {
    let (end, _, escaped) = copy_string::<false>(b, &mut [], at, 0)?;
    Ok(Text { start: at, end, escaped })
}

/// The members of an object, `at` its opening brace: calls `member` with each name and the place of its
/// value; it answers with the place behind the value. Gives the place behind the closing brace.
#[inline(always)]
pub fn object(b: &[u8], at: usize, member: impl FnMut(&[u8], usize) -> Result<usize, Fault>) -> Result<usize, Fault> {
    let at = space(b, at + 1);
    if byte(b, at) == b'}' { Ok(at + 1) } else { members(b, at, member) }
}

/// The members of an object from behind the value of one of them; else as `object`.
#[inline(always)]
pub fn more(b: &[u8], at: usize, member: impl FnMut(&[u8], usize) -> Result<usize, Fault>) -> Result<usize, Fault> {
    match behind(b, at)? {
        Behind::Member(at) => members(b, at, member),
        Behind::End(at) => Ok(at),
    }
}

/// What follows a member's value: the next member's name, or the place behind the closing brace.
enum Behind {
    Member(usize),
    End(usize),
}

#[inline(always)]
fn behind(b: &[u8], at: usize) -> Result<Behind, Fault> {
    if load4(b, at) & 0xffff == u32::from_le_bytes(*b",\"\0\0") {
        return Ok(Behind::Member(at + 1));
    }
    let at = space(b, at);
    match byte(b, at) {
        b',' => Ok(Behind::Member(space(b, at + 1))),
        b'}' => Ok(Behind::End(at + 1)),
        _ => Err(Fault::new(Code::MalformedJson, at)),
    }
}

#[inline(always)]
fn members(
    b: &[u8],
    mut at: usize,
    mut member: impl FnMut(&[u8], usize) -> Result<usize, Fault>,
) -> Result<usize, Fault> {
    loop {
        if byte(b, at) != b'"' {
            return Err(Fault::new(Code::MalformedJson, at));
        }
        let name = string(b, at + 1)?;
        // Mostly there are no blanks: one look tells.
        let ahead = load4(b, name.end);
        if ahead & 0xffff == u32::from_le_bytes(*b"\":\0\0") && (ahead >> 16) as u8 > b' ' {
            at = name.end + 2;
        } else {
            at = space(b, name.end + 1);
            if byte(b, at) != b':' {
                return Err(Fault::new(Code::MalformedJson, at));
            }
            at = space(b, at + 1);
        }
        at = if name.escaped { member(&name.bytes(b), at)? } else { member(&b[name.start..name.end], at)? };
        match behind(b, at)? {
            Behind::Member(next) => at = next,
            Behind::End(end) => return Ok(end),
        }
    }
}

/// The elements of an array, `at` its opening bracket; else as `object`.
#[inline(always)]
pub fn array(b: &[u8], at: usize, mut element: impl FnMut(usize) -> Result<usize, Fault>) -> Result<usize, Fault> {
    let mut at = space(b, at + 1);
    if byte(b, at) == b']' {
        return Ok(at + 1);
    }
    loop {
        at = space(b, element(at)?);
        match byte(b, at) {
            b',' => at = space(b, at + 1),
            b']' => return Ok(at + 1),
            _ => return Err(Fault::new(Code::MalformedJson, at)),
        }
    }
}

/// The place behind any JSON value, which is checked on the way.
#[inline(always)]
pub fn skip(b: &[u8], at: usize) -> Result<usize, Fault> {
    match byte(b, at) {
        b'"' => Ok(string(b, at + 1)?.end + 1),
        b'n' => literal(b, at, b"null"),
        _ => skip_nested(b, at, 0),
    }
}

#[inline(never)]
fn skip_nested(b: &[u8], at: usize, depth: u32) -> Result<usize, Fault> {
    if depth > UNKNOWN_DEPTH_MAX {
        return Err(Fault::new(Code::TooDeep, at));
    }
    match byte(b, at) {
        b'"' => Ok(string(b, at + 1)?.end + 1),
        b'{' => object(b, at, |_, at| skip_nested(b, at, depth + 1)),
        b'[' => array(b, at, |at| skip_nested(b, at, depth + 1)),
        b't' => literal(b, at, b"true"),
        b'f' => literal(b, at, b"false"),
        b'n' => literal(b, at, b"null"),
        _ => number(b, at),
    }
}

/// The place behind this word, which must stand here.
#[inline(always)]
pub fn literal(b: &[u8], at: usize, word: &[u8]) -> Result<usize, Fault> {
    if b.get(at..).is_some_and(|rest| rest.starts_with(word)) {
        Ok(at + word.len())
    } else {
        Err(Fault::new(Code::MalformedJson, at))
    }
}

/// The place behind a JSON number.
#[inline]
pub fn number(b: &[u8], start: usize) -> Result<usize, Fault> {
    let bad = |at| Err(Fault::new(Code::MalformedJson, at));
    let mut at = start + usize::from(byte(b, start) == b'-');
    let whole = digits(b, at);
    if whole == 0 || (whole > 1 && byte(b, at) == b'0') {
        return bad(at);
    }
    at += whole;
    if byte(b, at) == b'.' {
        let fraction = digits(b, at + 1);
        if fraction == 0 {
            return bad(at);
        }
        at += 1 + fraction;
    }
    if matches!(byte(b, at), b'e' | b'E') {
        at += 1 + usize::from(matches!(byte(b, at + 1), b'+' | b'-'));
        let exponent = digits(b, at);
        if exponent == 0 {
            return bad(at);
        }
        at += exponent;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_at_every_byte_that_ends_a_run_and_at_no_other() {
        for wanted in 0..=255_u8 {
            for place in 0..8 {
                let mut word = [b'a'; 8];
                word[place] = wanted;
                let stop = stops(u64::from_le_bytes(word));
                let mut chunk = [b'a'; 16];
                chunk[place + 8] = wanted;
                if wanted < 0x20 || wanted == b'"' || wanted == b'\\' {
                    assert_eq!(stop.trailing_zeros() as usize >> 3, place, "{wanted}");
                    assert_eq!(stops16(chunk), 1 << (place + 8), "{wanted}");
                } else {
                    assert_eq!((stop, stops16(chunk)), (0, 0), "{wanted}");
                }
            }
        }
    }

    #[test]
    fn counts_digits_across_words() {
        for n in 0..40 {
            for end in [b'/', b':', b'.', b'"', 0, 0xB0, 0xFF] {
                let mut text = vec![b'0' + (n % 10) as u8; n];
                text.push(end);
                assert_eq!(digits(&text, 0), n, "{n} {end}");
            }
        }
    }

    #[test]
    fn skips_what_serde_reads_and_refuses_what_it_refuses() {
        for text in [
            "1",
            "-0",
            "1.5e-3",
            "[]",
            "[1,[2,{}]]",
            r#"{"a":null,"b":[true,false]}"#,
            "01",
            "1.",
            "-",
            ".5",
            "+1",
            "1e",
            "[1,]",
            "{,}",
            r#"{"a"}"#,
            r#"{"a":}"#,
            "{a:1}",
            "tru",
            "nulls",
            "[1 2]",
            "\"",
            "{",
            "[",
            "",
        ] {
            let ours = skip(text.as_bytes(), 0).is_ok_and(|end| end == text.len());
            assert_eq!(ours, serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text}");
        }
        assert_eq!(skip("[".repeat(100_000).as_bytes(), 0).unwrap_err().code, Code::TooDeep);
    }
}
