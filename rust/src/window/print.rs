//! What a window remembers of a change: numbers of 128 bits in place of its bytes.
//!
//! In: a decoded change. Out: the print of its `eventID`, of its key, and of the fact it states. Invariants: equal
//! things have equal prints in every spelling (law 3: whatever the order of attributes and set elements, the spelling
//! of numbers, the escapes); different things have different ones but for a chance of one in 2^64 among changes of one
//! key and microsecond, one in 2^128 else. `scratch` is room for a number's text.

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use crate::change::View;
use crate::error::Fault;
use crate::number::Number;
use crate::record::{Event, Precision};
use crate::scan::{self, byte, space};
use crate::value::{Tag, close, tag};

/// The state of an item that isn't there.
pub const GONE: u64 = 0;

const ID: u64 = 1;
const FACT: u64 = 2;

/// The key, its table's name included.
pub fn key(view: View<'_>) -> u128 {
    let table =
        view.part.tables.get(view.change.table as usize).map_or(0, |name| xxh3_64_with_seed(name.as_bytes(), 1));
    xxh3_128_with_seed(view.key(), table)
}

/// The `eventID`, when there is one.
pub fn id(view: View<'_>) -> Option<u128> {
    (!view.id().is_empty()).then(|| xxh3_128_with_seed(view.id(), ID))
}

/// What makes a change another's duplicate under another `eventID`: key, instant, name and images; of DynamoDB
/// Streams the sequence number. None at millisecond precision, where two real changes may look alike.
pub fn fact(view: View<'_>, key: u128, scratch: &mut Vec<u8>) -> Option<u128> {
    let change = view.change;
    let images = match change.precision {
        Precision::Millisecond => return None,
        Precision::Sequence => [0; 3],
        Precision::Microsecond => {
            [change.event as u64, image(view.raw(change.old), scratch), image(view.raw(change.new), scratch)]
        }
    };
    let mut text = [0; 16 + 8 * 6];
    text[..16].copy_from_slice(&key.to_le_bytes());
    for (place, word) in text[16..].chunks_exact_mut(8).zip(change.version.0.into_iter().chain(images)) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    Some(xxh3_128_with_seed(&text, FACT))
}

/// The item's state before this change; None when nothing tells it.
pub fn before(view: View<'_>, scratch: &mut Vec<u8>) -> Option<u64> {
    state(view.raw(view.change.old), view.change.event == Event::Insert, scratch)
}

/// The item's state after it.
pub fn after(view: View<'_>, scratch: &mut Vec<u8>) -> Option<u64> {
    state(view.raw(view.change.new), view.change.event == Event::Remove, scratch)
}

fn state(raw: &[u8], gone: bool, scratch: &mut Vec<u8>) -> Option<u64> {
    if raw.is_empty() { gone.then_some(GONE) } else { Some(image(raw, scratch).max(GONE + 1)) }
}

/// A checked image's print; 0 when it is absent.
fn image(raw: &[u8], scratch: &mut Vec<u8>) -> u64 {
    if raw.is_empty() {
        return 0;
    }
    // The image was checked before, so that nothing can fail here.
    members(raw, 0, scratch).map_or(0, |(print, _)| print)
}

const fn seed(tag: Tag) -> u64 {
    0x9e37_79b9_7f4a_7c15 ^ tag as u64
}

fn mix(x: u64, y: u64) -> u64 {
    xxh3_64_with_seed(&x.to_le_bytes(), y)
}

/// Of an object: its members' sum, which their order doesn't change.
fn members(b: &[u8], at: usize, scratch: &mut Vec<u8>) -> Result<(u64, usize), Fault> {
    let mut sum = 0_u64;
    let end = scan::object(b, at, |name, at| {
        let name = xxh3_64_with_seed(name, 0);
        let (value, end) = value(b, at, scratch)?;
        sum = sum.wrapping_add(mix(name, value));
        Ok(end)
    })?;
    Ok((mix(sum, seed(Tag::M)), end))
}

