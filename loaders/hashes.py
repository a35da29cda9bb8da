"""What a file is called by, wherever it lies: the hashes that infotexts and model sites write.

    Model hash (AutoV2)   first 10 hex digits of the file's SHA-256
    AutoV1                first 8 of the SHA-256 of 64 KiB from the end of the first MiB on; before webui 1.0
    TI hashes             first 12 of the file's SHA-256
    AutoV3                first 12 of the SHA-256 of a .safetensors file's tensor data, without its header

Hashing several GiB takes seconds, so SHA-256 sums are kept in the user's cache folder, by path, size and time of
change. AutoV1 and AutoV3 after kohya-ss/sd-scripts, library/train_util.py (`addnet_hash_legacy`,
`addnet_hash_safetensors`), Apache-2.0.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from .utils import atomic_write, cache_folder
from .weight_files import WeightFileError


_HASH_BLOCK = 1 << 22  # bytes read at once


def model_hash(path: str | Path, *, on_bytes: Callable[[int, int], None] | None = None) -> str:
    """The webui's "Model hash" (AutoV2): the first 10 hex digits of the file's SHA-256. Arguments of `file_sha256`."""
    return file_sha256(path, on_bytes=on_bytes)[:10]


def file_sha256(
    path: str | Path, *, start: int = 0, cached: bool = True, on_bytes: Callable[[int, int], None] | None = None
) -> str:
    """SHA-256 of a file from byte `start` on, as 64 hex digits.

    cached: look the sum up, and keep it, in the user's cache folder. It is kept for this path, size and time of
    change (nanoseconds); a cache that cannot be read or written is done without.
    on_bytes: called with (bytes done, bytes in all) while reading; not called when the sum was kept.
    Raises WeightFileError for a file that is not there.
    """
    path = _hashable(path)
    stat = path.stat()
    stamp: dict[str, str | int] = {
        "path": str(path.resolve()),
        "size": stat.st_size,
        "changed": stat.st_mtime_ns,
        "start": start,
    }
    kept = _kept_hash(stamp) if cached else None
    if kept is not None:
        return kept
    digest = hashlib.sha256()
    done = min(start, stat.st_size)
    with path.open("rb") as stream:
        stream.seek(start)
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
            done += len(block)
            if on_bytes is not None:
                on_bytes(done, stat.st_size)
    if cached:
        _keep_hash(stamp, digest.hexdigest())
    return digest.hexdigest()


def tensor_data_sha256(path: str | Path, *, on_bytes: Callable[[int, int], None] | None = None) -> str:
    """SHA-256 of a .safetensors file's tensor data: it stays the same when only the metadata changes (AutoV3).

    on_bytes: as in `file_sha256`.
    """
    path = _hashable(path)
    with path.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if not 2 <= header <= path.stat().st_size - 8:
        raise WeightFileError(
            f"`{path}` is no .safetensors file, or a truncated one: its first eight bytes promise a header of "
            f"{header} bytes. This hash exists for .safetensors only; `file_sha256` takes any file."
        )
    return file_sha256(path, start=8 + header, on_bytes=on_bytes)


def legacy_model_hash(path: str | Path) -> str:
    """The hash of infotexts from before webui 1.0 (AutoV1): 8 hex digits, of 64 KiB from byte 2**20 on.

    Different files often share it; a file that ends before has the hash of nothing (e3b0c442).
    """
    with _hashable(path).open("rb") as stream:
        stream.seek(0x100000)
        return hashlib.sha256(stream.read(0x10000)).hexdigest()[:8]


def _hashable(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise WeightFileError(f"`{path}` cannot be hashed: there is no such file. Check the spelling and the folder.")
    return path


def _hash_entry(stamp: dict[str, str | int]) -> Path:
    name = hashlib.sha256(f"{stamp['path']}\n{stamp['start']}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return cache_folder() / "hashes" / f"{name}.json"


def _kept_hash(stamp: dict[str, str | int]) -> str | None:
    try:
        entry = json.loads(_hash_entry(stamp).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(entry, dict) and all(entry.get(key) == value for key, value in stamp.items())
    sha256 = entry.get("sha256") if known else None
    return sha256 if isinstance(sha256, str) and len(sha256) == 64 else None


def _keep_hash(stamp: dict[str, str | int], sha256: str) -> None:
    with contextlib.suppress(OSError), atomic_write(_hash_entry(stamp)) as aside:
        aside.write_text(json.dumps({**stamp, "sha256": sha256}), encoding="utf-8")
