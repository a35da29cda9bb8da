"""What bounds the cost of weight files, and what is known of a pickle before and after torch's allow-list reader has
it. Nothing in a pickle is ever run.

A file of n bytes may not cost more than about n bytes of memory and time: packed archives, tensors that repeat a few
numbers (stride 0) or share them too often, and tables that hold themselves are refused or passed over.
"""

import pickle
import pickletools
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .file_flaws import error_line
from .lazy_torch import TorchTensor, lazy_torch
from .utils import one_for_all_copies


ARCHIVE_MAGIC = b"PK\x03\x04"
_TENSOR_NAMES = ("torch.", "collections.", "numpy.", "_codecs.")
_SHARED_TIMES = 4  # how often the bytes of a file may be counted in its tensors: tied weights stand twice
_TABLE_NAMES = ("state_dict", "model_state_dict", "params_ema", "params-ema", "params", "model", "net")
_NESTED_TABLES = 8
_WIDE = 64  # how many times its weights the square of a network's greatest width may be


def is_archive(path: Path) -> bool:
    """Whether torch takes a file for one of its zip archives: by its first bytes."""
    with path.open("rb") as stream:
        return stream.read(len(ARCHIVE_MAGIC)) == ARCHIVE_MAGIC


def packed_flaw(path: Path) -> str:
    """Why an archive cannot be read in memory of the file's own size; "" for one that can, and for other files."""
    if not is_archive(path):
        return ""
    size = path.stat().st_size
    try:
        if not zipfile.is_zipfile(path):
            return ""  # cut off: torch's reader says so
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        return f"its list of contents is damaged ({error_line(error)})"
    return f"it unpacks to {unpacked} bytes from {size}" if unpacked > size else ""


def content_flaw(content: object, size: int) -> str:
    """Why the content of a pickle of `size` bytes cannot be used as tensors; "" where it can. Touches no numbers.

    Every container is looked into once, whatever refers to it.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", content)]
    left = _SHARED_TIMES * size
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen:
            continue
        if isinstance(value, lazy_torch.Tensor):
            seen.add(id(value))
            flaw = tensor_flaw(value, size)
            if flaw:
                return f"tensor `{name}` {flaw}"
            left -= value.numel() * value.element_size()
            if left < 0:
                return f"its tensors share their numbers and would take more than {_SHARED_TIMES} times {size} bytes"
        elif isinstance(value, lazy_torch.nn.ParameterDict):
            waiting.append((name, vars(value)))
        elif isinstance(value, Mapping):
            seen.add(id(value))
            waiting += [(str(key)[:80] if isinstance(key, str | int) else "", part) for key, part in value.items()]
        elif isinstance(value, list | tuple | set):
            seen.add(id(value))
            waiting += [(name, part) for part in value]
    return ""


def tensor_flaw(value: TorchTensor, size: int) -> str:
    """Why a tensor out of a file of `size` bytes is none of plain numbers in memory; "" where it is."""
    if value.is_nested or value.layout != lazy_torch.strided or value.is_quantized:
        return "is sparse, nested or quantised, where plain numbers are expected"
    if value.is_meta or value.device.type != "cpu":
        return "has a shape and no numbers"
    held = value.untyped_storage().nbytes()
    if held > size or value.numel() * value.element_size() > held:
        return f"of shape {tuple(value.shape)} claims more numbers than the file holds"
    return ""


def inner_table(content: object) -> object:
    """The table under `state_dict`, `params_ema`, `model`, ..., as deep as training programs wrap it; else `content`.

    The names and their order are those of spandrel (MIT), spandrel/__helpers/canonicalize.py.
    """
    for _ in range(_NESTED_TABLES):
        if not isinstance(content, Mapping):
            break
        inner = next((content[name] for name in _TABLE_NAMES if isinstance(content.get(name), Mapping)), None)
        if inner is None or inner is content:
            break
        content = inner
    return content


@contextmanager
def unpicklable_classes(classes: list[type]) -> Iterator[None]:
    """These classes may stand in a pickle beside tensors, inside the block: torch's own allow-list. It is one for all
    threads and put back as it was found, so one block after the other."""
    with (
        one_for_all_copies("unpicklable_classes", threading.RLock),
        lazy_torch.serialization.safe_globals(classes),
    ):
        yield


def pickle_beyond_tensors(path: Path, error: Exception) -> str | None:
    """What a pickle would call that torch's reader refuses, or None when it was stopped by damage. Runs nothing."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    names, whole = _pickled_names(path)
    outside = [name for name in names if not name.startswith(_TENSOR_NAMES)]
    if outside:
        return f"it calls {', '.join(outside[:3])}"
    return f"it holds a {names[0]}" if whole and names and "nsupported" in str(error) else None


def _pickled_names(path: Path) -> tuple[list[str], bool]:
    """Classes and functions that a pickle names, as "module.name", and whether it was read to its end."""
    names: list[str] = []
    strings: list[str] = []
    try:
        with _pickle_stream(path) as stream:
            for _ in range(5):  # before torch 1.6 the content is the fourth of five in a row
                for code, argument, _position in pickletools.genops(stream):
                    if code.name == "GLOBAL":
                        names.append(str(argument).replace(" ", "."))
                    elif code.name == "STACK_GLOBAL":
                        names.append(".".join(strings[-2:]))
                    elif isinstance(argument, str):
                        strings.append(argument)
    except Exception:  # arbitrary bytes again
        return names, False
    return names, True


def _pickle_stream(path: Path) -> IO[bytes]:
    if not is_archive(path):
        return path.open("rb")
    archive = zipfile.ZipFile(path)
    return archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def network_flaw(state: Mapping[str, TorchTensor]) -> str:
    """Why a network must not be built after these tensors: it would be larger than they are; "" where it may.

    Sizes are read off shapes and layers are counted by the numbers in keys, so a key `body.999999999.weight` would
    make a network of a thousand million layers, and a tensor without elements may claim any width.
    """
    most = 4 * len(state) + 64
    for key, value in state.items():
        if any(part.isdigit() and (len(part) > 9 or int(part) > most) for part in key.split(".")):
            return f"its key `{key[:80]}` counts layers that {len(state)} tensors cannot be"
        if not value.numel():
            return f"its tensor `{key[:80]}` of shape {tuple(value.shape)} is empty"
    return ""


def check_sizes(state: Mapping[str, TorchTensor], build: Callable[[], object]) -> None:
    """Where the shapes of `state` allow a network much larger than it is, build that first without memory.

    build: makes the network and loads `state` into it; what it raises because shapes disagree is raised here. A layer
    has at most its widths' product of weights, so shapes that are wide beside the number of weights are the suspicious
    ones. Making some networks needs numbers; those are let through.
    """
    widest = max((side for value in state.values() for side in value.shape), default=0)
    if widest**2 <= _WIDE * sum(value.numel() for value in state.values()):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that loading into nothing does nothing
        try:
            with lazy_torch.device("meta"):
                build()
        except (NotImplementedError, RuntimeError) as error:
            if "meta tensor" not in str(error):
                raise
