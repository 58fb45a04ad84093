//! Where a JSON value ends, found 64 bytes at a time.
//!
//! In: bytes, and the place where an object or array begins. Out: the place behind it, by its quotes and brackets
//! alone: what is between them is for others to check. Invariant: of valid JSON it is the same place that
//! `scan::skip` finds, and nothing is read past the end.
//!
//! Bytes become bits of a word, one word for each kind of byte that matters. A word's running parity tells which
//! brackets lie in strings, and only the others are counted: no branch depends on how long a string is, which
//! is what a walk from token to token spends its time on (this one takes a third of it).

use crate::error::{Code, Fault};
use crate::scan::{self, byte};

/// How many bytes are looked at in one go.
pub const BLOCK: usize = 64;

/// The place behind the value that begins here. A fault means that it has no end.
pub fn extent(b: &[u8], start: usize) -> Result<usize, Fault> {
    if !matches!(byte(b, start), b'{' | b'[') {
        return scan::skip(b, start);
    }
    let mut depth = 0_u32;
    let mut strings = Strings::default();
    for at in (start..b.len()).step_by(BLOCK) {
        let mut last = [0; BLOCK];
        let block = b[at..].first_chunk::<BLOCK>().unwrap_or_else(|| {
            last[..b.len() - at].copy_from_slice(&b[at..]);
            &last
        });
        let outside = !strings.inside(block);
        let opens = outside & bits(block, |c| c | 0x20 == b'{');
        let closes = outside & bits(block, |c| c | 0x20 == b'}');
        // The end may be here only if there are so many.
        if closes.count_ones() >= depth {
            let mut depth = depth;
            let mut rest = opens | closes;
            while rest != 0 {
                let bracket = rest & rest.wrapping_neg();
                if opens & bracket != 0 {
                    depth += 1;
                } else if depth > 1 {
                    depth -= 1;
                } else {
                    return Ok(at + bracket.trailing_zeros() as usize + 1);
                }
                rest ^= bracket;
            }
        }
        depth = depth + opens.count_ones() - closes.count_ones();
    }
    Err(Fault::new(Code::MalformedJson, b.len()))
}

/// Which of a block's bytes are so: the first one is bit 0.
#[inline(always)]
pub fn bits(block: &[u8; BLOCK], is: impl Fn(u8) -> bool) -> u64 {
    let found = block.map(|c| u8::from(is(c)));
    let mut bits = 0;
    for (i, eight) in found.as_chunks::<8>().0.iter().enumerate() {
        // Eight bytes of 0 or 1: the product's highest byte has them side by side.
        bits |= u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56 << (8 * i);
    }
    bits
}

/// What the blocks before left open.
#[derive(Default)]
pub struct Strings {
    /// All bits set: a string goes on.
    open: u64,
    /// 1: the first byte is escaped.
    escaped: u64,
}

impl Strings {
    /// Which bytes lie in strings, their opening quotes too.
    #[inline(always)]
    pub fn inside(&mut self, block: &[u8; BLOCK]) -> u64 {
        let mut quotes = bits(block, |c| c == b'"');
        let has_slash = block.iter().fold(0, |has, &c| has | u8::from(c == b'\\'));
        if has_slash != 0 || self.escaped != 0 {
            quotes &= !self.escaped(bits(block, |c| c == b'\\'));
        }
        let mut parity = quotes;
        for shift in [1, 2, 4, 8, 16, 32] {
            parity ^= parity << shift;
        }
        let inside = parity ^ self.open;
        self.open = 0_u64.wrapping_sub(inside >> 63);
        inside
    }

    /// Which bytes come behind a backslash that isn't escaped itself.
    fn escaped(&mut self, slashes: u64) -> u64 {
        let mut escaped = std::mem::take(&mut self.escaped);
        let mut rest = slashes & !escaped;
        while rest != 0 {
            let place = rest.trailing_zeros();
            self.escaped = u64::from(place == 63);
            escaped |= 2 << place;
            rest &= !(3 << place);
        }
        escaped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_where_a_strict_walk_ends_wherever_the_blocks_are_cut() {
        for text in [
            "{}",
            "[]",
            r#"{"a":{"b":[1,{"c":"]}"}]},"d":[[],[{}]]}"#,
            r#"{"one":"\"}"}"#,
            r#"{"a":"\"}","b":"\\","c":"\\\"{[","d\"":"\\\\\\\\"}"#,
            r#"["\\\"\\","\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"]"]"#,
            &format!(r#"{{"long":"{}","deep":{}1{}}}"#, "x".repeat(200), "[".repeat(100), "]".repeat(100)),
            &format!(r#"["{}"]"#, r"\\".repeat(97)),
        ] {
            // Blocks are cut from where the value begins: blanks move what is in it.
            for blanks in 0..130 {
                let value = format!("[{}{text}]", " ".repeat(blanks));
                let all = format!("{{\"a\":{value}}}],\"");
                assert_eq!(scan::skip(all.as_bytes(), 5), Ok(5 + value.len()));
                assert_eq!(extent(all.as_bytes(), 5), Ok(5 + value.len()), "{value}");
            }
            for end in 0..text.len() {
                assert!(extent(&text.as_bytes()[..end], 0).is_err(), "{text} cut at {end}");
            }
        }
    }

    #[test]
    fn what_is_between_quotes_and_brackets_is_not_looked_at() {
        for text in ["{\"a\" nonsense, \u{1}: \"\n\\x\"]", "[}", "{\"\\ud83d\":1e}"] {
            assert_eq!(extent(text.as_bytes(), 0), Ok(text.len()), "{text}");
        }
        for text in ["", "}", "{", "[\"]", "nonsense", "{\"a\":\"\\\"}"] {
            assert!(extent(text.as_bytes(), 0).is_err(), "{text}");
        }
    }
}
