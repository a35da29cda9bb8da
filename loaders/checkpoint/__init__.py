"""Checkpoints in one file: what is inside, and how it loads. Names load when asked for."""

from importlib import import_module


_HOME = {
    "describe_checkpoint": ".describe",
    "read_refiner": ".load",
    "load_vae": ".vae",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
