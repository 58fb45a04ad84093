//! Texts with `*` in them.
//!
//! In: a pattern's text. Out: whether a value matches. Invariant: time grows with the value's length times the
//! number of stars at most, whatever the text: with stars only, the leftmost place of each piece is as good as any.

use memchr::memmem::Finder;

/// A text between stars.
#[derive(Clone, Debug)]
pub struct Wildcard {
    first: Box<[u8]>,
    middle: Vec<Finder<'static>>,
    /// None: there is no star, and the value must be `first`.
    last: Option<Box<[u8]>>,
}

impl Wildcard {
    /// Reads `*` as any text, `\*` as a star and `\\` as a backslash.
    pub fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let mut pieces = vec![Vec::new()];
        let mut at = 0;
        while let Some(&c) = text.get(at) {
            match (c, text.get(at + 1)) {
                (b'*', Some(b'*')) => return Err("write one * instead of several in a row"),
                (b'*', _) => pieces.push(Vec::new()),
                (b'\\', Some(&escaped @ (b'*' | b'\\'))) => {
                    pieces.last_mut().unwrap_or(&mut Vec::new()).push(escaped);
                    at += 1;
                }
                (b'\\', _) => return Err("behind a backslash only * and \\ may follow: write \\\\ for a backslash"),
                _ => pieces.last_mut().unwrap_or(&mut Vec::new()).push(c),
            }
            at += 1;
        }
        let last = if pieces.len() > 1 { pieces.pop().map(Vec::into_boxed_slice) } else { None };
        let mut pieces = pieces.into_iter();
        let first = pieces.next().unwrap_or_default().into_boxed_slice();
        Ok(Self { first, middle: pieces.map(|piece| Finder::new(&piece).into_owned()).collect(), last })
    }

    /// The value fits.
    pub fn matches(&self, value: &[u8]) -> bool {
        let Some(last) = &self.last else { return *self.first == *value };
        let rest = value.strip_prefix(&*self.first).and_then(|rest| rest.strip_suffix(&**last));
        let Some(mut rest) = rest else { return false };
        self.middle.iter().all(|piece| match piece.find(rest) {
            Some(at) => {
                rest = &rest[at + piece.needle().len()..];
                true
            }
            None => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(pattern: &str, value: &str) -> bool {
        Wildcard::parse(pattern.as_bytes()).unwrap().matches(value.as_bytes())
    }

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, value) in
            [("*", ""), ("a*", "a"), ("*a*b*", "xaybz"), ("a*a", "aa"), (r"\**\\", r"*x\"), ("", "")]
        {
            assert!(fits(pattern, value), "{pattern} {value}");
        }
        for (pattern, value) in [("a*a", "a"), ("*ab*b", "ab"), ("a", "aa"), ("", "a"), ("a*b*c", "acb"), (r"\*", "x")]
        {
            assert!(!fits(pattern, value), "{pattern} {value}");
        }
        assert!(Wildcard::parse(b"a**b").is_err());
        assert!(Wildcard::parse(br"a\b").is_err());
        assert!(Wildcard::parse(br"a\").is_err());
    }

    #[test]
    fn hostile_texts_take_no_longer() {
        let pattern = format!("{}b", "*a".repeat(500));
        assert!(!fits(&pattern, &"a".repeat(400_000)));
    }
}
