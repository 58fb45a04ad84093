"""What `check` says of a bucket, as an operator meets it: each refusal names what to do, and
nothing is made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from replicator.core.plan import Encoding
from replicator.errors import FatalError, ReplicatorError, TransientError
from replicator.settings import AttributesConfig
from replicator.sink.s3 import S3Sink
from replicator.sink.s3_objects import ObjectOptions
from replicator.testing.json_server import Refusal
from replicator.testing.s3_server import Request, S3Server
from tests.archive import PRODUCTS, settings


@pytest.fixture
async def server(credentials: None) -> AsyncIterator[S3Server]:
    async with S3Server() as running:
        yield running


async def refusal(server: S3Server, **overrides: Any) -> ReplicatorError:
    with pytest.raises(ReplicatorError) as raised:
        await S3Sink(settings(server.url, **overrides)).plan([PRODUCTS])
    assert server.objects() == {}, "it only looks"
    return raised.value


async def test_a_bucket_that_can_be_used_is_left_as_it_is(server: S3Server) -> None:
    planned = await S3Sink(settings(server.url)).plan([PRODUCTS])
    assert not [each for each in planned.findings if each.code]
    assert "listed, read and written" in planned.server
    assert {request.operation for request in server.requests} == {
        "ListObjectsV2",
        "GetObject",
        "PutObject",
        "GetBucketLifecycleConfiguration",
    }
    assert server.objects() == {}


LIST, GET, PUT = "ListObjectsV2", "GetObject", "PutObject"
OBJECTS = "arn:aws:s3:::archive/*"


@pytest.mark.parametrize(
    ("operation", "code", "status", "ends", "said"),
    [
        (LIST, "AccessDenied", 403, "access_denied", "s3:ListBucket on arn:aws:s3:::archive"),
        (GET, "AccessDenied", 403, "access_denied", f"s3:GetObject on {OBJECTS}"),
        (PUT, "AccessDenied", 403, "access_denied", f"{OBJECTS}, and kms:GenerateDataKey"),
        (PUT, "KMS.NotFoundException", 400, "kms_missing", "enable alias/shop and grant kms:"),
        (PUT, "KMS.DisabledException", 400, "kms_disabled", "enable alias/shop"),
        (PUT, "KMS.KMSInvalidStateException", 400, "kms_unusable", "enable alias/shop"),
        (LIST, "InvalidAccessKeyId", 403, "credentials_invalid", "check the access key"),
        (LIST, "AuthorizationHeaderMalformed", 400, "region_wrong", "Region of the bucket in the"),
        (LIST, "NoSuchBucket", 404, "resource_missing", "aws s3 mb s3://archive"),
    ],
)
async def test_each_refusal_names_what_to_do(
    server: S3Server, operation: str, code: str, status: int, ends: str, said: str
) -> None:
    async def refuse(request: Request) -> None:
        if request.operation == operation:
            raise Refusal(code, "the service's words", status)

    server.before = refuse
    error = await refusal(server, options=ObjectOptions("alias/shop"))
    assert isinstance(error, FatalError)
    assert error.code == ends
    assert said in str(error)
    assert f"{operation} of s3://archive/_replicator/" in str(error)


async def test_a_bucket_of_another_account_or_none(server: S3Server) -> None:
    error = await refusal(server, options=ObjectOptions(owner="1" * 12))
    assert (error.code, "account 111111111111" in str(error)) == ("access_denied", True)
    error = await refusal(server, bucket="elsewhere")
    assert (error.code, "aws s3 mb s3://elsewhere" in str(error)) == ("resource_missing", True)


async def test_a_bucket_of_another_region_is_found_there(server: S3Server) -> None:
    server.region = "us-west-2"
    await S3Sink(settings(server.url)).plan([PRODUCTS])
    assert len(server.requests) > 3, "the driver asked again, and signed for the Region it was told"


async def test_the_storage_class_is_tried(server: S3Server) -> None:
    """Regression: one that isn't known was refused by the first object only."""
    await S3Sink(settings(server.url, options=ObjectOptions(storage_class="GLACIER_IR"))).plan([])
    error = await refusal(server, options=ObjectOptions(storage_class="GLACER_IR"))
    assert isinstance(error, FatalError)
    assert "InvalidStorageClass" in str(error)


@pytest.mark.usefixtures("credentials")
async def test_a_server_that_does_not_answer_may_come_back() -> None:
    with pytest.raises(TransientError) as gone:
        await S3Sink(settings("http://127.0.0.1:1")).plan([PRODUCTS])
    assert gone.value.code == "connection_failed"


