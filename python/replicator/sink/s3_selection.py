"""Which changes go into objects, and what of them. A plan tells it, so that who completes the plan
goes by what it was decided with, whatever the file says by then."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from replicator._core import ChangeBatch, Pattern
from replicator.core.plan import Plan
from replicator.errors import FatalError
from replicator.settings import AttributesConfig
from replicator.sink.matched import matched


@dataclass(frozen=True, slots=True)
class Selection:
    """Changes of these tables that match one of the filters (event patterns; none: all do), with
    these attributes. Raises ValueError for filters that are none."""

    tables: frozenset[str]
    filters: tuple[str, ...] = ()
    attributes: AttributesConfig | None = None
    _pattern: Pattern | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pattern", Pattern(self.filters) if self.filters else None)

    def of(self, changes: ChangeBatch) -> tuple[ChangeBatch, int]:
        """These of the changes, and how many the filters left out; other tables' are among them."""
        projection = None if self.attributes is None else self.attributes.projection()
        return matched(changes, self.tables, self._pattern, projection)

    def told(self) -> dict[str, Any]:
        """The same for a plan, as JSON can say it: of the hashes' key only what it is known by."""
        attributes = None
        if self.attributes is not None:
            attributes = self.attributes.model_dump(
                mode="json", exclude={"hash_key"}, exclude_defaults=True
            )
            attributes |= self._key_mark()
        return {
            "tables": sorted(self.tables),
            "filters": list(self.filters),
            "attributes": attributes,
        }

    def told_by(self, plan: Plan) -> Selection:
        """What the plan was decided with; where it tells nothing, this. Raises FatalError when
        nobody here can know it."""
        told = plan.settings
        attributes = self.attributes
        try:
            if "attributes" in told:
                attributes = self._attributes(plan, told["attributes"])
            return Selection(
                frozenset(told.get("tables", self.tables)),
                tuple(told.get("filters", self.filters)),
                attributes,
            )
        except (TypeError, ValueError) as error:
            raise FatalError(
                "plan_unreadable",
                f"{plan.shard_id}: plan {plan.ordinal} was left incomplete, and what it was "
                f"decided with can't be read: {error}. What to do: run the version that wrote it, "
                "or a later one",
            ) from None

    def _attributes(self, plan: Plan, told: Mapping[str, Any] | None) -> AttributesConfig | None:
        if told is None:
            return None
        members = dict(told)
        mark = members.pop(_KEY, None)
        if mark is not None:
            if self._key_mark().get(_KEY) != mark:
                raise FatalError(
                    "plan_hash_key_changed",
                    f"{plan.shard_id}: plan {plan.ordinal} was left incomplete, and its objects "
                    "are to hold hashes by another attributes.hash_key than that of now. What to "
                    "do: start once with the former key until the log says plan_completed for "
                    "the shard, and change it then; or move the shard behind the plan "
                    "(positions set), which leaves its changes out",
                )
            assert self.attributes is not None
            members["hash_key"] = self.attributes.hash_key
        return AttributesConfig.model_validate(members)

    def _key_mark(self) -> dict[str, str]:
        key = "" if self.attributes is None else self.attributes.hash_key.get_secret_value()
        if not key:
            return {}
        # No more than who reads hashes of the data can find out about the key.
        mark = hmac.new(key.encode(), b"replicator plan", hashlib.sha256).hexdigest()[:16]
        return {_KEY: mark}


_KEY = "hash_key_mark"
