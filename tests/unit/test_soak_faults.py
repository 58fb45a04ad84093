"""By which metric each fault of the cloud is seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench.soak_faults import LAG_PEAK, SLOW, Done, Scrapes, sights
from replicator.testing.cloud import SCRIPTS

SCRAPE = """
replicator_records_total{pipeline="p"} 5.0
replicator_api_errors_total{code="LimitExceededException",operation="ListShards",pipeline="p"} 2.0
replicator_api_seconds_bucket{le="0.25",operation="ListShards",pipeline="p"} 3.0
replicator_api_seconds_count{operation="ListShards",pipeline="p"} 4.0
replicator_lag_seconds{pipeline="p"} 61.0
"""


def test_every_fault_of_the_scripts_has_a_metric() -> None:
    everything = "\n".join(
        [
            *(
                f'replicator_{name}_total{{pipeline="p"}} 1.0'
                for name in ("records", "duplicates", "superseded")
            ),
            'replicator_rejections_total{code="any"} 1.0',
            *(
                f'replicator_source_events_total{{event="{event}",pipeline="p"}} 1.0'
                for event in (
                    *("renewal_cut", "renewal_finished", "renewal_silent", "renewal_corrupt"),
                    *("exception_InternalFailure", "exception_ResourceInUse", "shard_ended"),
                    *("exception_KMSThrottling", "exception_KMSDisabled"),
                    "renewal_iterator_expired",
                )
            ),
            *(
                f'replicator_api_errors_total{{code="{code}",pipeline="p"}} 1.0'
                for code in (
                    *("LimitExceededException", "InternalFailureException"),
                    *("ResourceInUseException", "KMSThrottlingException"),
                )
            ),
            'replicator_api_errors_total{code="ConnectionClosedError",pipeline="p"} 1.0',
            'replicator_api_seconds_count{pipeline="p"} 1.0',
            'replicator_lag_seconds{pipeline="p"} 3000.0',
        ]
    )
    scrapes = Scrapes()
    scrapes.take(everything)
    faults = Counter(
        f"{fault.kind} {fault.code or ''}".strip()
        for script in SCRIPTS.values()
        for fault in script
    )
    told = sights(Done(faults, Counter()), scrapes.counters())
    assert [one.fault for one in told if not one.is_seen] == []


def test_a_fault_that_moved_nothing_is_not_seen() -> None:
    scrapes = Scrapes()
    scrapes.take(SCRAPE)
    done = Done(Counter({"throttle": 2, "bad_crc": 1, "new": 1, "ttl": 1}), Counter())
    seen = {one.fault: one.is_seen for one in sights(done, scrapes.counters())}
    assert seen == {"throttle": True, "bad_crc": False, "new": False, "ttl": True}


def test_counters_add_up_over_restarts() -> None:
    scrapes = Scrapes()
    for _ in range(2):
        scrapes.take(SCRAPE)
        scrapes.take(SCRAPE)
        scrapes.restarted()
    counters = scrapes.counters()
    assert counters['replicator_records_total{pipeline="p"}'] == 10
    assert (counters[SLOW], counters[LAG_PEAK]) == (2, 4)
    assert scrapes.lag_seconds_max == 61


def test_the_journal_tells_codes_apart(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.write_text(
        '{"kind": "exception", "seconds": 1}\n{"kind": "exception", "seconds": 1, "code": "KMSX"}\n'
    )
    assert Done.read(journal, [1.0]).counts == {"exception": 1, "exception KMSX": 1}


@pytest.mark.parametrize(("end", "is_seen"), [(99.0, False), (100.5, True), (140.0, False)])
def test_a_silence_just_before_a_kill_can_not_be_noticed(
    end: float, is_seen: bool, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    journal.write_text('{"kind": "stall", "seconds": 100.0}\n')
    (sight,) = sights(Done.read(journal, [end]), {})
    assert sight.is_seen is is_seen
