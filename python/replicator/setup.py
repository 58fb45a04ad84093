"""What a pipeline's source lacks in AWS: told, made, and taken away again.

Each piece (stream, destination, view type, consumer) looks at what is there, so that a second
run has nothing to do. A table's data is never touched, nor a piece that fits already.

Permissions to make: kinesis:CreateStream, AddTagsToStream, RegisterStreamConsumer,
dynamodb:EnableKinesisStreamingDestination, UpdateKinesisStreamingDestination, UpdateTable; to
remove: kinesis:DeleteStream, ListTagsForStream, DeregisterStreamConsumer,
dynamodb:DisableKinesisStreamingDestination.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import structlog

from replicator.aws import AWSSettings, aws_client, aws_errors
from replicator.config import Config, PipelineConfig, StreamsSourceConfig
from replicator.errors import FatalError, TransientError
from replicator.protocols import Clock
from replicator.service import SystemClock, source_settings
from replicator.tables import expanded

log = structlog.get_logger()

READY_SECONDS_MAX = 600.0
_POLL_SECONDS = 1.0
_TAG = "replicator-setup"
_MARKS = {"ok": "ok      ", "todo": "to do   ", "done": "done    ", "left": "left    "}

# What a piece is asked: an English sentence, and whether it needs doing.
Finding = tuple[str, str]


class _Piece(Protocol):
    subject: str
    kind: str

    async def look(self) -> Finding:
        """("ok", "todo" or "wait", what there is or would be done)."""
        ...

    async def make(self) -> None:
        """Does what `look` said; the service may take its time."""
        ...

    async def removable(self, *, named: bool) -> Finding:
        """("todo", "ok": nothing there, "left" or "wait": going, a sentence)."""
        ...

    async def remove(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One line: `state` is ok, todo, done or left."""

    pipeline: str
    subject: str
    state: str
    message: str


