//! A batch, cut at a place in its shard.
//!
//! In: a batch and a sequence number. Out: what came up to it, and what came behind it. Invariant: each change and each
//! rejection is in one of both, in the order of the batch; both share its memory.

use std::sync::Arc;

use crate::change::{ChangeBatch, Ref, Rejection};

/// What came up to this sequence number, and what came behind it. Where both have something, nobody can tell of which
/// the counted duplicates were copies: the first counts them.
pub fn split(batch: &ChangeBatch, sequence_number: &str) -> (ChangeBatch, ChangeBatch) {
    let (mut until, mut behind) = (batch.clone(), batch.clone());
    let of_refs = |refs: &[Ref]| {
        let (left, right): (Vec<Ref>, Vec<Ref>) =
            refs.iter().partition(|&&r| !is_greater(batch.view(r).sequence_number(), sequence_number));
        (Arc::new(left), Arc::new(right))
    };
    (until.order, behind.order) = of_refs(&batch.order);
    (until.hidden, behind.hidden) = of_refs(&batch.hidden);
    let rejections = batch.rejections.iter().cloned();
    (until.rejections, behind.rejections) = rejections.partition(|one| !is_greater(number_of(one), sequence_number));
    let other = if until.records() == until.duplicates { &mut until } else { &mut behind };
    (other.duplicates, other.ambiguous) = (0, 0);
    (until, behind)
}

fn number_of(rejection: &Rejection) -> &str {
    rejection.records.sequence_number(rejection.index as usize)
}

/// The first sequence number, as decimal text, is the greater one.
fn is_greater(number: &str, other: &str) -> bool {
    let (number, other) = (number.trim_start_matches('0'), other.trim_start_matches('0'));
    (number.len(), number) > (other.len(), other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_as_numbers() {
        assert!(is_greater("10", "9") && is_greater("010", "9") && is_greater("1", ""));
        assert!(!is_greater("9", "10") && !is_greater("7", "007"));
    }
}
