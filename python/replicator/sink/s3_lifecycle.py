"""What a bucket's lifecycle rules would do to an archive, for `check`. Pure.

Plans and positions must stay for good; data may expire, and then it is gone for a replay too. (A
plan is complete when its objects are there. A live worker's idle shard gets a plan without any
each ten minutes, so that data that expires opens none again; where no worker runs for as long,
the last plan looks as if it had never been completed.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replicator.model import SinkFinding
from replicator.sink.s3_settings import STATE_KINDS, S3Settings

# From these classes an object must be restored before it can be read
# (https://docs.aws.amazon.com/AmazonS3/latest/userguide/restoring-objects.html).
UNREADABLE = frozenset({"GLACIER", "DEEP_ARCHIVE"})


@dataclass(frozen=True, slots=True)
class LifecycleRule:
    """A rule in force: what it does to objects under a prefix, and after what."""

    name: str
    prefix: str
    does: str

    def concerns(self, place: str) -> bool:
        """True when something under that prefix may be concerned."""
        return self.prefix.startswith(place) or place.startswith(self.prefix)


def rules(answer: Mapping[str, Any]) -> tuple[LifecycleRule, ...]:
    """The rules that take current objects away, or out of reach, of what
    GetBucketLifecycleConfiguration answered. Those that ask for tags are left out: no object of
    ours has any."""
    found = []
    for n, rule in enumerate(answer.get("Rules", ()), 1):
        some = rule.get("Filter", {})
        both = some.get("And", {})
        does = _does(rule)
        if rule.get("Status") != "Enabled" or "Tag" in some or both.get("Tags") or not does:
            continue
        prefix = some.get("Prefix") or both.get("Prefix") or rule.get("Prefix") or ""
        found.append(LifecycleRule(rule.get("ID") or f"number {n}", prefix, does))
    return tuple(found)


def findings(found: Sequence[LifecycleRule] | None, settings: S3Settings) -> list[SinkFinding]:
    """What an operator should know of them; None: they can't be read."""
    state = settings.state_prefix
    if found is None:
        return [
            SinkFinding(
                "lifecycle",
                "the bucket's lifecycle rules can't be read (s3:GetLifecycleConfiguration): look "
                f"that none of them removes or archives what lies under {state}",
            )
        ]
    said = []
    if for_state := _named(found, (f"{state}{kind}/" for kind in STATE_KINDS)):
        said.append(
            SinkFinding(
                "lifecycle",
                f"{for_state}, plans and positions under {state} too: without them the sink "
                f"doesn't know what it wrote. What to do: give the rule a prefix beside {state}",
                code="state_expires",
                is_warning=True,
            )
        )
    if for_data := _named(found, [settings.prefix.root]):
        said.append(
            SinkFinding(
                "lifecycle",
                f"{for_data}: what is gone can't be asked or replayed any more; and when no worker "
                "runs for as long, a shard's last objects are taken for missing when one begins",
            )
        )
    return said


def _named(found: Iterable[LifecycleRule], places: Iterable[str]) -> str:
    wanted = tuple(places)
    return "; ".join(
        f"lifecycle rule {rule.name} {rule.does}"
        for rule in found
        if any(map(rule.concerns, wanted))
    )


def _does(rule: Mapping[str, Any]) -> str:
    expires = rule.get("Expiration", {})
    if "Days" in expires or "Date" in expires:
        return f"removes objects {_when(expires)}"
    for each in rule.get("Transitions", ()):
        if each.get("StorageClass") in UNREADABLE:
            return f"moves objects to {each['StorageClass']} {_when(each)}"
    return ""


def _when(told: Mapping[str, Any]) -> str:
    return f"after {told['Days']} days" if "Days" in told else f"from {told.get('Date')} on"
