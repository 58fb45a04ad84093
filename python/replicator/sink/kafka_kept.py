"""Which changes a topic keeps: a record bears the time of its change, and brokers delete and refuse
by that.

Settings: https://kafka.apache.org/documentation/#topicconfigs; a topic that isn't made yet has its
broker's, https://kafka.apache.org/documentation/#brokerconfigs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from replicator.model import SinkFinding

_UNITS_MS: Final = {"ms": 1, "minutes": 60_000, "hours": 3_600_000}
_HOUR_US: Final = 3_600_000_000
# The second until Kafka 4, and alone until 3.6.
_BEFORE: Final = "message.timestamp.before.max.ms"
_DIFFERENCE: Final = "message.timestamp.difference.max.ms"


@dataclass(frozen=True, slots=True)
class Kept:
    """Milliseconds: what is older than `deleted_ms` when it is written is soon deleted, what is
    older than `refused_ms` is refused, as the setting `refused_by` says. None: nothing is, as far
    as is known."""

    deleted_ms: int | None = None
    refused_ms: int | None = None
    refused_by: str = _BEFORE

    @classmethod
    def by(cls, settings: Mapping[str, str]) -> Kept:
        """What a topic's settings say; nothing where those may not be seen."""
        if settings.get("message.timestamp.type") == "LogAppendTime":
            return cls()  # the broker's own time counts
        deletes = "delete" in settings.get("cleanup.policy", "delete")
        limits = {name: _limit(settings.get(name)) for name in (_BEFORE, _DIFFERENCE)}
        refusing = [(limit, name) for name, limit in limits.items() if limit is not None]
        refused_ms, refused_by = min(refusing, default=(None, _BEFORE))
        return cls(
            _limit(settings.get("retention.ms")) if deletes else None, refused_ms, refused_by
        )

    def warnings(self, topic: str, reach_us: int) -> Iterator[SinkFinding]:
        """What is said when changes come that are up to so old."""
        hours = reach_us / _HOUR_US
        if self.deleted_ms is not None and self.deleted_ms * 1_000 < reach_us:
            message = (
                f"topic {topic} has retention.ms={self.deleted_ms}, which counts from the time of "
                f"a change, and changes of up to {hours:.4g} h ago are to be read: what is older "
                "is deleted soon after it was written; raise retention.ms, or start later"
            )
            yield SinkFinding("table", message, "kafka_retention", is_warning=True)
        if self.refused_ms is not None and self.refused_ms * 1_000 < reach_us:
            message = (
                f"topic {topic} has {self.refused_by}={self.refused_ms} and changes "
                f"of up to {hours:.4g} h ago are to be read: one that is older stops its shard; "
                "raise it, or start later"
            )
            yield SinkFinding("table", message, "kafka_time_refused", is_warning=True)


def of_new(settings: Mapping[str, str], broker: Mapping[str, str]) -> dict[str, str]:
    """The settings of a topic that is made with these, by what its broker is set to."""
    found = {
        name: broker[f"log.{name}"]
        for name in ("message.timestamp.type", _BEFORE, _DIFFERENCE)
        if f"log.{name}" in broker
    }
    for unit, ms in _UNITS_MS.items():  # the finest that is set counts
        if value := broker.get(f"log.retention.{unit}"):
            limit = _limit(value)
            found["retention.ms"] = "-1" if limit is None else str(limit * ms)
            break
    return found | dict(settings)


def _limit(text: str | None) -> int | None:
    """None for -1, and for what a service that only speaks Kafka's protocol says instead."""
    return int(text) if text and text.isdecimal() else None
