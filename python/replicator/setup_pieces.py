"""The pieces that `replicator setup` makes: stream, destination, view type, consumer.

What was made by this command carries a tag that names the pipeline; only that is removed
again without being named.

Permissions to make: kinesis:CreateStream, AddTagsToStream, RegisterStreamConsumer, TagResource,
dynamodb:EnableKinesisStreamingDestination, UpdateKinesisStreamingDestination, UpdateTable,
TagResource; to remove: kinesis:DeleteStream, ListTagsForStream, ListTagsForResource,
DeregisterStreamConsumer, dynamodb:DisableKinesisStreamingDestination, ListTagsOfResource.
"""

from __future__ import annotations

from typing import Any, Protocol

from replicator.aws import aws_errors
from replicator.errors import FatalError
from replicator.setup_load import Capacity
from replicator.source.streams import view_type_problem

TAG = "replicator-setup"
_VIEW_TYPE = "NEW_AND_OLD_IMAGES"

# What a piece is asked: an English sentence, and whether it needs doing.
Finding = tuple[str, str]


class Piece(Protocol):
    """One thing in AWS. `kind` is what `--only` calls it."""

    subject: str
    kind: str

    async def look(self, *, named: bool) -> Finding:
        """("ok", "todo", "wait" or "stuck", what there is or would be done)."""
        ...

    async def make(self) -> None:
        """Does what `look` said; the service may take its time."""
        ...

    async def mark(self) -> None:
        """It was made and is ready: notes that, where `make` couldn't."""
        ...

    async def removable(self, *, named: bool) -> Finding:
        """("todo", "ok": nothing there, "left" or "wait": going, a sentence)."""
        ...

    async def remove(self) -> None:
        """Does what `removable` said; the service may take its time."""
        ...


class StreamPiece:
    """The Kinesis stream."""

    kind = "stream"

    def __init__(self, client: Any, name: str, capacity: Capacity, mark: str) -> None:
        self.subject = f"stream {name}"
        self.name = name
        self._client = client
        self._capacity = capacity
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

    async def look(self, *, named: bool) -> Finding:
        found = await self.summary()
        if found is None:
            return "todo", f"{self.subject} would be made, {self._capacity}"
        if found["StreamStatus"] not in {"ACTIVE", "UPDATING"}:
            return "wait", f"{self.subject} is {found['StreamStatus']}"
        return "ok", f"{self.subject} is there, {found.get('OpenShardCount', '?')} open shards"

    async def make(self) -> None:
        shards = self._capacity.shards
        request: dict[str, Any] = {"StreamModeDetails": {"StreamMode": "ON_DEMAND"}}
        if shards is not None:
            request = {"StreamModeDetails": {"StreamMode": "PROVISIONED"}, "ShardCount": shards}
        with aws_errors("CreateStream", self.name):
            # A stream that is being made can't be tagged.
            await self._client.create_stream(
                StreamName=self.name, Tags={TAG: self._mark}, **request
            )

    async def mark(self) -> None:
        # Not every service that stands in for AWS keeps the tags of CreateStream.
        if not await self.is_ours():
            with aws_errors("AddTagsToStream", self.name):
                await self._client.add_tags_to_stream(StreamName=self.name, Tags={TAG: self._mark})

    async def is_ours(self) -> bool:
        """True when this command made it for this pipeline."""
        with aws_errors("ListTagsForStream", self.name):
            answer = await self._client.list_tags_for_stream(StreamName=self.name, Limit=50)
        return _tag(answer["Tags"]) == self._mark

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


class DestinationPiece:
    """A table's Kinesis destination, in microseconds."""

    kind = "destination"

    def __init__(self, client: Any, table: str, stream: StreamPiece) -> None:
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

    async def look(self, *, named: bool) -> Finding:
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

    async def mark(self) -> None:
        """It goes with its stream, whose mark says enough."""

    async def removable(self, *, named: bool) -> Finding:
        try:
            arn, status, _ = await self._found()
        except FatalError as error:
            if error.code == "resource_missing":
                return "ok", f"table {self._table} isn't there, and writes to no stream"
            raise
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


