"""How a connector's values are serialized, and the schema registry that it names for them.

https://docs.confluent.io/platform/current/schema-registry/connect.html and
https://docs.confluent.io/platform/current/schema-registry/sr-client-configs.html
"""

from __future__ import annotations

import re
from typing import Final

from replicator.importing import sinks
from replicator.importing.draft import REPLACE_ME, Draft, Kind, NoEqual, Secret, Table, To, text

# What Confluent Cloud's output.data.format says, and how converters' classes end.
_FORMATS: Final = {
    "AVRO": "avro",
    "JSON_SR": "json_schema",
    "AvroConverter": "avro",
    "JsonSchemaConverter": "json_schema",
}
_PLAIN: Final = (
    "JSON",
    "STRING",
    "BYTES",
    "JsonConverter",
    "StringConverter",
    "ByteArrayConverter",
)
_LOGIN: Final = (
    "put username to the sink's registry, and a file's path into the environment: "
    "REPLICATOR_PIPELINES__<pipeline>__SINKS__kafka__REGISTRY__PASSWORD_FILE"
)
_KEYS: Final = "keys are JSON text in every format, so that equal keys are equal bytes"


def _urls(value: object) -> str:
    urls = text(value)
    if not all(
        re.fullmatch(r"https?://[^/@?#]+(/[^@?#]*)?", url.strip()) for url in urls.split(",")
    ):
        raise ValueError("https://host:port is wanted, several by commas, without a password")
    return urls


def _strategy(value: object) -> str:
    names = {"Topic": "topic_name", "Record": "record_name", "TopicRecord": "topic_record_name"}
    # Cloud says TopicNameStrategy, a worker the class's full name.
    name = text(value).rpartition(".")[2].removesuffix("NameStrategy")
    if name not in names:
        raise ValueError(
            "TopicNameStrategy, RecordNameStrategy or TopicRecordNameStrategy is wanted"
        )
    return names[name]


def _flag(value: object) -> bool:
    if text(value).lower() not in {"true", "false"}:
        raise ValueError("true or false is wanted")
    return text(value).lower() == "true"


_TABLE: Final[Table] = {
    "value.converter.schema.registry.url": To(sinks.KAFKA_REGISTRY_URL, _urls),
    "value.converter.basic.auth.credentials.source": NoEqual(_LOGIN),
    "value.converter.basic.auth.user.info": Secret(_LOGIN),
    "value.converter.schema.registry.basic.auth.user.info": Secret(_LOGIN),
    "value.converter.bearer.auth.token": Secret(
        "REPLICATOR_PIPELINES__<pipeline>__SINKS__kafka__REGISTRY__TOKEN_FILE takes a file's path"
    ),
    "value.converter.schema.registry.ssl.*": Secret(
        "put tls: {…} to the sink's registry: ca_file, certificate_file, key_file"
    ),
    "value.converter.value.subject.name.strategy": To(sinks.KAFKA_REGISTRY_SUBJECTS, _strategy),
    "value.subject.name.strategy": To(sinks.KAFKA_REGISTRY_SUBJECTS, _strategy),
    "value.converter.auto.register.schemas": To(sinks.KAFKA_REGISTRY_WRITES, _flag),
    "value.converter.use.latest.version": NoEqual(
        "registry.auto_register: false writes by the subject's newest version"
    ),
}


def take(draft: Draft) -> Table:
    """Puts format and registry where values are by schemas; gives what is to be said of the
    registry's options then. Serializations that we don't have are said."""
    found = ""
    draft.take("output.data.format", sinks.KAFKA_FORMAT)
    for option in ("output.data.format", "value.converter"):
        name = draft.get(option)
        ours = next((ours for end, ours in _FORMATS.items() if name.endswith(end)), "")
        if ours:
            found = ours
            draft.take(option, sinks.KAFKA_FORMAT)
        elif name and not name.endswith(_PLAIN):
            draft.note(Kind.NO_EQUAL, "no such values are written: readers must change", option)
    for option in ("output.data.key.format", "output.key.format", "key.converter"):
        name = draft.get(option)
        if name and not name.endswith(_PLAIN):
            draft.note(Kind.NO_EQUAL, f"{_KEYS}: readers must change", option)
    if not found:
        return {}
    draft.put(sinks.KAFKA_FORMAT, found)
    draft.note(
        Kind.DIFFERS,
        "schemas: they are of replicator's own (table, event, key, version, item, old; or items "
        "alone with value: item). A subject that holds the connector's would refuse them: take "
        "another topic",
    )
    draft.put(sinks.KAFKA_REGISTRY_URL, f"https://{REPLACE_ME}")
    if not draft.get("value.converter.schema.registry.url"):
        draft.note(Kind.FILL_IN, f"{sinks.KAFKA_REGISTRY_URL}: the registry's address isn't said")
    return _TABLE
