"""The newest item of each key: newer rows over older ones, by writing their buckets' files anew.

PyIceberg writes no deletes beside data, so a file with a changed key is written anew as a whole.
Their comparison is of columns at once; only rows of a stored instant (law 3) are looked at one by
one. It blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.table import FileScanTask, Table
from pyiceberg.transforms import BucketTransform
from pyiceberg.types import StringType

from replicator._core import Rows
from replicator.sink.iceberg_errors import mapped
from replicator.sink.iceberg_table import (
    By,
    Staged,
    named,
    require_columns,
    require_partitions,
    stage,
)

# Behind the key's columns.
_COLUMNS: Final = (
    pa.field("item", pa.string()),
    pa.field("version", pa.string(), nullable=False),
    pa.field("deleted", pa.bool_(), nullable=False),
    pa.field("chain", pa.binary(), nullable=False),
)
_INSTANT_LENGTH: Final = 51
"""Characters of a version up to its instant's end (a generation, `-`, and 40 digits)."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of the rows; see `WriteResult`."""

    rows: int = 0
    duplicates: int = 0
    superseded: int = 0
    ambiguous: int = 0

    def __add__(self, more: Merged) -> Merged:
        return Merged(
            self.rows + more.rows,
            self.duplicates + more.duplicates,
            self.superseded + more.superseded,
            self.ambiguous + more.ambiguous,
        )


def key_columns(keys: Sequence[str]) -> list[str]:
    """The names of the key's columns: an attribute that is called as one of ours gets a `_`."""
    ours = {field.name for field in _COLUMNS}
    return [f"{name}_" if name in ours else name for name in keys]


def state_schema(keys: Sequence[str]) -> pa.Schema:
    """The columns of a table of the newest items: the key (numbers in fixed-point notation, binary
    as base64), the item in plain JSON with every digit (null: deleted), and what decides."""
    names = key_columns(keys)
    return pa.schema([*(pa.field(name, pa.string(), nullable=False) for name in names), *_COLUMNS])


def merge(table: Table, rows: Rows, keys: Sequence[str]) -> tuple[Merged, Staged]:
    """Writes the files that hold the rows where they are newer, and says which ones they replace.
    Of a bucket where none is, nothing is written. Memory holds one bucket at a time."""
    new = _table_of(rows, keys)
    names = key_columns(keys)
    by = By(names[0], BucketTransform)
    require_partitions(table, by)
    require_columns(table, new.column_names)
    merged, staged = Merged(), Staged(spec_id=table.spec().spec_id)
    for tasks, some in _parts(table, _buckets(table, new[names[0]]), len(new)):
        stored = _stored(table, tasks)
        with mapped(f"merging into {named(table)}"):
            one, result = _merged(stored, new, some, rows, names)
        merged += one
        if result is not None:
            files = stage(table, _by_bucket(table, result, names[0]), by).files
            removed = tuple(task.file for task in tasks)
            staged = replace(staged, files=staged.files + files, removed=staged.removed + removed)
    return merged, staged if staged.files else Staged()


def _merged(
    found: pa.Table, every: pa.Table, some: pa.Array, rows: Rows, names: Sequence[str]
) -> tuple[Merged, pa.Table | None]:
    """What `some` of the rows (their places among `every`) become, and what the files hold then;
    None: as before."""
    new = every.take(some)
    stored = found.select(new.column_names).cast(new.schema)
    stored_keys, new_keys = _one_key(stored, names), _one_key(new, names)
    at = pc.index_in(stored_keys, value_set=new_keys)
    there = pc.is_valid(at)
    before, at = stored.filter(there), at.drop_null()
    now = new.take(at)
    same = pc.and_(
        pc.equal(before["version"], now["version"]), pc.equal(before["chain"], now["chain"])
    )
    tied = pc.and_not(pc.equal(_instant(before), _instant(now)), same)
    differs = pc.invert(pc.or_(same, tied))
    newer = pc.and_(differs, pc.greater(now["version"], before["version"]))
    older = pc.and_(differs, pc.less(now["version"], before["version"]))
    settled = rows.settle(
        [
            (row, item, _us(version), chain)
            for row, item, version, chain in zip(
                some.take(at.filter(tied)).to_pylist(),
                *(before.filter(tied)[name].to_pylist() for name in ("item", "version", "chain")),
                strict=True,
            )
        ]
    )
    is_unknown = pc.invert(pc.is_in(new_keys, value_set=stored_keys))
    is_newer = pc.is_in(new_keys, value_set=_one_key(now.filter(newer), names))
    added = new.filter(pc.or_(is_unknown, is_newer))
    merged = Merged(
        rows=len(added) + settled.later,
        duplicates=(pc.sum(same).as_py() or 0) + settled.duplicates,
        superseded=(pc.sum(older).as_py() or 0) + settled.superseded,
        ambiguous=settled.ambiguous,
    )
    if not len(added) and not settled.rows:
        return merged, None
    changed = every.take(pa.array(settled.rows, pa.int64()))
    for name, values in (
        ("item", pa.array(settled.items, pa.string())),
        ("version", pa.array([_version(each) for each in settled.versions], pa.string())),
        ("deleted", pa.array([item is None for item in settled.items], pa.bool_())),
        ("chain", pa.array(settled.chains, pa.binary())),
    ):
        place = new.schema.get_field_index(name)
        changed = changed.set_column(place, new.schema.field(place), values)
    replaced = pa.concat_tables([added, changed])
    stays = pc.invert(pc.is_in(stored_keys, value_set=_one_key(replaced, names)))
    kept, beside = stored.filter(stays), found.drop_columns(new.column_names).filter(stays)
    for field in beside.schema:  # what others keep in columns of their own
        kept = kept.append_column(field, beside[field.name])
    return merged, pa.concat_tables([kept, replaced], promote_options="default").combine_chunks()


