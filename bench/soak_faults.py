"""By which metric an operator sees each fault of the cloud.

A fault that was done and moved no metric is one that nobody would notice: the soak fails.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SLOW_SECONDS = "0.25"
SLOW = f'replicator_api_seconds_count - replicator_api_seconds_bucket{{le="{SLOW_SECONDS}"}}'
# The cloud's waves of lag are an hour high, so what it says itself is never taken for one.
LAG_PEAK = "max_over_time(replicator_lag_seconds) > 60"

_API = r'replicator_api_errors_total\{code="(%s)",'
_SOURCE = r'replicator_source_events_total\{event="(%s)",'
_BROKEN = r"\w*Connection\w*|ClientPayloadError|\w*StreamingError"
_THROTTLED = r"\w*(?:Exceeded|Throttling)\w*"
_READ = r"replicator_records_total\{"

# By fault, and fault and code where that says more: a pattern of the series that must have moved.
_SEEN: dict[str, str] = {
    "throttle": f"{_API % _THROTTLED}|{_SOURCE % 'throttle_.*'}",
    "error": _API % r"Internal\w+",
    "drop": _API % _BROKEN,
    "lose_answer": rf"{_API % _BROKEN}|{_SOURCE % 'renewal_cut'}",
    "cut_in_answer": f"{_API % _BROKEN}|{_SOURCE % 'failure_connection_failed'}",
    "mute": _SOURCE % "renewal_silent|failure_timed_out",
    "slow": re.escape(SLOW),
    "expire_iterator": _SOURCE % "renewal_iterator_expired",
    "end": _SOURCE % "renewal_finished",
    "cut": _SOURCE % "renewal_cut",
    "cut_in_frame": _SOURCE % "renewal_cut",
    "end_in_frame": _SOURCE % "renewal_cut",
    "stall": _SOURCE % "renewal_silent",
    "stall_in_frame": _SOURCE % "renewal_silent",
    "bad_crc": _SOURCE % "renewal_corrupt",
    "exception": _SOURCE % "exception_InternalFailure",
    "take_over": _SOURCE % "exception_ResourceInUse",
    "lag": re.escape(LAG_PEAK),
    "lag_page": re.escape(LAG_PEAK),
    "duplicate": r"replicator_duplicates_total\{",
    "redeliver": r"replicator_duplicates_total\{",
    "reorder": r"replicator_superseded_total\{",
    "poison": r"replicator_rejections_total\{",
    "split": _SOURCE % "shard_ended",
    "merge": _SOURCE % "shard_ended",
    "rotate": _SOURCE % "shard_ended",
    "trim": r"replicator_gaps_total\{",
    "delete_consumer": _API % r"ResourceNotFound\w*|ResourceInUse\w*",
}
# A silence is noticed by its deadline only: the longest of fan-out's and the poller's.
_NOTICED_SECONDS = {"mute": 30.0, "stall": 36.0, "stall_in_frame": 36.0}
# What the service does in its ordinary course: there is nothing to tell but that it was read.
_ORDINARY: dict[str, str] = {
    "no_initial_response": "the service may leave that frame out",
    "empty_event": "an answer without records",
    "small_event": "an answer with few records",
    "empty_page": "an answer without records",
    "small_page": "an answer with few records",
    "equal_instant": "settled by the images; counted as ambiguous while one of them is missing",
    "milliseconds": "a change with a coarser time",
    "ttl": "a delete",
    "large": "a large item",
    "shard_expired": "everything of it was read before",
}


@dataclass(frozen=True, slots=True)
class Sight:
    """A fault that was done, and the series that moved; `ordinary` says why it is none to a
    reader. So many were `cut_short`: the worker ended before it could notice the silence."""

    fault: str
    done: int
    series: Mapping[str, float] = field(default_factory=dict)
    ordinary: str | None = None
    cut_short: int = 0

    @property
    def is_seen(self) -> bool:
        return any(self.series.values()) or self.cut_short == self.done


@dataclass(frozen=True, slots=True)
class Done:
    """How often each fault was done, and of those how often just before a worker ended."""

    counts: Counter[str]
    cut_short: Counter[str]

    @classmethod
    def read(cls, journal: Path, ends: Iterable[float] = ()) -> Done:
        """By kind and the code that was sent. Workers ended at `ends`, in the cloud's seconds."""
        done = cls(Counter(), Counter())
        ends = tuple(ends)
        with journal.open(encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                fault = f"{entry['kind']} {entry.get('code', '')}".strip()
                done.counts[fault] += 1
                deadline = _NOTICED_SECONDS.get(entry["kind"], 0.0)
                done.cut_short[fault] += any(0 <= end - entry["seconds"] < deadline for end in ends)
        return done


def sights(done: Done, metrics: Mapping[str, float]) -> tuple[Sight, ...]:
    """Each fault with the series by which it shows."""
    return tuple(
        Sight(
            fault,
            count,
            dict(_moved(_pattern(fault), metrics)),
            _ORDINARY.get(fault.split(" ")[0]),
            done.cut_short[fault],
        )
        for fault, count in sorted(done.counts.items())
    )


def _pattern(fault: str) -> str:
    """The series of a fault; one that is unknown here has none."""
    kind, _, code = fault.partition(" ")
    if code and kind == "exception":
        return _SOURCE % re.escape("exception_" + code.removesuffix("Exception"))
    if code and kind in {"error", "throttle"}:
        return _API % re.escape(code)
    return _READ if kind in _ORDINARY else _SEEN.get(kind, "(?!)")


def _moved(pattern: str, metrics: Mapping[str, float]) -> Iterable[tuple[str, float]]:
    return ((name, value) for name, value in metrics.items() if re.match(pattern, name) and value)


class Scrapes:
    """Counters of workers that come one after another, together; and the highest lag."""

    def __init__(self) -> None:
        self._before: Counter[str] = Counter()
        self._now: dict[str, float] = {}
        self.lag_seconds = 0.0
        self.lag_seconds_max = 0.0
        self._lagged = 0

    def take(self, text: str) -> None:
        """One scrape of the worker that runs."""
        found = re.findall(
            r"^((?:replicator_\w+_(?:total|count|bucket|sum)|process_cpu_seconds_total)"
            r"(?:\{.*\})?) (\S+)$",
            text,
            re.MULTILINE,
        )
        self._now = {name: float(value) for name, value in found}
        lags = [
            float(lag)
            for lag in re.findall(r"^replicator_lag_seconds\{.*\} (\S+)$", text, re.MULTILINE)
        ]
        self.lag_seconds = max(lags, default=0.0)
        self.lag_seconds_max = max(self.lag_seconds_max, self.lag_seconds)
        self._lagged += self.lag_seconds > 60

    def restarted(self) -> None:
        """Another worker counts from 0."""
        self._before.update(self._now)
        self._now = {}

    def counters(self) -> dict[str, float]:
        """What is above zero, over all workers: counters, slow calls, and times of high lag."""
        total: Counter[str] = Counter(self._before)
        total.update(self._now)
        calls, quick = (
            sum(value for name, value in total.items() if re.match(pattern, name))
            for pattern in (
                r"replicator_api_seconds_count\{",
                rf'replicator_api_seconds_bucket\{{le="{re.escape(SLOW_SECONDS)}"',
            )
        )
        shown = {
            name: value
            for name, value in sorted(total.items())
            if value and name.split("{")[0].endswith("_total")
        }
        derived = {SLOW: calls - quick, LAG_PEAK: float(self._lagged)}
        return shown | {name: value for name, value in derived.items() if value}
