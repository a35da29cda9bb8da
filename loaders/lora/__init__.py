"""Network files: read, merged into weights, or put beside them as adapters. Names load when asked for."""

from importlib import import_module


_HOME = {
    "read_network": ".read",
    "merged_networks": ".merge",
    "NetworkMerger": ".merge",
    "attach_network": ".peft_adapters",
    "NetworkLibrary": ".library",
    "block_strengths": ".block_weights",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
