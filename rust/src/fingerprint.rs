//! Fingerprints of images: 64 bits that every spelling of an item shares.
//!
//! In: the pieces of an image, from the pass that checks it ([`crate::value`]), or the JSON text in which a
//! database gives an item back. Out: one number. Invariants: it is made of the *plain* form (a set is its sorted
//! list, binary its base64 text), so that both sources of one item give the same; the order of attributes, the
//! spelling of a number and the escapes of a string have no say. It is stored: neither it nor its constants may change.

use crate::error::{Code, Fault};
use crate::escape;
use crate::nul;
use crate::number::{self, Number};
use crate::scan::{self, byte, load8, space};

/// The state of an item that isn't there.
pub const GONE: u64 = 0;
/// A state that nothing tells. No two of them are known to be the same.
pub const UNKNOWN: u64 = 1;

/// The value `null`.
pub const NULL: u64 = 0x9e6c_63d0_876a_9a99;
/// The value `false`.
pub const FALSE: u64 = 0xbf3d_2c41_5ba0_6e63;
/// The value `true`.
pub const TRUE: u64 = 0xd1b5_4a32_d192_ed03;
/// What a list begins with.
pub const LIST: u64 = 0x8cb9_2ba7_2f3d_8dd7;

const NUMBER: u64 = 0xf135_7aea_2e62_a9c5;
const PIECE: [u64; 2] = [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db];
const MEMBER: [u64; 2] = [0x8ebc_6af0_9c88_c6e3, 0x5899_65cc_7537_4cc3];
const LONG: [u64; 2] = [0x2d35_8dcc_aa6c_78a5, 0x8bb8_4b93_962e_acc9];
const ELEMENT: u64 = 0x1d8e_4e27_c47d_124f;
const OBJECT: [u64; 2] = [0xeb44_acca_b455_d165, 0xc2b2_ae3d_27d4_eb4f];

/// A stored item may be nested deeper than DynamoDB allows: somebody else wrote it.
const DEPTH_MAX: u32 = 128;

/// What is kept of a word when the piece has this many bytes: of its first word, and of its second.
const KEPT: [[u64; 2]; 17] = {
    let mut kept = [[0; 2]; 17];
    let mut len = 1;
    while len <= 16 {
        kept[len] = if len <= 8 { [u64::MAX >> (64 - 8 * len), 0] } else { [u64::MAX, u64::MAX >> (128 - 8 * len)] };
        len += 1;
    }
    kept
};

#[inline(always)]
const fn fold(x: u64, y: u64) -> u64 {
    let product = x as u128 * y as u128;
    product as u64 ^ (product >> 64) as u64
}

/// A string's bytes `start` to before `end` of `b`, no escapes in them.
#[inline(always)]
pub fn piece(b: &[u8], start: usize, end: usize) -> u64 {
    let len = end - start;
    match KEPT.get(len) {
        // Words are read beyond the piece, and cut: cheaper than to choose by length.
        Some(kept) => {
            // The length takes a place that only a control character could hide, and none is here.
            let low = load8(b, start) & kept[0];
            let high = load8(b, start + 8) & kept[1];
            fold(low ^ PIECE[0], high ^ PIECE[1] ^ (len as u64).rotate_right(8))
        }
        None => long_piece(&b[start..end]),
    }
}

/// More than 16 bytes.
#[inline(never)]
fn long_piece(bytes: &[u8]) -> u64 {
    let word = |chunk: &[u8], at: usize| load8(chunk, at);
    let (blocks, rest) = bytes.as_chunks::<32>();
    let [mut x, mut y] = PIECE;
    for block in blocks {
        x = fold(word(block, 0) ^ x, word(block, 8) ^ LONG[0]);
        y = fold(word(block, 16) ^ y, word(block, 24) ^ LONG[1]);
    }
    if rest.len() > 16 {
        x = fold(word(rest, 0) ^ x, word(rest, 8) ^ LONG[0]);
    }
    if let Some(last) = bytes.last_chunk::<16>() {
        y = fold(word(last, 0) ^ y, word(last, 8) ^ LONG[1]);
    }
    // The length last: beside bytes that aren't mixed yet one could hide the other.
    fold(x ^ LONG[1], y.wrapping_add(bytes.len() as u64) ^ LONG[0])
}