class ConsumerPiece:
    """The registered consumer of enhanced fan-out."""

    kind = "consumer"

    def __init__(self, client: Any, name: str, stream: StreamPiece, mark: str) -> None:
        self.subject = f"consumer {name}"
        self._client = client
        self._name = name
        self._stream = stream
        self._mark = mark

    async def _described(self) -> tuple[str | None, dict[str, Any] | None]:
        """ARN of the stream, and what is known of the consumer."""
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
        return arn, answer["ConsumerDescription"]

    async def look(self, *, named: bool) -> Finding:
        _, found = await self._described()
        if found is None:
            return "todo", f"{self.subject} would be registered"
        status = found["ConsumerStatus"]
        return ("ok" if status == "ACTIVE" else "wait"), f"{self.subject} is {status}"

    async def make(self) -> None:
        arn, _ = await self._described()
        with aws_errors("RegisterStreamConsumer", self.subject):
            await self._client.register_stream_consumer(
                StreamARN=arn, ConsumerName=self._name, Tags={TAG: self._mark}
            )

    async def mark(self) -> None:
        """Its tag was registered with it."""

    async def removable(self, *, named: bool) -> Finding:
        _, found = await self._described()
        if found is None:
            return "ok", f"{self.subject} isn't there"
        if found["ConsumerStatus"] == "DELETING":
            return "wait", f"{self.subject} is being removed"
        if not named and (foreign := await self._foreign(found["ConsumerARN"])):
            return "left", f"{self.subject} {foreign} (--only consumer removes it)"
        return "todo", f"{self.subject} would be deregistered (a running worker makes it again)"

    async def _foreign(self, arn: str) -> str:
        """Why it isn't ours to remove; empty when it is."""
        if await self._stream.is_ours():
            return ""
        try:
            with aws_errors("ListTagsForResource", self.subject):
                answer = await self._client.list_tags_for_resource(ResourceARN=arn)
        except FatalError as error:
            return f"may not have been made by setup, its tags can't be read: {error.message}"
        return "" if _tag(answer["Tags"]) == self._mark else "was not made by setup"

    async def remove(self) -> None:
        arn, _ = await self._described()
        with aws_errors("DeregisterStreamConsumer", self.subject):
            await self._client.deregister_stream_consumer(StreamARN=arn, ConsumerName=self._name)


class ViewPiece:
    """A table's own stream. Its mark is a tag of the table that names the stream too: one that
    somebody enabled afterwards is another."""

    kind = "view"

    def __init__(self, client: Any, table: str, mark: str) -> None:
        self.subject = f"stream of table {table}"
        self._client = client
        self._table = table
        self._mark = mark

    async def _found(self) -> tuple[dict[str, Any], str | None]:
        """The table, and the view type of its stream; None when it has none."""
        with aws_errors("DescribeTable", self._table):
            answer = await self._client.describe_table(TableName=self._table)
        table: dict[str, Any] = answer["Table"]
        wanted = table.get("StreamSpecification") or {}
        return table, wanted.get("StreamViewType") if wanted.get("StreamEnabled") else None

    async def look(self, *, named: bool) -> Finding:
        table, view = await self._found()
        if table["TableStatus"] != "ACTIVE":
            return "wait", f"table {self._table} is {table['TableStatus']}"
        if view is None:
            return "todo", f"the {self.subject} would be enabled with {_VIEW_TYPE}"
        if view_type_problem(view) is None:
            return "ok", f"the {self.subject} has the view type {view}"
        lacks = f"the {self.subject} has the view type {view}, which carries no new images"
        if named:
            return "todo", (
                f"{lacks}: would be disabled and enabled with {_VIEW_TYPE}, as another stream that "
                "begins empty; records of the old one that were not read by then are lost"
            )
        return "stuck", (
            f"{lacks} and can't be changed: once everything of it was read, --only view disables "
            f"it and enables it with {_VIEW_TYPE}, as another stream that begins empty"
        )

    async def make(self) -> None:
        _, view = await self._found()
        if view is not None:
            await self._update(StreamEnabled=False)
        else:
            await self._update(StreamEnabled=True, StreamViewType=_VIEW_TYPE)

    async def mark(self) -> None:
        table, _ = await self._found()
        with aws_errors("TagResource", self._table):
            await self._client.tag_resource(
                ResourceArn=table["TableArn"],
                Tags=[{"Key": TAG, "Value": self._marked(table)}],
            )

    async def removable(self, *, named: bool) -> Finding:
        try:
            table, view = await self._found()
        except FatalError as error:
            if error.code == "resource_missing":
                return "ok", f"table {self._table} isn't there, and its stream takes nothing more"
            raise
        if table["TableStatus"] != "ACTIVE":
            return "wait", f"table {self._table} is {table['TableStatus']}"
        if view is None:
            return "ok", f"the {self.subject} is disabled"
        if not named and not await self._is_ours(table):
            return "left", f"the {self.subject} was not made by setup (--only view disables it)"
        return "todo", f"the {self.subject} would be disabled (a day later it is gone)"

    async def _is_ours(self, table: dict[str, Any]) -> bool:
        with aws_errors("ListTagsOfResource", self._table):
            answer = await self._client.list_tags_of_resource(ResourceArn=table["TableArn"])
        return _tag(answer["Tags"]) == self._marked(table)

    def _marked(self, table: dict[str, Any]) -> str:
        return f"{self._mark}@{table.get('LatestStreamLabel', '')}"

    async def remove(self) -> None:
        await self._update(StreamEnabled=False)

    async def _update(self, **specification: Any) -> None:
        with aws_errors("UpdateTable", self._table):
            await self._client.update_table(
                TableName=self._table, StreamSpecification=specification
            )


def _tag(tags: list[dict[str, str]]) -> str | None:
    """The value of our tag among a resource's."""
    return next((tag.get("Value") for tag in tags if tag["Key"] == TAG), None)
