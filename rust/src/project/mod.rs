//! Attributes left out, masked or hashed before a sink sees them.
//!
//! In: paths of attributes and a key; a batch. Out: the batch with other images, from which every encoder writes. The
//! records stay as they were, for dead letters, and so do the changes, for what decides order and filters. Invariants:
//! no byte of a value that is left out, masked or hashed gets into the new images; the attributes of an item's
//! key are always in them, unchanged.
//!
//! A path is an attribute's name, or names joined by dots, each inside the map before; `\.` is a dot and `\\` a
//! backslash of a name. A list on the way stands for each of its elements. Where the way ends at something that is
//! neither map nor list, the path says nothing of it.

mod names;

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use self::names::{Action, Names, parsed};
use crate::canonical::canonical_value;
use crate::change::{ChangeBatch, Part, Ref, Rejection};
use crate::error::{Code, Fault};
use crate::key;
use crate::members::{Members, past};
use crate::records::{Span, TooLarge};
use crate::scan;
use crate::value::{self, Tag, close, tag};

/// What stands in a masked value's place: a text, since it tells that something was there, which NULL would not.
const MASKED: &[u8] = b"{\"S\":\"***\"}";
const KEY_BYTES_MIN: usize = 16;

/// What a sink may see of images.
#[derive(Clone)]
pub struct Projection {
    names: Names,
    mac: Option<Hmac<Sha256>>,
}

/// Never the key.
impl std::fmt::Debug for Projection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Projection").field("names", &self.names).finish_non_exhaustive()
    }
}

/// What is wrong with a projection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProjectionError(String);

fn wrong<T>(message: String) -> Result<T, ProjectionError> {
    Err(ProjectionError(message))
}

impl Projection {
    /// With `include`, only what it names stays, and the rest must lie in there.
    pub fn new(
        include: Option<&[String]>,
        exclude: &[String],
        mask: &[String],
        hash: &[String],
        key: &[u8],
    ) -> Result<Self, ProjectionError> {
        let mut names = Names { named: Vec::new(), keeps_rest: include.is_none() };
        if include.is_some_and(<[String]>::is_empty) {
            return wrong("include: it names nothing, so that only keys would be left: name an attribute".into());
        }
        for text in include.unwrap_or(&[]) {
            names
                .include(&parsed("include", text)?)
                .map_err(|problem| ProjectionError(format!("include: {text:?} {problem}")))?;
        }
        for (list, texts, action) in
            [("exclude", exclude, Action::Exclude), ("mask", mask, Action::Mask), ("hash", hash, Action::Hash)]
        {
            for text in texts {
                names
                    .put(&parsed(list, text)?, &action)
                    .map_err(|problem| ProjectionError(format!("{list}: {text:?} {problem}")))?;
            }
        }
        names.sort();
        if hash.is_empty() {
            return Ok(Self { names, mac: None });
        }
        if key.len() < KEY_BYTES_MIN {
            return wrong(format!("hash: the key has {} bytes, at least {KEY_BYTES_MIN} are needed", key.len()));
        }
        let mac = Hmac::new_from_slice(key).map_err(|error| ProjectionError(format!("hash: {error}")))?;
        Ok(Self { names, mac: Some(mac) })
    }

