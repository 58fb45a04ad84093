"""The environment on top of a configuration file.

Every key can be overridden by `REPLICATOR_A__B__C`: list items by their index or
their `name` (`REPLICATOR_PIPELINES__products__SINKS__0__DSN`). The value is plain
text, never YAML, so that nothing in a password has a meaning; only a list or a
mapping is written as YAML, in brackets. A name that ends in `_FILE` gives the path
of a file that holds the value, for secrets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from replicator.errors import FatalError

ENVIRONMENT_PREFIX = "REPLICATOR_"
# Variables with the prefix that are no configuration keys.
_NOT_KEYS = frozenset({"REPLICATOR_CONFIG", "REPLICATOR_MINISTACK"})


def overlay(data: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Puts the environment's overrides into `data`, in place."""
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _NOT_KEYS:
            continue
        keys = variable.removeprefix(ENVIRONMENT_PREFIX).split("__")
        text = environment[variable]
        if keys[-1].endswith("_FILE"):
            keys[-1] = keys[-1].removesuffix("_FILE")
            try:
                value: object = Path(text).read_text(encoding="utf-8").strip()
            except OSError as error:
                # Without the path: it may be the secret itself, put into the wrong variable.
                reason = f"its file can't be read: {error.strerror}"
                raise FatalError("config_unreadable", f"{variable}: {reason}") from None
            except UnicodeDecodeError:
                reason = "its file holds no UTF-8 text"
                raise FatalError("config_unreadable", f"{variable}: {reason}") from None
        else:
            value = text.strip()
            if value.startswith(("[", "{")):
                value = parsed(value, variable)
        _put(data, keys, value, variable)


def parsed(text: str, where: str) -> object:
    """The parsed YAML. Raises FatalError (`config_invalid`) without the driver's own message: it
    shows the line, which may hold a secret."""
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        # The names of aliases and tags come from the text, too: `password: *hush`.
        reason = re.sub(r"\b(alias|anchor|tag|handle) ['\"].*", r"\1", error.problem or "broken")
        if (mark := error.problem_mark) is not None:
            reason += f" (line {mark.line + 1}, column {mark.column + 1})"
    except yaml.YAMLError:
        reason = "it holds a character that YAML doesn't allow"
    except (ValueError, LookupError, AttributeError, RecursionError):
        # What the driver lets through: 2026-02-30, `!!int x`, a thousand brackets.
        reason = "a date, number or tag in it can't be understood: quote it"
    raise FatalError("config_invalid", f"{where} is no YAML: {reason}") from None


def _put(node: Any, keys: list[str], value: object, variable: str) -> None:
    for depth, key in enumerate(keys):
        is_last = depth == len(keys) - 1
        if isinstance(node, list):
            index = _index(node, key, variable)
            if is_last:
                node[index] = value
                return
            node = node[index]
        elif isinstance(node, dict):
            name = key.lower()
            if is_last:
                node[name] = value
                return
            if not isinstance(node.get(name), dict | list):
                node[name] = [] if keys[depth + 1].isdigit() else {}
            node = node[name]
        else:
            raise FatalError("config_invalid", f"{variable}: {key!r} is inside a plain value")


def _index(node: list[Any], key: str, variable: str) -> int:
    for index, item in enumerate(node):
        if isinstance(item, dict) and str(item.get("name", "")).lower() == key.lower():
            return index
    if key.isdigit() and int(key) <= len(node):
        if int(key) == len(node):
            node.append({})
        return int(key)
    raise FatalError("config_invalid", f"{variable}: no item {key!r} in the list")
