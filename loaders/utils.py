"""What every folder may use: the pack's logger, optional packages, near names, files written whole, and the folder for
what can be made again. Torch-free."""

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TypeVar


def _package_logger() -> logging.Logger:
    """The package's logger, below diffusers' own: `diffusers.logging.set_verbosity_…` decides what is shown."""
    logger = logging.getLogger("webui_diffusers")
    logger.parent = logging.getLogger("diffusers.webui")
    return logger


LOGGER = _package_logger()
_Made = TypeVar("_Made")


def one_for_all_copies(name: str, make: Callable[[], _Made]) -> _Made:
    """What the process has one of. The package and every pipeline in one file are copies of this code, and share
    models: so it hangs on the logger, which is one for all of them."""
    return LOGGER.__dict__.setdefault(name, make())


class NameFromText(str):
    """A file's name that came out of somebody's text: known labels and the user's own folders are searched for it, but
    it is never opened as a path nor asked for on the Hub. Equal to the plain name."""


class NameFromRequest(NameFromText):
    """A name in a request to the server. One that is not there is refused, where what a text names may be left out."""


def require(module: str, *, extra: str, feature: str) -> ModuleType:
    """Import an optional package, or say how to get it.

    module: dotted name; extra: the extra of `webui-diffusers` that installs it; feature: what needs it, as the
    sentence's subject. Raises ImportError naming all three.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # `module` is there; something that it needs is not
        raise ImportError(f"{feature} needs `{module}`: pip install 'webui-diffusers[{extra}]'") from error


def unknown_choice(kind: str, name: object, known: Iterable[str]) -> str:
    """What to say about a `name` that is not among `known`: the near matches, or all of them.

    >>> unknown_choice("sampler", "Eulr", ["Euler", "Heun"])
    "sampler 'Eulr' is unknown. Did you mean 'Euler'?"
    """
    choices = list(known)
    near = near_names(name, choices)
    if near:
        return f"{kind} {name!r} is unknown. Did you mean {', '.join(map(repr, near))}?"
    return f"{kind} {name!r} is unknown. Known: {', '.join(map(repr, choices))}."


def near_names(name: object, known: Iterable[str], count: int = 4) -> list[str]:
    """Those of `known` that `name` may be a slip of, the nearest first; upper and lower case are one.

    >>> near_names("dpm++ 2s", ["DPM++ 2S a", "DPM++ 2M", "Euler"], count=1)
    ['DPM++ 2S a']
    """
    by_lower = {choice.lower(): choice for choice in known}
    return [by_lower[match] for match in get_close_matches(str(name).lower(), by_lower, n=count, cutoff=0.5)]


@contextmanager
def atomic_write(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """A file to write to that takes the place of `path` when the block ends, and is gone if it fails.

    What was written is on the disk before the name appears, so that neither a kill nor a power cut leaves half a file.
    flush: False does not wait for the disk: then a power cut may.

    >>> with atomic_write(Path("notes.json")) as aside:
    ...     aside.write_text("{}", encoding="utf-8")
    """
    with aside_file(path) as aside:
        yield aside
        if flush:
            flush_to_disk(aside)
        aside.replace(path)


@contextmanager
def aside_file(path: Path) -> Iterator[Path]:
    """An empty file beside `path` to write to, made with its folder; what is still there when the block ends is
    deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name[:40]}-{secrets.token_hex(4)}.part")
    aside.touch(exist_ok=False)
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def take_name(source: Path, target: Path) -> None:
    """Move a file to a name that nothing has. Raises FileExistsError where something has, whichever process was
    faster, and FileNotFoundError without `source`."""
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without links
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # from here on the name is ours
        try:
            source.replace(target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    else:
        source.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until the system has written a file's content."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def cache_folder() -> Path:
    """Where the pack keeps what it can make again. May not exist yet.

    WEBUI_DIFFUSERS_CACHE if set, else `webui-diffusers` in the system's folder for such files (XDG_CACHE_HOME or
    ~/.cache; ~/Library/Caches; %LOCALAPPDATA%).
    """
    chosen = os.environ.get("WEBUI_DIFFUSERS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "webui-diffusers"