    /// Refuses a key with an attribute that wouldn't stay as it is.
    pub fn check<'a>(&self, mut names: impl Iterator<Item = &'a [u8]>) -> Result<(), ProjectionError> {
        match names.find(|name| self.changes(name)) {
            Some(name) => wrong(format!(
                "{:?} is an attribute of the key, which a sink needs as it is: take it out of exclude, mask and hash",
                String::from_utf8_lossy(name)
            )),
            None => Ok(()),
        }
    }

    fn changes(&self, name: &[u8]) -> bool {
        matches!(self.names.find(name), Some(Action::Exclude | Action::Mask | Action::Hash))
    }

    /// The batch as a sink may see it. A change whose key wouldn't stay as it is becomes a rejection.
    pub fn apply(&self, batch: &ChangeBatch) -> Result<ChangeBatch, TooLarge> {
        let mut projected = batch.clone();
        let mut wanted: Vec<Vec<u32>> = vec![Vec::new(); batch.parts.len()];
        let mut refused: Vec<Rejection> = Vec::new();
        let kept = batch.order.iter().copied().filter(|&r| {
            let fits = self.check(key::attributes(batch.view(r).key()).map(|attribute| attribute.name));
            if fits.is_err() {
                refused.push(batch.reject(r, Code::ProjectedKey.slug(), Code::ProjectedKey.meaning().to_owned()));
                return false;
            }
            true
        });
        let kept: Vec<_> = kept.collect();
        for r in kept.iter().chain(batch.hidden.iter()) {
            wanted[r.part as usize].push(r.index);
        }
        projected.parts = self.parts(batch, &wanted)?;
        if !refused.is_empty() {
            projected.order = Arc::new(kept);
            projected.rejections.extend(refused);
        }
        Ok(projected)
    }

    /// The batch with these changes' images as a sink may see them, and no other images.
    pub(crate) fn rows(&self, batch: &ChangeBatch, rows: &[Ref]) -> Result<ChangeBatch, TooLarge> {
        let mut projected = batch.clone();
        let mut wanted: Vec<Vec<u32>> = vec![Vec::new(); batch.parts.len()];
        for r in rows {
            wanted[r.part as usize].push(r.index);
        }
        projected.parts = self.parts(batch, &wanted)?;
        Ok(projected)
    }

    fn parts(&self, batch: &ChangeBatch, wanted: &[Vec<u32>]) -> Result<Vec<Arc<Part>>, TooLarge> {
        let mut work = Work::new(self);
        let parts = batch.parts.iter().zip(wanted);
        parts.map(|(part, wanted)| work.part(part, wanted).map(Arc::new)).collect()
    }

    /// An image as a sink may see it, of an item with this canonical key.
    pub(crate) fn image(&self, raw: &[u8], key: &[u8]) -> Vec<u8> {
        let mut work = Work::new(self);
        work.image(raw, key);
        work.out
    }
}

/// The new images of a batch in the making.
struct Work<'a> {
    projection: &'a Projection,
    out: Vec<u8>,
    /// A canonical value, to be hashed.
    value: Vec<u8>,
    /// The image at hand isn't what it was.
    changed: bool,
}

impl<'a> Work<'a> {
    const fn new(projection: &'a Projection) -> Self {
        Self { projection, out: Vec::new(), value: Vec::new(), changed: false }
    }

    fn part(&mut self, part: &Arc<Part>, wanted: &[u32]) -> Result<Part, TooLarge> {
        let mut made = part.derived();
        let all = part.changes.len().max(1);
        let mut plain = Vec::with_capacity(part.plain.len() / all * wanted.len());
        self.out = Vec::with_capacity(part.arena().len() / all * wanted.len());
        for change in &mut made.changes {
            for span in [&mut change.id, &mut change.keys, &mut change.new, &mut change.old, &mut change.plain] {
                *span = Span::default();
            }
        }
        for &index in wanted {
            let (from, to) = (&part.changes[index as usize], &mut made.changes[index as usize]);
            let raw = |span: Span| span.of(part.arena());
            to.id = self.copied(raw(from.id));
            to.keys = self.copied(raw(from.keys));
            let key = from.key.of(&part.keys);
            to.old = self.image(raw(from.old), key);
            if !to.old.is_empty() {
                to.before = value::fingerprint(to.old.of(&self.out));
            }
            to.new = self.image(raw(from.new), key);
            let start = plain.len();
            if !to.new.is_empty() {
                if self.changed {
                    value::write_plain(to.new.of(&self.out), &mut plain);
                } else {
                    plain.extend_from_slice(from.plain.of(&part.plain));
                }
                to.plain = Span::new(start, plain.len());
            }
            // What is written may be longer than what was there.
            if u32::try_from(self.out.len()).is_err() || u32::try_from(plain.len()).is_err() {
                return Err(TooLarge);
            }
        }
        made.plain = Arc::new(plain);
        made.projected = Some(Arc::new(std::mem::take(&mut self.out)));
        Ok(made)
    }

