"""The control API: what a test asks of the cloud over HTTP.

    GET  /_control/state      time, shards, consumers, the workload, faults done by kind
    GET  /_control/oracle     the table as it must be in the end, in DynamoDB's typed form
    GET  /_control/log?from=N what was done, JSON lines
    GET  /_control/script     the faults of the script
    PUT  /_control/script     replaces them (a JSON array); counting begins anew
    POST /_control/faults     adds one (a JSON object)
    POST /_control/advance    {"seconds": S}: lets time pass
    POST /_control/workload   {"rate": R}: changes a second, 0 ends it and lets come what was
                              held back; {"changes": N}: so many now

A body that can't be used is answered with 400 and {"error": …}.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aiohttp import web

from replicator.testing.cloud.faults import Fault, parse_script

if TYPE_CHECKING:
    from replicator.testing.cloud.misbehaving import Misbehaving


class Control:
    """The handlers over one cloud."""

    def __init__(self, cloud: Misbehaving) -> None:
        self._cloud = cloud

    async def state(self, _: web.Request) -> web.Response:
        cloud = self._cloud
        stream = cloud.served
        shards = [
            {
                "id": shard.id,
                "parents": shard.parents,
                "is_open": shard.is_open,
                "records": stream.count(shard.id),
                "hash_range": [str(end) for end in stream.hash_range(shard.id)],
                "readers": cloud.readers(shard.id),
            }
            for shard in stream.shards()
        ]
        return _json(
            {
                "stream": cloud.name,
                "seed": cloud.mischief.seed,
                "seconds": round(cloud.clock.seconds(), 3),
                "shards": shards,
                "rate": cloud.rate,
                "changes": cloud.workload.history.made,
                "records": cloud.workload.records,
                "items": len(cloud.workload.history.items),
                "faults": dict(sorted(cloud.journal.counts.items())),
            }
        )

    async def oracle(self, _: web.Request) -> web.Response:
        history = self._cloud.workload.history
        return _json({"changes": history.made, "items": history.items})

    async def log(self, request: web.Request) -> web.Response:
        lines = self._cloud.journal.lines(int(request.query.get("from", "1")))
        return web.Response(
            text="".join(f"{line}\n" for line in lines), content_type="application/jsonl"
        )

    async def script(self, _: web.Request) -> web.Response:
        return _json(
            [fault.model_dump(exclude_defaults=True) for fault in self._cloud.mischief.script]
        )

    async def replace_script(self, request: web.Request) -> web.Response:
        self._cloud.mischief.replace(parse_script(await request.read()))
        return await self.script(request)

    async def add_fault(self, request: web.Request) -> web.Response:
        self._cloud.mischief.add(Fault.model_validate_json(await request.read()))
        return await self.script(request)

    async def advance(self, request: web.Request) -> web.Response:
        self._cloud.advance(float((await request.json())["seconds"]))
        return await self.state(request)

    async def workload(self, request: web.Request) -> web.Response:
        body = await request.json()
        cloud = self._cloud
        cloud.workload.make(int(body.get("changes", 0)), cloud.clock.seconds())
        if "rate" in body:
            cloud.rate = float(body["rate"])
            if not cloud.rate:
                cloud.pause_workload()
        return await self.state(request)


def add_control(app: web.Application, cloud: Misbehaving) -> None:
    """The routes."""
    control = Control(cloud)
    app.middlewares.append(_explained)
    app.router.add_get("/_control/state", control.state)
    app.router.add_get("/_control/oracle", control.oracle)
    app.router.add_get("/_control/log", control.log)
    app.router.add_get("/_control/script", control.script)
    app.router.add_put("/_control/script", control.replace_script)
    app.router.add_post("/_control/faults", control.add_fault)
    app.router.add_post("/_control/advance", control.advance)
    app.router.add_post("/_control/workload", control.workload)


@web.middleware
async def _explained(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if not request.path.startswith("/_control/"):
            raise
        return _json({"error": str(error)}, status=400)
    return answer


def _json(body: object, *, status: int = 200) -> web.Response:
    return web.Response(
        text=json.dumps(body, ensure_ascii=False), status=status, content_type="application/json"
    )