def _table_of(rows: Rows, keys: Sequence[str]) -> pa.Table:
    made = pq.ParquetFile(pa.BufferReader(rows.parquet(key_columns(keys)))).read()
    return made.cast(state_schema(keys)).combine_chunks()


def _parts(
    table: Table, buckets: Any, count: int
) -> Iterator[tuple[Sequence[FileScanTask], pa.Array]]:
    """Files, and the rows (their places) that may be in them: bucket by bucket. Where a file may
    hold several, as one of another partitioning may, all at once."""
    all_rows = pc.cast(pc.indices_nonzero(pa.repeat(True, count)), pa.int64())
    with mapped(f"looking for files of {named(table)}"):
        tasks: list[FileScanTask] = list(table.scan().plan_files())
    if buckets is None:
        yield tasks, all_rows
        return
    spec_id, wanted = table.spec().spec_id, sorted(pc.unique(buckets).to_pylist())
    by_bucket: dict[int, list[FileScanTask]] = {bucket: [] for bucket in wanted}
    others = [task for task in tasks if task.file.spec_id != spec_id]
    for task in tasks:
        if task.file.spec_id == spec_id and task.file.partition[0] in by_bucket:
            by_bucket[task.file.partition[0]].append(task)
    if others:
        yield [*others, *chain(*by_bucket.values())], all_rows
        return
    for bucket, own in by_bucket.items():
        yield own, pc.cast(pc.indices_nonzero(pc.equal(buckets, bucket)), pa.int64())


def _stored(table: Table, tasks: Sequence[FileScanTask]) -> pa.Table:
    with mapped(f"reading files of {named(table)}"):
        scan = ArrowScan(
            table_metadata=table.metadata,
            io=table.io,
            projected_schema=table.schema(),
            row_filter=AlwaysTrue(),
        )
        return scan.to_table(tasks)


def _by_bucket(table: Table, rows: pa.Table, key: str) -> list[tuple[int, pa.Table]]:
    """As `stage` takes them."""
    if (buckets := _buckets(table, rows[key])) is None:
        return [(0, rows)]
    found = sorted(pc.unique(buckets).to_pylist())
    return [(bucket, rows.filter(pc.equal(buckets, bucket))) for bucket in found]


def _buckets(table: Table, keys: pa.ChunkedArray) -> Any:
    """The bucket of each key; None of a table that isn't partitioned."""
    spec = table.spec()
    if spec.is_unpartitioned():
        return None
    return spec.fields[0].transform.pyarrow_transform(StringType())(keys.combine_chunks())


def _one_key(table: pa.Table, names: Sequence[str]) -> Any:
    """Key columns as one, which no two keys share."""
    columns = [table[name] for name in names]
    if len(columns) == 1:
        return columns[0].combine_chunks()
    lengths = pc.cast(pc.utf8_length(columns[0]), pa.string())
    return pc.binary_join_element_wise(lengths, *columns, "/").combine_chunks()


def _instant(table: pa.Table) -> Any:
    return pc.utf8_slice_codeunits(table["version"], 0, _INSTANT_LENGTH)


def _us(version: str) -> int:
    """The value of a version that is a creation time."""
    return int(version.partition("-")[2].replace(".", ""))


def _version(value: str) -> str:
    """As the core writes it."""
    us = int(value)
    return f"{0:010}-{us // 1000:040}.{us % 1000:03}"
