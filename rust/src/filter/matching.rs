//! One change against all patterns at once.
//!
//! In: a change, whose record was checked when it was decoded. Out: whether it matches. Invariants: each byte is read at
//! most once; what no pattern speaks of is skipped, and reading ends when all is decided; a node's answer is a mask
//! of the alternatives that may still match, so all of them are followed together.

use super::test::Scalar;
use super::{Mask, Node, NodeId, Pattern};
use crate::change::View;
use crate::error::Fault;
use crate::scan::{self, Members, byte};

/// Matches changes; it holds what every change needs anew, so that nothing is allocated for one.
pub struct Matcher<'a> {
    pattern: &'a Pattern,
    /// Per node, the object in which it was met last.
    seen: Vec<u64>,
    objects: u64,
}

impl<'a> Matcher<'a> {
    pub(super) fn new(pattern: &'a Pattern) -> Self {
        Self { pattern, seen: vec![0; pattern.nodes.len()], objects: 0 }
    }

    /// The change matches one of the patterns.
    pub fn matches(&mut self, view: View<'_>) -> bool {
        let change = view.change;
        let pattern = self.pattern;
        let mut mask = pattern.all;
        if let Some(node) = pattern.event_name {
            mask &= self.scalar(node, Scalar::Text(change.event.name().as_bytes()));
        }
        for (node, span) in [(pattern.keys, change.keys), (pattern.new, change.new), (pattern.old, change.old)] {
            if mask != 0
                && let Some(node) = node
            {
                mask &= self.image(node, view.raw(span));
            }
        }
        if mask != 0 && pattern.reads_envelope {
            mask &= self.whole(0, view.part.records.payload(change.record as usize));
        }
        mask != 0
    }

    /// The item belongs where only items that match belong. Patterns that speak of a change say no.
    pub fn belongs(&mut self, keys: &[u8], image: &[u8]) -> bool {
        let pattern = self.pattern;
        let mut mask = if pattern.name_of_change().is_some() { 0 } else { pattern.all };
        for (node, raw) in [(pattern.keys, keys), (pattern.new, image)] {
            if mask != 0
                && let Some(node) = node
            {
                mask &= self.image(node, raw);
            }
        }
        mask != 0
    }

    /// The answer for an image; empty when the record has none.
    fn image(&mut self, node: NodeId, raw: &[u8]) -> Mask {
        if raw.is_empty() { !self.node(node).wanted } else { self.whole(node, raw) }
    }

    fn whole(&mut self, node: NodeId, b: &[u8]) -> Mask {
        // The record was checked when it was decoded, so that nothing can fail here; if it did, nothing would match.
        self.value::<false>(node, b, scan::space(b, 0)).map_or(0, |(mask, _)| mask)
    }

    fn node(&self, id: NodeId) -> &'a Node {
        &self.pattern.nodes[id as usize]
    }

    /// The answer for a value, and, where the `END` is wanted, the place behind it.
    fn value<const END: bool>(&mut self, id: NodeId, b: &[u8], at: usize) -> Result<(Mask, usize), Fault> {
        match byte(b, at) {
            b'{' => self.object::<END>(id, b, at),
            b'[' => self.array(id, b, at),
            b'"' => {
                let text = scan::string(b, at + 1)?;
                let (bytes, is_number) = (text.bytes(b), self.node(id).is_number);
                let scalar = if is_number { Scalar::Decimal(&bytes) } else { Scalar::Text(&bytes) };
                Ok((self.scalar(id, scalar), text.end + 1))
            }
            first => {
                let end = scan::skip(b, at)?;
                let scalar = match first {
                    b't' => Scalar::True,
                    b'f' => Scalar::False,
                    b'n' => Scalar::Null,
                    _ => Scalar::Number(&b[at..end]),
                };
                Ok((self.scalar(id, scalar), end))
            }
        }
    }

    fn object<const END: bool>(&mut self, id: NodeId, b: &[u8], at: usize) -> Result<(Mask, usize), Fault> {
        let node = self.node(id);
        let mut mask = node.container;
        let mut left = node.children.len();
        self.objects += 1;
        let this = self.objects;
        let mut members = Members::new(b, at);
        while mask != 0 && left != 0 {
            let Some((name, at)) = members.advance()? else {
                let absent = node.children.iter().filter(|(_, child)| self.seen[*child as usize] != this);
                let wanted = absent.fold(0, |wanted, (_, child)| wanted | self.node(*child).wanted);
                return Ok((mask & !wanted, members.at));
            };
            members.at = match node.child(&name).filter(|&child| self.seen[child as usize] != this) {
                Some(child) => {
                    self.seen[child as usize] = this;
                    left -= 1;
                    let (found, end) = self.value::<true>(child, b, at)?;
                    mask &= found;
                    end
                }
                None => scan::past(b, at)?,
            };
        }
        while END && let Some((_, at)) = members.advance()? {
            members.at = scan::past(b, at)?;
        }
        Ok((mask, members.at))
    }

    fn array(&mut self, id: NodeId, b: &[u8], at: usize) -> Result<(Mask, usize), Fault> {
        let node = self.node(id);
        let (mut one, mut all, mut is_empty) = (0, Mask::MAX, true);
        let end = scan::array(b, at, |at| {
            let (mask, end) = self.value::<true>(id, b, at)?;
            one |= mask;
            all &= mask;
            is_empty = false;
            Ok(end)
        })?;
        if is_empty {
            return Ok((node.container & !node.wanted_below, end));
        }
        Ok((one & node.wanted | all & !node.wanted, end))
    }

    fn scalar(&self, id: NodeId, value: Scalar<'_>) -> Mask {
        let node = self.node(id);
        let mut mask = !(node.forbidden | node.wanted_below);
        for (alternatives, tests) in &node.tests {
            if mask & alternatives != 0 && !tests.pass(value) {
                mask &= !alternatives;
            }
        }
        mask
    }
}

impl Node {
    #[inline]
    pub(super) fn child(&self, name: &[u8]) -> Option<NodeId> {
        // Mostly their lengths tell them apart.
        if self.children.len() <= 16 {
            return self.children.iter().find(|(wanted, _)| **wanted == *name).map(|(_, id)| *id);
        }
        let found = self.children.binary_search_by(|(wanted, _)| (**wanted).cmp(name)).ok()?;
        Some(self.children[found].1)
    }
}
