from __future__ import annotations

from typing import Any

import pytest
from aiobotocore.session import get_session

from replicator.errors import FatalError
from replicator.source.hand_over import register


async def client_of(service: str) -> Any:
    context = get_session().create_client(
        service,
        region_name="eu-north-1",
        aws_access_key_id="000000000000",
        aws_secret_access_key="test",
    )
    async with context as client:
        return client


@pytest.mark.parametrize("service", ["kinesis", "dynamodbstreams"])
async def test_the_driver_asks_for_json(service: str) -> None:
    """The models list the protocols that a service speaks; a driver that picked CBOR, or
    models without JSON, would hand over bodies that the core can't read."""
    client = await client_of(service)
    assert client.meta.service_model.resolved_protocol == "json"
    register(client)


async def test_a_client_of_another_protocol_is_refused() -> None:
    with pytest.raises(FatalError, match="query") as caught:
        register(await client_of("sts"))
    assert caught.value.code == "protocol_unsupported"