    fn copied(&mut self, bytes: &[u8]) -> Span {
        let start = self.out.len();
        self.out.extend_from_slice(bytes);
        if bytes.is_empty() { Span::default() } else { Span::new(start, self.out.len()) }
    }

    fn image(&mut self, raw: &[u8], key: &[u8]) -> Span {
        if raw.is_empty() {
            return Span::default();
        }
        let start = self.out.len();
        self.changed = false;
        let projection = self.projection;
        if self.members(raw, 0, &projection.names, Some(key)).is_err() {
            // The image was checked when it was decoded, so that nothing can fail here. Nothing leaks if it did.
            self.out.truncate(start);
            self.out.extend_from_slice(b"{}");
            self.changed = true;
        }
        if u32::try_from(self.out.len()).is_err() { Span::default() } else { Span::new(start, self.out.len()) }
    }

    /// The members of an image (then with the item's key) or a map. Gives the place behind it.
    fn members(&mut self, b: &[u8], at: usize, names: &Names, key: Option<&[u8]>) -> Result<usize, Fault> {
        self.out.push(b'{');
        let start = self.out.len();
        let mut members = Members::new(b, at);
        while let Some((name, at)) = members.advance()? {
            let is_key = key.is_some_and(|key| key::attributes(key).any(|attribute| *attribute.name == *name));
            let action = match names.find(&name) {
                _ if is_key => &Action::Keep,
                Some(action) => action,
                None if names.keeps_rest => &Action::Keep,
                None => &Action::Exclude,
            };
            let member = self.out.len();
            if member > start {
                self.out.push(b',');
            }
            self.out.extend_from_slice(&b[members.name_at..at]);
            let (end, is_kept) = self.value(b, at, action)?;
            if !is_kept {
                self.out.truncate(member);
            }
            members.at = end;
        }
        self.out.push(b'}');
        Ok(members.at)
    }

    /// One value; whether something of it stays, and the place behind it.
    fn value(&mut self, b: &[u8], at: usize, action: &Action) -> Result<(usize, bool), Fault> {
        let end = match action {
            Action::Keep | Action::Exclude | Action::Mask => past(b, at)?,
            Action::Hash => {
                self.value.clear();
                canonical_value(b, at, &mut self.value)?
            }
            Action::Inside(names) => return self.inside(b, at, names, action),
        };
        match action {
            Action::Keep => self.out.extend_from_slice(&b[at..end]),
            Action::Mask => self.out.extend_from_slice(MASKED),
            Action::Hash => self.write_hash(),
            _ => {}
        }
        self.changed |= *action != Action::Keep;
        Ok((end, *action != Action::Exclude))
    }

    fn inside(&mut self, b: &[u8], at: usize, names: &Names, action: &Action) -> Result<(usize, bool), Fault> {
        let (tag, content) = tag(b, at)?;
        let end = match tag {
            Tag::M => {
                self.out.extend_from_slice(b"{\"M\":");
                self.members(b, content, names, None)?
            }
            Tag::L => {
                self.out.extend_from_slice(b"{\"L\":[");
                let start = self.out.len();
                let end = scan::array(b, content, |at| {
                    let element = self.out.len();
                    if element > start {
                        self.out.push(b',');
                    }
                    let (end, is_kept) = self.value(b, at, action)?;
                    if !is_kept {
                        self.out.truncate(element);
                    }
                    Ok(end)
                })?;
                self.out.push(b']');
                end
            }
            _ => {
                let rest = if names.keeps_rest { &Action::Keep } else { &Action::Exclude };
                return self.value(b, at, rest);
            }
        };
        self.out.push(b'}');
        Ok((close(b, end)?, true))
    }

    fn write_hash(&mut self) {
        let Some(mac) = &self.projection.mac else { return self.out.extend_from_slice(MASKED) };
        let mut mac = mac.clone();
        mac.update(&self.value);
        self.out.extend_from_slice(b"{\"S\":\"");
        for byte in mac.finalize().into_bytes() {
            self.out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
        self.out.extend_from_slice(b"\"}");
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";
