"""Items in the two forms that they have in Python."""

from __future__ import annotations

import base64
from typing import Any


def with_bytes(value: Any) -> Any:
    """A typed value of the wire's JSON as boto3 takes it: bytes where JSON has base64."""
    ((tag, content),) = value.items()
    match tag:
        case "B":
            return {"B": base64.b64decode(content)}
        case "BS":
            return {"BS": [base64.b64decode(text) for text in content]}
        case "L":
            return {"L": [with_bytes(inner) for inner in content]}
        case "M":
            return {"M": {name: with_bytes(inner) for name, inner in content.items()}}
        case _:
            return value
