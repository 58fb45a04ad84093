"""A table of Iceberg as this sink uses it; with `iceberg_lake` and `iceberg_errors` all that speaks
of PyIceberg. It blocks: it runs in a thread.

PyIceberg's own commit tries again after a conflict, with the same summary over a newer snapshot: it
would carry our positions past a fence that somebody raised meanwhile. So this file asks its private
`_do_commit`, which tries once; the extra's version is pinned for that.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import pyarrow_to_schema, write_file
from pyiceberg.manifest import DataFile, ManifestFile
from pyiceberg.partitioning import PartitionFieldValue, PartitionKey, PartitionSpec
from pyiceberg.table import Table, Transaction, WriteTask
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.table.update import AssertTableUUID, TableUpdate
from pyiceberg.table.update.snapshot import _OverwriteFiles, _SnapshotProducer
from pyiceberg.transforms import DayTransform, Transform

from replicator.errors import FatalError
from replicator.sink.iceberg_errors import mapped
from replicator.sink.iceberg_state import PREFIX

DAY_US: Final = 86_400_000_000
# Holds our newest snapshot, so that it isn't expired before there is a newer one of ours.
_TAG: Final = "replicator"


class Conflict(Exception):
    """Somebody else committed first: nothing of ours was."""


@dataclass(frozen=True, slots=True)
class By:
    """What a table of ours is partitioned by: a column, and how."""

    column: str
    kind: type[Transform[Any, Any]]

    @property
    def text(self) -> str:
        """As Spark's SQL says it."""
        return f"days({self.column})" if self.kind is DayTransform else f"bucket(16, {self.column})"


BY_DAY: Final = By("event_time", DayTransform)


@dataclass(frozen=True, slots=True)
class Staged:
    """Data files that no snapshot names yet, and what they were written by; `removed` are those
    whose place they take."""

    files: tuple[DataFile, ...] = ()
    spec_id: int | None = None
    removed: tuple[DataFile, ...] = ()


def texts(metadata: TableMetadata) -> dict[str, str]:
    """What all sinks keep in this table, by their names in the summary.

    The newest snapshot of ours has it, on the way back from the current one: others commit too (a
    compaction, say), and ours then is behind theirs. Raises FatalError when it can't be told."""
    snapshot, oldest = metadata.current_snapshot(), None
    while snapshot is not None:
        if found := _ours(snapshot):
            return found
        oldest = snapshot
        parent = snapshot.parent_snapshot_id
        snapshot = None if parent is None else metadata.snapshot_by_id(parent)
    # The way back ends where snapshots were expired; but for the one that the tag holds.
    ref = metadata.refs.get(_TAG)
    held = None if ref is None else metadata.snapshot_by_id(ref.snapshot_id)
    if held is None:
        return {}
    if oldest is None or (held.sequence_number or 0) > (oldest.sequence_number or 0):
        raise FatalError(
            "iceberg_rolled_back",
            "the table was rolled back to before the newest commit of replicator, and what lies "
            "before says no positions. What to do: drop the table, or its rows and the tag "
            f"{_TAG}, and begin anew",
        )
    return _ours(held)


def holds_rows(metadata: TableMetadata) -> bool:
    """True when there is a row in it."""
    snapshot = metadata.current_snapshot()
    if snapshot is None:
        return False
    total = None if snapshot.summary is None else snapshot.summary["total-records"]
    return total is None or int(total) > 0


def rows_of(parquet: bytes) -> pa.Table:
    """What the encoder wrote."""
    return pq.ParquetFile(pa.BufferReader(parquet)).read()


def stage(table: Table, parts: Sequence[tuple[int, pa.Table]], by: By | None) -> Staged:
    """Writes data files: (the partition's value, rows), with the table's field ids, which every
    reader understands. What came apart already, by `by`, is not looked at again. Raises FatalError
    when others changed the table so that these rows don't go in."""
    metadata, write_uuid = table.metadata, uuid.uuid4()
    spec = metadata.spec()
    require_partitions(table, by)
    tasks = []
    with mapped(f"writing files of {named(table)}"):
        for index, (value, rows) in enumerate(parts):
            require_columns(table, rows.schema.names)
            schema = pyarrow_to_schema(
                rows.schema,
                name_mapping=metadata.schema().name_mapping,
                format_version=metadata.format_version,
            )
            key = _partition(spec, metadata, value)
            tasks.append(WriteTask(write_uuid, index, schema, rows.to_batches(), partition_key=key))
        files = tuple(write_file(table.io, metadata, iter(tasks)))
    return Staged(files, spec.spec_id)


def keep(table: Table, data: bytes) -> str:
    """Writes bytes beside the table's metadata, and gives their place. No snapshot names it: who
    looks for orphans removes it some days later."""
    place = table.location_provider().new_metadata_location(f"{_TAG}-{uuid.uuid4().hex}.memory")
    with mapped(f"writing beside {named(table)}"), table.io.new_output(place).create() as output:
        output.write(data)
    return place


