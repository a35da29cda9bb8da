"""The hashes that a webui has worked out and keeps beside itself, read where they lie.

    cache.json                before 1.10   {"hashes": {"checkpoint/x.safetensors": {"mtime": ..., "sha256": ...}}}
    cache/hashes/cache.db     since 1.10    a table of the `diskcache` package, one row a file
    the same under "hashes-addnet"          of the tensor data, for networks

Rows of `diskcache` (Apache-2.0) hold pickles. They are read by an unpickler that knows no class and no function, so
nothing in them is run: plain tables come through, and all else is passed over.
"""

import contextlib
import io
import json
import pickle
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


_TABLES = ("hashes", "hashes-addnet")
_ROW_LIMIT = 4096  # bytes of a row that holds one hash
_SIZE_LIMIT = 1 << 28  # bytes of cache.json


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, strings and containers of them."""

    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def webui_hashes(folder: Path) -> dict[str, dict[str, tuple[float, str]]]:
    """Table ("hashes", "hashes-addnet") -> the webui's name of a file -> (time of change that it saw, SHA-256).

    Names are "checkpoint/..", "lora/..", "textual_inversion/.." and so on. What cannot be read is left out.
    """
    found: dict[str, dict[str, tuple[float, str]]] = {table: {} for table in _TABLES}
    for table, rows in (*_json_tables(folder / "cache.json"), *_disk_tables(folder / "cache")):
        for name, row in rows:
            if isinstance(name, str) and isinstance(row, Mapping):
                time, digest = row.get("mtime"), row.get("sha256")
                if isinstance(time, int | float) and isinstance(digest, str) and len(digest) == 64:
                    found[table][name.replace("\\", "/")] = (float(time), digest.lower())
    return found


def _json_tables(path: Path) -> Iterator[tuple[str, Iterator[tuple[object, object]]]]:
    try:
        if path.stat().st_size > _SIZE_LIMIT:
            return
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    for table in _TABLES:
        if isinstance(content, dict) and isinstance(content.get(table), dict):
            yield table, iter(content[table].items())


def _disk_tables(folder: Path) -> Iterator[tuple[str, Iterator[tuple[object, object]]]]:
    for table in _TABLES:
        place = folder / table / "cache.db"
        if place.is_file():
            yield table, _disk_rows(place)


def _disk_rows(place: Path) -> Iterator[tuple[object, object]]:
    """Keys and values of a table, out of a copy: even reading would put files beside it."""
    rows: list[tuple[object, Any]] = []
    with contextlib.suppress(sqlite3.Error, OSError), tempfile.TemporaryDirectory() as folder:
        for part in (place, place.with_name(f"{place.name}-wal")):  # the second holds what is not in the first yet
            if part.is_file() and part.stat().st_size <= _SIZE_LIMIT:
                shutil.copyfile(part, Path(folder) / part.name)
        with contextlib.closing(sqlite3.connect(Path(folder) / place.name)) as table:
            query = "SELECT key, value FROM Cache WHERE raw = 1 AND length(value) <= ?"
            rows = table.execute(query, (_ROW_LIMIT,)).fetchall()
    for key, value in rows:
        with contextlib.suppress(Exception):  # arbitrary bytes
            yield key, _PlainUnpickler(io.BytesIO(value)).load()
