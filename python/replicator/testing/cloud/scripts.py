"""Scripts to begin with, by name; any other is a JSON file."""

from __future__ import annotations

from replicator.testing.cloud.faults import Fault

# What the change stream does by itself, with nothing broken
# (https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/kds.html).
_DISORDER = (
    Fault(kind="duplicate", share=0.05, count=200),
    Fault(kind="redeliver", share=0.005, count=200),
    Fault(kind="reorder", share=0.05, count=50),
    Fault(kind="equal_instant", share=0.02, count=3),
    Fault(kind="milliseconds", share=0.1),
    Fault(kind="ttl", share=0.03),
)
_TROUBLE = (
    Fault(kind="poison", share=0.002),
    Fault(kind="large", share=0.001),
    Fault(kind="empty_event", share=0.02),
    Fault(kind="small_event", share=0.05),
    Fault(kind="lag", share=0.005, seconds=3_600.0, count=10),
    Fault(kind="no_initial_response", share=0.2),
    Fault(kind="end", share=0.002),
    Fault(kind="cut", share=0.002),
    Fault(kind="cut_in_frame", share=0.002),
    Fault(kind="end_in_frame", share=0.001),
    Fault(kind="bad_crc", share=0.002),
    Fault(kind="exception", share=0.001),
    Fault(kind="exception", share=0.001, code="KMSThrottlingException"),
    Fault(kind="exception", share=0.001, code="KMSDisabledException"),
    Fault(kind="take_over", share=0.0005),
    Fault(kind="error", share=0.02, operation="SubscribeToShard", code="ResourceInUseException"),
    Fault(kind="throttle", share=0.1, operation="SubscribeToShard"),
    Fault(kind="throttle", share=0.1, operation="ListShards"),
    Fault(kind="throttle", share=0.02, operation="GetRecords"),
    Fault(kind="throttle", share=0.02, operation="DescribeStreamSummary"),
    Fault(kind="error", share=0.05),
    Fault(kind="drop", share=0.03),
    Fault(kind="lose_answer", share=0.03),
    Fault(kind="slow", share=0.05, seconds=0.3),
    Fault(kind="expire_iterator", share=0.01, operation="GetRecords"),
)
# What only a reader by iterators meets.
_POLLING = (
    Fault(kind="empty_page", share=0.05, operation="GetRecords"),
    Fault(kind="small_page", share=0.05, operation="GetRecords"),
    Fault(kind="lag_page", share=0.002, operation="GetRecords", seconds=3_600.0, count=20),
    Fault(kind="cut_in_answer", share=0.01, operation="GetRecords"),
    Fault(kind="error", share=0.002, operation="GetRecords", code="KMSThrottlingException"),
)
_SILENCE = (
    Fault(kind="stall", share=0.0002),
    Fault(kind="stall_in_frame", share=0.0002),
    Fault(kind="mute", share=0.01, operation="SubscribeToShard"),
)
_RESHARDS = (
    Fault(kind="split", every_seconds=60.0),
    Fault(kind="merge", every_seconds=60.0),
)
_OPERATORS = (Fault(kind="delete_consumer", every_seconds=600.0),)
_STREAMS = (
    Fault(kind="equal_instant", share=0.02, count=3),
    Fault(kind="ttl", share=0.03),
    Fault(kind="large", share=0.001),
    Fault(kind="throttle", share=0.02),
    Fault(kind="error", share=0.02),
    Fault(kind="drop", share=0.01),
    Fault(kind="lose_answer", share=0.01),
    Fault(kind="slow", share=0.02, seconds=0.3),
    Fault(kind="expire_iterator", share=0.005, operation="GetRecords"),
    Fault(kind="empty_page", share=0.1, operation="GetRecords"),
    Fault(kind="small_page", share=0.05, operation="GetRecords"),
    Fault(kind="cut_in_answer", share=0.01),
    Fault(kind="mute", share=0.0005, operation="GetRecords"),
    Fault(kind="rotate", every_seconds=60.0),
    Fault(kind="split", every_seconds=90.0),
)

SCRIPTS: dict[str, tuple[Fault, ...]] = {
    "none": (),
    "disorder": _DISORDER,
    # Nothing in it holds a reader up for longer than its ordinary waits.
    "trouble": (*_DISORDER, *_TROUBLE),
    "full": (*_DISORDER, *_TROUBLE, *_POLLING, *_SILENCE, *_RESHARDS, *_OPERATORS),
    # All of what DynamoDB Streams does.
    "streams": _STREAMS,
}
