"""What several formats have from AWS: ARNs, Regions, start positions, endpoints."""

from __future__ import annotations

import re
from typing import Final

from replicator.importing.draft import REPLACE_ME, Draft, Kind, To, text

# https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonkinesisdatastreams.html#amazonkinesisdatastreams-resources-for-iam-policies
# https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazondynamodb.html#amazondynamodb-resources-for-iam-policies
_KINESIS: Final = re.compile(
    r"(?P<stream>arn:[^:]+:kinesis:(?P<region>[^:]+):[^:]*:stream/(?P<name>[^/:]+))"
    r"(?:/consumer/(?P<consumer>[^/:]+):.*)?"
)
_STREAMS: Final = re.compile(
    r"arn:[^:]+:dynamodb:(?P<region>[^:]+):[^:]*:table/(?P<table>[^/]+)/stream/.+"
)

TABLES: Final = (
    f"tables: name the DynamoDB tables whose changes the stream carries, in place of {REPLACE_ME}"
)
CREDENTIALS: Final = (
    "credentials come from the environment as AWS's own tools take them: AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, a profile, or better the machine's role"
)
POSITION: Final = (
    "how far it has read isn't in its configuration. Stop it, and begin at a time a little before "
    "that: a change that comes twice undoes nothing in a table, and stands twice in a log"
)


def source_of(draft: Draft, arn: str) -> bool:
    """Fills the source in from the ARN of a Kinesis stream, of a consumer of one, or of a
    table's own stream; False when it is none of them."""
    if (kinesis := _KINESIS.fullmatch(arn)) is not None:
        draft.source |= {"kind": "kinesis", "stream": kinesis["stream"], "mode": "polling"}
        draft.put("aws.region", kinesis["region"])
        if kinesis["consumer"]:
            draft.source |= {"mode": "fan_out", "consumer": kinesis["consumer"]}
            draft.note(
                Kind.DIFFERS,
                "the registered consumer is used again, and can serve one reader only: switch the "
                "old one off first, or take source.consumer out for a consumer of our own",
            )
        draft.note(Kind.FILL_IN, TABLES)
        return True
    if (streams := _STREAMS.fullmatch(arn)) is not None:
        draft.source |= {"kind": "streams", "stream": arn}
        draft.put("aws.region", streams["region"])
        draft.tables = [streams["table"]]
        return True
    return False


def start(position: str, timestamp: object = None) -> str:
    """Our `start` of the service's words: TRIM_HORIZON, LATEST, or AT_TIMESTAMP and the
    timestamp (RFC 3339, epoch seconds or milliseconds).

    Raises ValueError for others, sequence numbers among them: they are a shard's own.
    """
    if position in {"TRIM_HORIZON", "LATEST"}:
        return position
    if position != "AT_TIMESTAMP":
        raise ValueError("TRIM_HORIZON, LATEST or AT_TIMESTAMP is wanted")
    if isinstance(timestamp, float):
        return f"{timestamp:.3f}"
    moment = text(timestamp)
    if not moment:
        raise ValueError("it says AT_TIMESTAMP, and no timestamp is given")
    if re.fullmatch(r"\d{4}-\d\d-\d\d", moment):
        return f"{moment}T00:00:00Z"
    if re.fullmatch(r"[0-9.]+|.*(Z|[+-]\d\d:?\d\d)", moment):
        return moment
    return f"{moment}Z"


def region(value: object) -> str:
    """A Region by its name, or as Java's SDK names it: EU_WEST_1."""
    return text(value).lower().replace("_", "-")


def endpoint(value: object) -> str:
    """An endpoint's URL. Raises ValueError where a password is in it."""
    url = text(value) if "://" in text(value) else f"https://{text(value)}"
    if re.match(r"[^/]*//[^/?#]*@", url):
        raise ValueError("a password stands in the URL")
    return url


ENDPOINT: Final = To(
    "aws.endpoint_url", endpoint, differs="aws.endpoint_url is for all services, not for one alone"
)


def take_own_endpoint(draft: Draft, option: str) -> None:
    """An endpoint of AWS's own tells the Region, and is found by it; any other is left to the
    tables (`ENDPOINT`).
    https://docs.aws.amazon.com/general/latest/gr/rande.html"""
    own = (
        r"(?:https://)?(?:streams\.)?(?:dynamodb|kinesis)\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/?"
    )
    if found := re.fullmatch(own, draft.get(option)):
        draft.put("aws.region", found[1])
        draft.take(option, "aws.region")
