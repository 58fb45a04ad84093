"""What a pipeline's source lacks in AWS: told, made, and taken away again.

Each piece (stream, destination, view type, consumer) looks at what is there, so that a second
run has nothing to do. A table's data is never touched, nor a piece that fits already.
The pieces are in `setup_pieces.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import structlog

from replicator.aws import aws_client
from replicator.config import Config, PipelineConfig, StreamsSourceConfig
from replicator.errors import FatalError, TransientError
from replicator.protocols import Clock
from replicator.service import SystemClock, source_settings
from replicator.setup_load import Capacity, measured
from replicator.setup_pieces import (
    ConsumerPiece,
    DestinationPiece,
    Piece,
    StreamPiece,
    ViewPiece,
)
from replicator.tables import expanded, with_stream

log = structlog.get_logger()

READY_SECONDS_MAX = 600.0
_POLL_SECONDS = 1.0
# The table is gone, or writes to no stream any more: nobody knows which one it wrote to.
_UNREAD = frozenset({"resource_missing", "destination_missing"})
_MARKS = {
    "ok": "ok      ",
    "todo": "to do   ",
    "done": "done    ",
    "left": "left    ",
    "stuck": "stuck   ",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One line: `state` is ok, todo, done, left or stuck (it isn't done without being named)."""

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
        return all(step.state not in {"todo", "stuck"} for step in self.steps)

    @property
    def has_work(self) -> bool:
        """True when there is something that this command would do."""
        return any(step.state == "todo" for step in self.steps)

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
    from_metrics: bool = False,
    clock: Clock | None = None,
    confirm: Callable[[Report], bool] = lambda _: True,
) -> Report:
    """Tells, and with `apply` does, what is lacking; with `remove` the other way round.

    `only` names kinds of pieces (stream, destination, view, consumer); when removing, those
    go even if this command didn't make them, and a view type that doesn't do is changed, which
    makes another stream. `shards` makes a provisioned stream, None one on demand;
    `from_metrics` takes their number from the tables' load (see `setup_load`). Nothing is
    changed when `confirm`, asked once before, says no.

    Raises FatalError for what can't be done, TransientError when a piece isn't ready in time.
    """
    clock = clock or SystemClock()
    config = await expanded(config)
    report = Report()
    async with AsyncExitStack() as stack:
        work: list[tuple[str, Piece]] = []
        unread: list[Step] = []
        for each in config.pipelines:
            try:
                pipeline = await with_stream(config, each)
            except FatalError as error:
                if not remove or error.code not in _UNREAD:
                    raise
                unread.append(Step(each.name, "source", "left", error.message))
                continue
            pieces = await _pieces(
                stack, config, pipeline, shards, from_metrics=from_metrics and not remove
            )
            if remove:
                pieces = pieces[::-1]
            work += [(pipeline.name, p) for p in pieces if not only or p.kind in only]
        for name, piece in work:
            named = piece.kind in only
            found = await (piece.removable(named=named) if remove else piece.look(named=named))
            state = "todo" if found[0] == "wait" else found[0]
            report.steps.append(Step(name, piece.subject, state, found[1]))
        planned, report.steps = report.steps, [*report.steps, *unread]
        if not apply or not report.has_work or not confirm(report):
            return report
        done = Report()
        for (name, piece), step in zip(work, planned, strict=True):
            if step.state == "todo":
                message = await _do(piece, clock, remove=remove, named=piece.kind in only)
                step = Step(name, piece.subject, "done", message)  # noqa: PLW2901
            done.steps.append(step)
        done.steps += unread
        return done


async def _do(piece: Piece, clock: Clock, *, remove: bool, named: bool) -> str:
    """Makes or removes it, and waits until the service says so."""
    deadline = clock.monotonic() + READY_SECONDS_MAX
    last: str | None = None
    while True:
        state, message = await (piece.removable(named=named) if remove else piece.look(named=named))
        if state in {"ok", "left"}:
            if last is not None and not remove:
                await piece.mark()
            return message
        if state == "todo" and message != last:
            # More than once where a piece has to be taken away before it can be made.
            log.info("removing" if remove else "making", subject=piece.subject, what=message)
            await (piece.remove() if remove else piece.make())
            last = message
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
    stack: AsyncExitStack,
    config: Config,
    pipeline: PipelineConfig,
    shards: int | None,
    *,
    from_metrics: bool,
) -> Sequence[Piece]:
    settings = source_settings(config, pipeline)
    dynamodb = await stack.enter_async_context(aws_client(settings, "dynamodb"))
    source = pipeline.source
    mark = f"{config.name}/{pipeline.name}"
    if isinstance(source, StreamsSourceConfig):
        return [ViewPiece(dynamodb, table, mark) for table in pipeline.listed_tables]
    named = source.named_stream
    region = named.split(":")[3] if named.startswith("arn:") else settings.region
    kinesis = await stack.enter_async_context(
        aws_client(replace(settings, region=region), "kinesis")
    )
    name = named.rsplit("/", 1)[-1]
    capacity = Capacity(shards)
    if from_metrics:
        watch = await stack.enter_async_context(aws_client(settings, "cloudwatch"))
        capacity = await measured(dynamodb, watch, pipeline.listed_tables)
    stream = StreamPiece(kinesis, name, capacity, mark)
    pieces: list[Piece] = [stream]
    pieces += [DestinationPiece(dynamodb, table, stream) for table in pipeline.listed_tables]
    if source.mode != "polling":
        consumer = config.consumer_name(pipeline)
        pieces.append(ConsumerPiece(kinesis, consumer, stream, mark))
    return pieces
