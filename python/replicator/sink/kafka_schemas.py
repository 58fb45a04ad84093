"""Which schema the values of each table are written by: found in the registry, grown from items,
registered before the transaction that uses it.

A table's columns begin as those of its subject's newest version, so a restart changes nothing, and
several workers come to the same ones: whoever registers looks again, and joins what others added
meanwhile. The registry is asked only when a batch has an attribute without a column.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from replicator._core import ChangeBatch, Schema
from replicator._core import Columns as Plan
from replicator.core import schemas
from replicator.core.schemas import REST, Columns
from replicator.errors import FatalError, ReplicatorError, TransientError
from replicator.model import SinkFinding, TableSchema
from replicator.sink.in_thread import in_thread
from replicator.sink.kafka_settings import KafkaConfig
from replicator.sink.registry import INCOMPATIBLE_ADVICE, Registered, Registry, type_of
from replicator.sink.registry_settings import RegistryConfig

log = structlog.get_logger()

_TRIES_MAX: Final = 10
_WORDS_MAX: Final = 600


@dataclass(frozen=True, slots=True)
class _Known:
    """What a table is written by."""

    columns: Columns
    plan: Plan
    schema: Schema


class KafkaSchemas:
    """The schemas of one sink. `current` may be called by several shards at once."""

    def __init__(self, config: KafkaConfig) -> None:
        assert config.format in {"avro", "json_schema"}, config.format
        assert config.registry is not None, "the settings see to it"
        self._config = config
        self._format: schemas.Format = "avro" if config.format == "avro" else "json_schema"
        self._settings: RegistryConfig = config.registry
        self._registry = Registry(config.registry, config.name)
        self._known: dict[str, _Known] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def require_subjects(self, tables: Sequence[TableSchema]) -> None:
        """Raises FatalError when two tables would share a subject: their schemas aren't versions
        of one another."""
        of: dict[str, str] = {}
        for table in tables:
            subject = self._subject(table.name)
            if (other := of.setdefault(subject, table.name)) != table.name:
                raise FatalError(
                    "schema_subject_shared",
                    f"sink {self._config.name}: tables {other} and {table.name} would have one "
                    f"subject, {subject}: put {{table}} into topic, or choose "
                    "registry.subject_name_strategy: topic_record_name",
                )

    async def current(self, changes: ChangeBatch, tables: Sequence[str]) -> Mapping[str, Schema]:
        """By table, the schema that has all that can be said of these changes. Raises
        TransientError and FatalError of the registry."""
        return {table: await self._of(table, changes) for table in tables}

    async def _of(self, table: str, changes: ChangeBatch) -> Schema:
        known = self._known.get(table)
        if known is not None and await self._is_enough(known, changes, table):
            return known.schema
        async with self._locks.setdefault(table, asyncio.Lock()):
            known = self._known.get(table)  # another shard may have been quicker
            if known is None or not await self._is_enough(known, changes, table):
                ours = tuple(self._config.columns.items()) if known is None else known.columns
                known = self._known[table] = await self._resolved(table, ours, changes)
            return known.schema

    async def _is_enough(self, known: _Known, changes: ChangeBatch, table: str) -> bool:
        return await self._grown(known.columns, known.plan, changes, table) == known.columns

    async def _grown(
        self, columns: Columns, plan: Plan, changes: ChangeBatch, table: str
    ) -> Columns:
        """With what the changes add."""
        limit = self._settings.columns_max
        if not self._settings.auto_register or len(columns) >= limit:
            return columns

        def grown() -> Columns:
            return schemas.grown(columns, changes.unplanned(plan, table), limit)

        found: Columns = await in_thread(changes.nbytes, grown)
        return found

    async def _resolved(self, table: str, ours: Columns, changes: ChangeBatch) -> _Known:
        subject = self._subject(table)
        if not self._settings.auto_register:
            latest = await self._registry.latest(subject)
            columns = self._prescribed(table, subject, latest)
            assert latest is not None
            return self._made(columns, latest.id)
        sent: tuple[Columns, int] | None = None
        seen = 0
        for _ in range(_TRIES_MAX):
            latest = await self._registry.latest(subject)
            base = self._joined(latest, ours)
            if sent is not None:
                base = await self._with_missed(subject, base, seen, latest)
            ours = await self._grown(base, Plan(base, REST), changes, table)
            if sent is not None and sent[0] == ours:
                return self._made(*sent)
            if latest is not None and self._is_current(table, latest, ours):
                return self._made(ours, latest.id)
            seen = 0 if latest is None else latest.version
            text = schemas.text_of(self._written(table, ours))
            try:
                sent = (ours, await self._registry.register(subject, self._format, text))
            except FatalError as error:
                # Of another worker's newest version, which came meanwhile, it may lack members.
                if error.code != "schema_incompatible" or not await self._is_newer(subject, seen):
                    raise
                continue
            log.info("schema_registered", subject=subject, id=sent[1], attributes=len(ours))
        raise TransientError(
            "registry_contended",
            f"sink {self._config.name}: subject {subject} was changed by others all the time",
        )

    async def _with_missed(
        self, subject: str, base: Columns, seen: int, latest: Registered | None
    ) -> Columns:
        """With the columns of versions that came between the one that was seen before ours was
        sent and the newest: whoever sent the newest may not have known of them."""
        newest = seen if latest is None else latest.version
        for number in range(max(seen + 1, newest - _TRIES_MAX), newest):
            missed = await self._registry.version(subject, number)
            base = schemas.joined(base, self._columns(missed), {}, self._settings.columns_max)
        return base

    async def _is_newer(self, subject: str, seen: int) -> bool:
        latest = await self._registry.latest(subject)
        return latest is not None and latest.version > seen

    def _prescribed(self, table: str, subject: str, latest: Registered | None) -> Columns:
        """The columns of a schema that the operator registered. Raises FatalError."""
        columns = self._columns(latest)
        schema = schemas.text_of(self._written(table, columns))
        if latest is None:
            raise FatalError(
                "schema_missing",
                f"sink {self._config.name}: subject {subject} has no version and the sink has "
                f"auto_register: false: register one, of this shape: {schema}",
            )
        if not self._fits(latest, columns):
            raise FatalError(
                "schema_foreign",
                f"sink {self._config.name}: version {latest.version} of subject {subject} has "
                "another shape than values are written in, and the sink has auto_register: false: "
                f"register one of this shape: {schema}",
            )
        return columns

    async def findings(self, tables: Sequence[TableSchema]) -> list[SinkFinding]:
        """What a check says of the tables' subjects."""
        found: list[SinkFinding] = []
        try:
            self.require_subjects(tables)
        except FatalError as error:
            return [SinkFinding("schema", error.message, error.code)]
        for table in tables:
            try:
                found.append(await self._finding(table.name))
            except ReplicatorError as error:
                found.append(SinkFinding("schema", error.message, error.code))
                if not error.code.startswith("schema_"):
                    break  # it is the registry, and would be said of each table
        return found

    async def _finding(self, table: str) -> SinkFinding:
        subject, settings = self._subject(table), self._settings
        latest = await self._registry.latest(subject)
        if not settings.auto_register:
            columns = self._prescribed(table, subject, latest)
        else:
            columns = self._joined(latest, tuple(self._config.columns.items()))
        if latest is None:
            return SinkFinding("schema", f"subject {subject} has no version: run registers one")
        if settings.auto_register and (refused := await self._refused(table, latest, columns)):
            return refused
        count = f"{len(columns)} attributes" if len(columns) != 1 else "1 attribute"
        return SinkFinding(
            "schema", f"subject {subject}: version {latest.version}, id {latest.id}, {count}"
        )

    async def _refused(
        self, table: str, latest: Registered, columns: Columns
    ) -> SinkFinding | None:
        """What the subject wouldn't take of what would be registered, now or later."""
        subject = self._subject(table)
        if not self._is_current(table, latest, columns):
            if words := await self._complaints(table, columns):
                return SinkFinding(
                    "schema",
                    f"subject {subject} wouldn't take the sink's schema as its next version: "
                    f"{words}; {INCOMPATIBLE_ADVICE}",
                    "schema_incompatible",
                )
            return None
        more = schemas.grown(columns, [("a new attribute", "S", 1)], self._settings.columns_max)
        if more != columns and (words := await self._complaints(table, more)):
            return SinkFinding(
                "schema",
                f"subject {subject} wouldn't take an attribute more, so the first item that has "
                f"one stops its shard: {words}; set the subject's compatibility to BACKWARD, or "
                "auto_register: false, which leaves new attributes in extra",
                "schema_closed",
                is_warning=True,
            )
        return None

    async def _complaints(self, table: str, columns: Columns) -> str:
        text = schemas.text_of(self._written(table, columns))
        subject = self._subject(table)
        return "; ".join(await self._registry.complaints(subject, self._format, text))[:_WORDS_MAX]

    async def close(self) -> None:
        await self._registry.close()

    # ----

    def _subject(self, table: str) -> str:
        return self._settings.subject(self._config.topic_of(table), self._record_name(table))

    def _record_name(self, table: str) -> str:
        return schemas.record_name(self._config.value, self._namespace(table))

    def _namespace(self, table: str) -> str:
        return schemas.namespace_of(table, self._settings.namespace)

    def _written(self, table: str, columns: Columns) -> dict[str, Any]:
        return schemas.written(self._format, self._config.value, columns, self._namespace(table))

    def _is_ours(self, latest: Registered) -> bool:
        return latest.type == type_of(self._format)

    def _is_current(self, table: str, latest: Registered, columns: Columns) -> bool:
        """True when it is the schema of these columns, in whatever spelling: registries have one
        of their own."""
        name = self._record_name(table)
        return schemas.is_named(self._format, latest.schema, name) and self._fits(latest, columns)

    def _fits(self, latest: Registered, columns: Columns) -> bool:
        """True when values by these columns are what it says, whatever its records are called."""
        form = (self._format, self._config.value, latest.schema)
        return self._columns(latest) == columns and schemas.is_written(*form, columns)

    def _columns(self, latest: Registered | None) -> Columns:
        if latest is None or not self._is_ours(latest):
            return ()
        return schemas.columns_of(self._format, self._config.value, latest.schema)

    def _joined(self, latest: Registered | None, ours: Columns) -> Columns:
        limit = self._settings.columns_max
        return schemas.joined(self._columns(latest), ours, self._config.columns, limit)

    def _made(self, columns: Columns, number: int) -> _Known:
        plan = Plan(columns, REST)
        value = self._config.value
        return _Known(columns, plan, Schema(number, plan, format=self._format, value=value))
