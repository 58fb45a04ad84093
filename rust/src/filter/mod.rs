//! Event patterns: which changes a sink wants.
//!
//! In: patterns as `EventBridge` and Lambda's `FilterCriteria` write them. Out: a `Pattern`, compiled once, and for
//! each change whether it matches. Invariants: a pattern that could match nothing, or everything, by a slip of the pen
//! is refused with the place of the slip; matching looks at the images as they were decoded, reads each byte at
//! most once whatever the number of patterns, and allocates nothing but to undo escapes.
//!
//! A log sink leaves single changes out (`leave_out`); a state sink deletes what doesn't belong there (`Rows::shown`).
//!
//! Rules: <https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-create-pattern-operators.html> and
//! <https://docs.aws.amazon.com/lambda/latest/dg/with-ddb-filtering.html>. Where we differ, on purpose:
//! - An `N` is text on the wire, which makes AWS's `numeric` match no DynamoDB number at all. Here numbers in a pattern
//!   and in `N` and `NS` are compared as numbers, exactly, in any spelling.
//! - `exists` sees whatever a record has (an attribute in any type, a map, a list, an image), not only leaves.
//! - What can match no record (an unknown name, a text for a `BOOL`) is an error, not a filter that drops everything.
//!
//! A list matches when one of its elements does, and what is asked of it together must hold in one element together;
//! where only absence is asked, it must be absent from all. Of a name that comes twice in one object the first counts.

mod build;
mod context;
mod leaf;
mod matching;
mod parse;
mod test;
mod wildcard;

use std::sync::Arc;

use crate::change::{ChangeBatch, Ref};

pub use self::matching::Matcher;
pub use self::parse::PatternError;
use self::test::Tests;

/// One bit per alternative: filters, `$or` and `exists: false` beside other values multiply out.
type Mask = u128;

/// The place of a node in `Pattern::nodes`.
type NodeId = u32;

/// A name that patterns speak of, and what they say of its value.
#[derive(Clone, Debug, Default)]
struct Node {
    /// By name, sorted.
    children: Vec<(Box<[u8]>, NodeId)>,
    /// Alternatives, and the tests of which one must pass for them.
    tests: Vec<(Mask, Arc<Tests>)>,
    /// Alternatives that want something to be here or below.
    wanted: Mask,
    /// Alternatives that want something to be below.
    wanted_below: Mask,
    /// Alternatives that want nothing to be here.
    forbidden: Mask,
    /// Alternatives that an object or a list here may satisfy, as far as this node is concerned.
    container: Mask,
    /// Text here is the text of a number.
    is_number: bool,
}

/// Patterns, compiled: a change matches when one of them does.
#[derive(Clone, Debug)]
pub struct Pattern {
    nodes: Vec<Node>,
    /// All alternatives.
    all: Mask,
    event_name: Option<NodeId>,
    keys: Option<NodeId>,
    new: Option<NodeId>,
    old: Option<NodeId>,
    /// Something is said of a member that only the record's envelope has.
    reads_envelope: bool,
    /// What the patterns speak of, such as `dynamodb.NewImage`, sorted.
    names: Vec<String>,
}

impl Pattern {
    /// Compiles patterns, each a JSON text.
    pub fn compile(texts: &[&str]) -> Result<Self, PatternError> {
        parse::compile(texts)
    }

    /// What the patterns speak of: members of a record, or `dynamodb` and one of its members.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The first name that tells how an item changed rather than what it is; None where the patterns say which
    /// items belong somewhere.
    pub fn name_of_change(&self) -> Option<&str> {
        self.names.iter().map(String::as_str).find(|name| !matches!(*name, "dynamodb.Keys" | "dynamodb.NewImage"))
    }

    /// Something to match many changes with.
    pub fn matcher(&self) -> Matcher<'_> {
        Matcher::new(self)
    }
}

/// The batch without the changes that don't match. They stay known, so that batches put together later are still
/// ordered by all changes.
pub fn leave_out(batch: &ChangeBatch, pattern: &Pattern) -> ChangeBatch {
    let mut matcher = pattern.matcher();
    let (kept, left): (Vec<Ref>, Vec<Ref>) =
        batch.order.iter().partition(|&&r| matcher.matches(batch.view(r).original()));
    let mut less = batch.clone();
    less.order = Arc::new(kept);
    less.hidden = Arc::new([batch.hidden.as_slice(), &left].concat());
    less
}
