//! Binary attributes: base64 on the wire.
//!
//! In: a string's place. Out: whether it is padded standard base64, how many bytes it holds, the bytes. Invariant:
//! equal bytes have one text only, its JSON escapes apart.

use crate::error::{Code, Fault};
use crate::scan::Text;

/// Refuses what is no padded standard base64.
pub fn check(b: &[u8], text: Text) -> Result<(), Fault> {
    base64_simd::STANDARD.check(&text.bytes(b)).map_err(|_| Fault::new(Code::InvalidBase64, text.start))
}

/// The bytes of a checked base64 text.
pub fn decode(text: &[u8]) -> Vec<u8> {
    base64_simd::STANDARD.decode_to_vec(text).unwrap_or_default()
}

/// How many bytes a checked base64 text holds.
pub fn len(b: &[u8], text: Text) -> usize {
    base64_simd::STANDARD.decoded_length(&text.bytes(b)).unwrap_or(0)
}

/// Appends the bytes of a checked base64 text.
pub fn append(b: &[u8], text: Text, out: &mut Vec<u8>) {
    // Checked before, so that it can't fail here.
    let _ = base64_simd::STANDARD.decode_append(&*text.bytes(b), out);
}
