"""Detectors of things in pictures: from a name or a file to a function of a picture."""

from importlib import import_module


_HOME = {"DetectorLibrary": ".library", "YoloDetector": ".yolo"}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
