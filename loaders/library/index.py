"""What is known of files without opening them again: hashes and names inside, kept by path, size and time of change.

One JSON file in the user's cache folder for a set of folders. What a webui has worked out itself is taken over
(`webui_hashes`); what neither knows is worked out when it is asked for, and kept.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..hashes import file_sha256, legacy_model_hash, tensor_data_sha256
from ..utils import atomic_write, cache_folder
from ..weight_files import WeightFileError, weight_file_kind


_INDEX_VERSION = 1
_METADATA_LIMIT = 1 << 24  # bytes of a header that are looked at for metadata
_METADATA_KEPT = (
    *("ss_output_name", "sshs_model_hash", "sshs_legacy_hash"),  # what a network is found by
    *("ss_base_model_version", "ss_v2", "modelspec.architecture"),  # what it is for
)


class FileIndex:
    """Facts of files. A fact that was kept for another size or time of change counts as unknown."""

    def __init__(self, name: str):
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self._place = cache_folder() / "library" / f"{digest}.json"
        self._facts: dict[str, dict[str, Any]] = self._kept()
        self._learnt: set[str] = set()  # paths of files of which something was learnt since it was saved

    def known(self, path: str, stat: os.stat_result, fact: str) -> str | None:
        """A fact that was worked out before: "sha256", "tensors" or "legacy"."""
        found = self._facts.get(path, {}).get(fact)
        return found if isinstance(found, str) and self._is_current(path, stat) else None

    def keep(self, path: str, stat: os.stat_result, facts: Mapping[str, str | dict[str, str]]) -> None:
        """Add facts; those of another state of the file are forgotten."""
        stamp = {"size": stat.st_size, "changed": stat.st_mtime_ns}
        before = self._facts.get(path, {})
        if any(before.get(key) != value for key, value in stamp.items()):
            before = {}
        after = {**before, **stamp, **facts}
        if after != before:
            self._facts[path] = after
            self._learnt.add(path)

    def worked_out(
        self, path: str, stat: os.stat_result, fact: str, on_bytes: Callable[[int, int], None] | None = None
    ) -> str:
        """A hash, read from the file where it is not known: "sha256" of the whole file; "tensors", of the tensor data
        of a .safetensors file (of the whole of another); "legacy", the old one of 8 digits, of 64 KiB."""
        found = self.known(path, stat, fact)
        if found is None:
            if fact == "legacy":
                found = legacy_model_hash(path)
            else:
                found = _tensors_sha256(path, on_bytes) if fact == "tensors" else file_sha256(path, on_bytes=on_bytes)
            self.keep(path, stat, {fact: found})
        return found

    def metadata(self, path: str, stat: os.stat_result) -> dict[str, str]:
        """What a .safetensors file says of its name, hash and base model; empty for others.

        A file with metadata has an entry at least: the webui tells such files from those without.
        """
        kept = self._facts.get(path, {}).get("metadata")
        if not isinstance(kept, dict) or not self._is_current(path, stat):
            told = safetensors_metadata(path)
            kept = {name: told[name] for name in _METADATA_KEPT if told.get(name)}
            kept |= {"": ""} if told and not kept else {}
            self.keep(path, stat, {"metadata": kept})
        return kept

    def _is_current(self, path: str, stat: os.stat_result) -> bool:
        facts = self._facts.get(path, {})
        return facts.get("size") == stat.st_size and facts.get("changed") == stat.st_mtime_ns

    def save(self) -> None:
        """Write what was learnt since, beside what other processes have; a cache folder that cannot be written is done
        without."""
        learnt, self._learnt = self._learnt, set()
        if learnt:
            files = {**self._facts, **self._kept(), **{path: self._facts[path] for path in learnt}}
            with contextlib.suppress(OSError), atomic_write(self._place) as aside:
                aside.write_text(json.dumps({"version": _INDEX_VERSION, "files": files}), encoding="utf-8")

    def _kept(self) -> dict[str, dict[str, Any]]:
        try:
            kept = json.loads(self._place.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        files = kept.get("files") if isinstance(kept, dict) and kept.get("version") == _INDEX_VERSION else None
        if not isinstance(files, dict):
            return {}
        return {path: facts for path, facts in files.items() if isinstance(facts, dict)}


def _tensors_sha256(path: str, on_bytes: Callable[[int, int], None] | None) -> str:
    """Of the tensor data; of the whole file where it is no .safetensors, or a broken one."""
    try:
        if weight_file_kind(path) == "safetensors":
            return tensor_data_sha256(path, on_bytes=on_bytes)
    except WeightFileError:
        pass
    return file_sha256(path, on_bytes=on_bytes)


def safetensors_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a .safetensors file; empty for a pickle and for a broken file, whose name counts still."""
    try:
        if weight_file_kind(path) != "safetensors":
            return {}
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(min(length, _METADATA_LIMIT)).decode("utf-8")
        place = header.find('"__metadata__":')
        if place < 0:
            return {}
        begin = place + len('"__metadata__":')
        told, _ = json.JSONDecoder().raw_decode(header[begin:].lstrip())
    except (OSError, ValueError, RecursionError, WeightFileError):
        return {}
    return {key: value for key, value in told.items() if isinstance(value, str)} if isinstance(told, dict) else {}
