"""How many shards the stream of a table needs, with the arithmetic.

The formula is the one AWS gives for the Kinesis stream of a table:
ceiling(writes a second × (1 + share of updates) × average bytes / 1024 / 1024), at
least 1; an update counts twice because it carries both images. Beside it stands the
service's other limit, 1,000 records a second a shard; the greater number decides
(https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from replicator.errors import FatalError

SHARD_BYTES_PER_SECOND = 1_048_576
SHARD_RECORDS_PER_SECOND = 1_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """The inputs and every intermediate figure, exact."""

    writes_per_second: Fraction
    nbytes: Fraction
    updates_percent: Fraction

    @property
    def raw(self) -> Fraction:
        """Shards that the bytes fill, before rounding."""
        return self._by_bytes(self.updates_percent / 100)

    @property
    def records_raw(self) -> Fraction:
        """Shards that the number of records fills, before rounding."""
        return self.writes_per_second / SHARD_RECORDS_PER_SECOND

    @property
    def article_raw(self) -> Fraction:
        """`raw` as the widely read article's worked example computes it: it puts the
        percentage itself where the share belongs."""
        return self._by_bytes(self.updates_percent)

    @property
    def shards(self) -> int:
        """The shards to ask for: what the tighter of the two limits needs."""
        return max(_whole(self.raw), _whole(self.records_raw))

    @property
    def article_shards(self) -> int:
        """The shards that the article's way of putting the share would give."""
        return _whole(self.article_raw)

    def as_dict(self) -> dict[str, Any]:
        """Every figure, for machines."""
        return {
            "writes_per_second": _number(self.writes_per_second),
            "bytes": _number(self.nbytes),
            "updates_percent": _number(self.updates_percent),
            "bytes_per_second": _number(self.raw * SHARD_BYTES_PER_SECOND),
            "raw": float(self.raw),
            "bytes_shards": _whole(self.raw),
            "records_raw": float(self.records_raw),
            "records_shards": _whole(self.records_raw),
            "shards": self.shards,
            "article_raw": float(self.article_raw),
            "article_shards": self.article_shards,
        }

    def as_text(self) -> str:
        """Inputs, each step with its numbers, result; for people."""
        writes, nbytes = _shown(self.writes_per_second), _shown(self.nbytes)
        percent, share = _shown(self.updates_percent), _shown(self.updates_percent / 100)
        factor = _shown(1 + self.updates_percent / 100)
        total = _shown(self.raw * SHARD_BYTES_PER_SECOND)
        text = f"""\
writes: {writes}/s · average item: {nbytes} B · updates: {percent} %

shards = ceiling(writes/s × (1 + share of updates) × bytes / 1,048,576), at least 1
  share of updates    {percent} / 100 = {share}
  bytes a second      {writes} × {factor} × {nbytes} = {total}
  by bytes            {total} / 1,048,576 = {_rounding(self.raw)}
  by records          {writes} / 1,000 = {_rounding(self.records_raw)}
  the greater of both {self.shards:,}

result: {self.shards:,} {_noun(self.shards)}"""
        if not self.updates_percent:
            return text
        return f"""\
{text}

The article that this formula is known from puts {percent}, not {share}, for {percent} %:
{writes} × {_shown(1 + self.updates_percent)} × {nbytes} / 1,048,576\
 = {_rounding(self.article_raw)} {_noun(self.article_shards)}."""

    def _by_bytes(self, share: Fraction) -> Fraction:
        return self.writes_per_second * (1 + share) * self.nbytes / SHARD_BYTES_PER_SECOND


def estimate(*, writes_per_second: float, nbytes: float, updates_percent: float) -> Estimate:
    """The estimate for these inputs. Raises FatalError (`usage_shards`) for a number
    that is negative or not finite, and for a percentage above 100."""
    for name, value in (
        ("writes", writes_per_second),
        ("bytes", nbytes),
        ("updates", updates_percent),
    ):
        if not math.isfinite(value) or value < 0:
            raise FatalError("usage_shards", f"--{name} {value}: give a number of 0 or more")
    if updates_percent > 100:
        raise FatalError(
            "usage_shards", f"--updates {updates_percent}: give a percentage from 0 to 100"
        )
    # Through the shortest decimal text, so that 0.1 is a tenth and a ceiling never jumps.
    return Estimate(
        Fraction(repr(writes_per_second)), Fraction(repr(nbytes)), Fraction(repr(updates_percent))
    )


def _whole(raw: Fraction) -> int:
    return max(1, math.ceil(raw))


def _number(value: Fraction) -> int | float:
    return value.numerator if value.denominator == 1 else float(value)


def _noun(shards: int) -> str:
    return "shard" if shards == 1 else "shards"


def _shown(value: Fraction) -> str:
    """The number with thousands separators and at most six decimals."""
    text = f"{float(value):,.6f}".rstrip("0").rstrip(".")
    return text if value == 0 or text != "0" else f"{float(value):.2g}"


def _rounding(raw: Fraction) -> str:
    """`raw → shards`, with as many decimals as make the step up visible."""
    decimals = 3 if raw < 1 else 2
    while decimals < 12 and Fraction(f"{float(raw):.{decimals}f}") <= math.floor(raw) < raw:
        decimals += 1
    return f"{float(raw):,.{decimals}f} → {_whole(raw):,}"
