"""Files where people have them: a webui's folders, found by name and hash. Names load when asked for."""

from importlib import import_module


_HOME = {
    "WebUIFolder": ".folder",
    "LibraryFile": ".folder",
    "missing_files": ".missing",
    "wanted_files": ".missing",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
