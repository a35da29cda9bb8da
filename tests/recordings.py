"""Where the recordings of the webui are, and their tables: a table that is missing or short is an error, not no tests.

The folder is tests/golden put together (conftest.py), or the one that WEBUI_GOLDENS names.
"""

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version


GOLDEN = Path(os.environ["WEBUI_GOLDENS"])
OLDER_KERNELS = Version(version("torch")) < Version("2.14")
"""Whether this torch adds in another order than that of the recordings, as 2.6 does: last bits differ."""


def recorded_rows(name: str, at_least: int) -> list[dict[str, Any]]:
    """The lines of the table GOLDEN/name (.jsonl), which has `at_least` so many."""
    return _enough(name, [json.loads(line) for line in (GOLDEN / name).open(encoding="utf-8")], at_least)


def recorded_json(name: str, key: str, at_least: int) -> list[dict[str, Any]]:
    """The list under `key` of GOLDEN/name (.json), which has `at_least` so many entries."""
    return _enough(name, json.loads((GOLDEN / name).read_text(encoding="utf-8"))[key], at_least)


def recorded_runs(name: str, kind: str, at_least: int) -> list[dict[str, Any]]:
    """The runs of a kind ("txt2img", "img2img") in GOLDEN/name whose tensors lie beside it, in e2e/."""
    folder = (GOLDEN / name).parent / "e2e"
    runs = json.loads((GOLDEN / name).read_text(encoding="utf-8"))["runs"]
    kept = [run for run in runs if run["kind"] == kind and (folder / f"{run['name']}.safetensors").exists()]
    return _enough(f"{name} ({kind})", kept, at_least)


def _enough(name: str, rows: list, at_least: int) -> list:
    assert len(rows) >= at_least, f"{GOLDEN / name} has {len(rows)} rows and should have {at_least}"
    return rows
