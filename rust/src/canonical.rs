//! Values in a form that all their spellings share, to hash them.
//!
//! In: a checked attribute value, raw. Out: bytes. Invariant: two values get the same bytes exactly when they are the
//! same, type and all, whatever the order of attributes and set elements, the spelling of numbers and the escapes. It
//! is slow: only attributes that a projection hashes are written so.

use crate::binary;
use crate::error::Fault;
use crate::number::Number;
use crate::scan::{self, Text, byte, space};
use crate::value::{Tag, close, tag};

fn write_piece(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn canonical_members(b: &[u8], at: usize, out: &mut Vec<u8>) -> Result<usize, Fault> {
    let mut found: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let end = scan::object(b, at, |name, at| {
        let mut value = Vec::new();
        let end = canonical_value(b, at, &mut value)?;
        found.push((name.to_vec(), value));
        Ok(end)
    })?;
    found.sort();
    out.extend_from_slice(&(found.len() as u64).to_le_bytes());
    for (name, value) in found {
        write_piece(out, &name);
        write_piece(out, &value);
    }
    Ok(end)
}

/// Appends one byte sequence that every spelling of the checked value that begins here shares: attributes by name,
/// sets by value, numbers in their normal form, escapes undone. Gives the place behind it.
pub(crate) fn canonical_value(b: &[u8], at: usize, out: &mut Vec<u8>) -> Result<usize, Fault> {
    let (tag, at) = tag(b, at)?;
    out.push(tag as u8);
    let end = match tag {
        Tag::S | Tag::N | Tag::B => {
            let text = scan::string(b, at + 1)?;
            write_scalar(b, tag, text, out);
            text.end + 1
        }
        Tag::Bool | Tag::Null => {
            let at = space(b, at);
            out.push(byte(b, at));
            scan::skip(b, at)?
        }
        Tag::M => canonical_members(b, at, out)?,
        Tag::L => {
            let start = out.len();
            let mut count = 0_u64;
            out.extend_from_slice(&[0; 8]);
            let end = scan::array(b, at, |at| {
                count += 1;
                canonical_value(b, at, out)
            })?;
            out[start..start + 8].copy_from_slice(&count.to_le_bytes());
            end
        }
        Tag::SS | Tag::NS | Tag::BS => {
            let mut elements = Vec::new();
            let end = scan::array(b, at, |at| {
                let text = scan::string(b, at + 1)?;
                let mut element = Vec::new();
                let of = [Tag::S, Tag::N, Tag::B][usize::from(tag == Tag::NS) + 2 * usize::from(tag == Tag::BS)];
                write_scalar(b, of, text, &mut element);
                elements.push(element);
                Ok(text.end + 1)
            })?;
            elements.sort();
            out.extend_from_slice(&(elements.len() as u64).to_le_bytes());
            for element in elements {
                out.extend_from_slice(&element);
            }
            end
        }
    };
    close(b, end)
}

fn write_scalar(b: &[u8], tag: Tag, text: Text, out: &mut Vec<u8>) {
    let bytes = text.bytes(b);
    match tag {
        Tag::N => {
            let mut canonical = Vec::new();
            Number::read(&bytes).write(&mut canonical);
            write_piece(out, &canonical);
        }
        Tag::B => write_piece(out, &binary::decode(&bytes)),
        _ => write_piece(out, &bytes),
    }
}
