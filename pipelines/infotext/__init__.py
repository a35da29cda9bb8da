"""Parameters texts: reading, writing, and what they mean for a call. Names load when asked for."""

from importlib import import_module


_HOME = {
    "parse_infotext": ".read",
    "tidy_infotext": ".tidy",
    "infotext_version": ".read",
    "unquote_field": ".read",
    "call_arguments": ".to_call",
    "call_report": ".to_call",
    "named_hashes": ".to_call",
    "call_settings": ".settings",
    "control_units_of_fields": ".control_fields",
    "format_infotext": ".write",
    "quote_field": ".write",
    "read_infotext": ".files",
    "save_picture": ".files",
    "save_pictures": ".files",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
