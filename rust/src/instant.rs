//! Which of several changes of one key at one instant came last, whatever the order they arrive in.
//!
//! In: links, one a change: what the item was before and after it, as fingerprints. Out: the link that is last, and
//! the chain: the bytes in which a sink keeps what it knows of a key's newest instant. Invariant: once all changes of
//! an instant are there, in any order, repeated or not, in any number of deliveries, the last one is the same:
//! their links are the edges of one walk, and a walk ends at the only state it enters more often than it leaves.
//! Only where the walk ends where it began does the arrival decide.
//!
//! An instant is the millisecond, since the clock's precision may change while a stream runs.

use crate::fingerprint::{GONE, UNKNOWN};

/// A change at its instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its creation time is exact to the microsecond, not to the millisecond.
    pub is_exact: bool,
    /// Its creation time, UTC microseconds.
    pub us: u64,
    /// Hash of its `eventID`; 0: it has none.
    pub id: u64,
    /// Fingerprint of the item before.
    pub before: u64,
    /// Fingerprint of the item after.
    pub after: u64,
}

impl Link {
    /// The same change, delivered again. (At millisecond precision two changes may look alike.)
    pub const fn repeats(&self, other: &Self) -> bool {
        (self.id != 0 && self.id == other.id)
            || (self.is_exact
                && other.is_exact
                && self.us == other.us
                && self.before == other.before
                && self.after == other.after)
    }
}

/// How sure it is which link is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// No other order of these links is a walk.
    Certain,
    /// Something between them hasn't arrived yet; once it has, it will be certain.
    Open,
    /// They end where they begin, or don't tell what was before: the arrival decided.
    Ambiguous,
}

/// The last of one key's changes of one instant, given in order of arrival, none twice: its index.
pub fn last(links: &[Link]) -> (usize, Certainty) {
    let newest = links.iter().filter(|link| link.is_exact).map(|link| link.us).max();
    let all_exact = links.iter().all(|link| link.is_exact);
    let counts = |link: &Link| !all_exact || Some(link.us) == newest;
    // Among what is exact the time decides, so an earlier one is never the last.
    let may_be_last = |link: &&Link| !link.is_exact || Some(link.us) == newest;
    let excess = |state: u64| excess(links.iter().filter(|link| counts(link)), state);
    let find = |wanted: &dyn Fn(&Link) -> bool| {
        let found = || links.iter().enumerate().filter(|(_, link)| may_be_last(link) && wanted(link));
        let latest = found().next_back()?;
        let is_only = found().all(|(_, link)| link.after == latest.1.after && link.after != UNKNOWN);
        Some((latest.0, is_only))
    };
    if let Some((index, is_only)) = find(&|link| excess(link.after) > 0) {
        let blind = links.iter().any(|link| counts(link) && link.before == UNKNOWN);
        let certainty = if is_only { Certainty::Certain } else { Certainty::Open };
        return (index, if blind && !is_only { Certainty::Ambiguous } else { certainty });
    }
    let is_circle = links.iter().filter(|link| counts(link)).all(|link| excess(link.after) == 0);
    match find(&|_| true) {
        Some((index, true)) => (index, Certainty::Certain),
        Some((index, false)) => (index, if is_circle { Certainty::Ambiguous } else { Certainty::Open }),
        None => (links.len().saturating_sub(1), Certainty::Ambiguous),
    }
}

/// How much more often the links enter a state than they leave it.
fn excess<'a>(links: impl Iterator<Item = &'a Link>, state: u64) -> isize {
    links.map(|link| isize::from(link.after == state) - isize::from(link.before == state)).sum()
}

/// The links may end in this state, now or when others have arrived.
fn may_end_in(links: &[Link], state: u64) -> bool {
    let newest = links.iter().filter(|link| link.is_exact).map(|link| link.us).max();
    let is_entered = links.iter().any(|link| link.after == state && (!link.is_exact || Some(link.us) == newest));
    let of_newest = links.iter().filter(|link| Some(link.us) == newest && link.is_exact);
    // With both precisions a later arrival may move what is exact, and the degrees with it.
    let is_mixed = newest.is_some() && links.iter().any(|link| !link.is_exact);
    is_entered && (is_mixed || excess(links.iter(), state) > 0 || excess(of_newest, state) > 0)
}

