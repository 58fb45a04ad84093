"""A small REST catalog (https://iceberg.apache.org/rest-catalog-spec/) over one in SQLite, with
faults: what a test wants to see of the client's own words over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pyiceberg.catalog.rest import CreateTableRequest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.table import CommitTableRequest, StagedTable
from pyiceberg.table.metadata import new_table_metadata
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER

_STATUS = {
    NoSuchTableError: 404,
    NoSuchNamespaceError: 404,
    CommitFailedException: 409,
    TableAlreadyExistsError: 409,
    NamespaceAlreadyExistsError: 409,
}


class RestCatalog:
    """`faults` are statuses for commits to come: one for each, before (None: none) or, negative,
    after it took effect."""

    def __init__(self, catalog: SqlCatalog) -> None:
        self._catalog = catalog
        self.faults: list[int | None] = []
        self.commits = 0
        self.url = ""

    def answer(self, method: str, path: list[str], body: Any) -> Any:
        match method, path:
            case "GET", ["config"]:
                return {"defaults": {}, "overrides": {}}
            case "POST", ["namespaces"]:
                self._catalog.create_namespace(tuple(body["namespace"]))
                return {"namespace": body["namespace"], "properties": {}}
            case "POST", ["namespaces", namespace, "tables"]:
                return self._create(namespace, body)
            case "GET", ["namespaces", namespace, "tables", name]:
                return _loaded(self._catalog.load_table((namespace, name)))
            case "POST", ["namespaces", namespace, "tables", name]:
                return self._commit((namespace, name), body)
        raise AssertionError(f"{method} {path}")

    def _create(self, namespace: str, body: Any) -> Any:
        name = (namespace, body["name"])
        if not self._catalog.namespace_exists(namespace):
            raise NoSuchNamespaceError(namespace)
        assert body["stage-create"], "PyIceberg's transactions create so"
        asked = CreateTableRequest.model_validate({"location": None, **body})
        location = self._catalog._resolve_table_location(None, namespace, body["name"])
        metadata = new_table_metadata(
            schema=asked.table_schema,
            partition_spec=asked.partition_spec or UNPARTITIONED_PARTITION_SPEC,
            sort_order=asked.write_order or UNSORTED_SORT_ORDER,
            location=location,
            properties=asked.properties,
        )
        staged = StagedTable(name, metadata, "", self._catalog._load_file_io(), self._catalog)
        return _loaded(staged)

    def _commit(self, name: tuple[str, str], body: Any) -> Any:
        self.commits += 1
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None and fault > 0:
            raise Fault(fault)
        asked = CommitTableRequest.model_validate(
            {**body, "identifier": {"namespace": [name[0]], "name": name[1]}}
        )
        named = _Named(name)
        done = self._catalog.commit_table(named, asked.requirements, asked.updates)  # type: ignore[arg-type]
        if fault is not None:
            raise Fault(-fault)
        return {
            "metadata-location": done.metadata_location,
            "metadata": json.loads(done.metadata.model_dump_json()),
        }


class Fault(Exception):
    """Answered with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


class _Named:
    def __init__(self, name: tuple[str, str]) -> None:
        self._name = name

    def name(self) -> tuple[str, str]:
        return self._name


def _loaded(table: Any) -> Any:
    metadata = json.loads(table.metadata.model_dump_json())
    return {"metadata-location": table.metadata_location, "metadata": metadata, "config": {}}


@contextmanager
def rest_catalog(catalog: SqlCatalog) -> Iterator[RestCatalog]:
    served = RestCatalog(catalog)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def log_message(self, *arguments: Any) -> None:
            """Nothing."""

        def _answer(self, method: str) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            path = self.path.partition("?")[0].strip("/").split("/")[1:]
            status, answer = 200, None
            try:
                answer = served.answer(method, path, body)
            except Fault as fault:
                status = fault.status
            except tuple(_STATUS) as error:
                status = _STATUS[type(error)]
            if answer is None:
                answer = {"error": {"message": "no", "type": "Fault", "code": status}}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
