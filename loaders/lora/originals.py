"""Where the originals of merged weights are while networks are on: nowhere, where the checkpoint's file has them.

    in the file the model was read from    0 bits a weight; compared bit for bit while it is still there
    as float16 or bfloat16                 16, for a float32 weight that is exactly that
    a copy                                 everything else

A file is held open, so that deleting it, or putting another in its place, takes nothing away. One that was written
over in place is noticed by its stamp: before merging, the weight is copied instead; after, an error is all there is.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..weight_files import NetworkError, WeightFileError, weight_file_kind
from .targets import PipeLayers


COMPARED_AT_ONCE = 1 << 16  # numbers


class Original(Protocol):
    """The value that a parameter had before it was changed."""

    bytes_held: int

    def check(self) -> None:
        """Raises NetworkError where it is lost."""

    def read(self) -> Tensor:
        """It, to the last bit and in its dtype. Raises NetworkError where it is lost."""


class KeptOriginal:
    """A copy in memory, by half of its bits where these say it all."""

    def __init__(self, value: Tensor, device: torch.device):
        self._dtype = value.dtype
        self._kept = _narrowest(value).to(device, copy=True)
        self.bytes_held = self._kept.numel() * self._kept.element_size()

    def check(self) -> None:
        """A copy is never lost."""

    def read(self) -> Tensor:
        """It, to the last bit."""
        return self._kept.to(self._dtype)


class FileOriginal(NamedTuple):
    """A place in a checkpoint's file."""

    file: "CheckpointFile"
    start: int
    length: int  # in bytes
    dtype: torch.dtype  # in the file
    shape: torch.Size  # of the parameter
    wanted: torch.dtype  # of the parameter

    @property
    def bytes_held(self) -> int:
        return 0

    def check(self) -> None:
        """Raises NetworkError where somebody has written into the file."""
        if not self.file.unchanged:
            raise NetworkError(
                f"`{self.file.path}` was written over while networks were merged into the model that was read from "
                "it, so the model's own weights are no longer there. Load the model again from an intact file. "
                "Renaming another file over it would have taken nothing away."
            )

    def equals(self, value: Tensor) -> bool:
        """Whether it is `value` to the last bit. In pieces for a CPU's caches; at once where it is elsewhere."""
        count = COMPARED_AT_ONCE if value.device.type == "cpu" else max(value.numel(), 1)
        flat, content = value.reshape(-1), bytearray(min(self.length, count * self.dtype.itemsize))
        for i, part in enumerate(flat.split(count)):
            piece = memoryview(content)[: len(part) * self.dtype.itemsize]
            self.file.read_into(piece, self.start + i * len(content))
            if not _same_bits(torch.frombuffer(piece, dtype=self.dtype).to(self.wanted).to(value.device), part):
                return False
        return self.file.unchanged

    def read(self) -> Tensor:
        """It, from the file."""
        content = bytearray(self.length)
        self.check()
        self.file.read_into(content, self.start)
        self.check()
        return torch.frombuffer(content, dtype=self.dtype).to(self.wanted).view(self.shape)


class CheckpointFile:
    """An open .safetensors file, and how it was when it was opened. Closes with the object."""

    def __init__(self, path: Path):
        self.path = path
        self._stream = path.open("rb", buffering=0)
        self._stamp = self._stamped()
        length = int.from_bytes(self._stream.read(8), "little")
        header = json.loads(self._stream.read(length))
        self.entries: dict[str, tuple[int, int, torch.dtype]] = {
            key: (
                8 + length + entry["data_offsets"][0],
                8 + length + entry["data_offsets"][1],
                _FLOAT_DTYPES[entry["dtype"]],
            )
            for key, entry in header.items()
            if key != "__metadata__" and entry["dtype"] in _FLOAT_DTYPES
        }

    @property
    def unchanged(self) -> bool:
        """Whether nobody has written into the file since it was opened."""
        return self._stamped() == self._stamp

    def read_into(self, content: bytearray | memoryview, start: int) -> None:
        """Fill `content` from an offset."""
        self._stream.seek(start)
        rest = memoryview(content)
        while rest:
            rest = rest[self._stream.readinto(rest) or len(rest) :]

    def _stamped(self) -> tuple[int, int]:
        found = os.fstat(self._stream.fileno())
        return found.st_size, found.st_mtime_ns


class CheckpointFiles:
    """The files that a pipeline was read from, as far as it says so: folders of diffusers' and single files."""

    def __init__(self, layers: PipeLayers, pipe: object):
        self._places: dict[tuple[str, str], list[tuple[CheckpointFile, str]]] = {}
        for component, model in layers.components.items():
            for path in _component_files(model):
                self._index(path, lambda key, component=component: (component, layers.module_path(component, key)))
        for path in _single_files(pipe):
            self._index(path, layers.checkpoint_place)

    def original(self, component: str, name: str, value: Tensor) -> FileOriginal | None:
        """Where a file has just these bits. name: of the parameter, as network files have it, with `.weight`."""
        for file, key in self._places.get((component, name), ()):
            start, stop, dtype = file.entries[key]
            found = FileOriginal(file, start, stop - start, dtype, value.shape, value.dtype)
            if (stop - start) // dtype.itemsize == value.numel() and file.unchanged and found.equals(value):
                return found
        return None

    def _index(self, path: Path, place: object) -> None:
        try:
            if weight_file_kind(path) != "safetensors":
                return
            file = CheckpointFile(path)
        except (OSError, WeightFileError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return  # not to be read so; the copies do
        for key in file.entries:
            found = place(key)  # type: ignore[operator]
            if found is not None:
                self._places.setdefault(found, []).append((file, key))


def kept_original(
    files: CheckpointFiles | None, module: tuple[str, str], device: torch.device, name: str, value: Tensor
) -> Original:
    """The original of a module's parameter, where it costs least. files: None for copies on `device` in any case."""
    component, path = module
    found = files.original(component, f"{path}.{name}", value) if files is not None else None
    return found if found is not None else KeptOriginal(value, device)


def _narrowest(value: Tensor) -> Tensor:
    """`value` in 16 bits where they say it all. The first numbers of most weights tell that they do not."""
    first = value.reshape(-1)[:1024]
    for dtype in (torch.float16, torch.bfloat16) if value.dtype == torch.float32 else ():
        if _same_bits(first.to(dtype).to(value.dtype), first):
            narrow = value.to(dtype)
            if _same_bits(narrow.to(value.dtype), value):
                return narrow
    return value


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype and number of elements are equal to the last bit; eight bytes at once."""
    a, b = (value.reshape(-1).view(torch.uint8) for value in (a, b))
    if all(number % 8 == 0 for value in (a, b) for number in (value.numel(), value.storage_offset())):
        a, b = a.view(torch.int64), b.view(torch.int64)
    return torch.equal(a, b)


def _component_files(model: nn.Module) -> list[Path]:
    """The weight files of the folder that a component was read from."""
    config = getattr(model, "config", None)
    name = config.get("_name_or_path") if isinstance(config, Mapping) else getattr(config, "_name_or_path", None)
    folder = Path(name) if isinstance(name, str | Path) and str(name) else None
    return sorted(folder.glob("*.safetensors")) if folder is not None and folder.is_dir() else []


def _single_files(pipe: object) -> list[Path]:
    """The checkpoint that a pipeline was read from by `from_single_file`."""
    config = getattr(pipe, "config", None)
    name = config.get("_name_or_path") if isinstance(config, Mapping) else None
    return [Path(name)] if isinstance(name, str | Path) and str(name) and Path(name).is_file() else []


_FLOAT_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
