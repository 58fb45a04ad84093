"""What the settings of every kind share: the base class, names, and what any sink can be told.

Below `config`, so that a sink's own settings can live beside the sink.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from replicator._core import Pattern, Projection
from replicator.model import LATEST, TRIM_HORIZON, Ago, Position, PositionKind, Start, at_timestamp

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class Settings(BaseModel):
    """One mapping of the file: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest(cls, data: object) -> object:
        """Refuses an unknown key with the nearest valid one."""
        if not isinstance(data, Mapping):
            return data
        keys = [field.alias or name for name, field in cls.model_fields.items()]
        for key in data:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]!r}?" if near else "remove it."
                known = ", ".join(keys)
                raise PydanticCustomError(
                    "unknown_key",
                    "unknown key {key}: {hint} Valid keys here: {known}",
                    {"key": repr(key), "hint": hint, "known": known},
                )
        return data


class AWSConfig(Settings):
    """How to reach AWS; what is left out follows the standard environment."""

    region: str | None = Field(None, description="Region, else AWS_REGION or the profile's.")
    profile: str | None = Field(None, description="Named profile, else AWS_PROFILE.")
    endpoint_url: str | None = Field(None, description="Another endpoint, for emulators.")
    role_arn: str | None = Field(None, description="Role to assume before anything else.")
    external_id: str | None = Field(None, description="External id of that role.")


def _start_as_text(value: object) -> object:
    # YAML reads an unquoted number or date as such.
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def _known_start(value: str) -> str:
    parse_start(value)
    return value


StartText: TypeAlias = Annotated[str, BeforeValidator(_start_as_text), AfterValidator(_known_start)]


class AttributesConfig(Settings):
    """Which attributes a sink may see. Paths: names joined by dots go into maps, a list stands
    for each of its elements, and a dot of a name is written with a backslash before it."""

    include: tuple[str, ...] | None = Field(
        None, min_length=1, description="Only these; the key attributes are always there."
    )
    exclude: tuple[str, ...] = Field((), description="Without these.")
    mask: tuple[str, ...] = Field((), description="Their values become the text ***.")
    hash: tuple[str, ...] = Field(
        (), description="Their values become a keyed hash (HMAC-SHA-256, hexadecimal)."
    )
    hash_key: SecretStr = Field(
        SecretStr(""), description="Key of the hashes, 16 bytes or more; best from HASH_KEY_FILE."
    )

    @model_validator(mode="after")
    def _can_be_made(self) -> AttributesConfig:
        self.projection()
        return self

    def projection(self) -> Projection:
        """The same for the core. Raises ValueError that names the list and the path."""
        if self.hash_key.get_secret_value() and not self.hash:
            raise ValueError("hash_key: there is nothing to hash: name attributes in hash")
        return Projection(
            include=self.include,
            exclude=self.exclude,
            mask=self.mask,
            hash=self.hash,
            key=self.hash_key.get_secret_value().encode(),
        )


def pattern_text(value: object) -> object:
    """One filter as the JSON text of an event pattern. YAML's mappings become JSON; text stays."""
    if isinstance(value, Mapping):
        try:
            value = json.dumps(_plain(value), ensure_ascii=False)
        except TypeError as error:
            raise ValueError(str(error)) from None
    if not isinstance(value, str):
        raise ValueError("an event pattern is wanted: a mapping, or its JSON text")  # noqa: TRY004
    Pattern(value)
    return value


FilterText: TypeAlias = Annotated[
    str,
    BeforeValidator(pattern_text),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]}),
]


def _plain(value: object, place: str = "") -> object:
    """The value, if JSON can say it. YAML reads NULL, yes, no, on and off as no text."""
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(
                    f"{place}a name is read as {name!r} by YAML: put it into quotes"
                    ' ("NULL", "yes", "5")'
                )
        return {name: _plain(inner, f"{place}{name}: ") for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, place) for inner in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{place}YAML reads a value as a {type(value).__name__}: put it into quotes")


def _known_sink_start(value: str) -> str:
    if value not in {"now", "snapshot"}:
        try:
            parse_start(value)
        except ValueError as error:
            raise ValueError(f"now, snapshot, or where a start begins: {error}") from None
    return value


