"""Networks for faces: detectors, restorers, the parser. Names load when asked for."""

from importlib import import_module


_HOME = {
    "load_face_restorer": ".load",
    "load_face_detector": ".load",
    "load_face_parser": ".load",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
