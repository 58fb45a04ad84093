//! Items by a column plan: each value to its column, or to the rest.
//!
//! In: a plan and checked images, raw. Out: per column a `Value`, and the rest as plain JSON. Invariants: a value
//! goes to its column only when the column holds all of it, so nothing is rounded, cut or turned into another type;
//! every other value stays in the rest, under its name. What fits is the plan's word alone, the same for every
//! format.
//!
//! An attribute that isn't there is a column without a value, and not in the rest. A typed NULL fits no column: it
//! is `null` in the rest, and so it isn't taken for an attribute that isn't there.

use std::collections::HashMap;

use crate::change::{ChangeBatch, View};
use crate::columns::{Plan, Type};
use crate::encode::json::write_string;
use crate::error::Fault;
use crate::number;
use crate::scan::{self, Text, byte, space};
use crate::set;
use crate::value::{self, Notes, Place, SLACK, Tag};

/// A column's value: places in the image, or the value itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// There is none: the attribute isn't there, or its value is in the rest.
    Absent,
    /// A text.
    Text(Text),
    /// The text of a number.
    Number(Text),
    /// A whole number.
    Whole(i64),
    /// True or false.
    Boolean(bool),
    /// The base64 of some bytes.
    Binary(Text),
    /// UTC microseconds.
    Instant(i64),
    /// Any value, typed, by its first byte and the one behind its last.
    Any(usize, usize),
    /// A set: its first element among `Split::elements`, and how many it has. They are sorted by value.
    Set(usize, usize),
}

/// How often which type met a column that it doesn't fit, by the places of `Tag`.
pub type Misses = [u64; Tag::ALL.len()];

/// One image at a time, taken apart; its buffers serve a whole batch.
#[derive(Debug)]
pub struct Split<'p> {
    plan: &'p Plan,
    values: Vec<Value>,
    /// Where each value begins and ends in the image, with its type.
    spans: Vec<(usize, usize)>,
    /// Columns whose attribute is in the rest.
    strays: Vec<bool>,
    elements: Vec<Text>,
    /// The rest so far, with room behind `end`.
    rest: Vec<u8>,
    end: usize,
    scratch: Notes,
    misses: Vec<Misses>,
    guesses: Guesses,
}

/// The column of each attribute of the image before, by its place there: items of a table look alike.
#[derive(Debug, Default)]
struct Guesses {
    places: Vec<Option<usize>>,
    seen: usize,
}

impl Guesses {
    /// The column of the image's next attribute.
    #[inline(always)]
    fn place(&mut self, plan: &Plan, name: &[u8]) -> Option<usize> {
        let seen = self.seen;
        self.seen += 1;
        if let Some(&Some(guess)) = self.places.get(seen)
            && plan.columns()[guess].attribute.as_bytes() == name
        {
            return Some(guess);
        }
        let place = plan.place(name);
        if self.places.len() <= seen {
            self.places.resize(seen + 1, None);
        }
        self.places[seen] = place;
        place
    }
}

impl<'p> Split<'p> {
    /// For images by this plan.
    pub fn new(plan: &'p Plan) -> Self {
        let count = plan.columns().len();
        Self {
            plan,
            values: vec![Value::Absent; count],
            spans: vec![(0, 0); count],
            strays: vec![false; count],
            elements: Vec::new(),
            rest: Vec::new(),
            end: 0,
            scratch: Notes::default(),
            misses: vec![[0; Tag::ALL.len()]; count],
            guesses: Guesses::default(),
        }
    }

