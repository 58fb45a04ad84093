"""Lambda's event source mappings, as `aws lambda get-event-source-mapping`, `list-…` and the
input of `create-…` have them.

https://docs.aws.amazon.com/lambda/latest/api/API_EventSourceMappingConfiguration.html and
https://docs.aws.amazon.com/lambda/latest/dg/services-ddb-params.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from replicator.errors import FatalError
from replicator.importing import aws, sinks
from replicator.importing.draft import Draft, Kind, NoEqual, Table, To, named, number
from replicator.importing.reading import flat, mapping

_ABOUT: Final = NoEqual("tells of the mapping itself, and what became of it")
_NO_STREAM: Final = NoEqual("is for event sources that are no stream of a table")
_RETRIES: Final = NoEqual(
    "what may work later is tried until it does; a record that will never be accepted goes to the "
    "dead letters at once"
)
_BATCHES: Final = NoEqual("a write takes what has come, at most limits.batch_rows_max (5000)")
_MONITORING: Final = NoEqual("metrics are served at /metrics, logs go to standard error")

TABLE: Final[Table] = {
    "MaximumBatchingWindowInSeconds": To(
        "limits.batch_delay_ms_max",
        lambda value: int(number(value, 0, 60) * 1_000),
        differs="for all pipelines of the file, and at most 60 s",
    ),
    "BatchSize": _BATCHES,
    "ParallelizationFactor": NoEqual(
        "a shard is written in order; sinks[].connections write side by side"
    ),
    "BisectBatchOnFunctionError": NoEqual("a refused batch is always halved"),
    "FunctionResponseTypes": NoEqual("what of a batch was refused is always told apart"),
    "MaximumRetryAttempts": _RETRIES,
    "MaximumRecordAgeInSeconds": NoEqual("no record is discarded for its age"),
    "DestinationConfig.OnFailure.Destination": NoEqual(
        "dead letters are kept at the sink, with the whole record and not a pointer to it"
    ),
    "DestinationConfig.*": _NO_STREAM,
    "TumblingWindowInSeconds": NoEqual("there are no aggregates over windows"),
    "UUID": _ABOUT,
    "EventSourceMappingArn": _ABOUT,
    "LastModified": _ABOUT,
    "LastProcessingResult": _ABOUT,
    "StateTransitionReason": _ABOUT,
    "FilterCriteriaError*": _ABOUT,
    "ResponseMetadata*": _ABOUT,
    "Tags*": _ABOUT,
    "MetricsConfig*": _MONITORING,
    "LoggingConfig*": _MONITORING,
    "ScalingConfig*": _NO_STREAM,
    "ProvisionedPollerConfig*": _NO_STREAM,
    "Topics": _NO_STREAM,
    "Queues": _NO_STREAM,
    "SourceAccessConfigurations": _NO_STREAM,
    "SelfManagedEventSource*": _NO_STREAM,
    "AmazonManagedKafkaEventSourceConfig*": _NO_STREAM,
    "SelfManagedKafkaEventSourceConfig*": _NO_STREAM,
    "DocumentDBEventSourceConfig*": _NO_STREAM,
}
_IMAGES: Final = frozenset({"Keys", "NewImage"})


def recognises(content: Any) -> bool:
    """True for one mapping, a list of them, and the answer that holds a list."""
    mappings = _mappings(content)
    return bool(mappings) and all(
        "EventSourceArn" in each and ("FunctionArn" in each or "FunctionName" in each)
        for each in mappings
    )


def _mappings(content: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(content, Mapping):
        content = content.get("EventSourceMappings", [content])
    is_list = isinstance(content, list) and all(isinstance(each, Mapping) for each in content)
    return content if is_list else []


def drafts(content: Any) -> list[Draft]:
    """A pipeline for each mapping.

    Raises FatalError (`config_import_source`) for one whose event source is no stream.
    """
    return [_draft(mapping(each)) for each in _mappings(content) or [content]]


def _draft(content: Mapping[str, Any]) -> Draft:
    draft = Draft(flat(content))
    function = draft.take("FunctionArn", "name of the pipeline") or draft.get("FunctionName")
    draft.take("FunctionName", "name of the pipeline")
    # arn:aws:lambda:eu-north-1:111122223333:function:name:alias
    draft.name = named(function.partition(":function:")[2].partition(":")[0] or function)
    sinks.postgres(draft, "the function's code")
    arn = draft.take("EventSourceArn", "source")
    if not aws.source_of(draft, arn):
        service = arn.split(":")[2] if arn.count(":") > 2 else "something else"
        raise FatalError(
            "config_import_source",
            f"{draft.name}: its event source is {service}: only Kinesis streams and DynamoDB "
            "streams can be read",
        )
    _start(draft, content.get("StartingPositionTimestamp"))
    _filters(draft, content)
    if draft.get("State") not in {"", "Disabled"} or draft.get("Enabled") == "true":
        draft.note(
            Kind.FILL_IN,
            "it is switched on. Both can run for a while, but a shard of a table's own stream "
            "bears two readers, and a registered consumer one",
            "State" if draft.get("State") else "Enabled",
        )
    draft.settle({"State": _ABOUT, "Enabled": _ABOUT}, TABLE)
    return draft


def _start(draft: Draft, timestamp: object) -> None:
    position = draft.take("StartingPosition", "source.start")
    draft.take("StartingPositionTimestamp", "source.start")
    draft.note(Kind.FILL_IN, f"source.start: {aws.POSITION}")
    if position:
        try:
            draft.put("source.start", aws.start(position, timestamp))
        except ValueError as error:
            draft.note(Kind.FILL_IN, f"source.start: {error}", "StartingPosition")


def _filters(draft: Draft, content: Mapping[str, Any]) -> None:
    """Of a Kinesis mapping the patterns are about the record's `data`, which is our change:
    https://docs.aws.amazon.com/lambda/latest/dg/with-kinesis-filtering.html"""
    option = "FilterCriteria.Filters"
    if draft.get("KMSKeyArn"):
        draft.note(
            Kind.FILL_IN,
            "the filters are encrypted by this key, and aren't given with it: add sinks[].filter",
            "KMSKeyArn",
        )
    criteria = content.get("FilterCriteria")
    filters = criteria.get("Filters") if isinstance(criteria, Mapping) else None
    if not isinstance(filters, list) or not filters:
        return
    patterns = [_pattern(each, has_data=draft.source["kind"] == "kinesis") for each in filters]
    draft.take(option, sinks.POSTGRES_FILTER)
    if any(pattern is None for pattern in patterns):
        # They are alternatives: with one missing the others would drop what it lets through.
        draft.note(
            Kind.FILL_IN,
            "left out: the sink keeps the newest item of each key, so that a filter can speak of "
            "dynamodb.Keys and dynamodb.NewImage only. All changes are copied until you add one",
            option,
        )
        return
    draft.put(sinks.POSTGRES_FILTER, patterns)
    draft.note(
        Kind.DIFFERS,
        "says which items belong into the table: one that no longer matches is deleted there, and "
        "a delete always passes",
        option,
    )


def _pattern(entry: object, *, has_data: bool) -> str | None:
    """One filter's pattern; None where it speaks of more than keys and new images."""
    try:
        pattern = json.loads(entry["Pattern"])  # type: ignore[index]
        inner = pattern["data"] if has_data else pattern
        if set(inner) == {"dynamodb"} and set(inner["dynamodb"]) <= _IMAGES:
            return json.dumps(inner, ensure_ascii=False)
    except (KeyError, TypeError, ValueError):
        pass
    return None
