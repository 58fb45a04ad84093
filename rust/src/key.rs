//! A change's primary key as canonical bytes.
//!
//! In: the `Keys` of a record. Out: one byte sequence that every spelling of the key shares, and its hash.
//! Invariants: attributes are sorted by name; names and texts have their escapes undone, numbers are in normal
//! form (1.0 is 1 is 10E-1), binary is decoded; the hash is unseeded, the same in every process.
//!
//! Layout, per attribute: type (`S`, `N`, `B`), length of the name (u32, little-endian), name, length of the
//! value, value.

use crate::binary;
use crate::error::{Code, Fault};
use crate::number::Number;
use crate::scan::{self, byte};
use crate::value::{self, Tag};

/// The three types a key attribute can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// Text.
    S,
    /// Number.
    N,
    /// Bytes.
    B,
}

impl KeyType {
    /// The type of this letter.
    pub const fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'S' => Some(Self::S),
            b'N' => Some(Self::N),
            b'B' => Some(Self::B),
            _ => None,
        }
    }

    /// The wire's letter.
    pub const fn letter(self) -> u8 {
        match self {
            Self::S => b'S',
            Self::N => b'N',
            Self::B => b'B',
        }
    }
}

/// One attribute of a canonical key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyAttribute<'a> {
    /// Its type.
    pub kind: KeyType,
    /// Its name.
    pub name: &'a [u8],
    /// Text, canonical number text, or bytes.
    pub value: &'a [u8],
}

/// The attributes of canonical key bytes.
pub fn attributes(mut canonical: &[u8]) -> impl Iterator<Item = KeyAttribute<'_>> {
    fn piece<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let (piece, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        *rest = after;
        Some(piece)
    }
    std::iter::from_fn(move || {
        let (letter, mut rest) = canonical.split_first()?;
        let kind = KeyType::from_letter(*letter)?;
        let name = piece(&mut rest)?;
        let value = piece(&mut rest)?;
        canonical = rest;
        Some(KeyAttribute { kind, name, value })
    })
}

/// Unseeded, so that it may be compared and kept across processes.
pub fn hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// Reads `Keys`, its opening brace at `at`, and appends the canonical key to `out`. Gives the place behind it.
pub fn read(b: &[u8], at: usize, out: &mut Vec<u8>) -> Result<usize, Fault> {
    if byte(b, at) != b'{' {
        return Err(Fault::new(Code::InvalidKey, at));
    }
    let start = out.len();
    let mut count = 0;
    let mut second = start;
    let end = scan::object(b, at, |name, at| {
        count += 1;
        if count > 2 {
            return Err(Fault::new(Code::InvalidKey, at));
        }
        let (tag, text, end) = value::key_value(b, at)?;
        second = out.len();
        let kind = match tag {
            Tag::N => KeyType::N,
            Tag::B => KeyType::B,
            _ => KeyType::S,
        };
        out.push(kind.letter());
        write_piece(out, |out| out.extend_from_slice(name));
        write_piece(out, |out| match kind {
            KeyType::S => out.extend_from_slice(&text.bytes(b)),
            KeyType::N => Number::read(&b[text.start..text.end]).write(out),
            KeyType::B => out.extend_from_slice(&binary::decode(&text.bytes(b))),
        });
        Ok(end)
    })?;
    if count == 2 {
        let names = (attributes(&out[start..]).next(), attributes(&out[second..]).next());
        if let (Some(first), Some(last)) = names {
            match first.name.cmp(last.name) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return Err(Fault::new(Code::InvalidKey, at)),
                std::cmp::Ordering::Greater => out[start..].rotate_left(second - start),
            }
        }
    }
    if count == 0 { Err(Fault::new(Code::InvalidKey, at)) } else { Ok(end) }
}

fn write_piece(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let place = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let len = (out.len() - place - 4) as u32;
    out[place..place + 4].copy_from_slice(&len.to_le_bytes());
}
