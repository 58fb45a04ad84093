"""GetRecords of both services, handed over raw, gives what the driver's own parser gives."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest

from replicator._core import Answer, BodyError, Records, decode
from replicator.aws import AWSSettings, aws_client, aws_errors
from replicator.errors import FatalError, PositionLost, ReplicatorError, TransientError
from replicator.source.hand_over import (
    kinesis_get_records,
    raw_body,
    register,
    streams_get_records,
)
from tests.aggregates import aggregate
from tests.shop import Shop

pytestmark = pytest.mark.usefixtures("credentials")

ITEM = {
    "id": {"S": "p#1"},
    "text": {"S": 'é中😀 "quoted" \\ \n'},
    "n": {"N": "-1.2345678901234567890123456789012345678E-20"},
    "b": {"B": b"\x00\xff"},
    "flag": {"BOOL": True},
    "none": {"NULL": True},
    "map": {"M": {"list": {"L": [{"S": ""}, {"M": {}}, {"BS": [b"a", b"b"]}]}}},
    "ss": {"SS": ["a", "b"]},
    "ns": {"NS": ["1", "2.5"]},
}


@pytest.fixture
async def kinesis(settings: AWSSettings) -> AsyncIterator[Any]:
    """A client that hands over, and parses what isn't asked for raw."""
    async with aws_client(settings, "kinesis") as client:
        register(client)
        yield client


@pytest.fixture
async def streams(settings: AWSSettings) -> AsyncIterator[Any]:
    async with aws_client(settings, "dynamodbstreams") as client:
        register(client)
        yield client


@pytest.fixture
async def dynamodb(settings: AWSSettings) -> AsyncIterator[Any]:
    async with aws_client(settings, "dynamodb") as client:
        yield client


async def make_stream(kinesis: Any, payloads: list[bytes]) -> tuple[str, str]:
    """A stream of one shard with these records: its name and its oldest iterator."""
    name = f"stream-{secrets.token_hex(4)}"
    await kinesis.create_stream(StreamName=name, ShardCount=1)
    await kinesis.get_waiter("stream_exists").wait(StreamName=name)
    for payload in payloads:
        await kinesis.put_record(StreamName=name, Data=payload, PartitionKey="é")
    answer = await kinesis.get_shard_iterator(
        StreamName=name, ShardId="shardId-000000000000", ShardIteratorType="TRIM_HORIZON"
    )
    return name, answer["ShardIterator"]


async def test_kinesis_gives_the_changes_that_the_stock_parser_gives(kinesis: Any) -> None:
    payloads = [payload for _, payload in Shop(keys=20).changes(60)]
    _, iterator = await make_stream(kinesis, payloads)
    stock_iterator = iterator
    for _ in range(4):
        answer = await kinesis_get_records(kinesis, iterator, 20)
        stock = await kinesis.get_records(ShardIterator=stock_iterator, Limit=20)
        theirs = Records.pack(
            [record["Data"] for record in stock["Records"]],
            [record["SequenceNumber"] for record in stock["Records"]],
            [
                round(record["ApproximateArrivalTimestamp"].timestamp() * 1_000)
                for record in stock["Records"]
            ],
        )
        assert lines(answer.records) == lines(theirs)
        assert answer.records.first_sequence_number == theirs.first_sequence_number
        assert answer.records.last_sequence_number == theirs.last_sequence_number
        if len(theirs):
            assert answer.records.last_arrival_ms is not None
            assert theirs.last_arrival_ms is not None
            # The emulator writes more decimals than the service; ours are cut, not rounded.
            assert abs(answer.records.last_arrival_ms - theirs.last_arrival_ms) <= 1
        assert answer.millis_behind_latest is not None
        assert answer.millis_behind_latest >= 0
        assert answer.child_shards == []
        assert answer.next_iterator
        iterator, stock_iterator = answer.next_iterator, stock["NextShardIterator"]
    assert len(answer.records) == 0


async def test_an_aggregate_is_taken_apart_on_the_way(kinesis: Any) -> None:
    payloads = [payload for _, payload in Shop().changes(30)]
    _, iterator = await make_stream(kinesis, [payloads[0], aggregate(payloads[1:29]), payloads[29]])
    answer = await kinesis_get_records(kinesis, iterator, 100)
    assert lines(answer.records) == lines(Records.pack(payloads))


