"""Changes apart by table and period, and records joined as they came."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from replicator._core import ChangeBatch, Records, Window, decode
from tests.changes import put

HOUR_US = 3_600_000_000
CHANGES = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 5 * HOUR_US), st.integers(0, 3)),
    max_size=12,
)


def ids(batch: ChangeBatch) -> list[str]:
    return [json.loads(line)["eventID"] for line in batch.json_lines("change").splitlines()]


@given(CHANGES, st.booleans(), st.sampled_from([HOUR_US, 60_000_000, 7]))
def test_each_change_is_in_one_part_in_order(
    made: list[tuple[str, int, int]], by_table: bool, us: int
) -> None:
    records = [put(table, {"id": {"S": str(key)}}, at) for table, at, key in made]
    batch = decode(Records.pack([*records, b"broken"]))
    parts = batch.partition(us, by_table=by_table)
    found = [(table, start) for table, start, _ in parts]
    assert found == sorted(set(found), key=lambda each: (each[0] or "", each[1]))
    order = ids(batch)
    together = [each for _, _, part in parts for each in ids(part)]
    assert sorted(together) == sorted(order)
    for table, start, part in parts:
        assert len(part) == len(ids(part)) > 0
        assert ids(part) == [each for each in order if each in set(ids(part))]
        assert start % us == 0
        assert part.first_event_us is not None
        assert part.last_event_us is not None
        assert start <= part.first_event_us <= part.last_event_us < start + us
        assert set(part.tables) == {table} if by_table else table is None
        assert (part.duplicates, part.rejections) == (0, [])


def test_what_is_late_is_late_in_its_part_only() -> None:
    key = {"id": {"S": "x"}}
    window = Window(reorder_us=0, duplicate_us=10 * HOUR_US)
    times = [2 * HOUR_US, 2 * HOUR_US + 5_000, HOUR_US, 3 * HOUR_US]
    changes = [put("a", key, us, n={"N": str(n)}) for n, us in enumerate(times)]
    given_now = [window.add(decode(Records.pack([change]))) for change in changes]
    together = ChangeBatch.concat([*given_now, window.flush()])
    assert together.late == 1
    assert [part.late for _, _, part in together.partition(HOUR_US)] == [1, 0, 0]


def test_records_are_joined_as_they_came() -> None:
    records = [put("a", {"id": {"S": str(n)}}, n) for n in range(3)]
    batch = decode(Records.pack(records))
    assert batch.payloads(b"\n") == b"".join(record + b"\n" for record in records)
    assert batch.payloads(b"") == b"".join(records)