/// As `piece`, of a checked string body: of the text as `jsonb` would print it.
#[inline(always)]
pub fn text(b: &[u8], start: usize, end: usize, escaped: bool) -> u64 {
    if escaped { escaped_text(&b[start..end]) } else { piece(b, start, end) }
}

#[inline(never)]
fn escaped_text(raw: &[u8]) -> u64 {
    if is_usual(raw) {
        return piece(raw, 0, raw.len());
    }
    // The usual form is never longer. Mostly there is room for it here, and nothing is allocated.
    let (mut small, mut large) = ([0; SMALL], Vec::new());
    let usual = if let Some(room) = small.get_mut(..raw.len()) {
        room
    } else {
        large.resize(raw.len(), 0);
        &mut large[..]
    };
    let len = write_usual(escape::unescaping(raw), usual);
    piece(usual, 0, len)
}

/// A text as the body of a JSON string as `jsonb` prints it; gives its length.
fn write_usual(text: impl Iterator<Item = u8>, out: &mut [u8]) -> usize {
    let mut len = 0;
    let mut put = |bytes: &[u8]| {
        if let Some(place) = out.get_mut(len..len + bytes.len()) {
            place.copy_from_slice(bytes);
            len += bytes.len();
        }
    };
    let hex = |digit: u8| b"0123456789abcdef"[usize::from(digit)];
    for c in text {
        match (USUAL.iter().position(|&usual| usual == c), c) {
            (Some(at), _) => put(&[b'\\', USUAL_LETTERS[at]]),
            (None, 0..0x20) => put(&[b'\\', b'u', b'0', b'0', hex(c >> 4), hex(c & 15)]),
            _ => put(&[c]),
        }
    }
    len
}

/// A character's longest escape.
const ESCAPE_MAX: usize = 6;
/// Bytes of a string that are respelled without allocating.
const SMALL: usize = 1024;
const USUAL: &[u8; 7] = b"\"\\\x08\x0c\n\r\t";
const USUAL_LETTERS: &[u8; 7] = b"\"\\bfnrt";

/// Nothing is escaped that needn't be, and in the shortest way.
fn is_usual(raw: &[u8]) -> bool {
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        let len = match &rest[at + 1..] {
            [b'"' | b'\\' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
            [b'u', b'0', b'0', b'0', b'0'..=b'7' | b'b' | b'e' | b'f', ..]
            | [b'u', b'0', b'0', b'1', b'0'..=b'9' | b'a'..=b'f', ..] => 6,
            _ => return false,
        };
        rest = &rest[at + len..];
    }
    true
}

/// A checked number's text: that of its plain decimal notation.
#[inline(always)]
pub fn number(b: &[u8], start: usize, end: usize, form: number::Form) -> u64 {
    let mut last = end;
    if form == number::Form::Decimal {
        while byte(b, last - 1) == b'0' {
            last -= 1;
        }
        last -= usize::from(byte(b, last - 1) == b'.');
    }
    let negative_zero = last - start == 2 && byte(b, start) == b'-' && byte(b, start + 1) == b'0';
    if form == number::Form::Other || negative_zero {
        return odd_number(&b[start..end]);
    }
    piece(b, start, last) ^ NUMBER
}

#[cold]
#[inline(never)]
fn odd_number(text: &[u8]) -> u64 {
    let mut decimal = Vec::new();
    match Number::parse(text) {
        Ok(number) => number.write_fixed(&mut decimal),
        // Beyond what DynamoDB holds: nobody spells it in two ways.
        Err(_) => decimal.extend_from_slice(text),
    }
    piece(&decimal, 0, decimal.len()) ^ NUMBER
}

/// One element more of a list.
#[inline(always)]
pub const fn element(list: u64, value: u64) -> u64 {
    fold(list ^ value, ELEMENT)
}