def lines(records: Records) -> list[dict[str, Any]]:
    batch = decode(records, keep_all=True)
    assert not batch.rejections
    return [json.loads(line) for line in batch.json_lines("dynamodb").splitlines()]


async def test_streams_gives_the_changes_that_the_stock_parser_gives(
    dynamodb: Any, streams: Any
) -> None:
    arn = await make_table(dynamodb)
    for n in range(5):
        await dynamodb.put_item(TableName="products", Item=ITEM | {"made": {"N": str(n)}})
    await dynamodb.delete_item(TableName="products", Key={"id": ITEM["id"]})
    iterator = stock_iterator = await oldest(streams, arn)
    changes = []
    for _ in range(3):
        answer = await streams_get_records(streams, iterator, 4)
        stock = await streams.get_records(ShardIterator=stock_iterator, Limit=4)
        batch = decode(answer.records, table="products", keep_all=True)
        assert not batch.rejections
        found = [json.loads(line) for line in batch.json_lines("dynamodb").splitlines()]
        changes += found
        assert found == [as_line(record) for record in stock["Records"]]
        if stock["Records"]:
            change = stock["Records"][-1]["dynamodb"]
            assert answer.records.last_sequence_number == change["SequenceNumber"]
            created = change["ApproximateCreationDateTime"].timestamp()
            assert answer.records.last_arrival_ms == created * 1_000
        assert answer.millis_behind_latest is None
        assert answer.next_iterator
        iterator, stock_iterator = answer.next_iterator, stock["NextShardIterator"]
    assert [change["event"] for change in changes] == ["INSERT", *["MODIFY"] * 4, "REMOVE"]
    assert changes[0]["item"]["b"] == {"B": "AP8="}


async def test_the_end_of_a_shard_has_no_next_iterator(dynamodb: Any, streams: Any) -> None:
    arn = await make_table(dynamodb)
    await dynamodb.put_item(TableName="products", Item=ITEM)
    iterator = await oldest(streams, arn)
    await dynamodb.update_table(TableName="products", StreamSpecification={"StreamEnabled": False})
    answer = await streams_get_records(streams, iterator, 100)
    assert (len(answer.records), answer.next_iterator) == (1, None)


