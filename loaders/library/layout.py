"""Where a webui keeps its files, and which of them are of which kind. Forge's folders are the same."""

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..utils import unknown_choice


class FileKind(NamedTuple):
    """One kind of file in a webui's folder."""

    argument: str  # of WebUIFolder, that names a folder for it
    folders: tuple[str, ...]  # below the webui
    suffixes: tuple[str, ...]  # in lower case; the files' may be in any


_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

FILE_KINDS: dict[str, FileKind] = {
    "checkpoint": FileKind("models_folder", ("models/Stable-diffusion",), (".safetensors", ".ckpt")),
    "vae": FileKind("vae_folder", ("models/VAE", "models/Stable-diffusion"), _WEIGHTS),
    "lora": FileKind("lora_folder", ("models/Lora", "models/LyCORIS"), (".safetensors", ".pt", ".ckpt")),
    "embedding": FileKind(
        "embeddings_folder",
        ("embeddings", "models/embeddings"),
        (".safetensors", ".pt", ".bin", ".png", ".webp", ".jxl", ".avif"),
    ),
    "upscaler": FileKind(
        "upscaler_folder",
        tuple(f"models/{name}" for name in ("ESRGAN", "RealESRGAN", "SwinIR", "DAT", "HAT", "ScuNET", "BSRGAN")),
        _WEIGHTS,
    ),
    "face_restorer": FileKind("face_folder", ("models/GFPGAN", "models/Codeformer"), _WEIGHTS),
    "controlnet": FileKind(
        "controlnet_folder", ("models/ControlNet", "extensions/sd-webui-controlnet/models"), _WEIGHTS
    ),
    "detector": FileKind("detector_folder", ("models/adetailer",), (".onnx", ".pt")),
    "hypernetwork": FileKind("hypernetworks_folder", ("models/hypernetworks",), (".pt", ".safetensors")),
    "taesd": FileKind("taesd_folder", ("models/VAE-taesd", "models/VAE-approx"), _WEIGHTS),
}
STYLES_FILE = "styles.csv"
_CLOCK_TICK = 2_000_000_000  # nanoseconds; FAT counts in two seconds
KNOWN_SUFFIXES = frozenset(suffix for kind in FILE_KINDS.values() for suffix in kind.suffixes)
_VAE_NAME = re.compile(r"\.vae\.\w+$", re.IGNORECASE)


def library_folders(path: Path | None, single: Mapping[str, str | Path]) -> dict[str, list[Path]]:
    """Kind -> the folders to look in, those of `single` (argument -> folder) first.

    Raises ValueError for a folder that is not there, an unknown argument, and a `path` that is no webui's.
    """
    arguments = {kind.argument: name for name, kind in FILE_KINDS.items()}
    folders: dict[str, list[Path]] = {name: [] for name in FILE_KINDS}
    for argument, folder in single.items():
        if argument not in arguments:
            raise ValueError(unknown_choice("argument", argument, arguments))
        if folder is not None:
            folders[arguments[argument]].append(_existing_folder(argument, folder))
    if path is not None:
        root = _existing_folder("path", path)
        for name, kind in FILE_KINDS.items():
            folders[name] += [place for below in kind.folders if (place := _folder_below(root, below)) is not None]
        if not any(folders.values()):
            raise ValueError(
                f"`{path}` holds none of a webui's folders (models/Stable-diffusion, models/Lora, embeddings, ...). "
                "Give the webui's own folder, or single ones: models_folder, lora_folder, ..."
            )
    return folders


def files_of_kind(kind: str, folder: Path) -> Iterator[tuple[str, str, os.stat_result]]:
    """(path, path below `folder` with slashes, its facts) of the files of a kind, folder by folder in natural order.

    Linked folders are followed, not in circles. A VAE beside the checkpoints is one with `.vae.` in its name, and such
    a file is no checkpoint.
    """
    suffixes = FILE_KINDS[kind].suffixes
    beside = kind == "vae" and folder.name.lower() == "stable-diffusion"
    found = []
    for entry, below in _walk(folder):
        name = entry.name
        if not name.lower().endswith(suffixes) or name.startswith("."):
            continue
        is_vae = _VAE_NAME.search(name) is not None
        if (kind == "checkpoint" and is_vae) or (beside and not is_vae):
            continue
        try:
            stat = entry.stat()
        except OSError:  # a link that leads nowhere
            continue
        found.append((entry.path, f"{below}{name}", stat))
    found.sort(key=lambda item: [natural_key(part) for part in os.path.split(item[1])])
    yield from found


class FolderTimes(NamedTuple):
    """Times of change of a folder and the folders in it, by which it is told that files came or went."""

    times: dict[str, int]  # path -> nanoseconds
    seen_at: int  # when they were looked at

    @classmethod
    def of(cls, folder: Path) -> "FolderTimes":
        """The state now."""
        now, times, seen = time.time_ns(), {}, set()
        waiting = [str(folder)]
        while waiting:
            place = waiting.pop()
            real = os.path.realpath(place)
            if real not in seen:
                seen.add(real)
                with contextlib.suppress(OSError):
                    times[place] = os.stat(place).st_mtime_ns
                    waiting += [entry.path for entry in os.scandir(place) if entry.is_dir()]
        return cls(times, now)

    def holds(self) -> bool:
        """Whether no file came or went since. A change so shortly before that the clock may not tell counts too."""
        try:
            now = {place: os.stat(place).st_mtime_ns for place in self.times}
        except OSError:
            return False
        return now == self.times and max(now.values(), default=0) < self.seen_at - _CLOCK_TICK


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Numbers by their value: a2 before a10."""
    pieces = re.split(r"(\d+)", text.lower())
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces]


def _walk(folder: Path) -> Iterator[tuple[os.DirEntry, str]]:
    """Files below a folder, each with its folder's path below it ("" or "a/b/")."""
    seen: set[tuple[int, int]] = set()
    waiting = [(str(folder), "")]
    while waiting:
        place, below = waiting.pop()
        try:
            stat = os.stat(place)
            entries = list(os.scandir(place))
        except OSError:  # a folder that may not be read, or has just gone
            continue
        if (stat.st_dev, stat.st_ino) in seen and stat.st_ino:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        for entry in entries:
            if entry.is_dir():
                waiting.append((entry.path, f"{below}{entry.name}/"))
            else:
                yield entry, below


def _existing_folder(argument: str, folder: str | Path) -> Path:
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise ValueError(f"`{argument}`: `{folder}` is no folder. Check the spelling.")
    return place


def _folder_below(root: Path, below: str) -> Path | None:
    """A folder by its path below another; upper and lower case are one, as on the systems most webuis run on."""
    place = root / below
    if place.is_dir():
        return place
    place = root
    for part in below.split("/"):
        inner = _names_in(place)
        if part.lower() not in inner:
            return None
        place = place / inner[part.lower()]
    return place if place.is_dir() else None


def _names_in(folder: Path) -> dict[str, str]:
    try:
        return {name.lower(): name for name in os.listdir(folder)}
    except OSError:
        return {}


def known_kinds(kinds: Iterable[str]) -> None:
    """Raises ValueError for a kind that is none."""
    for kind in kinds:
        if kind not in FILE_KINDS:
            raise ValueError(unknown_choice("`kind`:", kind, FILE_KINDS))