SinkStartText: TypeAlias = Annotated[
    str, BeforeValidator(_start_as_text), AfterValidator(_known_sink_start)
]


class SinkConfig(Settings):
    """What every kind of sink can be told; a kind says its `kind` and adds
    its own."""

    name: str = Field(
        pattern=NAME_PATTERN,
        description="Name in positions, metrics and logs; under another name it is another sink.",
    )
    kind: str
    filter: tuple[FilterText, ...] = Field(
        (),
        description="Event patterns, as Lambda's FilterCriteria has them: only changes that match "
        "one of them go there.",
    )
    attributes: AttributesConfig | None = Field(None, description="What is seen of an item.")
    start: SinkStartText | None = Field(
        None,
        alias="from",
        description="Where the sink begins when it is added to a pipeline whose other sinks hold "
        "positions already: now (where they stand), or a position as a source's start "
        "(TRIM_HORIZON, a time, 2h ago, a sequence number). Resolved once; a new pipeline begins "
        "all its sinks at its source's start. snapshot is not there yet.",
    )

    @property
    def begins(self) -> Start | Literal["now", "snapshot"] | None:
        """The same, parsed."""
        match self.start:
            case None:
                return None
            case "now":
                return "now"
            case "snapshot":
                return "snapshot"
            case start:
                return parse_start(start)

    def pattern(self) -> Pattern | None:
        """The filter for the core; None where everything belongs."""
        return Pattern(self.filter) if self.filter else None

    def projection(self) -> Projection | None:
        """The attributes for the core; None where all are seen."""
        return None if self.attributes is None else self.attributes.projection()


def require_items(filters: Sequence[str]) -> None:
    """Raises ValueError where a filter speaks of more than items."""
    for index, text in enumerate(filters):
        for name in Pattern(text).names:
            if name not in {"dynamodb.Keys", "dynamodb.NewImage"}:
                raise ValueError(
                    f"filter {index}, {name}: this sink keeps the newest item of each key, and "
                    "its filter says which items belong there: it can speak of dynamodb.Keys "
                    "and dynamodb.NewImage only"
                )


class StateSinkConfig(SinkConfig):
    """A sink that keeps the newest item of each key: its filter is about items."""

    filter: tuple[FilterText, ...] = Field(
        (),
        description="Event patterns, as Lambda's FilterCriteria has them, over dynamodb.Keys and "
        "dynamodb.NewImage: only items that match one of them are kept.",
    )

    @field_validator("filter")
    @classmethod
    def _filter_is_about_items(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        require_items(value)
        return value


_AGO = re.compile(r"([0-9]{1,9})\s*(s|m|h|d|second|minute|hour|day)(?:(?<=[a-z]{3})s)?\s+ago")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def parse_start(text: str) -> Start:
    """The start that the text names; LATEST and a time before now ("2h ago", "30 minutes
    ago") are still to be resolved to an instant, by the service's clock.

    Raises ValueError naming the accepted forms.
    """
    plain = text.strip()
    if plain in {"TRIM_HORIZON", "LATEST"}:
        return TRIM_HORIZON if plain == "TRIM_HORIZON" else LATEST
    if re.fullmatch(r"[0-9]{20,128}", plain):
        return Position(PositionKind.AT_SEQUENCE_NUMBER, sequence_number=plain)
    if re.fullmatch(r"[0-9]{9,10}(\.[0-9]{1,6})?", plain):
        seconds, _, fraction = plain.partition(".")
        return at_timestamp(int(seconds) * 1_000_000 + int(fraction.ljust(6, "0")))
    if re.fullmatch(r"[0-9]{12,13}", plain):
        return at_timestamp(int(plain) * 1_000)
    if (ago := _AGO.fullmatch(plain)) is not None:
        return Ago(int(ago[1]) * _UNIT_SECONDS[ago[2][0]] * 1_000_000)
    try:
        moment = datetime.fromisoformat(plain)
    except ValueError:
        raise ValueError(
            f"{text!r} is no start: use TRIM_HORIZON, LATEST, an RFC 3339 time "
            "(2026-01-31T12:00:00Z), epoch seconds or milliseconds, a time before now (2h ago; "
            "s, m, h or d), or a sequence number"
        ) from None
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone: add Z or an offset")
    since_epoch = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return at_timestamp(since_epoch // timedelta(microseconds=1))
