"""One file from many: what the Hub and `custom_pipeline=` load. Names load when asked for."""

from importlib import import_module


_HOME = {
    "pipeline_file": ".build",
    "bundle": ".build",
    "PIPELINES": ".build",
    "BundleError": ".sources",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
