"""What rows of the ledger must hold. SQLite keeps any value in any column, and a ledger may come from a stranger.

Checked where a row becomes a value, so that nothing else need ask whether a number is one.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from malmen_cli.checkpoint.digests import is_digest
from malmen_cli.errors import UnusableLedger

# Of models, editors and splits: they become folders, and are printed.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")

_TEXT, _MAYBE_TEXT, _NUMBER, _FIGURE = (str,), (str, NoneType), (int,), (int, float, NoneType)

MODEL = {
    "id": _NUMBER,
    **dict.fromkeys(("name", "path", "base_digest", "manifest", "architecture", "created_at"), _TEXT),
}
EDITOR = {
    **dict.fromkeys(("id", "digest", "created_at", "config", "scores"), _TEXT),
    **dict.fromkeys(("model_id", "per_fact"), _NUMBER),
}
ENTRY = {
    **dict.fromkeys(("id", "kind", "status", "active_digest", "created_at", "command", "details"), _TEXT),
    **dict.fromkeys(("parent", "fact_set_digest", "target", "editor_id", "source"), _MAYBE_TEXT),
    **dict.fromkeys(("model_id", "number"), _NUMBER),
}
SPLIT = {
    **dict.fromkeys(("name", "path", "digest", "added_at"), _TEXT),
    **dict.fromkeys(("format", "on_conflict"), _MAYBE_TEXT),
    "facts": _NUMBER,
}
EVALUATION = {
    **dict.fromkeys(("id", "facts_digest", "results_digest", "created_at", "command", "details"), _TEXT),
    **dict.fromkeys(("entry_id", "editor_id", "source"), _MAYBE_TEXT),
    **dict.fromkeys(("model_id", "facts"), _NUMBER),
}
FOLD = {"id": _TEXT, "kind": _TEXT, "target": _MAYBE_TEXT}
FACT_REF = dict.fromkeys(("fact_digest", "edit_digest", "prompt"), _TEXT)
STATE = {**dict.fromkeys(("tensor", "before", "after"), _TEXT), "number": _NUMBER}
ROWS = {**dict.fromkeys(("layer", "edit_digest", "object"), _TEXT), "start": _NUMBER, "count": _NUMBER}
PACK = {**dict.fromkeys(("editor_id", "layer", "object"), _TEXT), "id": _NUMBER}
SPAN = {"edit_digest": _TEXT, "start": _NUMBER, "count": _NUMBER}

# JSON within rows, as far as this program looks into it: a key with ? may be left out, "#" is any number as a key.
_SCORES = {"ES?": _FIGURE, "GS?": _FIGURE, "LS?": _FIGURE}
_GATE_FIGURE = {"value": _FIGURE, "asked": _NUMBER, "holds": (bool,)}
_CONVERTED = {"file": _TEXT, "digest": _TEXT, "size": _NUMBER, "modified_ns": _NUMBER}
DETAILS = {
    "facts?": dict.fromkeys(("in_file?", "duplicates?", "active?", "taken_out?", "removed?", "revived?"), _NUMBER),
    "check?": {
        "before": _SCORES,
        "after": _SCORES,
        "checked_old": _NUMBER,
        "still_wrong?": _NUMBER,  # entries of earlier versions name all instead
        "wrong": [{"new?": (bool,)}],
    },
    "gates?": {
        "gates": [{"gate": _TEXT, "figures": dict.fromkeys(("new?", "old?", "protected?"), _GATE_FIGURE)}],
        "protected?": {"source": _TEXT, "prompts": _NUMBER},
    },
    "base_tensors?": [_TEXT],
    "origin?": {"repo?": _TEXT, "revision?": _MAYBE_TEXT, "folder?": _TEXT, "converted?": [_CONVERTED]},
}
REGISTER_DETAILS = {**DETAILS, "base_tensors": [_TEXT]}
EDITOR_CONFIG = {"config?": {"facts_per_step?": _NUMBER, "sample_size?": (bool,)}}
EDITOR_SCORES = {"scores?": {"#": _SCORES}, "calibrated_on?": _NUMBER, "text?": _TEXT, "rows?": _NUMBER}


def delta_types(figures: Iterable[str]) -> dict[str, tuple[type, ...]]:
    return {**dict.fromkeys(("tensor", "before", "after"), _TEXT), **dict.fromkeys(figures, _FIGURE)}


def checked(row: sqlite3.Row, types: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """These columns of a row. Raises UnusableLedger where one is missing or holds a value of another type."""
    found = {}
    for name, allowed in types.items():
        try:
            value = found[name] = row[name]
        except IndexError:
            raise damaged(f"a table has no column {name!r}") from None
        if not isinstance(value, allowed):
            raise damaged(f"a row holds {type(value).__name__} as {name!r}")
    return found


def json_object(text: object, shape: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object from a column, of a shape as far as one is given. Raises UnusableLedger."""
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not _fits(value, shape or {}):
        raise damaged("a row does not hold the JSON it should")
    return value


def check_names(*names: str | None) -> None:
    """Raises UnusableLedger for what cannot be a name, None excepted."""
    for name in names:
        if name is not None and not NAME.fullmatch(name):
            raise damaged(f"{name!a:.60} cannot be a name")


def check_digests(*digests: str | None) -> None:
    """Raises UnusableLedger for what is no digest, None excepted."""
    for digest in digests:
        if digest is not None and not is_digest(digest):
            raise damaged(f"{digest!a:.60} is no digest")


def check_paths(*paths: str) -> None:
    """Raises UnusableLedger for what can be no file's or folder's absolute path."""
    for path in paths:
        if "\0" in path or not Path(path).is_absolute() or max(map(len, path.encode().split(b"/"))) > 255:
            raise damaged(f"{path!a:.60} cannot be a path")


def damaged(what: str) -> UnusableLedger:
    return UnusableLedger(f"the ledger is damaged: {what}", remedy="run malmen verify")


def _fits(value: object, shape: Any) -> bool:
    if isinstance(shape, tuple):
        if type(value) is int:
            return int in shape and abs(value) < 1 << 63
        return type(value) in shape
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    if not isinstance(value, dict):
        return False
    if "#" in shape:
        return all(key.isdecimal() and len(key) < 20 and _fits(inner, shape["#"]) for key, inner in value.items())
    return all(
        _fits(value[name.removesuffix("?")], inner) if name.removesuffix("?") in value else name.endswith("?")
        for name, inner in shape.items()
    )
