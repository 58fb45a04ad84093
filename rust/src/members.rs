//! Reading again what was checked: an object's members one by one, and past what nobody asked for.
//!
//! In: JSON that was checked before. Out: names, and places. Invariant: as for `scan`; of text that isn't what it was
//! said to be, a place inside it or a fault.

use std::borrow::Cow;

use crate::error::{Code, Fault};
use crate::scan::{byte, load8, skip, space, stops, string};

/// A member's name and the place of its value.
pub type Member<'a> = (Cow<'a, [u8]>, usize);

/// The members of an object. Between two calls of `advance` the reader sets
/// `at` to the place behind the value.
pub struct Members<'a> {
    b: &'a [u8],
    /// The opening brace at first, then the place behind the value that was read last.
    pub at: usize,
    /// The opening quote of the name that was read last.
    pub name_at: usize,
    is_first: bool,
}

impl<'a> Members<'a> {
    /// Of the object whose opening brace is at this place.
    pub const fn new(b: &'a [u8], at: usize) -> Self {
        Self { b, at, name_at: at, is_first: true }
    }

    /// The next member. None behind the last, with `at` behind the closing brace.
    #[inline(always)]
    pub fn advance(&mut self) -> Result<Option<Member<'a>>, Fault> {
        let b = self.b;
        let mut at = space(b, self.at + usize::from(self.is_first));
        match byte(b, at) {
            b'}' => {
                self.at = at + 1;
                return Ok(None);
            }
            b',' if !self.is_first => at = space(b, at + 1),
            _ if self.is_first => {}
            _ => return Err(Fault::new(Code::MalformedJson, at)),
        }
        self.is_first = false;
        if byte(b, at) != b'"' {
            return Err(Fault::new(Code::MalformedJson, at));
        }
        self.name_at = at;
        let name = string(b, at + 1)?;
        at = space(b, name.end + 1);
        if byte(b, at) != b':' {
            return Err(Fault::new(Code::MalformedJson, at));
        }
        Ok(Some((name.bytes(b), space(b, at + 1))))
    }
}

/// The place behind a value that was checked before: brackets are counted, and nothing else is looked at.
#[inline]
pub fn past(b: &[u8], mut at: usize) -> Result<usize, Fault> {
    let mut depth = 0_u32;
    loop {
        match byte(b, at) {
            b'"' => at = string_end(b, at + 1)? + 1,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
                continue;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            0 if at >= b.len() => return Err(Fault::new(Code::MalformedJson, at)),
            _ if depth > 0 => {
                at += 1;
                continue;
            }
            _ => return skip(b, at),
        }
        if depth == 0 {
            return Ok(at);
        }
    }
}

/// The closing quote of a string that was checked before, from behind its opening quote.
#[inline(always)]
fn string_end(b: &[u8], mut at: usize) -> Result<usize, Fault> {
    loop {
        let stop = stops(load8(b, at));
        if stop == 0 {
            at += 8;
            continue;
        }
        at += (stop.trailing_zeros() >> 3) as usize;
        match byte(b, at) {
            b'"' => return Ok(at),
            b'\\' => at += 2,
            _ => return Err(Fault::new(Code::MalformedJson, at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_past_what_it_skips() {
        for text in
            [r#"{"a":[1,{"b":"}\"]{"}],"c":null}"#, r#""x\\""#, "[[],{}]", "-1.5e3", "true", "{ }", r#"{"S":"ä"}"#]
        {
            let followed = format!("{text} ,");
            assert_eq!(past(followed.as_bytes(), 0), skip(text.as_bytes(), 0), "{text}");
            for cut in 0..text.len() {
                // No end of a value is found behind the end of the text.
                assert!(past(&text.as_bytes()[..cut], 0).map_or(true, |end| end <= cut), "{text} {cut}");
            }
        }
    }
}
