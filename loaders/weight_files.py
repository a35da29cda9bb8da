"""Weight files, read safely: what is inside is told by content, tensors are read when asked for.

.safetensors                     header at once, each tensor on request, and no torch before that
.pt .ckpt .bin .pth (pickles)    at once, through torch's allow-list reader: nothing in the file is ever run
anything else                    WeightFileError: the file, what it means, what to do
"""

import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open

from .file_flaws import error_line, is_text, safetensors_flaw, safetensors_header, what_file_it_is
from .lazy_torch import TorchTensor, lazy_torch
from .memory import forget_mapped_pages
from .pickles import (
    ARCHIVE_MAGIC,
    content_flaw,
    inner_table,
    is_archive,
    packed_flaw,
    pickle_beyond_tensors,
    unpicklable_classes,
)
from .raw_numbers import NUMBER_FORMATS, count_not_finite, first_number


_PICKLE_MAGIC = (ARCHIVE_MAGIC, b"\x80")  # a zip archive of torch >= 1.6, or a bare pickle
_WORTH_FORGETTING = 1 << 20  # bytes of a file
_RAW_BLOCK = 1 << 20  # bytes read at once; a multiple of every number's size
_LONG_QUOTE = re.compile(r"`[^`]{300,}`|\S{300,}")
_HEADER_LIMIT = 100_000_000  # bytes of a .safetensors header, as in the safetensors library


class WeightFileError(ValueError):
    """A file that cannot be read as weights. The message names the file, what that means, and what to do.

    What it quotes of a file is shortened in the middle: a key may be as long as the file.
    """

    def __init__(self, message: str):
        super().__init__(_LONG_QUOTE.sub(lambda found: f"{found[0][:120]}…{found[0][-150:]}", message))


class NetworkError(WeightFileError):
    """A network file (LoRA, LyCORIS, ...) that cannot be read, or does not fit. The message names file and key."""


class WeightFile(ABC):
    """The tensors of one file by key. A context manager; without `with`, the file closes with the object.

    >>> with open_weights("moxin.safetensors") as file:
    ...     up = file.tensor("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight")
    """

    path: Path
    metadata: dict[str, str]

    def __init__(self, path: Path, metadata: dict[str, str]):
        self.path = path
        self.metadata = metadata

    @abstractmethod
    def keys(self) -> list[str]:
        """The keys, in the file's order."""

    @abstractmethod
    def tensor(self, key: str) -> TorchTensor:
        """The tensor, on the CPU, in the file's dtype. Raises WeightFileError for a key that is not there."""

    @abstractmethod
    def shape(self, key: str) -> tuple[int, ...]:
        """The tensor's shape, without reading the tensor."""

    @abstractmethod
    def dtype(self, key: str) -> Any:
        """The tensor's dtype in torch, without reading the tensor."""

    def not_finite(self, key: str) -> int | None:
        """How many numbers of a tensor are NaN or infinite; None where only torch can tell."""
        return None

    def number(self, key: str) -> float | None:
        """The first number of a tensor; None where only torch can tell."""
        return None

    def forget_pages(self) -> None:
        """Let what was read take no memory, where the system can do that. It is read anew when it is asked for;
        whoever has written to a tensor of the file loses that."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let the file go. Reading on afterwards raises WeightFileError."""

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.path.name}: {len(self)} tensors>"


def open_weights(path: str | Path) -> WeightFile:
    """Open a weight file of any kind; which kind is decided by its content, not by its name.

    Raises WeightFileError: missing, a folder, empty, truncated, not a weight file, or a pickle that would run code.
    """
    path = _existing_file(path)
    if weight_file_kind(path) == "safetensors":
        return _LazyTensors(path)
    return _PickledTensors(path)