/// What a member adds to the sum of its object.
#[inline(always)]
pub const fn member(name: u64, value: u64) -> u64 {
    fold(name ^ MEMBER[0], value ^ MEMBER[1])
}

/// An object with this sum of members.
#[inline(always)]
pub const fn object(sum: u64) -> u64 {
    let print = fold(sum ^ OBJECT[0], OBJECT[1]);
    if print <= UNKNOWN { !print } else { print }
}

/// The fingerprint of an item in plain JSON, however it is spaced.
pub fn of_plain(text: &[u8]) -> Result<u64, Fault> {
    let stand_in = nul::stand_in(text);
    let restored = stand_in.as_ref().map(|stand_in| nul::restored(text, stand_in));
    let text = restored.as_deref().unwrap_or(text);
    let start = space(text, 0);
    if byte(text, start) != b'{' {
        return Err(Fault::new(Code::WrongKind, start));
    }
    let (print, end) = plain_object(text, start, stand_in.is_some(), 0)?;
    if space(text, end) == text.len() { Ok(print) } else { Err(Fault::new(Code::TrailingText, end)) }
}

/// With `unnamed` the member without a name doesn't count.
fn plain_object(b: &[u8], at: usize, unnamed: bool, depth: u32) -> Result<(u64, usize), Fault> {
    let mut sum = 0_u64;
    let end = scan::object(b, at, |name, at| {
        let (value, end) = plain_value(b, at, depth + 1)?;
        if !(unnamed && name.is_empty()) {
            let mut usual = vec![0; name.len() * ESCAPE_MAX];
            let len = write_usual(name.iter().copied(), &mut usual);
            sum = sum.wrapping_add(member(piece(&usual, 0, len), value));
        }
        Ok(end)
    })?;
    Ok((object(sum), end))
}

