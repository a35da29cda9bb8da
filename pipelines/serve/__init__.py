"""The webui's HTTP API over the pack's pipelines (extra `[serve]`). Names load when asked for."""

from importlib import import_module

from ...loaders.utils import require


_HOME = {"app": ".application", "ray_app": ".replicas"}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("fastapi", extra="serve", feature="The server")
    return getattr(import_module(_HOME[name], __name__), name)
