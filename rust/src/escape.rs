//! The escapes of JSON strings, undone.
//!
//! In: the body of a string that [`crate::scan`] has checked. Out: its bytes, or an iterator of them for whoever only
//! compares. Invariant: a pair of surrogates is one character; nothing is read past the body.

use crate::error::{Code, Fault};
use crate::scan::byte;

/// Length of the escape that begins at this backslash; a surrogate pair is one escape.
#[inline]
pub fn length(b: &[u8], at: usize) -> Result<usize, Fault> {
    match byte(b, at + 1) {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(2),
        b'u' => match hex4(b, at + 2)? {
            0xD800..=0xDBFF => {
                if byte(b, at + 6) == b'\\' && byte(b, at + 7) == b'u' && (0xDC00..=0xDFFF).contains(&hex4(b, at + 8)?)
                {
                    Ok(12)
                } else {
                    Err(Fault::new(Code::LoneSurrogate, at))
                }
            }
            0xDC00..=0xDFFF => Err(Fault::new(Code::LoneSurrogate, at)),
            _ => Ok(6),
        },
        _ => Err(Fault::new(Code::MalformedJson, at)),
    }
}

fn hex4(b: &[u8], at: usize) -> Result<u32, Fault> {
    let mut value = 0;
    for i in at..at + 4 {
        let digit = char::from(byte(b, i)).to_digit(16).ok_or(Fault::new(Code::MalformedJson, i))?;
        value = value << 4 | digit;
    }
    Ok(value)
}

/// A checked string body without its escapes.
#[cold]
pub fn unescaped(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    out.extend(unescaping(raw));
    out
}

/// Appends a checked string body without its escapes.
pub fn unescape(raw: &[u8], out: &mut Vec<u8>) {
    if memchr::memchr(b'\\', raw).is_some() {
        out.extend(unescaping(raw));
    } else {
        out.extend_from_slice(raw);
    }
}

/// The bytes of a checked string body without its escapes.
pub fn unescaping(raw: &[u8]) -> impl Iterator<Item = u8> {
    let mut at = 0;
    let (mut character, mut given, mut len) = ([0; 4], 0, 0);
    std::iter::from_fn(move || {
        if given == len {
            match *raw.get(at)? {
                b'\\' => {
                    let found;
                    (found, at) = escaped_character(raw, at + 1);
                    (given, len) = (0, found.encode_utf8(&mut character).len());
                }
                plain => {
                    at += 1;
                    return Some(plain);
                }
            }
        }
        given += 1;
        Some(character[given - 1])
    })
}

/// The character of a checked escape, from behind its backslash, and the place behind it.
fn escaped_character(raw: &[u8], at: usize) -> (char, usize) {
    let character = match byte(raw, at) {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let (mut code, mut end) = (hex4(raw, at + 1).unwrap_or(0), at + 5);
            if (0xD800..=0xDBFF).contains(&code) {
                let low = hex4(raw, end + 2).unwrap_or(0);
                code = 0x10000 + ((code - 0xD800) << 10) + (low & 0x3FF);
                end += 6;
            }
            return (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), end);
        }
        other => char::from(other),
    };
    (character, at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::string;

    #[test]
    fn undoes_escapes_and_refuses_halves_of_pairs() {
        let text = br#"a\"\\\/\b\f\n\r\t\u00e9\u4e2d\ud83d\ude00z""#;
        let found = string(text, 0).unwrap();
        assert_eq!(found.text(text), "a\"\\/\u{8}\u{c}\n\r\té中😀z");
        for (text, code) in [
            (&br#"\ud83d""#[..], Code::LoneSurrogate),
            (br#"\ude00""#, Code::LoneSurrogate),
            (br#"\ud83d\u0041""#, Code::LoneSurrogate),
            (br#"\ud83d\u00""#, Code::MalformedJson),
            (br#"\x""#, Code::MalformedJson),
            (br"\", Code::MalformedJson),
            (b"abc", Code::MalformedJson),
            (b"a\nb\"", Code::ControlCharacter),
            (b"a\0b\"", Code::ControlCharacter),
        ] {
            assert_eq!(string(text, 0).unwrap_err().code, code, "{text:?}");
        }
    }
}