def weight_file_kind(path: str | Path) -> str:
    """Either "safetensors" or "pickle", by the first bytes. Raises WeightFileError when it is neither."""
    path = _existing_file(path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(64)
    if size == 0:
        raise WeightFileError(f"`{path}` is empty: the download stopped before it began. Fetch it again.")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _HEADER_LIMIT:
        return "safetensors"  # whatever the first byte: it is the low byte of a length
    if head.startswith(_PICKLE_MAGIC):
        return "pickle"
    named = path.suffix.lower() == ".safetensors" and not is_text(head)
    if (head[8:9] == b"{" or named) and not head.startswith(b"GGUF"):
        return "safetensors"  # a damaged one; opening it says how
    raise WeightFileError(f"`{path}` is not a weight file: {what_file_it_is(head)}")


def read_pickle(path: str | Path, *, mmap: bool = False) -> object:
    """The object in a pickle (.pt, .ckpt, .bin, .pth): tensors, numbers, strings and containers of them.

    Read with `weights_only=True`; raises WeightFileError where that would not do. mmap: leave tensors on the disk
    until they are used, where the file is a zip archive.
    """
    path = _existing_file(path)
    if weight_file_kind(path) != "pickle":
        raise WeightFileError(
            f"`{path}` is a .safetensors file, whatever its name, and a pickle was expected. "
            "Open it with `open_weights`."
        )
    flaw = packed_flaw(path)
    if flaw:
        raise WeightFileError(
            f"`{path}` is packed as no program packs weights: {flaw}. It was not read: get another copy."
        )
    # torch takes a path that ends in .safetensors for such a file, and maps only what it opens by its path.
    mapped = mmap and is_archive(path) and path.suffix != ".safetensors"
    try:
        with path.open("rb") as stream, unpicklable_classes([lazy_torch.nn.ParameterDict]):
            source = str(path) if mapped else stream
            content = lazy_torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # the reader meets arbitrary bytes, and fails on them in as many ways
        reason = pickle_beyond_tensors(path, error)
        if reason is not None:
            raise WeightFileError(
                f"`{path}` is a pickle of more than tensors ({reason}): loading it would run code chosen by "
                "whoever made the file, so it was not loaded. Get the .safetensors version, or convert the file "
                "where you trust its maker."
            ) from error
        raise WeightFileError(
            f"`{path}` is truncated or damaged ({error_line(error)}): a pickle begins in it, but cannot be read to "
            "its end. Fetch it again."
        ) from error
    flaw = content_flaw(content, path.stat().st_size)
    if flaw:
        raise WeightFileError(f"`{path}`: {flaw}: it is damaged, or made to exhaust memory. Get another copy.")
    return content


def _existing_file(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        raise WeightFileError(f"`{path}` is a folder, and a file was expected. Name the weight file inside it.")
    if not path.is_file():
        raise WeightFileError(f"`{path}` does not exist: no such file. Check the spelling and the folder.")
    return path


class _LazyTensors(WeightFile):
    """A .safetensors file: the header is read, tensors are read when asked for.

    torch's reader opens it where torch is loaded, and else with the first tensor; until then its bytes are read anew
    each time, and must be those of the file that was opened.
    """

    def __init__(self, path: Path):
        self._stamp = _weights_stamp(path)
        handle = _safetensors_handle(path, "pt" if "torch" in sys.modules else "np")
        self._handle: object = handle if "torch" in sys.modules else None
        self._closed = False
        header = safetensors_header(path)
        super().__init__(path, _text_metadata(header.pop("__metadata__", None)))
        self._entries: dict[str, Mapping[str, Any]] = header

    def __reduce__(self) -> tuple:
        return _LazyTensors, (self.path,)  # a copy opens the file anew

    def keys(self) -> list[str]:
        return list(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def tensor(self, key: str) -> TorchTensor:
        self._open_entry(key)
        return _read_or_explain(self.path, key, lambda: self._reader().get_tensor(key))

    def not_finite(self, key: str) -> int | None:
        form = NUMBER_FORMATS.get(self._open_entry(key)["dtype"])
        if self._handle is not None or form is None:
            return None
        return _read_or_explain(self.path, key, lambda: count_not_finite(self._blocks(key), form))

    def number(self, key: str) -> float | None:
        form = NUMBER_FORMATS.get(self._open_entry(key)["dtype"])
        if self._handle is not None or form is None:
            return None
        return _read_or_explain(self.path, key, lambda: first_number(next(self._blocks(key)), form))

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._entry(key)["shape"])

    def dtype(self, key: str) -> Any:
        name = str(self._entry(key)["dtype"])
        if name not in NUMBER_FORMATS:
            raise WeightFileError(
                f"`{self.path}`: tensor `{key}` has the number format {name}, which torch has no type for here. "
                "Convert the file to float16 or float32."
            )
        return getattr(lazy_torch, NUMBER_FORMATS[name].torch)

    def forget_pages(self) -> None:
        ends = sorted((entry["data_offsets"], key) for key, entry in self._entries.items() if 0 not in entry["shape"])
        size = self._stamp[2]
        if self._handle is None or size < _WORTH_FORGETTING or len(ends) < 2:
            return
        data_start = size - ends[-1][0][1]
        places = {
            self._reader().get_tensor(key).data_ptr() - data_start - begin for (begin, _), key in (ends[0], ends[-1])
        }
        if len(places) == 1:  # the file is mapped in one piece
            forget_mapped_pages(places.pop(), size)

    def close(self) -> None:
        self._handle, self._closed = None, True

    def _reader(self) -> Any:
        """torch's handle of the file."""
        if self._handle is None:
            if _weights_stamp(self.path) != self._stamp:
                raise ValueError("another file is there by now")
            self._handle = _safetensors_handle(self.path, "pt")
        return self._handle

    def _blocks(self, key: str) -> Iterator[bytes]:
        """A tensor's bytes."""
        begin, end = self._entries[key]["data_offsets"]
        with self.path.open("rb") as stream:
            if _stamp_of(os.fstat(stream.fileno())) != self._stamp:
                raise ValueError("another file is there by now")
            stream.seek(8 + int.from_bytes(stream.read(8), "little") + begin)
            for start in range(begin, end, _RAW_BLOCK):
                yield stream.read(min(_RAW_BLOCK, end - start))

    def _open_entry(self, key: str) -> Mapping[str, Any]:
        entry = self._entry(key)
        if self._closed:
            raise WeightFileError(f"`{self.path}` was closed before `{key}` was read. Open it again.")
        return entry

    def _entry(self, key: str) -> Mapping[str, Any]:
        if key not in self._entries:
            raise WeightFileError(f"`{self.path}` has no tensor `{key}`. It holds {len(self._entries)} others.")
        return self._entries[key]


class _PickledTensors(WeightFile):
    """A pickle with a flat table of tensors, at the top or under `state_dict`. Numbers count as 0-d tensors."""

    def __init__(self, path: Path):
        super().__init__(path, {})
        content = inner_table(read_pickle(path))
        if not isinstance(content, Mapping):
            raise WeightFileError(
                f"`{path}` holds one {type(content).__name__}, not a table of tensors by name. "
                "It is some other kind of file: check what it was made for."
            )
        tensors = {key: _as_tensor(value) for key, value in content.items() if isinstance(key, str)}
        self._tensors = {key: value for key, value in tensors.items() if value is not None}
        if content and not self._tensors:
            raise WeightFileError(
                f"`{path}` holds {len(content)} entries ({', '.join(map(str, list(content)[:4]))}...), but no tensor "
                "among them. It is some other kind of file: check what it was made for."
            )

    def keys(self) -> list[str]:
        return list(self._tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def tensor(self, key: str) -> TorchTensor:
        if key not in self._tensors:
            raise WeightFileError(f"`{self.path}` has no tensor `{key}`. It holds {len(self._tensors)} others.")
        return self._tensors[key]

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.tensor(key).shape)

    def dtype(self, key: str) -> Any:
        return self.tensor(key).dtype

    def close(self) -> None:
        self._tensors = {}


def _as_tensor(value: object) -> TorchTensor | None:
    if isinstance(value, lazy_torch.Tensor):
        return value.detach()
    if isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < 1e300:
        return lazy_torch.tensor(float(value))
    return None


def _safetensors_handle(path: Path, framework: str) -> Any:
    """safetensors' handle of a file. Raises WeightFileError for what is no whole one."""
    try:
        return safe_open(str(path), framework=framework, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightFileError(safetensors_flaw(path, error)) from error


def _weights_stamp(path: Path) -> tuple[int, ...]:
    """What tells a file from another that took its place."""
    return _stamp_of(path.stat())


def _stamp_of(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _read_or_explain(path: Path, key: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise WeightFileError(
            f"`{path}`: tensor `{key}` cannot be read ({error_line(error)}): the file is damaged, or was changed "
            "while it was open. Fetch it again."
        ) from error


def _text_metadata(raw: object) -> dict[str, str]:
    return {str(key): str(value) for key, value in raw.items()} if isinstance(raw, dict) else {}
