"""`/metrics` for Prometheus. Nothing is counted here: each scrape reads `Stats`, the liveness
machine and the budget as they are.

Labels are bounded. Everything is by `pipeline`; what a sink did also by `sink`; codes, reasons
and phases are fixed lists. Three series a shard are given for the `SHARDS_SHOWN` shards of a
pipeline that are worst off (late ones first, then by lag): with 10,000 shards a scrape stays
as small as with 200, and `replicator_shards`, `replicator_shards_late` and
`replicator_lag_seconds` speak of all of them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from replicator.core.gap import Cause
from replicator.core.holes import HoleCause
from replicator.core.lease import ExpireReason, TakeReason
from replicator.core.liveness import Phase, ShardView
from replicator.telemetry.stats import Stats
from replicator.telemetry.watched import Watched, WatchedSink

SHARDS_SHOWN = 200
LATENCY_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

# name, help, value: counters by pipeline.
_OF_PIPELINE: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    ("records", "Records that were read and are durable.", lambda s: s.records),
    ("bytes", "Decoded bytes that are durable.", lambda s: s.bytes),
    ("changes", "Changes that are durable, without duplicates.", lambda s: s.changes),
    ("duplicates", "Changes that came again.", lambda s: s.duplicates),
    ("superseded", "Changes that came later than a newer one.", lambda s: s.superseded),
    ("ambiguous", "Changes that only their arrival orders.", lambda s: s.ambiguous),
    ("listings", "Complete listings of the stream's shards.", lambda s: s.listings),
    ("reader_cuts", "Silent readers that the watchdog restarted.", lambda s: s.reader_cuts),
    (
        "leases_given_back",
        "Leases of shards that stayed silent or were refused.",
        lambda s: s.leases_given_back,
    ),
)
# name, help, value: counters by pipeline and sink.
_OF_SINK: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    ("sink_changes", "Changes that are durable there.", lambda s: s.changes),
    ("rows", "Rows that were written.", lambda s: s.rows),
    ("dead_letters", "Records that the sink will never take.", lambda s: s.dead_letters),
)
# name, help, further label, values: counters by pipeline and a short list of names.
_BY_LABEL: tuple[tuple[str, str, str, Callable[[Stats], Mapping[str, int]]], ...] = (
    ("dropped", "Changes that nobody asked for.", "reason", lambda s: s.dropped),
    ("rejections", "Dead letters by the code of their reason.", "code", lambda s: s.rejected),
    ("failures", "Errors of shards that an operator must mend.", "code", lambda s: s.failures),
    (
        "gaps",
        "Positions that the service lost before they were read.",
        "cause",
        lambda s: _from_zero(Cause, s.gaps_by_cause),
    ),
    (
        "holes_found",
        "Holes that two audits in a row found.",
        "cause",
        lambda s: _from_zero(HoleCause, s.holes),
    ),
    ("discovery_failures", "Listings that failed.", "code", lambda s: s.discovery_failures),
    ("lease_failures", "Calls of the lease store that failed.", "code", lambda s: s.lease_failures),
    (
        "leases_taken",
        "Leases that were won, by why they could be.",
        "reason",
        lambda s: _from_zero(TakeReason, s.leases_taken),
    ),
    (
        "leases_lost",
        "Leases that others took, or that ran out.",
        "reason",
        lambda s: _from_zero(ExpireReason, s.leases_lost),
    ),
    ("retries", "Errors that may pass.", "code", lambda s: s.retries),
    ("flushes", "Writes by what made them due.", "reason", lambda s: s.flush_reasons),
)


class Metrics(Collector):
    """Reads the pipelines at scrape time; `pipelines` may grow meanwhile."""

    def __init__(self, pipelines: Sequence[Watched]) -> None:
        self._pipelines = pipelines
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """The exposition, in the format of `prometheus_client.CONTENT_TYPE_LATEST`."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        yield from self._counters()
        yield from self._of_sinks()
        yield from self._calls()
        yield from self._writes()
        yield from self._gauges()
        yield from self._stopped()
        yield from self._holes()
        yield from self._shards()

    def _counters(self) -> Iterator[Metric]:
        for name, text, value in _OF_PIPELINE:
            family = _counter(name, text, "pipeline")
            for each in self._pipelines:
                family.add_metric([each.pipeline], value(each.stats))
            yield family
        for name, text, label, values in _BY_LABEL:
            family = _counter(name, text, "pipeline", label)
            for each in self._pipelines:
                for key, count in values(each.stats).items():
                    family.add_metric([each.pipeline, key], count)
            yield family
        family = _counter("source_events", "What a source's calls met.", "pipeline", "event")
        for each in self._pipelines:
            for key, count in each.source_counters().items():
                family.add_metric([each.pipeline, key], count)
        yield family

    def _of_sinks(self) -> Iterator[Metric]:
        for name, text, value in _OF_SINK:
            family = _counter(name, text, "pipeline", "sink")
            for each, sink in self._sinks():
                family.add_metric([each.pipeline, sink.name], value(sink.stats))
            yield family
        errors = _counter("sink_errors", "What a sink failed with.", "pipeline", "sink", "code")
        for each, sink in self._sinks():
            for code, count in sink.errors().items():
                errors.add_metric([each.pipeline, sink.name, code], count)
        yield errors

    def _sinks(self) -> Iterator[tuple[Watched, WatchedSink]]:
        return ((each, sink) for each in self._pipelines for sink in each.sinks)

    def _calls(self) -> Iterator[Metric]:
        of = ("pipeline", "service", "operation")
        errors = _counter("api_errors", "Failed attempts, those repeated too.", *of, "code")
        seconds = HistogramMetricFamily(
            "replicator_api_seconds", "Attempts of calls, by the time to their answer.", labels=of
        )
        for each in self._pipelines:
            for (call, code), count in each.api.failures.items():
                errors.add_metric([each.pipeline, *call, code], count)
            for call, took in each.api.durations.items():
                buckets = [(bound, float(count)) for bound, count in took.cumulated()]
                seconds.add_metric([each.pipeline, *call], buckets, took.seconds)
        yield errors
        yield seconds

    def _writes(self) -> Iterator[Metric]:
        writes = SummaryMetricFamily(
            "replicator_write_seconds",
            "Writes that became durable, and their time at the sink.",
            labels=["pipeline", "sink"],
        )
        latency = HistogramMetricFamily(
            "replicator_latency_seconds",
            "Changes, by the time from their arrival to durable.",
            labels=["pipeline", "sink"],
        )
        failing = _gauge("sink_failing", "1 while something is wrong with it.", "pipeline", "sink")
        for each, sink in self._sinks():
            labels = [each.pipeline, sink.name]
            writes.add_metric(labels, sink.stats.flushes, sink.stats.write_seconds)
            counts, total = sink.stats.latency_histogram((*LATENCY_BOUNDS, float("inf")))
            buckets = [("+Inf" if le == float("inf") else str(le), n) for le, n in counts]
            latency.add_metric(labels, [(le, float(n)) for le, n in buckets], total)
            failing.add_metric(labels, 0 if sink.trouble() is None else 1)
        yield failing
        yield writes
        yield latency

    def _gauges(self) -> Iterator[Metric]:
        used = _gauge("budget_used_bytes", "Undelivered changes in memory.", "pipeline")
        windows = _gauge("budget_window_bytes", "What log sinks hold and remember.", "pipeline")
        limit = _gauge("budget_limit_bytes", "The pipeline's share of the memory.", "pipeline")
        ready = _gauge("ready", "1 while the pipeline has begun and its leases run.", "pipeline")
        for each in self._pipelines:
            used.add_metric([each.pipeline], each.budget.used)
            windows.add_metric([each.pipeline], each.budget.windows.held)
            limit.add_metric([each.pipeline], each.budget.limit)
            ready.add_metric([each.pipeline], 0 if each.unready() else 1)
        yield from (used, windows, limit, ready)
        text = "Changes given early by log sinks, or forgotten, for want of memory."
        pressed = _counter("window_pressed", text, "pipeline", "effect")
        for each in self._pipelines:
            pressed.add_metric([each.pipeline, "early"], each.budget.windows.early)
            pressed.add_metric([each.pipeline, "forgotten"], each.budget.windows.forgotten)
        yield pressed

    def _stopped(self) -> Iterator[Metric]:
        stopped = _gauge("shards_stopped", "Shards that stand at a gap.", "pipeline", "cause")
        held_up = _gauge("shards_held_up", "Shards that wait for those at a gap.", "pipeline")
        for each in self._pipelines:
            gaps = each.gaps()
            causes = Counter(gap.cause for gap in gaps)
            for cause in Cause:
                stopped.add_metric([each.pipeline, cause], causes[cause])
            held_up.add_metric([each.pipeline], len({s for gap in gaps for s in gap.held_up}))
        yield from (stopped, held_up)

    def _holes(self) -> Iterator[Metric]:
        family = _gauge("holes", "What nobody can read, by why.", "pipeline", "cause")
        for each in self._pipelines:
            causes = Counter(hole.cause for hole in each.holes())
            for cause in HoleCause:
                family.add_metric([each.pipeline, cause], causes[cause])
        yield family

    def _shards(self) -> Iterator[Metric]:
        phases = _gauge("shards", "Shards of this worker by phase.", "pipeline", "phase")
        late = _gauge("shards_late", "Shards past their deadline.", "pipeline")
        lag = _gauge("lag_seconds", "The largest lag of its shards.", "pipeline")
        of = ("pipeline", "shard")
        shard_lag = _gauge("shard_lag_seconds", "How far what is durable lies behind.", *of)
        age = _gauge("shard_progress_age_seconds", "Since the source's last answer.", *of)
        phase = _gauge("shard_phase", "1 for the phase that the shard is in.", *of, "phase")
        for each in self._pipelines:
            views = each.shards()
            counts = Counter(view.phase for view in views)
            for one in Phase:
                phases.add_metric([each.pipeline, one], counts[one])
            late.add_metric([each.pipeline], sum(view.is_late for view in views))
            lag.add_metric([each.pipeline], max((v.lag_seconds or 0.0 for v in views), default=0.0))
            for view in heapq.nlargest(SHARDS_SHOWN, views, key=_badness):
                labels = [each.pipeline, view.shard]
                phase.add_metric([*labels, view.phase], 1)
                if view.lag_seconds is not None:
                    shard_lag.add_metric(labels, view.lag_seconds)
                if view.progress_age_seconds is not None:
                    age.add_metric(labels, view.progress_age_seconds)
        yield from (phases, late, lag, shard_lag, age, phase)


def _from_zero(names: Iterable[str], counts: Mapping[str, int]) -> Mapping[str, int]:
    """With those that never happened: the first of a series that appears is no increase."""
    return dict.fromkeys(names, 0) | dict(counts)


def _badness(view: ShardView) -> tuple[bool, float]:
    return view.is_late, view.lag_seconds or 0.0


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"replicator_{name}", text, labels=labels)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"replicator_{name}", text, labels=labels)
