"""What every folder may use: the pack's logger, optional packages, near names, and the folder for what can be made
again. Torch-free."""

import logging
import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType


# A child of diffusers' own logger: `diffusers.logging.set_verbosity_…` decides what is shown.
LOGGER = logging.getLogger("diffusers.webui")


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
    by_lower = {choice.lower(): choice for choice in known}
    near = get_close_matches(str(name).lower(), by_lower, n=4, cutoff=0.5)
    if near:
        return f"{kind} {name!r} is unknown. Did you mean {', '.join(repr(by_lower[match]) for match in near)}?"
    return f"{kind} {name!r} is unknown. Known: {', '.join(map(repr, by_lower.values()))}."


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