@dataclass(slots=True)
class Report:
    """All steps in the order in which they are done."""

    steps: list[Step] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """True when nothing is left to do."""
        return all(step.state != "todo" for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """For `--output json`."""
        return {"complete": self.is_complete, "steps": [asdict(step) for step in self.steps]}

    def as_text(self) -> str:
        """For people."""
        return "\n".join(f"{_MARKS[s.state]}  {s.pipeline}: {s.message}" for s in self.steps)


async def setup(
    config: Config,
    *,
    apply: bool,
    remove: bool = False,
    only: Collection[str] = (),
    shards: int | None = None,
    clock: Clock | None = None,
    confirm: Callable[[Report], bool] = lambda _: True,
) -> Report:
    """Tells, and with `apply` does, what is lacking; with `remove` the other way round.

    `only` names kinds of pieces (stream, destination, view, consumer); when removing, those
    go even if this command didn't make them. `shards` makes a provisioned stream, None one
    on demand. Nothing is changed when `confirm`, asked once before, says no.

    Raises FatalError for what can't be done, TransientError when a piece isn't ready in time.
    """
    clock = clock or SystemClock()
    config = await expanded(config)
    report = Report()
    async with AsyncExitStack() as stack:
        work: list[tuple[str, _Piece]] = []
        for pipeline in config.pipelines:
            pieces = await _pieces(stack, config, pipeline, shards)
            if remove:
                pieces = pieces[::-1]
            work += [(pipeline.name, p) for p in pieces if not only or p.kind in only]
        for name, piece in work:
            found = await (piece.removable(named=piece.kind in only) if remove else piece.look())
            state = "todo" if found[0] == "wait" else found[0]
            report.steps.append(Step(name, piece.subject, state, found[1]))
        if not apply or report.is_complete or not confirm(report):
            return report
        done = Report()
        for (name, piece), step in zip(work, report.steps, strict=True):
            if step.state == "todo":
                message = await _do(piece, clock, remove=remove, named=piece.kind in only)
                step = Step(name, piece.subject, "done", message)  # noqa: PLW2901
            done.steps.append(step)
        return done


async def _do(piece: _Piece, clock: Clock, *, remove: bool, named: bool) -> str:
    """Makes or removes it, and waits until the service says so."""
    deadline = clock.monotonic() + READY_SECONDS_MAX
    has_begun = False
    while True:
        state, message = await (piece.removable(named=named) if remove else piece.look())
        if state in {"ok", "left"}:
            return message
        if state == "todo" and not has_begun:
            log.info("removing" if remove else "making", subject=piece.subject, what=message)
            await (piece.remove() if remove else piece.make())
            has_begun = True
        else:
            log.info("waiting", subject=piece.subject, reason=message)
        if clock.monotonic() > deadline:
            raise TransientError(
                "setup_late",
                f"{piece.subject} isn't ready after {READY_SECONDS_MAX:.0f} s: {message}. What to "
                "do: look at it in the console; running this again goes on where it stands",
            )
        await clock.sleep(_POLL_SECONDS)


async def _pieces(
    stack: AsyncExitStack, config: Config, pipeline: PipelineConfig, shards: int | None
) -> Sequence[_Piece]:
    settings = source_settings(config, pipeline)
    dynamodb = await stack.enter_async_context(aws_client(settings, "dynamodb"))
    source = pipeline.source
    if isinstance(source, StreamsSourceConfig):
        return [_View(dynamodb, table) for table in pipeline.listed_tables]
    named = source.named_stream
    region = named.split(":")[3] if named.startswith("arn:") else settings.region
    kinesis = await stack.enter_async_context(
        aws_client(
            AWSSettings(
                region=region,
                profile=settings.profile,
                endpoint_url=settings.endpoint_url,
                role_arn=settings.role_arn,
                external_id=settings.external_id,
            ),
            "kinesis",
        )
    )
    stream = _Stream(kinesis, named.rsplit("/", 1)[-1], shards, f"{config.name}/{pipeline.name}")
    pieces: list[_Piece] = [stream]
    pieces += [_Destination(dynamodb, table, stream) for table in pipeline.listed_tables]
    if source.mode != "polling":
        consumer = config.consumer_name(pipeline)
        pieces.append(_Consumer(kinesis, consumer, stream))
    return pieces


# ---- the pieces


class _Stream:
    kind = "stream"

    def __init__(self, client: Any, name: str, shards: int | None, mark: str) -> None:
        self.subject = f"stream {name}"
        self.name = name
        self._client = client
        self._shards = shards
        self._mark = mark

    async def summary(self) -> dict[str, Any] | None:
        try:
            with aws_errors("DescribeStreamSummary", self.name):
                answer = await self._client.describe_stream_summary(StreamName=self.name)
        except FatalError as error:
            if error.code == "resource_missing":
                return None
            raise
        found: dict[str, Any] = answer["StreamDescriptionSummary"]
        return found

    async def look(self) -> Finding:
        found = await self.summary()
        if found is None:
            return "todo", f"{self.subject} would be made, {self._capacity()}"
        if found["StreamStatus"] not in {"ACTIVE", "UPDATING"}:
            return "wait", f"{self.subject} is {found['StreamStatus']}"
        return "ok", f"{self.subject} is there, {found.get('OpenShardCount', '?')} open shards"

    def _capacity(self) -> str:
        if self._shards is None:
            return (
                "on demand: nothing is known of the load (--writes, --bytes and --updates give a "
                "number of shards)"
            )
        return f"with {self._shards} {'shard' if self._shards == 1 else 'shards'}"

    async def make(self) -> None:
        mode = "ON_DEMAND" if self._shards is None else "PROVISIONED"
        request: dict[str, Any] = {"StreamModeDetails": {"StreamMode": mode}}
        if self._shards is not None:
            request["ShardCount"] = self._shards
        with aws_errors("CreateStream", self.name):
            await self._client.create_stream(StreamName=self.name, **request)
        with aws_errors("AddTagsToStream", self.name):
            await self._client.add_tags_to_stream(StreamName=self.name, Tags={_TAG: self._mark})

    async def is_ours(self) -> bool:
        """True when this command made it for this pipeline."""
        with aws_errors("ListTagsForStream", self.name):
            answer = await self._client.list_tags_for_stream(StreamName=self.name)
        return {"Key": _TAG, "Value": self._mark} in [
            {"Key": tag["Key"], "Value": tag.get("Value")} for tag in answer["Tags"]
        ]

    async def removable(self, *, named: bool) -> Finding:
        found = await self.summary()
        if found is None:
            return "ok", f"{self.subject} isn't there"
        if found["StreamStatus"] == "DELETING":
            return "wait", f"{self.subject} is being deleted"
        if not named and not await self.is_ours():
            return "left", f"{self.subject} was not made by setup (--only stream removes it)"
        return "todo", f"{self.subject} would be deleted with the records in it"

    async def remove(self) -> None:
        with aws_errors("DeleteStream", self.name):
            await self._client.delete_stream(StreamName=self.name, EnforceConsumerDeletion=True)


class _Destination:
    kind = "destination"

    def __init__(self, client: Any, table: str, stream: _Stream) -> None:
        self.subject = f"destination of table {table}"
        self._client = client
        self._table = table
        self._stream = stream

    async def _found(self) -> tuple[str | None, str, str]:
        """The stream's ARN; state and precision of the table's destination there."""
        summary = await self._stream.summary()
        if summary is None:
            return None, "DISABLED", ""
        arn = summary["StreamARN"]
        with aws_errors("DescribeKinesisStreamingDestination", self._table):
            answer = await self._client.describe_kinesis_streaming_destination(
                TableName=self._table
            )
        for one in answer.get("KinesisDataStreamDestinations", ()):
            if one["StreamArn"] == arn:
                # Millisecond is the service's default.
                precision = one.get("ApproximateCreationDateTimePrecision") or "MILLISECOND"
                return arn, one["DestinationStatus"], precision
        return arn, "DISABLED", ""

    async def look(self) -> Finding:
        where = f"table {self._table} writes to {self._stream.subject}"
        _, status, precision = await self._found()
        match status:
            case "ACTIVE" if precision == "MICROSECOND":
                return "ok", f"{where} in microseconds"
            case "ACTIVE":
                return "todo", f"{where} in milliseconds: would be changed to microseconds"
            case "ENABLING" | "UPDATING" | "DISABLING":
                return "wait", f"the {self.subject} is {status}"
            case "ENABLE_FAILED":
                return "todo", f"the {self.subject} failed to be enabled: would be enabled again"
            case _:
                return "todo", f"the {self.subject} to {self._stream.subject} would be enabled"

    async def make(self) -> None:
        arn, status, _ = await self._found()
        if status == "ACTIVE":
            with aws_errors("UpdateKinesisStreamingDestination", self._table):
                await self._client.update_kinesis_streaming_destination(
                    TableName=self._table,
                    StreamArn=arn,
                    UpdateKinesisStreamingConfiguration={
                        "ApproximateCreationDateTimePrecision": "MICROSECOND"
                    },
                )
            return
        with aws_errors("EnableKinesisStreamingDestination", self._table):
            await self._client.enable_kinesis_streaming_destination(
                TableName=self._table,
                StreamArn=arn,
                EnableKinesisStreamingConfiguration={
                    "ApproximateCreationDateTimePrecision": "MICROSECOND"
                },
            )

    async def removable(self, *, named: bool) -> Finding:
        arn, status, _ = await self._found()
        if arn is None or status in {"DISABLED", "ENABLE_FAILED"}:
            return "ok", f"table {self._table} doesn't write to {self._stream.subject}"
        if status == "DISABLING":
            return "wait", f"the {self.subject} is DISABLING"
        if not named and not await self._stream.is_ours():
            return "left", f"the {self.subject}: its stream was not made by setup"
        return "todo", f"table {self._table} would stop writing to {self._stream.subject}"

    async def remove(self) -> None:
        arn, _, _ = await self._found()
        with aws_errors("DisableKinesisStreamingDestination", self._table):
            await self._client.disable_kinesis_streaming_destination(
                TableName=self._table, StreamArn=arn
            )


class _Consumer:
    kind = "consumer"

    def __init__(self, client: Any, name: str, stream: _Stream) -> None:
        self.subject = f"consumer {name}"
        self._client = client
        self._name = name
        self._stream = stream

    async def _status(self) -> tuple[str | None, str | None]:
        """ARN of the stream, and the consumer's state."""
        summary = await self._stream.summary()
        if summary is None:
            return None, None
        arn = str(summary["StreamARN"])
        try:
            with aws_errors("DescribeStreamConsumer", self.subject):
                answer = await self._client.describe_stream_consumer(
                    StreamARN=arn, ConsumerName=self._name
                )
        except FatalError as error:
            if error.code == "resource_missing":
                return arn, None
            raise
        return arn, str(answer["ConsumerDescription"]["ConsumerStatus"])

    async def look(self) -> Finding:
        _, status = await self._status()
        if status is None:
            return "todo", f"{self.subject} would be registered"
        return ("ok" if status == "ACTIVE" else "wait"), f"{self.subject} is {status}"

    async def make(self) -> None:
        arn, _ = await self._status()
        with aws_errors("RegisterStreamConsumer", self.subject):
            await self._client.register_stream_consumer(StreamARN=arn, ConsumerName=self._name)

    async def removable(self, *, named: bool) -> Finding:
        _, status = await self._status()
        if status is None:
            return "ok", f"{self.subject} isn't there"
        if status == "DELETING":
            return "wait", f"{self.subject} is being removed"
        return "todo", f"{self.subject} would be deregistered (a running worker makes it again)"

    async def remove(self) -> None:
        arn, _ = await self._status()
        with aws_errors("DeregisterStreamConsumer", self.subject):
            await self._client.deregister_stream_consumer(StreamARN=arn, ConsumerName=self._name)


class _View:
    kind = "view"

    def __init__(self, client: Any, table: str) -> None:
        self.subject = f"stream of table {table}"
        self._client = client
        self._table = table

    async def _found(self) -> tuple[str, str | None]:
        with aws_errors("DescribeTable", self._table):
            answer = await self._client.describe_table(TableName=self._table)
        table = answer["Table"]
        wanted = table.get("StreamSpecification") or {}
        view = wanted.get("StreamViewType") if wanted.get("StreamEnabled") else None
        return str(table["TableStatus"]), view

    async def look(self) -> Finding:
        status, view = await self._found()
        if status != "ACTIVE":
            return "wait", f"table {self._table} is {status}"
        if view == "NEW_AND_OLD_IMAGES":
            return "ok", f"the {self.subject} carries new and old images"
        if view is None:
            return "todo", f"the {self.subject} would be enabled with NEW_AND_OLD_IMAGES"
        raise FatalError(
            "view_type",
            f"the {self.subject} carries {view}; a view type can't be changed. What to do: when "
            "everything of it was read, disable the stream (aws dynamodb update-table --table-name "
            f"{self._table} --stream-specification StreamEnabled=false) and run this again: the "
            "new stream has another ARN and begins empty",
        )

    async def make(self) -> None:
        await self._update(StreamEnabled=True, StreamViewType="NEW_AND_OLD_IMAGES")

    async def removable(self, *, named: bool) -> Finding:
        status, view = await self._found()
        if status != "ACTIVE":
            return "wait", f"table {self._table} is {status}"
        if view is None:
            return "ok", f"the {self.subject} is disabled"
        if not named:
            return "left", f"the {self.subject} may have other readers (--only view disables it)"
        return "todo", f"the {self.subject} would be disabled"

    async def remove(self) -> None:
        await self._update(StreamEnabled=False)

    async def _update(self, **specification: Any) -> None:
        with aws_errors("UpdateTable", self._table):
            await self._client.update_table(
                TableName=self._table, StreamSpecification=specification
            )
