"""The admin server: is it alive, is it ready, what does each shard do, how much was done.

    /healthz   200 while every shard of this worker makes progress or waits for its sink,
               503 as long as one is past its deadline, or a pipeline failed and waits to be
               begun anew; names them and the reasons. Shards that stand at a gap and sinks
               that fail are named too, and leave it green: no restart mends them
    /readyz    200 once every pipeline has begun and its leases run, else 503 with reasons
    /status    everything as JSON: what `replicator status` shows
    /metrics   for Prometheus, see `telemetry.metrics`

It only reads, and has no password: it listens on the loopback address unless told otherwise.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import orjson
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from replicator.config import AdminConfig
from replicator.core.liveness import Phase, ShardView
from replicator.errors import FatalError
from replicator.telemetry.metrics import Metrics
from replicator.telemetry.watched import Watched, WatchedSink

log = structlog.get_logger()

# A list for people: who wants all of them asks /status.
SHARDS_NAMED = 20
# Who is still being answered at the end has this long.
SHUTDOWN_SECONDS = 1.0


class Admin:
    """The answers. `pipelines` may grow while it serves."""

    def __init__(self, name: str, owner: str, pipelines: Sequence[Watched]) -> None:
        self._name = name
        self._owner = owner
        self._pipelines = pipelines
        self._metrics = Metrics(pipelines)

    def health(self) -> dict[str, Any]:
        """The body of /healthz; `healthy` decides its code."""
        late: list[dict[str, Any]] = []
        waiting: list[dict[str, Any]] = []
        stopped: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        failing: list[dict[str, Any]] = []
        for each in self._pipelines:
            if (error := each.failure()) is not None:
                why = {"code": error.code, "why": error.message}
                failed.append({"pipeline": each.pipeline, **why})
            for sink in each.sinks:
                if (trouble := sink.trouble()) is not None:
                    said = {"pipeline": each.pipeline, "sink": sink.name, "why": trouble.why}
                    failing.append(said | {"seconds": round(trouble.seconds, 3)})
            for view in each.shards():
                said = {"pipeline": each.pipeline, "shard": view.shard, "why": view.why}
                if view.is_late:
                    late.append(said)
                elif view.waits_for_sink is not None:
                    waiting.append(said | {"sink": view.waits_for_sink})
            for gap in each.gaps():
                said = {"pipeline": each.pipeline, "shard": gap.shard_id, "why": gap.reason}
                stopped.append(said | {"held_up_count": len(gap.held_up)})
        return {
            "healthy": not late and not failed,
            "failed": failed,
            "failing_sinks": failing,
            "late_count": len(late),
            "late": late[:SHARDS_NAMED],
            "waiting_for_sink_count": len(waiting),
            "waiting_for_sink": waiting[:SHARDS_NAMED],
            "stopped_count": len(stopped),
            "stopped": stopped[:SHARDS_NAMED],
        }

    def readiness(self) -> dict[str, Any]:
        """The body of /readyz; `ready` decides its code."""
        reasons = {each.pipeline: why for each in self._pipelines if (why := each.unready())}
        return {"ready": bool(self._pipelines) and not reasons, "reasons": reasons}

    def status(self) -> dict[str, Any]:
        """The body of /status."""
        return {
            "name": self._name,
            "owner": self._owner,
            "pipelines": [_pipeline(each, self._name) for each in self._pipelines],
        }

    def app(self) -> web.Application:
        """The same over HTTP."""

        async def healthz(request: web.Request) -> web.Response:
            body = self.health()
            return _json(body, is_good=body["healthy"])

        async def readyz(request: web.Request) -> web.Response:
            body = self.readiness()
            return _json(body, is_good=body["ready"])

        async def status(request: web.Request) -> web.Response:
            return _json(self.status(), is_good=True)

        async def metrics(request: web.Request) -> web.Response:
            headers = {"Content-Type": CONTENT_TYPE_LATEST}
            return web.Response(body=self._metrics.text(), headers=headers)

        app = web.Application()
        app.router.add_get("/healthz", healthz)
        app.router.add_get("/readyz", readyz)
        app.router.add_get("/status", status)
        app.router.add_get("/metrics", metrics)
        return app


@asynccontextmanager
async def serving(settings: AdminConfig | None, admin: Admin) -> AsyncIterator[None]:
    """Serves during the block; does nothing without settings.

    Raises FatalError (`admin_port_in_use`, `admin_unavailable`) when it can't listen.
    """
    if settings is None:
        yield
        return
    runner = web.AppRunner(admin.app(), access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await _listen(runner, settings)
        yield
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: AdminConfig) -> None:
    where = f"{settings.host}:{settings.port}"
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise FatalError(
                "admin_port_in_use",
                f"another process listens on {where}, where the admin server should: give this "
                "one another admin.port (0 takes a free one), or switch it off with admin: null",
            ) from None
        raise FatalError(
            "admin_unavailable",
            f"the admin server can't listen on {where}: {error.strerror or error}. Mend "
            "admin.host and admin.port, or switch it off with admin: null",
        ) from None
    host, port = runner.addresses[0][:2]
    log.info("admin_listening", host=host, port=port)


def _pipeline(each: Watched, namespace: str) -> dict[str, Any]:
    stats, name = each.stats, f"{namespace}/{each.pipeline}"
    return {
        "name": each.pipeline,
        "sinks": [_sink(sink) for sink in each.sinks],
        "unready": each.unready(),
        "records": stats.records,
        "changes": stats.changes,
        "duplicates": stats.duplicates,
        "superseded": stats.superseded,
        "gaps": stats.gaps,
        "dead_letters": dict(stats.rejected),
        "retries": dict(stats.retries),
        "dropped": dict(stats.dropped),
        "reader_cuts": stats.reader_cuts,
        "leases_given_back": stats.leases_given_back,
        "source": dict(each.source_counters()),
        "budget_used_bytes": each.budget.used,
        "budget_window_bytes": each.budget.windows.held,
        "budget_limit_bytes": each.budget.limit,
        "stopped": [{"phase": Phase.GAP, **g.as_fields(name)} for g in each.gaps()],
        "holes": [hole.as_fields() for hole in each.holes()],
        "shards": [_shard(view) for view in each.shards()],
    }


def _sink(sink: WatchedSink) -> dict[str, Any]:
    stats, trouble = sink.stats, sink.trouble()
    return {
        "name": sink.name,
        "failing": "" if trouble is None else trouble.why,
        "failing_seconds": None if trouble is None else round(trouble.seconds, 3),
        "failing_shards": 0 if trouble is None else trouble.shards,
        "errors": dict(sink.errors()),
        "records": stats.records,
        "changes": stats.changes,
        "rows": stats.rows,
        "duplicates": stats.duplicates,
        "superseded": stats.superseded,
        "dead_letters": dict(stats.rejected),
    }


def _shard(view: ShardView) -> dict[str, Any]:
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in asdict(view).items()
    }


def _json(body: dict[str, Any], *, is_good: bool) -> web.Response:
    return web.Response(
        body=orjson.dumps(body), status=200 if is_good else 503, content_type="application/json"
    )