async def make_table(dynamodb: Any) -> str:
    answer = await dynamodb.create_table(
        TableName="products",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    arn: str = answer["TableDescription"]["LatestStreamArn"]
    return arn


async def oldest(streams: Any, arn: str) -> str:
    description = (await streams.describe_stream(StreamArn=arn))["StreamDescription"]
    answer = await streams.get_shard_iterator(
        StreamArn=arn,
        ShardId=description["Shards"][0]["ShardId"],
        ShardIteratorType="TRIM_HORIZON",
    )
    iterator: str = answer["ShardIterator"]
    return iterator


def as_line(record: dict[str, Any]) -> dict[str, Any]:
    """A record of the stock parser as `json_lines("dynamodb")` writes it."""
    change = record["dynamodb"]
    return {
        "table": "products",
        "event": record["eventName"],
        "key": wire(change["Keys"]),
        "version": change["SequenceNumber"].lstrip("0"),
        "item": wire(change.get("NewImage")),
        "old": wire(change.get("OldImage")),
    }


def wire(value: Any) -> Any:
    """With binaries as JSON carries them."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case dict():
            return {name: wire(inner) for name, inner in value.items()}
        case list():
            return [wire(inner) for inner in value]
        case _:
            return value


async def test_errors_of_the_emulator_keep_the_stock_parser(
    kinesis: Any, dynamodb: Any, streams: Any
) -> None:
    name, iterator = await make_stream(kinesis, [])
    await kinesis.delete_stream(StreamName=name)
    with pytest.raises(TransientError) as expired, aws_errors("GetRecords", name):
        await kinesis_get_records(kinesis, iterator, 10)
    assert expired.value.code == "iterator_expired"
    with pytest.raises(FatalError) as invalid, aws_errors("GetRecords", "products"):
        await streams_get_records(streams, "no iterator of anything", 10)
    assert invalid.value.code == "request_invalid"


class _Server:
    """Answers every call with these pieces, and keeps the connection when they don't end the
    body; `gone` is set when the client has closed it."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.sent = asyncio.Event()
        self.gone = asyncio.Event()
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.writelines(self._pieces)
        await writer.drain()
        self.sent.set()
        while await reader.read(65_536):
            pass
        self.gone.set()
        writer.close()


def head(length: int, status: str = "200 OK") -> bytes:
    content_type = "application/x-amz-json-1.1"
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize("service", ["kinesis", "dynamodbstreams"])
@pytest.mark.parametrize(
    ("code", "error", "slug"),
    [
        ("ResourceNotFoundException", FatalError, "resource_missing"),
        ("ExpiredIteratorException", TransientError, "iterator_expired"),
        ("TrimmedDataAccessException", PositionLost, "position_trimmed"),
    ],
)
async def test_an_error_keeps_its_type(
    service: str, code: str, error: type[ReplicatorError], slug: str
) -> None:
    get_records = kinesis_get_records if service == "kinesis" else streams_get_records
    body = json.dumps({"__type": code, "message": "as scripted"}).encode()
    async with _Server(head(len(body), "400 Bad Request"), body) as server:
        settings = AWSSettings(region="eu-north-1", endpoint_url=server.url)
        async with aws_client(settings, service) as client:
            register(client)
            with pytest.raises(error, match="as scripted") as caught, aws_errors("GetRecords", "s"):
                await get_records(client, "A", 10)
    assert caught.value.code == slug


@pytest.mark.parametrize("service", ["kinesis", "dynamodbstreams"])
async def test_a_cancelled_call_leaves_no_connection_open(service: str) -> None:
    get_records = kinesis_get_records if service == "kinesis" else streams_get_records
    async with _Server(head(100), b'{"Records":[') as server:
        settings = AWSSettings(region="eu-north-1", endpoint_url=server.url)
        async with aws_client(settings, service) as client:
            register(client)
            call = asyncio.create_task(get_records(client, "A", 10))
            async with asyncio.timeout(60):
                await server.sent.wait()
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                await server.gone.wait()


async def test_a_body_that_is_no_answer_says_where() -> None:
    body = b'{"Records":[{"Data":"e30="]}'
    async with _Server(head(len(body)), body) as server:
        settings = AWSSettings(region="eu-north-1", endpoint_url=server.url)
        async with aws_client(settings, "kinesis") as client:
            register(client)
            with pytest.raises(BodyError, match="byte 26") as caught:
                await kinesis_get_records(client, "A", 10)
    assert caught.value.code == "answer_envelope"


async def test_a_large_body_is_read_in_a_thread() -> None:
    record = b'{"Data":"%s","SequenceNumber":"%d"}'
    large = b",".join(record % (base64.b64encode(b"x" * 100_000), n) for n in range(100))
    body = b'{"Records":[' + large + b"]}"
    async with _Server(head(len(body)), body) as server:
        settings = AWSSettings(region="eu-north-1", endpoint_url=server.url)
        async with aws_client(settings, "kinesis") as client:
            register(client)
            answer = await kinesis_get_records(client, "A", 1_000)
    assert len(answer.records) == 100
    assert answer.records.last_sequence_number == "99"


async def test_calls_beside_each_other_get_their_own_bodies(kinesis: Any) -> None:
    shops = [Shop(seed=seed).changes(5) for seed in range(8)]
    iterators = [
        (await make_stream(kinesis, [payload for _, payload in changes]))[1] for changes in shops
    ]
    answers: list[Answer] = await asyncio.gather(
        *(kinesis_get_records(kinesis, iterator, 10) for iterator in iterators)
    )
    for changes, answer in zip(shops, answers, strict=True):
        assert lines(answer.records) == lines(Records.pack([payload for _, payload in changes]))


async def test_other_calls_inside_keep_nothing(kinesis: Any) -> None:
    with raw_body() as raw:
        assert "StreamNames" in await kinesis.list_streams()
    assert raw.content is None
