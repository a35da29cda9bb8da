"""Latents and pixels to larger or better pixels."""

from importlib import import_module


_HOME = {
    "fit_face": ".faces",
    "align_face": ".faces",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
