"""CrateDB's error codes, and what the engine is told of them."""

from __future__ import annotations

import ssl

import aiohttp
import pytest

from replicator.errors import FatalError, ReplicatorError, TransientError
from replicator.sink.crate_errors import REFUSAL_CODES, CrateError, mapped

BLOCKED = "ClusterBlockException[blocked by: [FORBIDDEN/8/index write (api)];]"
FULL = "ClusterBlockException[blocked by: [FORBIDDEN/12/index read-only / allow delete (api)];]"


@pytest.mark.parametrize(
    ("error", "wanted", "word"),
    [
        (CrateError(4000, "mismatched input"), FatalError, "look the code up"),
        (CrateError(4010, "no", 401), FatalError, "password"),
        (CrateError(4011, "Missing 'DML' privilege", 401), FatalError, "privilege"),
        (CrateError(0, "nginx says no", 401), FatalError, "password"),
        (CrateError(4037, "blocked"), TransientError, "blocked"),
        (CrateError(4041, "unknown"), FatalError, "restart"),
        (CrateError(4043, "unknown"), FatalError, "column"),
        (CrateError(4092, "conflict"), TransientError, "conflict"),
        (CrateError(4290, "too many", 429), TransientError, "too many"),
        (CrateError(5002, "shards"), TransientError, "shards"),
        (CrateError(5000, BLOCKED), FatalError, "lift the block"),
        (CrateError(5000, FULL), TransientError, "allow delete"),
        (CrateError(4036, "DDL only"), FatalError, "lift the block"),
        (CrateError(5030, "unavailable", 503), TransientError, "unavailable"),
        (CrateError(0, "bad gateway", 502), TransientError, "bad gateway"),
        (CrateError.of(None), TransientError, "no reason given"),
        (TimeoutError(), TransientError, "no answer in time"),
        (aiohttp.ServerDisconnectedError(), TransientError, "disconnected"),
        (ConnectionRefusedError("refused"), TransientError, "refused"),
        (aiohttp.InvalidURL("x://"), FatalError, "url"),
        (ssl.SSLError("[SSL: WRONG_VERSION_NUMBER]"), FatalError, "speaks TLS"),
    ],
)
def test_each_error_has_one_class(
    error: Exception, wanted: type[ReplicatorError], word: str
) -> None:
    with pytest.raises(wanted) as raised, mapped("writing"):
        raise error
    assert raised.value.message.startswith("writing: ")
    assert word in raised.value.message


def test_what_the_server_says_of_a_row_has_a_code() -> None:
    said = {
        4008: ('InvalidColumnNameException["a.b" contains a dot]', "crate_name"),
        4000: ("SQLParseException[Cannot cast object element `n` …]", "crate_type"),
        4003: ("Limit of total columns [1000] in table exceeded", "crate_value"),
    }
    for code, (message, wanted) in said.items():
        error = CrateError(code, message)
        assert error.refuses_row
        assert error.refusal_code == wanted
        assert wanted in REFUSAL_CODES
        assert str(code) in error.refusal_message
    assert not CrateError(5002, "shards").refuses_row


@pytest.mark.parametrize(
    ("message", "is_poison"),
    [
        ("ClassCastException[class java.lang.String cannot be cast to class …]", True),
        ('NumberFormatException[For input string: "x"]', True),
        ("ArithmeticException[long overflow]", True),
        ("CircuitBreakingException[[parent] Data too large, data for [<http_request>] …]", False),
        ("EsRejectedExecutionException[rejected execution of …]", False),
        ("AlreadyClosedException[this IndexWriter is closed]", False),
        ("NodeDisconnectedException[[crate2][10.0.0.2:4300] disconnected]", False),
        ("IOException[No space left on device]", False),
        (BLOCKED, False),
        ("UnhandledServerException[…]", False),
    ],
)
def test_without_a_code_only_what_names_the_value_is_poison(message: str, is_poison: bool) -> None:
    """Regression: whatever the server has no code for was taken for the row's own fault."""
    assert CrateError(5000, message).refuses_row is is_poison
