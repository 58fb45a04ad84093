//! Patterns, read and compiled.
//!
//! In: JSON texts. Out: a `Pattern`, or the place and the cause of what is wrong, with what to write. Invariants: only
//! what a record can have is accepted; text, depth and number of alternatives are bounded.

use std::sync::Arc;

use super::context::Context;
use super::test::Tests;
use super::{Mask, Node, NodeId, Pattern};
use crate::scan::{self, Members, byte};

const TEXT_BYTES_MAX: usize = 65_536;
const ALTERNATIVES_MAX: usize = Mask::BITS as usize;

/// What is wrong with a pattern, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}{problem}")]
pub struct PatternError {
    place: String,
    problem: String,
}

/// What one alternative asks of one node: the place of tests, or None for nothing to be there.
pub(super) type Constraint = (NodeId, Option<usize>);

pub(super) struct Compiler {
    pub(super) nodes: Vec<Node>,
    pub(super) tests: Vec<Arc<Tests>>,
    /// Names and indexes from the record down to here.
    pub(super) path: Vec<String>,
}

pub(super) type Result<T> = std::result::Result<T, PatternError>;

pub(super) fn compile(texts: &[&str]) -> Result<Pattern> {
    let mut compiler = Compiler { nodes: vec![Node::default()], tests: Vec::new(), path: Vec::new() };
    let mut alternatives = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        compiler.path.clear();
        alternatives.extend(compiler.pattern(text).map_err(|error| match texts.len() {
            1 => error,
            _ => PatternError { place: format!("pattern {index}, {}", error.place), ..error },
        })?);
    }
    compiler.path.clear();
    if alternatives.is_empty() {
        return Err(compiler.error("there is no pattern, so that nothing would match: leave the filter out"));
    }
    compiler.check_count(alternatives.len())?;
    Ok(compiler.finish(&alternatives))
}

impl Compiler {
    pub(super) fn error(&self, problem: impl Into<String>) -> PatternError {
        let mut place = self.path.join(".");
        if !place.is_empty() {
            place.push_str(": ");
        }
        PatternError { place, problem: problem.into() }
    }

    fn check_count(&self, count: usize) -> Result<()> {
        if count <= ALTERNATIVES_MAX {
            return Ok(());
        }
        Err(self
            .error(format!("the patterns' $or multiply out to more than {ALTERNATIVES_MAX} alternatives: use fewer")))
    }

    /// One pattern's alternatives.
    fn pattern(&mut self, text: &str) -> Result<Vec<Vec<Constraint>>> {
        let b = text.as_bytes();
        if b.len() > TEXT_BYTES_MAX {
            return Err(self.error(format!("a pattern has at most {TEXT_BYTES_MAX} bytes, this one {}", b.len())));
        }
        let start = scan::space(b, 0);
        match scan::skip(b, start).map(|end| scan::space(b, end)) {
            Ok(end) if end == b.len() && byte(b, start) == b'{' => self.object(b, start, 0, Context::Record),
            Ok(end) if end == b.len() => {
                Err(self.error("a pattern is an object, such as {\"eventName\": [\"INSERT\"]}"))
            }
            Ok(end) => Err(self.error(format!("text follows the pattern at byte {end}"))),
            Err(fault) => Err(self.error(format!("the pattern is no JSON: {}", fault.message()))),
        }
    }

    /// The members of an object that was found to be JSON, with their values' places.
    pub(super) fn members(&self, b: &[u8], at: usize) -> Result<Vec<(String, usize)>> {
        let mut found: Vec<(String, usize)> = Vec::new();
        let mut members = Members::new(b, at);
        let broken = |_| self.error("the pattern is no JSON");
        while let Some((name, at)) = members.advance().map_err(broken)? {
            let name = String::from_utf8_lossy(&name).into_owned();
            if found.iter().any(|(other, _)| *other == name) {
                return Err(self.error(format!("{name:?} is named twice: only one of both would count")));
            }
            found.push((name, at));
            members.at = scan::skip(b, at).map_err(broken)?;
        }
        Ok(found)
    }