/// What a chain's first byte says of its key's newest instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Every change of it is exact to the microsecond.
    Exact = 0,
    /// One of them is exact to the millisecond only.
    Coarse = 1,
    /// The version is a sequence number: no two changes share an instant.
    Sequence = 2,
}

const LINK: usize = 27;
const ONE: usize = 17;
const ONE_WITHOUT_ID: usize = 25;

/// All that is kept of a key's newest instant beside the item.
///
/// Its bytes: the kind. Of one change that knows itself by an `eventID`: its hash and `before`; `after` is the item
/// beside it. (Of one without, or whose item doesn't
/// belong there, `after` too.) Of several: their number (u16), each one's precision (1 byte),
/// microsecond in the millisecond (u16), hash, `before` and `after`; then the items, beside the one that is stored,
/// that later arrivals may prove to be the last: fingerprint, length (u32), plain JSON. All little-endian.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// In order of arrival.
    pub links: Vec<Link>,
    /// Items that may turn out to be the last: fingerprint and plain JSON.
    pub items: Vec<Item>,
}

/// An item's fingerprint, and the item in plain JSON.
pub type Item = (u64, Vec<u8>);

impl Chain {
    /// Reads a chain. `us` is the version beside it, `item` the fingerprint of the item beside it.
    pub fn read(bytes: &[u8], us: u64, item: impl FnOnce() -> u64) -> Option<Self> {
        let (&kind, mut rest) = bytes.split_first()?;
        if kind > Kind::Coarse as u8 {
            return None;
        }
        if matches!(bytes.len(), ONE | ONE_WITHOUT_ID) {
            let id = word(&mut rest)?;
            let before = word(&mut rest)?;
            let after = word(&mut rest).unwrap_or_else(item);
            return Some(Self { links: vec![Link { is_exact: kind == 0, us, id, before, after }], items: Vec::new() });
        }
        let count = u16::from_le_bytes(take(&mut rest)?);
        let mut chain = Self::default();
        for _ in 0..count {
            let [precision] = take(&mut rest)?;
            let us = us / 1000 * 1000 + u64::from(u16::from_le_bytes(take(&mut rest)?));
            let (id, before, after) = (word(&mut rest)?, word(&mut rest)?, word(&mut rest)?);
            chain.links.push(Link { is_exact: precision == 0, us, id, before, after });
        }
        while !rest.is_empty() {
            let state = word(&mut rest)?;
            let len = u32::from_le_bytes(take(&mut rest)?) as usize;
            let (item, behind) = rest.split_at_checked(len)?;
            chain.items.push((state, item.to_vec()));
            rest = behind;
        }
        Some(chain)
    }

