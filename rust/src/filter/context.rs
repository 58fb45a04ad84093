//! What a record can have where, and so what a pattern can say there.
//!
//! In: the place of an object or a list in a pattern. Out: the names that can be there, and what to write instead of
//! what can't. Invariant: every member that either source sends is known.

/// Where in a record a pattern's object or list stands, which tells what can be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Context {
    Record,
    Dynamodb,
    UserIdentity,
    /// Attribute names and their values.
    Image,
    /// An attribute's value, under its type.
    Value,
    /// A list's elements; likewise.
    List,
    Text,
    EventName,
    Number,
    Flag,
    /// A scalar of the envelope.
    Any,
}

const RECORD: &[(&str, Context)] = &[
    ("awsRegion", Context::Any),
    ("dynamodb", Context::Dynamodb),
    ("eventID", Context::Any),
    ("eventName", Context::EventName),
    ("eventSource", Context::Any),
    ("eventSourceARN", Context::Any),
    ("eventVersion", Context::Any),
    ("recordFormat", Context::Any),
    ("tableName", Context::Any),
    ("userIdentity", Context::UserIdentity),
];
const DYNAMODB: &[(&str, Context)] = &[
    ("ApproximateCreationDateTime", Context::Any),
    ("ApproximateCreationDateTimePrecision", Context::Any),
    ("Keys", Context::Image),
    ("NewImage", Context::Image),
    ("OldImage", Context::Image),
    ("SequenceNumber", Context::Any),
    ("SizeBytes", Context::Any),
    ("StreamViewType", Context::Any),
];
const USER_IDENTITY: &[(&str, Context)] = &[("principalId", Context::Any), ("type", Context::Any)];
const VALUE: &[(&str, Context)] = &[
    ("B", Context::Text),
    ("BOOL", Context::Flag),
    ("BS", Context::Text),
    ("L", Context::List),
    ("M", Context::Image),
    ("N", Context::Number),
    ("NS", Context::Number),
    ("NULL", Context::Flag),
    ("S", Context::Text),
    ("SS", Context::Text),
];

impl Context {
    /// The names there can be, where they are known.
    pub const fn names(self) -> Option<&'static [(&'static str, Self)]> {
        match self {
            Self::Record => Some(RECORD),
            Self::Dynamodb => Some(DYNAMODB),
            Self::UserIdentity => Some(USER_IDENTITY),
            Self::Value | Self::List => Some(VALUE),
            _ => None,
        }
    }

    pub const fn is_leaf(self) -> bool {
        matches!(self, Self::Text | Self::EventName | Self::Number | Self::Flag | Self::Any)
    }

    /// What to write in this place.
    pub const fn example(self) -> &'static str {
        match self {
            Self::Dynamodb => "{\"NewImage\": {…}}",
            Self::UserIdentity => "{\"type\": [\"Service\"]}",
            Self::Image => "the attribute and its type: {\"price\": {\"N\": [{\"numeric\": [\">\", 10]}]}}",
            Self::Value => "the attribute's type: {\"S\": [\"…\"]}",
            Self::List => "the elements' type: {\"S\": [\"…\"]}",
            _ => "{\"eventName\": [\"INSERT\"]}",
        }
    }
}
