//! The column plan: which attributes have a column of their own, and of which type.
//!
//! In: attributes with types, and a name for the column of the rest. Out: a `Plan`; `split` takes items apart by it.
//! Invariants: an attribute has one column at most; no type rounds a number.

use hashbrown::HashTable;

use crate::key;

/// A decimal type has at most this many digits: as many as DynamoDB's numbers.
const PRECISION_MAX: u8 = 38;

/// PostgreSQL holds 1,600 columns; some are keys and the tail.
const COLUMNS_MAX: usize = 1500;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A text without U+0000, which PostgreSQL's `text` can't hold.
    Text,
    /// Any number.
    Numeric,
    /// A number of at most so many digits, so many of them behind the point.
    Decimal {
        /// All digits.
        precision: u8,
        /// Digits behind the point.
        scale: u8,
    },
    /// A whole number within 64 bits, however it is written.
    Bigint,
    /// True or false.
    Boolean,
    /// Bytes.
    Bytea,
    /// An instant, written as a text `2024-01-29T15:39:33.915835Z`: UTC, at most six digits behind the second.
    Timestamp,
    /// Any value, as plain JSON.
    Jsonb,
    /// A set of texts.
    TextArray,
    /// A set of numbers.
    NumericArray,
    /// A set of binaries.
    ByteaArray,
}

/// The types' names, PostgreSQL's own.
const NAMES: [(&str, Type); 10] = [
    ("text", Type::Text),
    ("numeric", Type::Numeric),
    ("bigint", Type::Bigint),
    ("boolean", Type::Boolean),
    ("bytea", Type::Bytea),
    ("timestamptz", Type::Timestamp),
    ("jsonb", Type::Jsonb),
    ("text[]", Type::TextArray),
    ("numeric[]", Type::NumericArray),
    ("bytea[]", Type::ByteaArray),
];

impl Type {
    /// The type of this name; `numeric(P,S)` has its digits in it.
    pub fn named(name: &str) -> Option<Self> {
        if let Some(&(_, kind)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Some(kind);
        }
        let (precision, scale) = name.strip_prefix("numeric(")?.strip_suffix(')')?.split_once(',')?;
        let (precision, scale) = (precision.parse().ok()?, scale.trim_start().parse().ok()?);
        let possible = (1..=PRECISION_MAX).contains(&precision) && scale <= precision;
        possible.then_some(Self::Decimal { precision, scale })
    }

    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Decimal { precision, scale } => format!("numeric({precision},{scale})"),
            _ => NAMES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name).to_owned(),
        }
    }
}

/// A column of a plan.
#[derive(Clone, Debug)]
pub struct Column {
    /// The attribute whose values it holds.
    pub attribute: Box<str>,
    /// What it holds of them.
    pub kind: Type,
}

/// Which attributes have a column.
#[derive(Debug)]
pub struct Plan {
    columns: Vec<Column>,
    rest: Option<Box<str>>,
    index: HashTable<u32>,
}

/// Why these columns are no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum PlanFault {
    #[error("the attribute {0:?} has two columns: leave one out")]
    Twice(String),
    #[error("an attribute is named {0:?} too: give the column for the rest another name")]
    Rest(String),
    #[error("a plan has at most {COLUMNS_MAX} columns: leave the rarest to the rest")]
    TooMany,
}

impl Plan {
    /// A plan of these columns. Without a name for the rest, what has no column is left out.
    pub fn new(columns: Vec<Column>, rest: Option<Box<str>>) -> Result<Self, PlanFault> {
        if columns.len() > COLUMNS_MAX {
            return Err(PlanFault::TooMany);
        }
        let mut plan = Self { index: HashTable::with_capacity(columns.len()), columns: Vec::new(), rest };
        for column in columns {
            let name = column.attribute.to_string();
            if plan.place(name.as_bytes()).is_some() {
                return Err(PlanFault::Twice(name));
            }
            if plan.rest.as_deref() == Some(&*name) {
                return Err(PlanFault::Rest(name));
            }
            let place = plan.columns.len() as u32;
            plan.columns.push(column);
            let hash = |&place: &u32| key::hash(plan.columns[place as usize].attribute.as_bytes());
            plan.index.insert_unique(hash(&place), place, hash);
        }
        Ok(plan)
    }

    /// The columns, in order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The name of the column for the rest.
    pub fn rest(&self) -> Option<&str> {
        self.rest.as_deref()
    }

    /// The column of this attribute.
    #[inline]
    pub fn place(&self, attribute: &[u8]) -> Option<usize> {
        let same = |&place: &u32| self.columns[place as usize].attribute.as_bytes() == attribute;
        self.index.find(key::hash(attribute), same).map(|&place| place as usize)
    }

    /// Names for the columns and for the rest that are distinct, and in none of `taken`.
    pub fn names(&self, taken: &[&str]) -> Vec<String> {
        let mut names: Vec<String> = Vec::with_capacity(self.columns.len() + 1);
        for wanted in self.columns.iter().map(|column| &*column.attribute).chain(self.rest()) {
            let mut name = wanted.to_owned();
            while taken.contains(&&*name) || names.contains(&name) {
                name.push('_');
            }
            names.push(name);
        }
        names
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A plan of these attributes and types.
    pub(crate) fn plan(columns: &[(&str, &str)], rest: Option<&str>) -> Plan {
        let column = |&(name, kind): &(&str, &str)| Column { attribute: name.into(), kind: Type::named(kind).unwrap() };
        Plan::new(columns.iter().map(column).collect(), rest.map(Box::from)).unwrap()
    }

    #[test]
    fn a_type_is_found_by_the_name_it_gives() {
        for (name, kind) in NAMES {
            assert_eq!((Type::named(name), kind.name()), (Some(kind), name.to_owned()));
        }
        let decimal = Type::Decimal { precision: 12, scale: 2 };
        assert_eq!((Type::named("numeric(12,2)"), decimal.name()), (Some(decimal), "numeric(12,2)".to_owned()));
        for name in ["", "float8", "numeric(39,0)", "numeric(0,0)", "numeric(3,4)", "numeric(3)", "numeric(3,-1)"] {
            assert_eq!(Type::named(name), None, "{name}");
        }
    }

    #[test]
    fn a_name_has_one_column() {
        let column = |name: &str| Column { attribute: name.into(), kind: Type::Text };
        assert_eq!(Plan::new(vec![column("a"), column("a")], None).unwrap_err(), PlanFault::Twice("a".into()));
        assert_eq!(Plan::new(vec![column("a")], Some("a".into())).unwrap_err(), PlanFault::Rest("a".into()));
    }

    #[test]
    fn names_are_distinct() {
        let plan = plan(&[("a b", "text"), ("item_", "text"), ("item", "text"), ("", "text")], Some("extra"));
        assert_eq!(plan.names(&["item"]), ["a b", "item_", "item__", "", "extra"]);
        assert_eq!(plan.names(&[]), ["a b", "item_", "item", "", "extra"]);
    }
}
