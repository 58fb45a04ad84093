"""What goes wrong, and when: a script of faults, and the draws that decide.

Pure: time is an argument, and chance follows from the seed, the fault and the number of the
chance alone. So the same seed and the same calls give the same mischief, whatever else went
on between them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator


class Place(StrEnum):
    """Where a fault strikes; each has a chance there whenever one of these comes."""

    CALL = "call"
    """A request, before it is answered."""
    SUBSCRIPTION = "subscription"
    """An accepted SubscribeToShard, before its first frame."""
    EVENT = "event"
    """The next frame of a subscription."""
    RECORD = "record"
    """A change that the workload makes."""
    TICK = "tick"
    """Twenty times a second."""


# Each kind strikes at one place; what its `code`, `seconds` and `count` mean there.
KINDS: dict[str, tuple[Place, str]] = {
    "throttle": (Place.CALL, "an error answer about too many calls; `code` names another one"),
    "error": (Place.CALL, "a server error; `code` names another one, such as AccessDenied"),
    "drop": (Place.CALL, "the connection is closed without an answer"),
    "mute": (Place.CALL, "the call is accepted and never answered"),
    "slow": (Place.CALL, "the answer comes `seconds` later"),
    "lose_answer": (Place.CALL, "the call takes effect, then the connection is closed"),
    "expire_iterator": (Place.CALL, "GetRecords: the iterator has expired"),
    "cut_in_answer": (Place.CALL, "the connection is closed inside the answer"),
    "empty_page": (Place.CALL, "GetRecords: no records though some wait"),
    "small_page": (Place.CALL, "GetRecords: `count` records (1)"),
    "lag_page": (Place.CALL, "GetRecords of Kinesis: as `lag`, over `count` answers"),
    "no_initial_response": (Place.SUBSCRIPTION, "the first frame is left out"),
    "end": (Place.EVENT, "the subscription ends, whole, as after its five minutes"),
    "cut": (Place.EVENT, "the connection is closed between two frames"),
    "cut_in_frame": (Place.EVENT, "the connection is closed inside a frame"),
    "end_in_frame": (Place.EVENT, "the body ends inside a frame"),
    "stall": (Place.EVENT, "nothing more comes and the connection stays"),
    "stall_in_frame": (Place.EVENT, "the same inside a frame"),
    "bad_crc": (Place.EVENT, "a frame's checksum is wrong"),
    "exception": (Place.EVENT, "an exception event ends it; `code` names it (InternalFailure)"),
    "take_over": (Place.EVENT, "as if another process had subscribed with the same consumer"),
    "empty_event": (Place.EVENT, "an event without records though some wait"),
    "small_event": (Place.EVENT, "an event of `count` records (1)"),
    "lag": (Place.EVENT, "MillisBehindLatest grows to `seconds` and falls, over `count` events"),
    "duplicate": (Place.RECORD, "the record comes again, up to `count` records later"),
    "redeliver": (Place.RECORD, "the same with another eventID; only of exact times"),
    "reorder": (Place.RECORD, "the record comes up to `count` records late"),
    "equal_instant": (Place.RECORD, "`count` more changes of the item at the same microsecond"),
    "milliseconds": (Place.RECORD, "the time has milliseconds, and says so"),
    "ttl": (Place.RECORD, "the item expires: a delete by the service"),
    "poison": (Place.RECORD, "a record that is no change comes before it"),
    "large": (Place.RECORD, "the item grows by `count` characters (100,000)"),
    "split": (Place.TICK, "a shard splits; `shard`, or one by the seed"),
    "merge": (Place.TICK, "two neighbours merge"),
    "rotate": (Place.TICK, "DynamoDB Streams: every open shard is closed, one child each"),
    "trim": (Place.TICK, "every shard loses all that it holds"),
    "delete_consumer": (Place.TICK, "every consumer is deregistered"),
    "delete_stream": (Place.TICK, "the stream is deleted, consumers and all"),
    "recreate_stream": (Place.TICK, "the same, and another one is made under its name"),
}


class Fault(BaseModel):
    """One line of a script: what, where and when. Without a `when` it strikes at its first
    chance, once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    operation: str | None = None
    """Calls of this operation only."""
    shard: str | None = None
    """Chances of this shard only."""
    calls: tuple[int, ...] = ()
    """At these of its chances, counted from 1."""
    share: float = Field(default=0.0, ge=0, le=1)
    """At this share of its chances, as the seed draws."""
    at_seconds: tuple[float, ...] = ()
    """At the first chance from these times on, once each."""
    every_seconds: float | None = Field(default=None, gt=0)
    """At the first chance of each such span, not the first."""
    until_seconds: float | None = None
    """Not from that time on."""
    code: str | None = None
    seconds: float | None = Field(default=None, ge=0)
    count: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no fault; there are {', '.join(sorted(KINDS))}")
        return self

    @property
    def place(self) -> Place:
        return KINDS[self.kind][0]


