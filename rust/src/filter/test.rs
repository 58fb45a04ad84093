//! What a pattern says of one value.
//!
//! In: tests, made by `parse`. Out: whether a scalar passes one of them. Invariants: texts are compared byte by byte;
//! numbers by value, with all 38 digits; "ignoring case" folds each character by itself, as Unicode has it.

use std::cmp::Ordering;
use std::net::IpAddr;

use super::wildcard::Wildcard;
use crate::number::Number;

/// A value that is neither object nor list.
#[derive(Clone, Copy, Debug)]
pub enum Scalar<'a> {
    /// A text, its escapes undone.
    Text(&'a [u8]),
    /// A bare JSON number.
    Number(&'a [u8]),
    /// The text of an `N`.
    Decimal(&'a [u8]),
    True,
    False,
    Null,
}

impl<'a> Scalar<'a> {
    const fn text(self) -> Option<&'a [u8]> {
        match self {
            Self::Text(text) | Self::Decimal(text) => Some(text),
            _ => None,
        }
    }
}

/// Tests of which one must pass.
#[derive(Clone, Debug, Default)]
pub struct Tests {
    /// Texts, sorted.
    pub texts: Vec<Box<[u8]>>,
    /// Numbers, sorted.
    pub numbers: Vec<Number>,
    /// Everything else.
    pub others: Vec<Test>,
}

/// One test.
#[derive(Clone, Debug)]
pub enum Test {
    True,
    False,
    Null,
    /// Anything is here.
    Exists,
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    /// Folded.
    EqualsFolded(Box<str>),
    PrefixFolded(Box<str>),
    SuffixFolded(Box<str>),
    Wildcard(Wildcard),
    Cidr(Cidr),
    Range(Range),
    /// None of these passes.
    Not(Tests),
}

impl Tests {
    /// One of the tests passes.
    pub fn pass(&self, value: Scalar<'_>) -> bool {
        if let Some(text) = value.text()
            && self.texts.binary_search_by(|wanted| (**wanted).cmp(text)).is_ok()
        {
            return true;
        }
        // Numbers are parsed when somebody asks, and mostly one asks.
        let number = || match value {
            Scalar::Number(text) | Scalar::Decimal(text) => Number::parse(text).ok(),
            _ => None,
        };
        (!self.numbers.is_empty() && number().is_some_and(|number| self.numbers.binary_search(&number).is_ok()))
            || self.others.iter().any(|test| test.passes(value, number))
    }

    /// An object or a list passes.
    pub fn pass_containers(&self) -> bool {
        self.others.iter().any(|test| matches!(test, Test::Exists))
    }
}

impl Test {
    fn passes(&self, value: Scalar<'_>, number: impl Fn() -> Option<Number>) -> bool {
        let text = || value.text();
        let characters = || text().and_then(|text| std::str::from_utf8(text).ok());
        match self {
            Self::True => matches!(value, Scalar::True),
            Self::False => matches!(value, Scalar::False),
            Self::Null => matches!(value, Scalar::Null),
            Self::Exists => true,
            Self::Prefix(wanted) => text().is_some_and(|text| text.starts_with(wanted)),
            Self::Suffix(wanted) => text().is_some_and(|text| text.ends_with(wanted)),
            Self::EqualsFolded(wanted) => characters().is_some_and(|text| folded(text).eq(wanted.chars())),
            Self::PrefixFolded(wanted) => characters().is_some_and(|text| {
                let mut found = folded(text);
                wanted.chars().all(|c| found.next() == Some(c))
            }),
            Self::SuffixFolded(wanted) => characters().is_some_and(|text| {
                let mut found = folded(text).rev();
                wanted.chars().rev().all(|c| found.next() == Some(c))
            }),
            Self::Wildcard(wanted) => text().is_some_and(|text| wanted.matches(text)),
            Self::Cidr(wanted) => characters().is_some_and(|text| wanted.holds(text)),
            Self::Range(wanted) => number().is_some_and(|number| wanted.holds(&number)),
            Self::Not(tests) => !tests.pass(value),
        }
    }
}

/// A text's characters without their case, as `EventBridge` compares them: `ß` is `SS`.
pub fn folded(text: &str) -> impl DoubleEndedIterator<Item = char> {
    text.chars().flat_map(char::to_lowercase).flat_map(char::to_uppercase)
}

/// Numbers between two bounds, each with whether the bound itself belongs.
#[derive(Clone, Debug, Default)]
pub struct Range {
    pub lower: Option<(Number, bool)>,
    pub upper: Option<(Number, bool)>,
}

impl Range {
    fn holds(&self, number: &Number) -> bool {
        let beyond = |bound: &Option<(Number, bool)>, side| match bound {
            None => true,
            Some((bound, closed)) => match number.cmp(bound) {
                Ordering::Equal => *closed,
                order => order == side,
            },
        };
        beyond(&self.lower, Ordering::Greater) && beyond(&self.upper, Ordering::Less)
    }
}

/// A block of addresses.
#[derive(Clone, Debug)]
pub struct Cidr {
    network: u128,
    mask: u128,
    is_v4: bool,
}

impl Cidr {
    /// Reads `10.0.0.0/8` or `2001:db8::/32`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let (address, is_v4) = number_of(address)?;
        let bits: u32 = bits.parse().ok()?;
        let width = if is_v4 { 32 } else { 128 };
        if bits > width {
            return None;
        }
        let mask = u128::MAX.checked_shl(width - bits).unwrap_or(0);
        Some(Self { network: address & mask, mask, is_v4 })
    }

    fn holds(&self, text: &str) -> bool {
        number_of(text).is_some_and(|(address, is_v4)| is_v4 == self.is_v4 && address & self.mask == self.network)
    }
}

fn number_of(address: &str) -> Option<(u128, bool)> {
    Some(match address.parse().ok()? {
        IpAddr::V4(address) => (u128::from(address.to_bits()), true),
        IpAddr::V6(address) => (address.to_bits(), false),
    })
}