    /// The plan.
    pub fn plan(&self) -> &'p Plan {
        self.plan
    }

    /// Takes a checked image apart; attributes that are `elsewhere` are passed over.
    #[inline]
    pub fn read(&mut self, image: &[u8], elsewhere: impl Fn(&[u8]) -> bool) {
        self.values.fill(Value::Absent);
        self.strays.fill(false);
        self.elements.clear();
        (self.end, self.guesses.seen) = (0, 0);
        self.push(b"{");
        // The image was checked before, so that nothing can fail here.
        let _ = scan::object(image, 0, |name, at| self.member(image, name, at, &elsewhere));
        self.push(b"}");
    }

    /// Per column, its value.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// Where a column's value stands in the image: its first byte, its type's, and the one behind its last.
    pub fn span(&self, column: usize) -> (usize, usize) {
        self.spans[column]
    }

    /// The elements of a set.
    pub fn elements(&self, first: usize, len: usize) -> &[Text] {
        self.elements.get(first..first + len).unwrap_or(&[])
    }

    /// The rest: a plain JSON object.
    pub fn rest(&self) -> &[u8] {
        &self.rest[..self.end]
    }

    /// Per column, how often which type has not fitted so far.
    pub fn misses(&self) -> &[Misses] {
        &self.misses
    }

    #[inline(always)]
    fn member(&mut self, b: &[u8], name: &[u8], at: usize, elsewhere: &impl Fn(&[u8]) -> bool) -> Result<usize, Fault> {
        if elsewhere(name) {
            return scan::skip(b, at);
        }
        if let Some(place) = self.guesses.place(self.plan, name) {
            let tag = value::tag(b, at)?.0;
            // A name that comes twice: the last counts, as it does in JSON. Once in the rest, always in the rest.
            if !self.strays[place]
                && let Some((value, end)) = self.fitting(b, at, self.plan.columns()[place].kind)?
            {
                self.values[place] = value;
                self.spans[place] = (at, end);
                return Ok(end);
            }
            self.values[place] = Value::Absent;
            self.strays[place] = true;
            self.misses[place][tag as usize] += 1;
        }
        if self.plan.rest().is_none() {
            return scan::skip(b, at);
        }
        self.keep(b, name, at)
    }

    /// Appends an attribute to the rest.
    fn keep(&mut self, b: &[u8], name: &[u8], at: usize) -> Result<usize, Fault> {
        if self.end > 1 {
            self.push(b",");
        }
        self.push(b"\"");
        let escaped = |c: &u8| *c < b' ' || matches!(c, b'"' | b'\\');
        if name.iter().any(escaped) {
            let mut text = Vec::new();
            write_string(&mut text, name);
            self.push(&text[1..text.len() - 1]);
        } else {
            self.push(name);
        }
        self.push(b"\":");
        self.room(b.len() - at);
        let place = value::plain(b, &mut self.rest, &mut self.scratch, Place { at, o: self.end })?;
        self.end = place.o;
        Ok(place.at)
    }

    /// Makes room for so many bytes and what `value` stores behind them. (It never shrinks, so that it is paid once.)
    fn room(&mut self, bytes: usize) {
        let len = self.end + bytes + SLACK;
        if self.rest.len() < len {
            self.rest.resize(len, 0);
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len());
        self.rest[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// The value that begins here, and the place behind it, when a column of this type holds all of it.
    #[inline]
    fn fitting(&mut self, b: &[u8], start: usize, kind: Type) -> Result<Option<(Value, usize)>, Fault> {
        let (tag, at) = value::tag(b, start)?;
        if tag == Tag::Null {
            return Ok(None);
        }
        let (value, end) = match (kind, tag) {
            (Type::Jsonb, _) => {
                let end = scan::skip(b, start)?;
                // The rest can say what stands in U+0000's place. (Where it isn't one after all, nothing is lost.)
                let may_hold_nul = memchr::memmem::find(&b[start..end], b"\\u0000").is_some();
                return Ok((!may_hold_nul).then_some((Value::Any(start, end), end)));
            }
            (Type::Text | Type::Timestamp, Tag::S)
            | (Type::Numeric | Type::Decimal { .. } | Type::Bigint, Tag::N)
            | (Type::Bytea, Tag::B) => {
                let text = scan::string(b, at + 1)?;
                (scalar(b, text, kind), text.end + 1)
            }
            (Type::Boolean, Tag::Bool) => {
                let at = space(b, at);
                (Some(Value::Boolean(byte(b, at) == b't')), scan::skip(b, at)?)
            }
            (Type::TextArray, Tag::SS) | (Type::NumericArray, Tag::NS) | (Type::ByteaArray, Tag::BS) => {
                let first = self.elements.len();
                let end = scan::array(b, at, |at| {
                    let text = scan::string(b, at + 1)?;
                    self.elements.push(text);
                    Ok(text.end + 1)
                })?;
                let found = &mut self.elements[first..];
                if tag == Tag::SS && found.iter().any(|&text| holds_nul(b, text)) {
                    return Ok(None);
                }
                found.sort_by(|&x, &y| set::compare(b, tag, x, y));
                (Some(Value::Set(first, found.len())), end)
            }
            _ => (None, start),
        };
        match value {
            Some(value) => Ok(Some((value, value::close(b, end)?))),
            None => Ok(None),
        }
    }
}

/// A scalar of the right type as the column's value, when it fits.
#[inline]
fn scalar(b: &[u8], text: Text, kind: Type) -> Option<Value> {
    match kind {
        Type::Text => (!holds_nul(b, text)).then_some(Value::Text(text)),
        Type::Numeric => Some(Value::Number(text)),
        Type::Bigint => number::whole(&b[text.start..text.end]).map(Value::Whole),
        Type::Decimal { precision, scale } => {
            let value = number::unscaled(&b[text.start..text.end], scale)?;
            (value.abs() < number::POWERS[usize::from(precision)]).then_some(Value::Number(text))
        }
        Type::Bytea => Some(Value::Binary(text)),
        Type::Timestamp => instant(&b[text.start..text.end]).map(Value::Instant),
        _ => None,
    }
}

/// The text has U+0000 in it. It is always written `\u0000`; but so may be an escaped backslash and a word.
#[inline]
fn holds_nul(b: &[u8], text: Text) -> bool {
    text.escaped && memchr::memmem::find(&b[text.start..text.end], b"\\u0000").is_some() && text.bytes(b).contains(&0)
}

/// `2024-01-29T15:39:33.915835Z` as UTC microseconds: years from 1 on, no leap second, no other zone, so that the
/// instant tells all that the text did but trailing zeros.
fn instant(text: &[u8]) -> Option<i64> {
    let (head, tail) = text.split_at_checked(19)?;
    let fraction = match tail.strip_suffix(b"Z")? {
        [] => &[][..],
        [b'.', digits @ ..] if (1..=6).contains(&digits.len()) => digits,
        _ => return None,
    };
    let whole = |digits: &[u8]| {
        digits.iter().all(u8::is_ascii_digit).then(|| digits.iter().fold(0_i64, |n, c| n * 10 + i64::from(c - b'0')))
    };
    let [year, month, day] = [whole(&head[..4])?, whole(&head[5..7])?, whole(&head[8..10])?];
    let [hour, minute, second] = [whole(&head[11..13])?, whole(&head[14..16])?, whole(&head[17..19])?];
    let marks = [head[4], head[7], head[10], head[13], head[16]] == *b"--T::";
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !marks || year < 1 || !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days since 1970, the year counted from March: <https://howardhinnant.github.io/date_algorithms.html>.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let date = y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let us = whole(fraction)? * 10_i64.pow(6 - fraction.len() as u32);
    Some(((date * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000 + us)
}

/// Attributes of new images that have no column, in the order in which they were first met: how often each came with
/// which type, by the places of `Tag`. Only of changes that `is_wanted`.
pub fn unplanned(batch: &ChangeBatch, plan: &Plan, is_wanted: impl Fn(View<'_>) -> bool) -> Vec<(String, Misses)> {
    let mut found: Vec<(String, Misses)> = Vec::new();
    let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut guesses = Guesses::default();
    for view in batch.views().filter(|&view| is_wanted(view)) {
        let image = view.raw(view.change.new);
        guesses.seen = 0;
        if image.is_empty() {
            continue;
        }
        // The image was checked before, so that nothing can fail here.
        let _ = scan::object(image, 0, |name, at| {
            if guesses.place(plan, name).is_none() {
                let place = known.get(name).copied().unwrap_or_else(|| {
                    known.insert(name.to_vec(), found.len());
                    found.push((String::from_utf8_lossy(name).into_owned(), [0; Tag::ALL.len()]));
                    found.len() - 1
                });
                found[place].1[value::tag(image, at)?.0 as usize] += 1;
            }
            scan::skip(image, at)
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::columns::tests::plan;

    fn split(kind: &str, value: &str) -> (Value, String) {
        let plan = plan(&[("a", kind)], Some("extra"));
        let mut split = Split::new(&plan);
        let image = format!("{{\"a\":{value}}}");
        split.read(image.as_bytes(), |_| false);
        (split.values()[0], String::from_utf8(split.rest().to_vec()).unwrap())
    }

    #[test]
    fn what_fits_goes_to_its_column_and_all_else_to_the_rest() {
        for (kind, value, fits) in [
            ("text", r#"{"S":"a"}"#, true),
            ("text", r#"{"S":""}"#, true),
            ("text", r#"{"S":"\u0000"}"#, false),
            ("text", r#"{"S":"\\u0000"}"#, true),
            ("text", r#"{"N":"1"}"#, false),
            ("text", r#"{"NULL":true}"#, false),
            ("jsonb", r#"{"NULL":true}"#, false),
            ("jsonb", r#"{"M":{"b":{"L":[{"NULL":true}]}}}"#, true),
            ("bigint", r#"{"N":"9223372036854775807"}"#, true),
            ("bigint", r#"{"N":"-9223372036854775808"}"#, true),
            ("bigint", r#"{"N":"9223372036854775808"}"#, false),
            ("bigint", r#"{"N":"1.0"}"#, true),
            ("bigint", r#"{"N":"1E3"}"#, true),
            ("bigint", r#"{"N":"1.5"}"#, false),
            ("bigint", r#"{"N":"1E-130"}"#, false),
            ("bigint", r#"{"N":"1E125"}"#, false),
            ("bigint", r#"{"S":"1"}"#, false),
            ("numeric(5,2)", r#"{"N":"999.99"}"#, true),
            ("numeric(5,2)", r#"{"N":"1.230"}"#, true),
            ("numeric(5,2)", r#"{"N":"1000"}"#, false),
            ("numeric(5,2)", r#"{"N":"0.001"}"#, false),
            ("numeric(38,0)", r#"{"N":"-99999999999999999999999999999999999999"}"#, true),
            ("boolean", r#"{"BOOL": false}"#, true),
            ("bytea", r#"{"B":""}"#, true),
            ("text[]", r#"{"SS":["b","a"]}"#, true),
            ("text[]", r#"{"SS":["b","\u0000"]}"#, false),
            ("text[]", r#"{"NS":["1"]}"#, false),
            ("numeric[]", r#"{"NS":["10","9"]}"#, true),
            ("bytea[]", r#"{"BS":["AA=="]}"#, true),
            ("text[]", r#"{"L":[{"S":"a"}]}"#, false),
            ("timestamptz", r#"{"S":"2024-01-29T15:39:33Z"}"#, true),
            ("timestamptz", r#"{"S":"2024-01-29 15:39:33Z"}"#, false),
            ("timestamptz", r#"{"N":"1706542773"}"#, false),
        ] {
            let (found, rest) = split(kind, value);
            assert_eq!((found != Value::Absent, rest == "{}"), (fits, fits), "{kind} {value}: {found:?} {rest}");
        }
        assert_eq!(split("bigint", r#"{"N":"1E3"}"#).0, Value::Whole(1000));
        assert_eq!(split("text", r#"{"NULL":true}"#).1, r#"{"a":null}"#);
        assert_eq!(split("bigint", r#"{"N":"1.5"}"#).1, r#"{"a":1.5}"#);
    }

    #[test]
    fn of_a_name_that_comes_twice_the_last_counts() {
        let plan = plan(&[("a", "bigint")], Some("extra"));
        let mut split = Split::new(&plan);
        for (image, value, rest) in [
            (r#"{"a":{"N":"1"},"a":{"N":"2"}}"#, Value::Whole(2), "{}"),
            (r#"{"a":{"N":"1"},"a":{"S":"x"}}"#, Value::Absent, r#"{"a":"x"}"#),
            (r#"{"a":{"S":"x"},"a":{"N":"1"}}"#, Value::Absent, r#"{"a":"x","a":1}"#),
        ] {
            split.read(image.as_bytes(), |_| false);
            assert_eq!((split.values()[0], std::str::from_utf8(split.rest()).unwrap()), (value, rest), "{image}");
        }
        assert_eq!(split.misses()[0][Tag::S as usize], 2);
        assert_eq!(split.misses()[0][Tag::N as usize], 1);
    }

    #[test]
    fn names_in_the_rest_are_escaped_again_and_keys_are_elsewhere() {
        let plan = plan(&[("n", "numeric")], Some("extra"));
        let mut split = Split::new(&plan);
        split.read(
            br#" {"id":{"S":"k"},"q\"\\\n":{"SS":["b","a"]},"n":{"N":"1"},"z":{"B":"AA=="}}"#[1..].as_ref(),
            |name| name == b"id",
        );
        assert_eq!(std::str::from_utf8(split.rest()).unwrap(), "{\"q\\\"\\\\\\u000a\":[\"a\",\"b\"],\"z\":\"AA==\"}");
        assert!(matches!(split.values()[0], Value::Number(_)));
    }

    #[test]
    fn a_plan_without_a_rest_leaves_out() {
        let narrow = plan(&[("a", "text")], None);
        let mut split = Split::new(&narrow);
        split.read(br#"{"a":{"S":"x"},"b":{"S":"y"}}"#, |_| false);
        assert_eq!(split.rest(), b"{}");
    }

    #[test]
    fn instants_are_exact_or_none() {
        assert_eq!(instant(b"1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(instant(b"2024-02-29T23:59:59.999999Z"), Some(1_709_251_199_999_999));
        assert_eq!(instant(b"1969-12-31T23:59:59.9Z"), Some(-100_000));
        assert_eq!(instant(b"0001-01-01T00:00:00Z"), Some(-62_135_596_800_000_000));
        for text in [
            "",
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-00-01T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:60Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00+00:00",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00.1234567Z",
            "2024-01-01t00:00:00Z",
            "0000-01-01T00:00:00Z",
            "2024-01-01T00:00:00.é Z",
        ] {
            assert_eq!(instant(text.as_bytes()), None, "{text}");
        }
    }
}