fn plain_value(b: &[u8], at: usize, depth: u32) -> Result<(u64, usize), Fault> {
    if depth > DEPTH_MAX {
        return Err(Fault::new(Code::TooDeep, at));
    }
    match byte(b, at) {
        b'"' => {
            let found = scan::string(b, at + 1)?;
            Ok((text(b, found.start, found.end, found.escaped), found.end + 1))
        }
        b'{' => plain_object(b, at, false, depth),
        b'[' => {
            let mut list = LIST;
            let end = scan::array(b, at, |at| {
                let (value, end) = plain_value(b, at, depth + 1)?;
                list = element(list, value);
                Ok(end)
            })?;
            Ok((list, end))
        }
        b't' => Ok((TRUE, scan::literal(b, at, b"true")?)),
        b'f' => Ok((FALSE, scan::literal(b, at, b"false")?)),
        b'n' => Ok((NULL, scan::literal(b, at, b"null")?)),
        _ => {
            let end = scan::number(b, at)?;
            Ok((odd_number(&b[at..end]), end))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    /// The fingerprint of this image in every form it has.
    fn of(image: &str) -> u64 {
        let typed = value::fingerprint(image.as_bytes());
        let mut plain = Vec::new();
        value::write_plain(image.as_bytes(), &mut plain);
        assert_eq!(of_plain(&plain), Ok(typed), "{image}");
        // As a database prints it: spaced, no U+0000.
        let stored = nul::replaced(&plain).unwrap_or(plain);
        let value: serde_json::Value = serde_json::from_slice(&stored).unwrap();
        let printed = serde_json::to_string_pretty(&value).unwrap();
        assert_eq!(of_plain(printed.as_bytes()), Ok(typed), "{printed}");
        typed
    }

    #[test]
    fn every_spelling_of_an_item_has_one() {
        let equal: &[&[&str]] = &[
            &[r#"{"a":{"S":"x"},"b":{"N":"1"}}"#, "{ \"b\" : {\"N\":\"1.0\"}, \"a\" : {\"S\":\"x\"} }"],
            &[r#"{"n":{"N":"100"}}"#, r#"{"n":{"N":"1E2"}}"#, r#"{"n":{"N":"100.00"}}"#, r#"{"n":{"N":"0.1e3"}}"#],
            &[r#"{"n":{"N":"-0.05"}}"#, r#"{"n":{"N":"-5E-2"}}"#, r#"{"n":{"N":"-0.050"}}"#],
            &[r#"{"n":{"N":"0"}}"#, r#"{"n":{"N":"-0"}}"#, r#"{"n":{"N":"0.0"}}"#, r#"{"n":{"N":"-0.0"}}"#],
            &[r#"{"s":{"SS":["a","b","c"]}}"#, r#"{"s":{"SS":["c","a","b"]}}"#, r#"{"s":{"SS":["c","\u0061","b"]}}"#],
            &[r#"{"s":{"NS":["1","20","3"]}}"#, r#"{"s":{"NS":["3.0","2E1","1"]}}"#],
            &[r#"{"s":{"BS":["AA==","AAA=","/w=="]}}"#, r#"{"s":{"BS":["/w==","AAA=","AA=="]}}"#],
            &["{\"t\":{\"S\":\"é\\\"\\n/\"}}", r#"{"t":{"S":"\u00e9\"\u000a\/"}}"#, r#"{"t":{"S":"\u00E9\u0022\n/"}}"#],
            &[r#"{"\u0061\t":{"NULL":true}}"#, r#"{"a\u0009":{"NULL":true}}"#],
            &[r#"{"z":{"S":"a\u0000b"}}"#],
            &[r#"{"z\u0000":{"M":{"\u0000":{"S":"\u0000␀\\u0000"}}}}"#],
            &[r#"{"z":{"S":"a\\u0000b"}}"#],
            &[r#"{"l":{"L":[{"S":"a"},{"N":"1"},{"M":{}},{"L":[]},{"BOOL":true},{"BOOL":false},{"NULL":true}]}}"#],
            &[r#"{"l":{"L":[{"N":"1"},{"S":"a"},{"M":{}},{"L":[]},{"BOOL":true},{"BOOL":false},{"NULL":true}]}}"#],
            &["{}"],
            &[r#"{"a":{"M":{}}}"#],
            &[r#"{"a":{"L":[]}}"#],
            &[r#"{"a":{"S":""}}"#],
            &[r#"{"a":{"S":"1"}}"#],
            &[r#"{"a":{"N":"1"}}"#],
            &[r#"{"a":{"BOOL":true}}"#],
            &[r#"{"a":{"S":"x"},"b":{"S":"y"}}"#],
            &[r#"{"a":{"S":"y"},"b":{"S":"x"}}"#],
        ];
        let mut seen = Vec::new();
        for spellings in equal {
            let prints: Vec<u64> = spellings.iter().map(|image| of(image)).collect();
            assert!(prints.iter().all(|print| *print == prints[0]), "{spellings:?}");
            assert!(prints[0] > UNKNOWN && !seen.contains(&prints[0]), "{spellings:?}");
            seen.push(prints[0]);
        }
    }

    #[test]
    fn every_byte_of_a_string_counts() {
        let mut seen = std::collections::HashMap::new();
        for len in 0..100 {
            let text = "x".repeat(len);
            let others = (0..len).map(|at| [&text[..at], "y", &text[at + 1..]].concat());
            for text in others.chain([text.clone()]) {
                let print = of(&format!("{{\"a\":{{\"S\":\"{text}\"}}}}"));
                assert_eq!(seen.insert(print, text.clone()), None, "{text}");
            }
        }
    }

    /// They are stored: a change of the function would make every stored one a stranger.
    #[test]
    fn they_never_change() {
        let image = r#"{"id":{"S":"k"},"n":{"N":"1.50"},"long":{"S":"a text of more than thirty-two bytes"}}"#;
        assert_eq!(of(image), 16_498_558_250_613_758_720);
    }

    #[test]
    fn what_is_no_item_has_none() {
        for text in ["", "[]", "{", "{}x", "1", "null", r#"{"a":tru}"#] {
            assert!(of_plain(text.as_bytes()).is_err(), "{text}");
        }
        assert!(of_plain(format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200)).as_bytes()).is_err());
    }
}