    /// Its bytes, appended.
    pub fn write(&self, out: &mut Vec<u8>) {
        if let ([link], []) = (&self.links[..], &self.items[..]) {
            let after = if link.id == 0 { Some(link.after) } else { None };
            write_one(out, link.is_exact, link.id, link.before, after);
            return;
        }
        let coarse = self.links.iter().any(|link| !link.is_exact);
        out.reserve(3 + self.links.len() * LINK);
        out.push(if coarse { Kind::Coarse } else { Kind::Exact } as u8);
        out.extend_from_slice(&(self.links.len() as u16).to_le_bytes());
        for link in &self.links {
            out.push(u8::from(!link.is_exact));
            out.extend_from_slice(&((link.us % 1000) as u16).to_le_bytes());
            for word in [link.id, link.before, link.after] {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        for (state, item) in &self.items {
            out.extend_from_slice(&state.to_le_bytes());
            out.extend_from_slice(&(item.len() as u32).to_le_bytes());
            out.extend_from_slice(item);
        }
    }

    /// The version to keep: the greatest of the instant.
    pub fn us(&self) -> u64 {
        self.links.iter().map(|link| link.us).max().unwrap_or(0)
    }

    /// Of an instant that nothing is known of yet: which link is the last, and the chain to keep beside its item.
    pub fn begin(links: Vec<Link>, items: impl Iterator<Item = Item>) -> (usize, Self) {
        let (index, _) = last(&links);
        let after = links.get(index).map_or(UNKNOWN, |link| link.after);
        let mut chain = Self { links, items: Vec::new() };
        chain.keep_items(after, items);
        (index, chain)
    }

    /// The state beside it.
    pub fn state(&self) -> Option<u64> {
        self.links.get(last(&self.links).0).map(|link| link.after)
    }

    /// More links of the instant, with the items after them; `stored` is what lies beside the chain. With `came_first`
    /// they arrived before the others. Gives what should lie there now, whether one of the new links is the last, and
    /// how sure that is; None when there is none.
    pub fn settle(
        &mut self,
        stored: Item,
        links: &[Link],
        items: impl Iterator<Item = Item>,
        came_first: bool,
    ) -> Option<(Item, bool, Certainty)> {
        let known = self.links.len();
        let added = self.take(links);
        if added == 0 {
            return None;
        }
        if came_first {
            self.links.rotate_right(added);
        }
        let (index, certainty) = last(&self.links);
        let state = self.links[index].after;
        let items: Vec<Item> = [stored].into_iter().chain(std::mem::take(&mut self.items)).chain(items).collect();
        let last = match items.iter().find(|(known, _)| *known == state) {
            _ if state == GONE => (GONE, Vec::new()),
            Some(item) => item.clone(),
            // It wasn't kept, for nothing said that it could be the last.
            None => items[0].clone(),
        };
        self.keep_items(last.0, items.into_iter());
        Some((last, if came_first { index < added } else { index >= known }, certainty))
    }

    /// Takes the links that aren't there yet. Says how many there were.
    fn take(&mut self, links: &[Link]) -> usize {
        let before = self.links.len();
        for link in links {
            // More in one millisecond can't be written down; DynamoDB takes one in that time.
            if !self.links.iter().any(|known| known.repeats(link)) && self.links.len() < usize::from(u16::MAX) {
                self.links.push(*link);
            }
        }
        self.links.len() - before
    }

    /// Keeps those of the items that may still turn out to be the last; `stored` is beside the chain.
    fn keep_items(&mut self, stored: u64, others: impl Iterator<Item = Item>) {
        let mut items: Vec<Item> = Vec::new();
        for (state, item) in others {
            let is_new = state != stored && state != GONE && items.iter().all(|(known, _)| *known != state);
            if is_new && may_end_in(&self.links, state) {
                items.push((state, item));
            }
        }
        self.items = items;
    }
}

/// The chain of one change, appended.
#[inline]
pub fn write_one(out: &mut Vec<u8>, is_exact: bool, id: u64, before: u64, after: Option<u64>) {
    let mut bytes = [0; ONE];
    bytes[0] = u8::from(!is_exact);
    bytes[1..9].copy_from_slice(&id.to_le_bytes());
    bytes[9..].copy_from_slice(&before.to_le_bytes());
    out.extend_from_slice(&bytes);
    if let Some(after) = after {
        out.extend_from_slice(&after.to_le_bytes());
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, behind) = rest.split_first_chunk::<N>()?;
    *rest = behind;
    Some(*bytes)
}

fn word(rest: &mut &[u8]) -> Option<u64> {
    take(rest).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a sink holds of one key and instant.
    #[derive(Default)]
    struct Store {
        chain: Vec<u8>,
        us: u64,
        item: Item,
        ambiguous: usize,
        duplicates: usize,
    }

    fn items(links: &[Link]) -> impl Iterator<Item = Item> {
        links.iter().map(|link| (link.after, if link.after == GONE { Vec::new() } else { vec![link.after as u8; 3] }))
    }

    impl Store {
        fn deliver(&mut self, batch: &[Link]) {
            let chain = if self.chain.is_empty() {
                let mut links: Vec<Link> = Vec::new();
                for link in batch {
                    if !links.iter().any(|known| known.repeats(link)) {
                        links.push(*link);
                    }
                }
                let (index, chain) = Chain::begin(links.clone(), items(&links));
                self.item = items(&links).nth(index).unwrap();
                chain
            } else {
                let mut chain = Chain::read(&self.chain, self.us, || self.item.0).unwrap();
                match chain.settle(self.item.clone(), batch, items(batch), false) {
                    None => self.duplicates += 1,
                    Some((item, _, certainty)) => {
                        self.item = item;
                        self.ambiguous += usize::from(certainty == Certainty::Ambiguous);
                    }
                }
                chain
            };
            self.us = chain.us();
            self.chain.clear();
            chain.write(&mut self.chain);
            let again = Chain::read(&self.chain, self.us, || self.item.0).unwrap();
            assert_eq!(again, chain);
        }
    }

    /// All walks of this many steps over three states, one of them no item. (A change changes something.)
    fn walks(steps: usize) -> Vec<Vec<u64>> {
        let mut walks: Vec<Vec<u64>> = [GONE, 2, 3].iter().map(|&state| vec![state]).collect();
        for _ in 0..steps {
            walks = walks
                .iter()
                .flat_map(|walk| {
                    let at = walk[walk.len() - 1];
                    [GONE, 2, 3].into_iter().filter(move |&next| next != at).map(|next| [walk, &[next][..]].concat())
                })
                .collect();
        }
        walks
    }

    fn permutations(count: usize) -> Vec<Vec<usize>> {
        if count == 0 {
            return vec![Vec::new()];
        }
        let insert = |order: &Vec<usize>, at: usize| {
            let mut order = order.clone();
            order.insert(at, count - 1);
            order
        };
        permutations(count - 1)
            .iter()
            .flat_map(|order| (0..count).map(|at| insert(order, at)).collect::<Vec<_>>())
            .collect()
    }

    const MS: u64 = 1_706_542_773_915_000;

    /// A walk's links; of each the microsecond, None where it is exact to the millisecond.
    fn links(walk: &[u64], times: &[Option<u64>]) -> Vec<Link> {
        walk.windows(2)
            .zip(times)
            .enumerate()
            .map(|(i, (states, time))| Link {
                is_exact: time.is_some(),
                us: MS + time.unwrap_or(0),
                id: 100 + i as u64,
                before: states[0],
                after: states[1],
            })
            .collect()
    }

    /// Every order and every split of these changes, one delivery repeated at the end.
    fn check(walk: &[u64], times: &[Option<u64>], orders: &[Vec<usize>]) {
        let links = links(walk, times);
        let count = links.len();
        let anonymous = |link: &Link| Link { id: 0, ..*link };
        if (0..count).any(|i| links[..i].iter().any(|link| anonymous(link).repeats(&anonymous(&links[i])))) {
            // The same thing twice in one microsecond is taken for one delivered under two ids.
            return;
        }
        let newest = times.iter().flatten().max();
        // Where all times are exact the newest ones alone decide.
        let decisive = if times.iter().all(Option::is_some) {
            times.iter().position(|time| time.as_ref() == newest).unwrap_or(0)
        } else {
            0
        };
        let is_circle = walk[decisive] == walk[count] && count - decisive > 1;
        for order in orders {
            let arrived: Vec<Link> = order.iter().map(|&i| links[i]).collect();
            for cuts in 0..1_u32 << (count - 1) {
                let mut store = Store::default();
                let mut from = 0;
                for i in 1..=count {
                    if i == count || cuts >> (i - 1) & 1 == 1 {
                        store.deliver(&arrived[from..i]);
                        from = i;
                    }
                }
                let end = walk[count];
                let context = || format!("{walk:?} {times:?} {order:?} {cuts:b}");
                if !is_circle {
                    assert_eq!(store.item.0, end, "{}", context());
                    assert_eq!(store.item.1, if end == GONE { vec![] } else { vec![end as u8; 3] });
                } else if cuts != 0 && count - decisive == count {
                    // The delivery that closed the circle, unless what is exact opened it.
                    let certain = last(&arrived).1 == Certainty::Certain;
                    assert!(certain || store.ambiguous > 0, "{}", context());
                }
                assert_eq!(store.us, MS + times.iter().flatten().max().unwrap_or(&0));
                let before = (store.item.clone(), store.chain.clone());
                store.deliver(&arrived[..1]);
                store.deliver(&arrived);
                assert_eq!((store.item, store.chain), before, "a delivery repeated");
                assert_eq!(store.duplicates, 2);
            }
        }
    }

    #[test]
    fn every_order_and_every_split_ends_alike() {
        for count in 1..=5 {
            let orders = permutations(count);
            for walk in walks(count) {
                check(&walk, &vec![None; count], &orders);
                check(&walk, &vec![Some(7); count], &orders);
            }
        }
    }

    #[test]
    fn mixed_precisions_end_alike_too() {
        for count in 2..=4 {
            let orders = permutations(count);
            for walk in walks(count) {
                for coarse in 1..1_u32 << count {
                    for step in 0..2 {
                        let times: Vec<Option<u64>> =
                            (0..count).map(|i| (coarse >> i & 1 == 0).then_some(5 + step * i as u64)).collect();
                        check(&walk, &times, &orders);
                    }
                }
            }
        }
    }

    #[test]
    fn different_microseconds_need_no_images() {
        for count in 2..=4 {
            let orders = permutations(count);
            for walk in walks(count) {
                for ties in 0..1_u64 << (count - 1) {
                    let times = (0..count).scan(5, |at, i| {
                        *at += ties >> i & 1;
                        Some(Some(*at))
                    });
                    check(&walk, &times.collect::<Vec<_>>(), &orders);
                }
            }
        }
    }

    #[test]
    fn in_a_circle_what_is_exact_keeps_its_order() {
        let links = links(&[2, 3, 4, 2], &[Some(100), Some(200), None]);
        // The first can't be the last, whenever it arrives.
        assert_eq!(last(&[links[2], links[1], links[0]]), (1, Certainty::Ambiguous));
        assert_eq!(last(&[links[1], links[2], links[0]]), (1, Certainty::Ambiguous));
        assert_eq!(last(&[links[0], links[1], links[2]]), (2, Certainty::Ambiguous));
    }

    #[test]
    fn a_fork_follows_the_arrival_until_it_is_closed() {
        let links = links(&[2, 3, 4, 5], &[None; 3]);
        assert_eq!(last(&[links[0], links[2]]), (1, Certainty::Open));
        assert_eq!(last(&[links[2], links[0]]), (1, Certainty::Open));
        assert_eq!(last(&[links[2], links[0], links[1]]), (0, Certainty::Certain));
    }

    #[test]
    fn what_tells_nothing_of_before_is_ambiguous() {
        let mut links = links(&[2, 3, 4], &[None; 2]);
        for link in &mut links {
            link.before = UNKNOWN;
        }
        assert_eq!(last(&links), (1, Certainty::Ambiguous));
        assert_eq!(last(&links[..1]), (0, Certainty::Certain));
    }

    #[test]
    fn without_ids_equal_links_repeat_only_where_exact() {
        let [mut link] = links(&[2, 3], &[Some(4)])[..] else { unreachable!() };
        link.id = 0;
        assert!(link.repeats(&link));
        link.is_exact = false;
        assert!(!link.repeats(&link));
        let mut bytes = Vec::new();
        Chain { links: vec![link], items: Vec::new() }.write(&mut bytes);
        assert_eq!(bytes.len(), ONE_WITHOUT_ID);
        assert_eq!(Chain::read(&bytes, MS + 4, || 9).unwrap().links, [link]);
    }

    #[test]
    fn bytes_that_are_no_chain_are_none() {
        for bytes in [&[][..], &[2], &[0, 1], &[1, 9, 0, 4], &[7; 17], &[0; 16]] {
            assert_eq!(Chain::read(bytes, MS, || 9), None, "{bytes:?}");
        }
    }
}
