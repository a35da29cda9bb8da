"""Where the pack keeps what it can make again."""

import os
import sys
from pathlib import Path


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
