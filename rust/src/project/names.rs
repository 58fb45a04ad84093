//! What happens to which attribute.
//!
//! In: paths. Out: a tree of names with an action each. Invariant: of two paths of which one lies in the other, one is
//! refused, unless it says what happens to a part of what is included.

use super::{ProjectionError, wrong};

const DEPTH_MAX: usize = 32;

/// What happens to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Keep,
    Exclude,
    Mask,
    Hash,
    /// Something happens inside.
    Inside(Names),
}

/// What happens to the members of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Sorted when all are known.
    pub named: Vec<(Box<[u8]>, Action)>,
    /// What isn't named stays.
    pub keeps_rest: bool,
}

/// The names that a path is made of.
pub fn parsed(list: &str, text: &str) -> Result<Vec<Vec<u8>>, ProjectionError> {
    let mut names = vec![Vec::new()];
    let mut bytes = text.bytes();
    while let Some(c) = bytes.next() {
        match c {
            b'.' => names.push(Vec::new()),
            b'\\' => match bytes.next() {
                Some(c @ (b'.' | b'\\')) => names.last_mut().unwrap_or(&mut Vec::new()).push(c),
                _ => return wrong(format!("{list}: {text:?} has a backslash before something else than . and \\")),
            },
            _ => names.last_mut().unwrap_or(&mut Vec::new()).push(c),
        }
    }
    if names.iter().any(Vec::is_empty) {
        return wrong(format!("{list}: {text:?} has an empty name: write \\. for a dot that belongs to a name"));
    }
    if names.len() > DEPTH_MAX {
        return wrong(format!("{list}: {text:?} goes deeper than DynamoDB nests ({DEPTH_MAX})"));
    }
    Ok(names)
}

impl Names {
    pub fn find(&self, name: &[u8]) -> Option<&Action> {
        if self.named.len() <= 16 {
            return self.named.iter().find(|(named, _)| **named == *name).map(|(_, action)| action);
        }
        let place = self.named.binary_search_by(|(named, _)| (**named).cmp(name)).ok()?;
        Some(&self.named[place].1)
    }

    pub fn sort(&mut self) {
        self.named.sort_by(|(x, _), (y, _)| x.cmp(y));
        for (_, action) in &mut self.named {
            if let Action::Inside(names) = action {
                names.sort();
            }
        }
    }

    /// The action for a name, made when it isn't there yet.
    fn entry(&mut self, name: &[u8], new: Action) -> (&mut Action, bool) {
        let known = self.named.iter().position(|(named, _)| **named == *name);
        let is_new = known.is_none();
        let place = known.unwrap_or_else(|| {
            self.named.push((name.into(), new));
            self.named.len() - 1
        });
        (&mut self.named[place].1, is_new)
    }

    pub fn include(&mut self, path: &[Vec<u8>]) -> Result<(), &'static str> {
        let [name, rest @ ..] = path else { return Ok(()) };
        let new =
            if rest.is_empty() { Action::Keep } else { Action::Inside(Self { named: Vec::new(), keeps_rest: false }) };
        match self.entry(name, new) {
            (Action::Inside(inner), _) if !rest.is_empty() => inner.include(rest),
            (_, true) => Ok(()),
            (Action::Keep, _) => Err("is named already, or lies in something that is: name it once"),
            _ => Err("holds something that is named already: name only one of both"),
        }
    }

    pub fn put(&mut self, path: &[Vec<u8>], action: &Action) -> Result<(), &'static str> {
        const OUTSIDE: &str = "is not included: take it out, or include it";
        let [name, rest @ ..] = path else { return Ok(()) };
        let keeps_rest = self.keeps_rest;
        if !keeps_rest && self.named.iter().all(|(named, _)| **named != **name) {
            return Err(OUTSIDE);
        }
        let (found, is_new) = self.entry(name, Action::Keep);
        match (&mut *found, rest.is_empty()) {
            (Action::Keep, true) if !is_new && !keeps_rest && *action == Action::Exclude => {
                Err("is included, too: name it in one of both")
            }
            (Action::Keep, true) => {
                *found = action.clone();
                Ok(())
            }
            (Action::Keep, false) => {
                let mut inner = Self { named: Vec::new(), keeps_rest: true };
                inner.put(rest, action)?;
                *found = Action::Inside(inner);
                Ok(())
            }
            (Action::Inside(inner), false) => inner.put(rest, action),
            (Action::Inside(_), true) => Err("holds something that is named already: name only one of both"),
            _ => Err("is named already, or lies in something that is: name it once"),
        }
    }
}