Script = Sequence[Fault]
_SCRIPT = TypeAdapter(tuple[Fault, ...])


def parse_script(text: str | bytes) -> tuple[Fault, ...]:
    """A script out of a JSON array. Raises ValueError with what is wrong."""
    return _SCRIPT.validate_python(json.loads(text))


class Mischief:
    """Decides at each chance which faults of the script strike."""

    def __init__(self, seed: int, script: Script = ()) -> None:
        self.seed = seed
        self._lines: list[_Line] = []
        self._made = 0
        self.replace(script)

    @property
    def script(self) -> tuple[Fault, ...]:
        return tuple(line.fault for line in self._lines)

    def replace(self, script: Script) -> None:
        """The script from here on; all counting begins anew."""
        self._lines = []
        self._made = 0
        for fault in script:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        """One more fault."""
        self._lines.append(_Line(fault, f"{self.seed}/{self._made}"))
        self._made += 1

    def strikes(
        self, place: Place, now: float, *, operation: str = "", shard: str = ""
    ) -> list[Fault]:
        """The faults that strike at this chance, in the script's order. `now` is in seconds
        since the start."""
        return [
            line.fault
            for line in self._lines
            if line.fault.place is place and line.strikes(now, operation, shard)
        ]

    def draw(self, *what: Any, below: int) -> int:
        """A number in `range(below)` that follows from the seed and these words alone."""
        return int(_share(f"{self.seed}/{'/'.join(map(str, what))}") * below)


class _Line:
    """A fault and how often it had its chance."""

    def __init__(self, fault: Fault, seed: str) -> None:
        self.fault = fault
        self._seed = seed
        self._chances: Counter[str] = Counter()
        self._times = sorted(fault.at_seconds)
        self._next = fault.every_seconds or 0.0

    def strikes(self, now: float, operation: str, shard: str) -> bool:
        fault = self.fault
        if fault.operation not in {None, operation} or fault.shard not in {None, shard}:
            return False
        self._chances[""] += 1
        scope = f"{operation}/{shard}"
        self._chances[scope] += 1
        if fault.until_seconds is not None and now >= fault.until_seconds:
            return False
        if not (fault.calls or fault.share or fault.at_seconds or fault.every_seconds):
            return self._chances[""] == 1
        return (
            self._chances[""] in fault.calls
            or self._is_due(now)
            # Drawn by shard and operation: what one does changes nothing for the others.
            or (
                fault.share > 0
                and _share(f"{self._seed}/{scope}/{self._chances[scope]}") < fault.share
            )
        )

    def _is_due(self, now: float) -> bool:
        if self._times and now >= self._times[0]:
            self._times.pop(0)
            return True
        every = self.fault.every_seconds
        if every is not None and now >= self._next:
            # What was missed meanwhile isn't made up for.
            self._next = (now // every + 1) * every
            return True
        return False


def _share(text: str) -> float:
    """A number in [0, 1) that follows from the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48