def rule(name: str, told: str) -> str:
    return f"<Rule><ID>{name}</ID><Status>Enabled</Status>{told}</Rule>"


ALL = "<Filter><Prefix></Prefix></Filter>"
YEAR = "<Expiration><Days>365</Days></Expiration>"
GLACIER = "<Transition><Days>30</Days><StorageClass>GLACIER</StorageClass></Transition>"


@pytest.mark.parametrize(
    ("rules", "state", "data"),
    [
        (rule("a", ALL + YEAR), "rule a removes objects after 365 days", "rule a removes objects"),
        (rule("b", f"<Prefix></Prefix>{GLACIER}"), "b moves objects to GLACIER after 30", "rule b"),
        (rule("c", f"<Filter><Prefix>_replicator/plans/x</Prefix></Filter>{YEAR}"), "rule c", ""),
        (rule("d", f"<Filter><Prefix>data/</Prefix></Filter>{YEAR}"), "", "rule d removes"),
        (
            rule(
                "e",
                "<Filter><And><Prefix>_repl</Prefix><ObjectSizeLessThan>9</ObjectSizeLessThan>"
                f"</And></Filter>{YEAR}",
            ),
            "rule e",
            "",
        ),
        (rule("f", f"<Filter><Prefix>tmp/</Prefix></Filter>{YEAR}"), "", ""),
        (rule("g", f"<Filter><Tag><Key>k</Key><Value>v</Value></Tag></Filter>{YEAR}"), "", ""),
        (rule("h", ALL + YEAR).replace("Enabled", "Disabled"), "", ""),
        (
            rule(
                "i",
                f"{ALL}<Transition><Days>1</Days><StorageClass>GLACIER_IR</StorageClass>"
                "</Transition><AbortIncompleteMultipartUpload><DaysAfterInitiation>7"
                "</DaysAfterInitiation></AbortIncompleteMultipartUpload>"
                "<NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>"
                "</NoncurrentVersionExpiration>",
            ),
            "",
            "",
        ),
        ("", "", ""),
    ],
)
async def test_lifecycle_rules_are_looked_at(
    server: S3Server, rules: str, state: str, data: str
) -> None:
    """A rule over all of a bucket took positions along, and nobody was told before."""
    server.lifecycle = rules
    planned = await S3Sink(settings(server.url)).plan([PRODUCTS])
    assert not planned.problems
    found = [each for each in planned.findings if each.subject == "lifecycle"]
    warned = [each.message for each in found if each.code == "state_expires"]
    others = [each.message for each in found if not each.code]
    assert len(warned) == bool(state)
    assert len(others) == bool(data)
    assert state in "".join(warned)
    assert data in "".join(others)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("AccessDenied", 403),
        ("NotImplemented", 501),
        # As other stores say that they know no such request.
        ("InvalidRequest", 400),
        ("NoSuchKey", 404),
        ("MethodNotAllowed", 405),
    ],
)
async def test_rules_that_are_not_shown_are_nobodys_problem(
    server: S3Server, code: str, status: int
) -> None:
    async def refuse(request: Request) -> None:
        if request.operation == "GetBucketLifecycleConfiguration":
            raise Refusal(code, "no", status)

    server.before = refuse
    planned = await S3Sink(settings(server.url)).plan([PRODUCTS])
    assert not [each for each in planned.findings if each.code]
    assert any("s3:GetLifecycleConfiguration" in each.message for each in planned.findings)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"encoding": Encoding("plain")}, "whole (format plain):"),
        ({"encoding": Encoding("raw")}, "whole (format raw):"),
        ({"encoding": Encoding("parquet")}, "whole (format parquet):"),
        ({"filters": ('{"eventName": ["REMOVE"]}',)}, "whole (filter):"),
        (
            {"encoding": Encoding("plain"), "attributes": AttributesConfig(mask=("email",))},
            "whole (format plain, attributes):",
        ),
        (
            {"options": ObjectOptions(storage_class="DEEP_ARCHIVE")},
            "class DEEP_ARCHIVE must be restored",
        ),
    ],
)
async def test_what_cannot_be_replayed_is_said(
    server: S3Server, overrides: dict[str, Any], said: str
) -> None:
    planned = await S3Sink(settings(server.url, **overrides)).plan([PRODUCTS])
    (finding,) = [each for each in planned.findings if each.code]
    assert finding.code == "archive_not_replayable"
    assert said in finding.message
    assert not planned.problems, "it starts all the same"
