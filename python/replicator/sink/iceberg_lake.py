"""The catalog: which tables there are, and what they lack. But for `renewed` it blocks, and runs in
a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import NoCredentialsError
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.io.pyarrow import _pyarrow_to_schema_without_ids
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import BucketTransform, DayTransform
from pyiceberg.types import DecimalType, IcebergType, IntegerType, LongType, NestedField

from replicator._core import ChangeBatch, Columns
from replicator.aws import AWSSettings, aws_errors, make_session
from replicator.errors import FatalError, TransientError
from replicator.sink.iceberg_errors import DATABASE, mapped
from replicator.sink.iceberg_table import By, named, require_partitions

# Of a table that we make: the metadata's own files don't pile up.
_PROPERTIES: Final = {
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "100",
    "write.parquet.compression-codec": "zstd",
}
_TRIES_MAX: Final = 5
_MADE_BY_ANOTHER: Final[tuple[type[BaseException], ...]] = (NamespaceAlreadyExistsError, *DATABASE)
_KEYS: Final = ("client.access-key-id", "client.secret-access-key", "client.session-token")

LETTERS: Final = pa.schema(
    [
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("pipeline", pa.string(), nullable=False),
        pa.field("stream_arn", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("sequence_number", pa.string()),
        pa.field("record_index", pa.int64(), nullable=False),
        pa.field("table", pa.string()),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("raw", pa.binary(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A table to be: its columns, and the one that it is partitioned by: days of a time, or so
    many buckets of a key."""

    name: tuple[str, ...]
    schema: pa.Schema
    column: str | None = None
    buckets: int | None = None

    @property
    def text(self) -> str:
        """The name, as people write it."""
        return ".".join(self.name)

    @property
    def by(self) -> By | None:
        """What it is partitioned by."""
        if self.column is None:
            return None
        return By(self.column, DayTransform if self.buckets is None else BucketTransform)


@dataclass(frozen=True, slots=True)
class Lacks:
    """What a table lacks: columns, and other types of some."""

    added: tuple[NestedField, ...] = ()
    widened: tuple[tuple[str, IcebergType], ...] = ()


def schema_of(columns: Columns) -> pa.Schema:
    """The columns of a log, as the encoder writes them."""
    empty = ChangeBatch.concat(()).parquet(columns, compression="none")
    return pq.read_schema(pa.BufferReader(empty))


class Lake:
    """A catalog. Raises FatalError and TransientError."""

    def __init__(self, name: str, properties: Mapping[str, str], aws: AWSSettings) -> None:
        self._name = name
        self._told = {**_aws(aws), **properties}
        # PyIceberg's file systems know no profiles, and no role with an external id.
        has_own = aws.profile is not None or aws.role_arn is not None
        self._session = make_session(aws) if has_own else None
        self._credentials: Mapping[str, str] = {}
        self._loaded: Catalog | None = None
        self.generation = 0
        """Rises when it is loaded: tables of before have the credentials of before."""

    async def renewed(self) -> None:
        """Loads the catalog where it isn't yet, or its credentials are others now."""
        credentials: Mapping[str, str] = {}
        if self._session is not None:
            with aws_errors("credentials", f"the catalog of sink {self._name}"):
                found = await self._session.get_credentials()
                if found is None:
                    raise NoCredentialsError
                frozen = await found.get_frozen_credentials()
            told = (frozen.access_key, frozen.secret_key, frozen.token)
            credentials = {name: each for name, each in zip(_KEYS, told, strict=True) if each}
        if self._loaded is not None and credentials == self._credentials:
            return
        self._credentials = credentials
        self._loaded = await asyncio.to_thread(self._load, {**self._told, **credentials})
        self.generation += 1

    def _load(self, told: dict[str, str]) -> Catalog:
        # A database may hold several catalogs, by their names; without one it is as PyIceberg's.
        catalog = told.pop("name", "default")
        with mapped(f"loading the catalog of sink {self._name}"):
            return load_catalog(catalog, **told)

    @property
    def _catalog(self) -> Catalog:
        assert self._loaded is not None, "a catalog is loaded before it is asked"
        return self._loaded

    @property
    def kind(self) -> str:
        """What answers, for people."""
        return type(self._catalog).__name__

    def close(self) -> None:
        """Gives its connections back."""
        if self._loaded is not None:
            with mapped("closing the catalog"):
                self._loaded.close()

    def find(self, name: tuple[str, ...]) -> Table | None:
        """The table as it is now; None when there is none."""
        with mapped(f"loading {'.'.join(name)}"):
            try:
                return self._catalog.load_table(name)
            except (NoSuchTableError, NoSuchNamespaceError):
                return None

    def load(self, name: tuple[str, ...]) -> Table:
        """The table as it is now. Raises FatalError when there is none."""
        with mapped(f"loading {'.'.join(name)}"):
            return self._catalog.load_table(name)

    def made(self, wanted: Wanted, *, create: bool) -> Table:
        """The table with all these columns; it and they are made where they are missing. Raises
        FatalError with the statements where that isn't wanted."""
        for _ in range(_TRIES_MAX):
            table = self.find(wanted.name)
            if not create and (statements := ddl(wanted, table)):
                raise FatalError(
                    "iceberg_table_missing" if table is None else "iceberg_columns_missing",
                    f"{wanted.text} isn't as it has to be, and create is off. What to do: "
                    + "; ".join(statements),
                )
            try:
                if table is None:
                    self._create(wanted)
                elif (missing := lacks(wanted, table)) == Lacks():
                    return table
                else:
                    _evolve(table, missing)
            except (CommitFailedException, TableAlreadyExistsError):
                continue  # another worker does the same
        raise TransientError(
            "iceberg_busy", f"{wanted.text} changes all the time: it is tried again"
        )

    def _create(self, wanted: Wanted) -> None:
        with mapped(f"making {wanted.text}"):
            try:
                self._create_table(wanted)
            except NoSuchNamespaceError:
                for length in range(1, len(wanted.name)):
                    try:
                        self._catalog.create_namespace(wanted.name[:length])
                    except _MADE_BY_ANOTHER:
                        continue  # if not, the next call tells
                self._create_table(wanted)

    def _create_table(self, wanted: Wanted) -> None:
        creating = self._catalog.create_table_transaction(
            wanted.name, schema=wanted.schema, properties=_PROPERTIES
        )
        with creating as transaction:
            if wanted.column is not None:
                with transaction.update_spec() as spec:
                    if wanted.buckets is None:
                        spec.add_field(wanted.column, DayTransform(), "event_day")
                    else:
                        spec.add_field(wanted.column, BucketTransform(wanted.buckets), "bucket")


