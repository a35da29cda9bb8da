"""What a detailing pass finds in a picture, and the jobs that it makes of it. Names load when asked for."""

from importlib import import_module


_HOME = {
    "Detection": ".boxes",
    "detail_regions": ".regions",
    "detail_jobs": ".jobs",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