fn value(b: &[u8], at: usize, scratch: &mut Vec<u8>) -> Result<(u64, usize), Fault> {
    let (tag, at) = tag(b, at)?;
    let (print, end) = match tag {
        Tag::S | Tag::N | Tag::B => scalar(b, at, tag, scratch)?,
        Tag::Bool | Tag::Null => {
            let at = space(b, at);
            (mix(u64::from(byte(b, at)), seed(tag)), scan::skip(b, at)?)
        }
        Tag::M => members(b, at, scratch)?,
        Tag::L => {
            let mut list = seed(tag);
            let end = scan::array(b, at, |at| {
                let (element, end) = value(b, at, scratch)?;
                list = mix(element, list);
                Ok(end)
            })?;
            (list, end)
        }
        Tag::SS | Tag::NS | Tag::BS => {
            let of = if tag == Tag::NS { Tag::N } else { Tag::S };
            let mut sum = 0_u64;
            let end = scan::array(b, at, |at| {
                let (element, end) = scalar(b, at, of, scratch)?;
                sum = sum.wrapping_add(element);
                Ok(end)
            })?;
            (mix(sum, seed(tag)), end)
        }
    };
    Ok((print, close(b, end)?))
}

/// A text, whose quote is here. (Equal bytes have one base64 text only, its escapes apart.)
fn scalar(b: &[u8], at: usize, tag: Tag, scratch: &mut Vec<u8>) -> Result<(u64, usize), Fault> {
    let text = scan::string(b, at + 1)?;
    let bytes = text.bytes(b);
    let print = if tag == Tag::N {
        scratch.clear();
        Number::read(&bytes).write(scratch);
        xxh3_64_with_seed(scratch, seed(tag))
    } else {
        xxh3_64_with_seed(&bytes, seed(tag))
    };
    Ok((print, text.end + 1))
}

#[cfg(test)]
mod tests {
    use super::image;
    use crate::canonical::write_canonical;

    #[test]
    fn prints_are_equal_exactly_where_the_canonical_forms_are() {
        let images = [
            "{}",
            r#"{"a":{"N":"1"},"b":{"SS":["x","y"]}}"#,
            r#"{ "b" : {"SS":["y","x"]}, "\u0061":{"N":"1.0"} }"#,
            r#"{"a":{"N":"10E-1"},"b":{"SS":["x","\u0079"]}}"#,
            r#"{"a":{"S":"1"},"b":{"SS":["x","y"]}}"#,
            r#"{"a":{"N":"1"},"b":{"SS":["x","x"]}}"#,
            r#"{"a":{"N":"1"},"b":{"L":[{"S":"x"},{"S":"y"}]}}"#,
            r#"{"a":{"N":"1"},"b":{"L":[{"S":"y"},{"S":"x"}]}}"#,
            r#"{"a":{"N":"-0"}}"#,
            r#"{"a":{"N":"0.00"}}"#,
            r#"{"a":{"B":"AA=="}}"#,
            r#"{"a":{"S":"AA=="}}"#,
            r#"{"a":{"BS":["/+8=","AA=="]}}"#,
            r#"{"a":{"BS":["AA==","\/+8="]}}"#,
            r#"{"a":{"BOOL":true}}"#,
            r#"{"a":{"BOOL": false}}"#,
            r#"{"a":{"NULL":true}}"#,
            r#"{"a":{"M":{}}}"#,
            r#"{"a":{"L":[]}}"#,
            r#"{"a":{"L":[{"L":[]}]}}"#,
            r#"{"a":{"M":{"b":{"S":"c"}}}}"#,
            r#"{"a":{"M":{"c":{"S":"b"}}}}"#,
        ];
        let canonical = |image: &str| {
            let mut out = Vec::new();
            write_canonical(image.as_bytes(), &mut out);
            out
        };
        for x in images {
            for y in images {
                let print = |text: &str| image(text.as_bytes(), &mut Vec::new());
                assert_eq!(print(x) == print(y), canonical(x) == canonical(y), "{x} {y}");
            }
        }
    }
}
