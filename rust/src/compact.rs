//! JSON without the blanks between its tokens.
//!
//! In: checked JSON. Out: its bytes, appended. Invariant: strings stay as they are, and so no value changes.

use crate::scan::string;

/// A checked JSON object without the blanks between its tokens, appended to `out`.
pub fn compact(raw: &[u8], out: &mut Vec<u8>) {
    compact_at(raw, 0, out);
}

/// The same of the checked object or array that begins here. Gives the place behind it.
pub fn compact_at(b: &[u8], start: usize, out: &mut Vec<u8>) -> usize {
    // Mostly there are no blanks: what lies between two is copied in one go.
    let (mut from, mut at, mut depth) = (start, start, 0_usize);
    while at < b.len() {
        match b[at] {
            b'"' => {
                at = string(b, at + 1).map_or(b.len(), |text| text.end + 1);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    at += 1;
                    break;
                }
            }
            b' ' | b'\n' | b'\r' | b'\t' => {
                out.extend_from_slice(&b[from..at]);
                from = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    out.extend_from_slice(&b[from.min(at)..at]);
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compacts_without_touching_strings() {
        let mut out = Vec::new();
        compact(b"{ \"a b\\\" \" :\n [ 1 , true ] }", &mut out);
        assert_eq!(out, b"{\"a b\\\" \":[1,true]}");
    }
}
