//! The alternatives of all patterns, put together.
//!
//! In: nodes, and what each alternative asks of which. Out: a `Pattern`. Invariant: a node's masks tell of every
//! alternative what it wants there and below, so that matching never asks twice.

use std::sync::Arc;

use super::parse::{Compiler, Constraint};
use super::{Mask, NodeId, Pattern};

impl Compiler {
    /// Tells each node which alternatives ask something of it.
    pub(super) fn finish(mut self, alternatives: &[Vec<Constraint>]) -> Pattern {
        for (index, constraints) in alternatives.iter().enumerate() {
            let bit: Mask = 1 << index;
            for &(id, wanted) in constraints {
                let node = &mut self.nodes[id as usize];
                let Some(tests) = wanted.map(|tests| &self.tests[tests]) else {
                    node.forbidden |= bit;
                    continue;
                };
                node.wanted |= bit;
                match node.tests.iter_mut().find(|(_, known)| Arc::ptr_eq(known, tests)) {
                    Some((alternatives, _)) => *alternatives |= bit,
                    None => node.tests.push((bit, Arc::clone(tests))),
                }
            }
        }
        self.spell_identity();
        // A child is made after its parent.
        for id in (0..self.nodes.len()).rev() {
            let below = self.nodes[id].children.iter().fold(0, |all, (_, id)| all | self.nodes[*id as usize].wanted);
            let node = &mut self.nodes[id];
            node.wanted_below = below;
            node.wanted |= below;
            node.container = !node
                .tests
                .iter()
                .filter(|(_, tests)| !tests.pass_containers())
                .fold(node.forbidden, |all, (alternatives, _)| all | alternatives);
            node.children.sort();
        }
        let mut pattern = Pattern {
            nodes: self.nodes,
            all: Mask::MAX >> (Mask::BITS as usize - alternatives.len()),
            event_name: None,
            keys: None,
            new: None,
            old: None,
            reads_envelope: false,
            names: Vec::new(),
        };
        pattern.take_apart();
        pattern
    }

    /// Finds the names of a `userIdentity` as the API of DynamoDB Streams spells them, too:
    /// <https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_Identity.html>.
    fn spell_identity(&mut self) {
        if let Some(identity) = self.nodes[0].child(b"userIdentity") {
            let children = &mut self.nodes[identity as usize].children;
            let spelled = |(name, id): &(Box<[u8]>, NodeId)| {
                let mut name = name.clone();
                name[0].make_ascii_uppercase();
                (name, *id)
            };
            let capitals: Vec<_> = children.iter().map(spelled).collect();
            children.extend(capitals);
        }
    }
}

impl Pattern {
    /// Takes what decoding found already out of what must be looked for in the record.
    fn take_apart(&mut self) {
        for (name, _) in &self.nodes[0].children {
            match &**name {
                b"dynamodb" => {}
                name => self.names.push(String::from_utf8_lossy(name).into_owned()),
            }
        }
        self.event_name = self.take(0, b"eventName");
        if let Some(dynamodb) = self.nodes[0].child(b"dynamodb") {
            for (name, _) in &self.nodes[dynamodb as usize].children {
                self.names.push(format!("dynamodb.{}", String::from_utf8_lossy(name)));
            }
            self.keys = self.take(dynamodb, b"Keys");
            self.new = self.take(dynamodb, b"NewImage");
            self.old = self.take(dynamodb, b"OldImage");
            if self.nodes[dynamodb as usize].children.is_empty() {
                self.take(0, b"dynamodb");
            }
        }
        self.names.sort();
        self.reads_envelope = !self.nodes[0].children.is_empty();
    }

    fn take(&mut self, from: NodeId, name: &[u8]) -> Option<NodeId> {
        let id = self.nodes[from as usize].child(name)?;
        self.nodes[from as usize].children.retain(|(_, child)| *child != id);
        // What it wanted is asked of it, no longer of those above.
        for above in [from, 0] {
            let node = &self.nodes[above as usize];
            let below = node.children.iter().fold(0, |all, (_, id)| all | self.nodes[*id as usize].wanted);
            self.nodes[above as usize].wanted_below = below;
            self.nodes[above as usize].wanted = below;
        }
        Some(id)
    }
}
