"""The newest item of each key: newer rows over older ones, by writing their buckets' files anew.

PyIceberg writes no deletes beside data, so a file with a changed key is written anew as a whole.
All of it is columns at once; only rows of a stored instant (law 3) are looked at one by one. It
blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.compute as pc
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
    Nothing is written where none is."""
    new = _table_of(rows, keys)
    names = key_columns(keys)
    by = By(names[0], BucketTransform)
    require_partitions(table, by)
    require_columns(table, new.column_names)
    buckets = _buckets(table, new[names[0]])
    tasks = _tasks(table, None if buckets is None else set(pc.unique(buckets).to_pylist()))
    with mapped(f"reading files of {named(table)}"):
        scan = ArrowScan(
            table_metadata=table.metadata,
            io=table.io,
            projected_schema=table.schema().select(*new.column_names),
            row_filter=AlwaysTrue(),
        )
        stored = scan.to_table(tasks).select(new.column_names).cast(new.schema)
    merged, result = _merged(stored, new, rows, names)
    if result is None:
        return merged, Staged()
    buckets = _buckets(table, result[names[0]])
    parts = [(0, result)]
    if buckets is not None:
        parts = [
            (bucket, result.filter(pc.equal(buckets, bucket)))
            for bucket in sorted(pc.unique(buckets).to_pylist())
        ]
    staged = stage(table, parts, by)
    return merged, Staged(staged.files, staged.spec_id, tuple(task.file for task in tasks))


def _merged(
    stored: pa.Table, new: pa.Table, rows: Rows, names: Sequence[str]
) -> tuple[Merged, pa.Table | None]:
    """What the rows become, and what the files hold then; None: as before."""
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
                at.filter(tied).to_pylist(),
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
    changed = new.take(pa.array(settled.rows, pa.int64()))
    for name, values in (
        ("item", pa.array(settled.items, pa.string())),
        ("version", pa.array([_version(each) for each in settled.versions], pa.string())),
        ("deleted", pa.array([item is None for item in settled.items], pa.bool_())),
        ("chain", pa.array(settled.chains, pa.binary())),
    ):
        place = new.schema.get_field_index(name)
        changed = changed.set_column(place, new.schema.field(place), values)
    replaced = pa.concat_tables([added, changed])
    kept = stored.filter(pc.invert(pc.is_in(stored_keys, value_set=_one_key(replaced, names))))
    return merged, pa.concat_tables([kept, replaced]).combine_chunks()


def _table_of(rows: Rows, keys: Sequence[str]) -> pa.Table:
    schema = state_schema(keys)
    args = orjson.loads(rows.crate_args(dynamic=False))
    # Of these the item as an object, behind the key, is CrateDB's alone.
    *columns, chains = (
        column for n, column in enumerate(zip(*args, strict=True)) if n != len(keys)
    )
    arrays = [
        pa.array(column, field.type)
        for column, field in zip(columns, list(schema)[:-1], strict=True)
    ]
    arrays.append(pa.array([bytes.fromhex(chain) for chain in chains], pa.binary()))
    return pa.Table.from_arrays(arrays, schema=schema)


def _buckets(table: Table, keys: pa.ChunkedArray) -> Any:
    """The bucket of each key; None of a table that isn't partitioned."""
    spec = table.spec()
    if spec.is_unpartitioned():
        return None
    return spec.fields[0].transform.pyarrow_transform(StringType())(keys.combine_chunks())


def _tasks(table: Table, buckets: set[int] | None) -> list[FileScanTask]:
    """The files that hold these buckets; those of another partitioning may."""
    with mapped(f"looking for files of {named(table)}"):
        tasks: list[FileScanTask] = list(table.scan().plan_files())
    if buckets is None:
        return tasks
    spec_id = table.spec().spec_id
    return [
        task for task in tasks if task.file.spec_id != spec_id or task.file.partition[0] in buckets
    ]


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