def kept(table: Table, place: str) -> bytes:
    """What `keep` wrote; b"" when it is gone."""
    with mapped(f"reading beside {named(table)}"):
        try:
            with table.io.new_input(place).open() as data:
                return data.read()
        except FileNotFoundError:
            return b""


def discard(table: Table, staged: Staged) -> None:
    """Removes files that will never be named; where that fails, they lie there."""
    for file in staged.files:
        try:
            with mapped("removing a file"):
                table.io.delete(file.file_path)
        except Exception:  # noqa: BLE001, S110 - it is only tidiness
            pass


class _Transaction(Transaction):
    """PyIceberg's own copies the table's whole history whenever it is asked for its metadata, some
    twenty times a commit; they change with what is staged only."""

    _known: tuple[tuple[TableUpdate, ...], TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        if not self._updates:
            return self._table.metadata
        if self._known is None or self._known[0] is not self._updates:
            self._known = (self._updates, super().table_metadata)
        return self._known[1]


class _Overwrite(_OverwriteFiles):
    """Leaves out the manifests of before that name no file that is still there, as Java's writers
    do: PyIceberg keeps them all, one more with each commit."""

    def _process_manifests(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        return [
            each
            for each in manifests
            if each.has_added_files()
            or each.has_existing_files()
            or each.added_snapshot_id == self.snapshot_id
        ]


def commit(table: Table, staged: Sequence[Staged], summary: Mapping[str, str]) -> Table:
    """One snapshot upon the one that this `table` shows, or nothing: raises Conflict when that
    isn't the current one any more, TransientError when nobody knows. Gives the table as it is."""
    transaction = _Transaction(table)
    update = transaction.update_snapshot(snapshot_properties=dict(summary))
    removed = [file for each in staged for file in each.removed]
    producer: _SnapshotProducer[Any] = update.merge_append()
    if removed:
        producer = _Overwrite(Operation.OVERWRITE, transaction, table.io, None, dict(summary))
    for file in removed:
        producer.delete_data_file(file)
    for each in staged:
        for file in each.files:
            producer.append_data_file(file)
    with mapped(f"committing to {named(table)}"):
        producer.commit()
        if summary:
            tag = transaction._set_ref_snapshot(producer.snapshot_id, _TAG, SnapshotRefType.TAG)  # noqa: SLF001
            transaction._stage(tag[0])  # noqa: SLF001 - see the module
        requirements = (
            AssertTableUUID(uuid=table.metadata.table_uuid),
            *transaction._requirements,  # noqa: SLF001 - the snapshot that it is upon
        )
        try:
            table._do_commit(transaction._updates, requirements)  # noqa: SLF001
        except CommitFailedException as error:
            now = table.catalog.load_table(table.name())
            if now.snapshot_by_id(producer.snapshot_id) is not None:
                return now  # an attempt whose answer was lost on the way, and which was repeated
            producer._clean_all_uncommitted()  # noqa: SLF001
            raise Conflict(str(error)) from error
    return table


def require_partitions(table: Table, by: By | None) -> None:
    """Raises FatalError unless it is partitioned by this alone, or not at all: a file would be
    filed under a value of something else, where no reader looks for its rows."""
    spec, schema = table.spec(), table.schema()
    if spec.is_unpartitioned():
        return
    (first, *others) = spec.fields
    source = schema.find_column_name(first.source_id)
    if others or by is None or source != by.column or not isinstance(first.transform, by.kind):
        raise FatalError(
            "iceberg_partitions",
            f"{named(table)} is partitioned otherwise than this sink can write. What to do: "
            + ("" if by is None else f"partition it by {by.text}, or ")
            + "don't partition it",
        )


def require_columns(table: Table, names: Sequence[str]) -> None:
    """Raises FatalError where the table has lost one of these."""
    known = set(table.schema().column_names)
    if lost := [name for name in names if name not in known]:
        raise FatalError(
            "iceberg_columns_missing",
            f"{named(table)} has no column {', '.join(lost)} any more. What to do: start again: "
            "with create it is added (one that was renamed stays beside it)",
        )


def named(table: Table) -> str:
    """The table's name, as people write it."""
    return ".".join(table.name())


def _ours(snapshot: Snapshot) -> dict[str, str]:
    properties = {} if snapshot.summary is None else snapshot.summary.additional_properties
    return {name: text for name, text in properties.items() if name.startswith(PREFIX)}


def _partition(spec: PartitionSpec, metadata: TableMetadata, value: Any) -> PartitionKey | None:
    if spec.is_unpartitioned():
        return None
    return PartitionKey([PartitionFieldValue(spec.fields[0], value)], spec, metadata.schema())