def lacks(wanted: Wanted, table: Table) -> Lacks:
    """What the table lacks. Raises FatalError when it can't be given, or the table can't be written
    for another reason."""
    require_partitions(table, wanted.by)
    schema = table.schema()
    added: list[NestedField] = []
    widened: list[tuple[str, IcebergType]] = []
    fields = _schema(wanted.schema).fields
    for field in fields:
        known = next((each for each in schema.fields if each.name == field.name), None)
        if known is None:
            added.append(field)
        elif not _holds(known.field_type, field.field_type):
            if not _widens(known.field_type, field.field_type):
                raise FatalError(
                    "iceberg_column_type",
                    f"{named(table)}, column {field.name}: it is {known.field_type}, and "
                    f"{field.field_type} doesn't go in. What to do: take the attribute out of "
                    "columns, give it the column's type, or rename the column",
                )
            widened.append((field.name, field.field_type))
    ours = {field.name for field in fields if field.required}
    if unwritten := [
        each.name for each in schema.fields if each.required and each.name not in ours
    ]:
        raise FatalError(
            "iceberg_column_required",
            f"{named(table)} wants a value in {', '.join(unwritten)} of every row, and not every "
            "change has one. What to do: make the column optional",
        )
    return Lacks(tuple(added), tuple(widened))


def ddl(wanted: Wanted, table: Table | None) -> tuple[str, ...]:
    """The statements (Spark's) that make what is missing."""
    name = ".".join(each if each.isidentifier() else f"`{each}`" for each in wanted.name)
    if table is None:
        columns = ", ".join(
            f"`{each.name}` {_spark(each.field_type)}{' NOT NULL' if each.required else ''}"
            for each in _schema(wanted.schema).fields
        )
        by = f"days({wanted.column})"
        if wanted.buckets is not None:
            by = f"bucket({wanted.buckets}, `{wanted.column}`)"
        partitions = "" if wanted.column is None else f" PARTITIONED BY ({by})"
        return (f"CREATE TABLE {name} ({columns}) USING iceberg{partitions}",)
    missing = lacks(wanted, table)
    return (
        *(
            f"ALTER TABLE {name} ADD COLUMN `{each.name}` {_spark(each.field_type)}"
            for each in missing.added
        ),
        *(
            f"ALTER TABLE {name} ALTER COLUMN `{column}` TYPE {_spark(kind)}"
            for column, kind in missing.widened
        ),
    )


def _evolve(table: Table, missing: Lacks) -> None:
    with mapped(f"changing columns of {named(table)}"), table.update_schema() as update:
        for field in missing.added:
            # Rows that are there have no value of it.
            update.add_column((field.name,), field.field_type)
        for name, kind in missing.widened:
            update.update_column((name,), field_type=kind)


def _spark(kind: IcebergType) -> str:
    """A type as Spark's SQL names it."""
    text = str(kind)
    for ours, theirs in (("timestamptz", "timestamp"), ("long", "bigint"), ("list<", "array<")):
        text = text.replace(ours, theirs)
    return text


def _schema(columns: pa.Schema) -> Schema:
    return _pyarrow_to_schema_without_ids(columns)


def _holds(known: IcebergType, wanted: IcebergType) -> bool:
    """True when all values of a type go into a column."""
    if isinstance(known, DecimalType) and isinstance(wanted, DecimalType):
        return known.scale == wanted.scale and known.precision >= wanted.precision
    # Lists know the numbers of their elements, which say nothing here.
    return str(known) == str(wanted)


def _widens(known: IcebergType, wanted: IcebergType) -> bool:
    """What Iceberg lets a column become (https://iceberg.apache.org/spec/#schema-evolution)."""
    if isinstance(known, DecimalType) and isinstance(wanted, DecimalType):
        return known.scale == wanted.scale
    return isinstance(known, IntegerType) and isinstance(wanted, LongType)


def _aws(aws: AWSSettings) -> dict[str, str]:
    """How AWS is reached, in PyIceberg's words; what isn't said follows the environment."""
    told = {
        "client.region": aws.region,
        "s3.endpoint": aws.endpoint_url,
        "glue.endpoint": aws.endpoint_url,
    }
    return {name: value for name, value in told.items() if value is not None}


def letters(rows: Sequence[Mapping[str, object]]) -> pa.Table:
    """Refused records as rows of the dead letters' table."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=LETTERS)
