"""Latents and pixels to larger or better pixels."""

from importlib import import_module


_HOME = {
    "fit_face": ".faces.align",
    "align_face": ".faces.align",
    "hires_target": ".hires",
    "enlarge_picture": ".upscale",
    "upscale_image": ".upscale_tiles",
    "fit_picture": ".fit",
    "prepare_mask": ".masks",
    "match_colors": ".color_match",
    "restore_faces": ".faces.restore",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
