//! JSON without the blanks between its tokens.
//!
//! In: checked JSON. Out: its bytes, appended. Invariant: strings stay as they are, and so no value changes.

use crate::extent::{BLOCK, Strings, bits, extent};

/// A checked JSON object or array without the blanks between its tokens, appended to `out`.
pub fn compact(raw: &[u8], out: &mut Vec<u8>) {
    // Mostly there are no blanks: what lies between two is copied in one go.
    let (mut from, mut strings) = (0, Strings::default());
    for at in (0..raw.len()).step_by(BLOCK) {
        let mut last = [b'0'; BLOCK];
        let block = raw[at..].first_chunk::<BLOCK>().unwrap_or_else(|| {
            last[..raw.len() - at].copy_from_slice(&raw[at..]);
            &last
        });
        let mut blanks = !strings.inside(block) & bits(block, |c| c <= b' ');
        while blanks != 0 {
            let blank = at + blanks.trailing_zeros() as usize;
            out.extend_from_slice(&raw[from..blank]);
            from = blank + 1;
            blanks &= blanks - 1;
        }
    }
    out.extend_from_slice(&raw[from..]);
}

/// The same of the object or array that begins here. Gives the place behind it.
pub fn compact_at(b: &[u8], start: usize, out: &mut Vec<u8>) -> usize {
    let end = extent(b, start).unwrap_or(b.len());
    compact(&b[start..end], out);
    end
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

    #[test]
    fn wherever_the_blocks_are_cut() {
        for blanks in 0..130 {
            let gap = " \n\t\r".repeat(blanks).split_off(blanks);
            let text = format!("{{{gap}\"a \\\\\"{gap}:{gap}[\" \\\" {gap}\"{gap},1]{gap}}}");
            let mut out = Vec::new();
            let end = compact_at(format!("x{text} y").as_bytes(), 1, &mut out);
            assert_eq!((end, out), (text.len() + 1, format!("{{\"a \\\\\":[\" \\\" {gap}\",1]}}").into_bytes()));
        }
    }
}