    pub(super) fn elements(&self, b: &[u8], at: usize) -> Result<Vec<usize>> {
        let mut found = Vec::new();
        scan::array(b, at, |at| {
            found.push(at);
            scan::skip(b, at)
        })
        .map_err(|_| self.error("the pattern is no JSON"))?;
        Ok(found)
    }

    fn object(&mut self, b: &[u8], at: usize, node: NodeId, context: Context) -> Result<Vec<Vec<Constraint>>> {
        let members = self.members(b, at)?;
        if members.is_empty() {
            return Err(self.error("{} asks for nothing: name what must match, or leave it out"));
        }
        let mut alternatives = vec![Vec::new()];
        for (name, at) in members {
            self.path.push(name);
            let more = self.member(b, at, node, context)?;
            self.check_count(alternatives.len() * more.len())?;
            alternatives = alternatives
                .iter()
                .flat_map(|known: &Vec<Constraint>| more.iter().map(|also| [known.as_slice(), also].concat()))
                .collect();
            self.path.pop();
        }
        Ok(alternatives)
    }

    /// One member, whose name is the last of the path.
    fn member(&mut self, b: &[u8], at: usize, node: NodeId, context: Context) -> Result<Vec<Vec<Constraint>>> {
        let name = self.path.last().cloned().unwrap_or_default();
        if name == "$or" {
            return self.or(b, at, node, context);
        }
        let inner = match context.names() {
            None => Context::Value,
            Some(names) => match names.iter().find(|(known, _)| *known == name) {
                Some((_, inner)) => *inner,
                None => return Err(self.unknown_name(context, names)),
            },
        };
        let child = self.child(node, name.as_bytes());
        self.nodes[child as usize].is_number = inner == Context::Number;
        match byte(b, at) {
            b'{' if !inner.is_leaf() => self.object(b, at, child, inner),
            b'{' => Err(self.error("a list of values is wanted here: [\"…\"] or [{\"prefix\": \"…\"}]")),
            b'[' => self.leaf(b, at, child, inner),
            _ if inner.is_leaf() => Err(self.error("values stand in a list: write [ and ] around it")),
            _ => Err(self.error(format!("an object is wanted here: {}", inner.example()))),
        }
    }

    fn or(&mut self, b: &[u8], at: usize, node: NodeId, context: Context) -> Result<Vec<Vec<Constraint>>> {
        let problem = "$or holds a list of two or more objects: {\"$or\": [{\"a\": …}, {\"b\": …}]}";
        if byte(b, at) != b'[' {
            return Err(self.error(problem));
        }
        let elements = self.elements(b, at)?;
        if elements.len() < 2 || elements.iter().any(|&at| byte(b, at) != b'{') {
            return Err(self.error(problem));
        }
        let mut alternatives = Vec::new();
        for (index, at) in elements.into_iter().enumerate() {
            self.path.push(index.to_string());
            alternatives.extend(self.object(b, at, node, context)?);
            self.check_count(alternatives.len())?;
            self.path.pop();
        }
        Ok(alternatives)
    }

    fn unknown_name(&self, context: Context, names: &[(&str, Context)]) -> PatternError {
        let known = names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        self.error(match context {
            Context::Value | Context::List => {
                format!("this is no type of an attribute: write {}, with one of {known}", context.example())
            }
            _ => format!("no record has this: valid here are {known}, $or"),
        })
    }

    fn child(&mut self, node: NodeId, name: &[u8]) -> NodeId {
        if let Some((_, id)) = self.nodes[node as usize].children.iter().find(|(known, _)| **known == *name) {
            return *id;
        }
        let id = self.nodes.len() as NodeId;
        self.nodes.push(Node::default());
        self.nodes[node as usize].children.push((name.into(), id));
        id
    }
}
