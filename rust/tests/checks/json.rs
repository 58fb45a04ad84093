//! JSON as `serde_json` reads it, nothing merged: every member stays, numbers keep their text.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Under this name `serde_json` hands over a number's text.
pub const NUMBER: &str = "$serde_json::private::Number";

/// A value. A number's digits stay as they are; its exponent is spelled in one way, for `serde_json` spells it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NodeVisitor)
    }
}

impl Node {
    /// The number of this text.
    pub fn number(text: &str) -> Self {
        Self::Number(text.replace('E', "e").replace('+', ""))
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = from.next_element()? {
            list.push(element);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Node, A::Error> {
        let mut members = Vec::new();
        while let Some((name, value)) = from.next_entry::<String, Node>()? {
            match value {
                Node::Text(text) if members.is_empty() && name == NUMBER => return Ok(Node::number(&text)),
                value => members.push((name, value)),
            }
        }
        Ok(Node::Object(members))
    }
}

/// The value, or None when the text is no JSON.
pub fn parse(text: &[u8]) -> Option<Node> {
    serde_json::from_slice(text).ok()
}
