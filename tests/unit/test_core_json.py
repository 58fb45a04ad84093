"""The forms of a change that have more in them than its images."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from replicator._core import Records, compress, decode

TTL = {"type": "Service", "principalId": "dynamodb.amazonaws.com"}
# As the API of DynamoDB Streams spells it.
TTL_OF_STREAMS = {"PrincipalId": "dynamodb.amazonaws.com", "Type": "Service"}


def streams(**members: Any) -> dict[str, Any]:
    """A delete as DynamoDB Streams tells it: seconds, a sequence number, no table's name."""
    return {
        "eventID": "e1",
        "eventName": "REMOVE",
        "eventSource": "aws:dynamodb",
        "dynamodb": {
            "ApproximateCreationDateTime": 1_706_542_773,
            "Keys": {"id": {"S": "a"}},
            "OldImage": {"id": {"S": "a"}, "n": {"NS": ["2", "1"]}},
            "SequenceNumber": "1405400000000002063282832",
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        },
        "eventSourceARN": "arn:aws:dynamodb:eu-north-1:1:table/orders/stream/2024-01-29",
        **members,
    }


def kinesis(time: str, precision: str) -> bytes:
    text = json.dumps(
        {
            "eventName": "INSERT",
            "dynamodb": {
                "ApproximateCreationDateTime": 0,
                "ApproximateCreationDateTimePrecision": precision,
                "Keys": {"id": {"N": "1"}},
                "NewImage": {"id": {"N": "1.0"}},
            },
        }
    )
    return text.replace('Time": 0', f'Time": {time}').encode()


def change(payload: bytes) -> dict[str, Any]:
    (line,) = decode(Records.pack([payload], ["77"])).json_lines("change").splitlines()
    whole = json.loads(line)
    assert isinstance(whole, dict)
    return whole


@pytest.mark.parametrize("identity", [TTL, TTL_OF_STREAMS])
def test_a_streams_record_keeps_its_version_and_who_did_it(identity: dict[str, str]) -> None:
    whole = change(json.dumps(streams(userIdentity=identity), indent=1).encode())
    assert whole == {
        "eventID": "e1",
        "eventName": "REMOVE",
        "tableName": "orders",
        "userIdentity": TTL,
        "version": "1405400000000002063282832",
        "position": "77",
        "dynamodb": {
            "ApproximateCreationDateTime": 1_706_542_773_000_000,
            "ApproximateCreationDateTimePrecision": "MICROSECOND",
            "SequenceNumber": "1405400000000002063282832",
            "Keys": {"id": {"S": "a"}},
            "OldImage": {"id": {"S": "a"}, "n": {"NS": ["2", "1"]}},
        },
    }
    again = json.dumps(whole).encode()
    assert change(again) == whole
    assert decode(Records.pack([again])).json_lines() == (
        b'{"table":"orders","event":"REMOVE","key":{"id":"a"},'
        b'"version":"1405400000000002063282832","item":null,"old":{"id":"a","n":[1,2]}}\n'
    )


@pytest.mark.parametrize("identity", [{}, {"userIdentity": None}])
def test_nobody_is_not_named(identity: dict[str, None]) -> None:
    assert "userIdentity" not in change(json.dumps(streams(**identity)).encode())


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
@pytest.mark.parametrize("place", [0, 1, 9])
@pytest.mark.parametrize("named", [TTL, None])
def test_only_the_records_own_member_says_who_did_it(
    named: dict[str, str] | None, place: int, blank: str
) -> None:
    """Not an attribute of that name, nor a text; wherever the member stands."""
    members = {
        "note": "userIdentity",
        **streams(note2='\\"userIdentity":{"no": 1}'),
    }
    members["dynamodb"]["OldImage"]["userIdentity"] = {"M": {"userIdentity": {"S": "no"}}}
    items = list(members.items())
    items.insert(min(place, len(items)), ("userIdentity", named))
    text = json.dumps(dict(items), separators=(f"{blank},{blank}", f"{blank}:{blank}"))
    assert change(text.encode()).get("userIdentity") == named


@pytest.mark.parametrize("codec", ["none", "gzip", "lz4", "zstd"])
def test_compressed_lines_are_the_lines(codec: Literal["none", "gzip", "lz4", "zstd"]) -> None:
    batch = decode(Records.pack([json.dumps(streams()).encode()] * 3, ["1", "2", "3"]))
    lines = batch.json_lines("change")
    packed = lines if codec == "none" else compress(lines, codec)
    assert batch.json_lines("change", compression=codec) == packed


@pytest.mark.parametrize(
    ("time", "precision", "written"),
    [
        ("1706542773915", "MILLISECOND", "1706542773915"),
        ("1706542773915.25", "MILLISECOND", "1706542773915.250"),
        ("1706542773915007", "MICROSECOND", "1706542773915007"),
    ],
)
def test_the_unit_of_the_version_stays(time: str, precision: str, written: str) -> None:
    payload = kinesis(time, precision)
    (line,) = decode(Records.pack([payload])).json_lines("change").splitlines()
    assert f'Time":{written},"ApproximateCreationDateTimePrecision":"{precision}"' in line.decode()
    assert decode(Records.pack([line])).json_lines("change") == line + b"\n"


def test_what_is_unknown_is_null_in_an_envelope() -> None:
    payload = kinesis("1706542773915835", "MICROSECOND")
    (line,) = decode(Records.pack([payload])).json_lines("debezium").splitlines()
    times = {
        "ts_ms": 1_706_542_773_915,
        "ts_us": 1_706_542_773_915_835,
        "ts_ns": 1_706_542_773_915_835_000,
    }
    envelope = json.loads(line)
    assert envelope["source"].pop("version")
    assert envelope == {
        "before": None,
        "after": {"id": 1.0},
        "source": {
            "connector": "dynamodb",
            "name": "replicator",
            **times,
            "snapshot": "false",
            "db": "",
            "sequence": None,
            "table": None,
            "event_id": None,
        },
        "transaction": None,
        "op": "c",
        **times,
    }
