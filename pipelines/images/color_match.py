"""The colours of a picture brought back to those it was made from: the webui's option img2img_color_correction.

Histograms are matched channel by channel in 8-bit LAB, then the drawn picture's own lightness is put back.
"""

import numpy as np
from PIL import Image

from .opencv import lab_to_rgb, rgb_to_lab


_LUMINOSITY = np.array([0.299, 0.587, 0.114])


def match_colors(picture: Image.Image, reference: Image.Image) -> Image.Image:
    """The RGB picture with the reference's distribution of lightness and colour, but its own luminosity per pixel.

    The reference is the picture that was encoded: resized, and filled where a mask was. Sizes may differ.
    """
    lab, wanted = rgb_to_lab(np.asarray(picture)), rgb_to_lab(np.asarray(reference))
    matched = np.stack([_match_histogram(lab[..., i], wanted[..., i]) for i in range(3)], axis=-1)
    colors = lab_to_rgb(matched) / 255.0
    mixed = _set_luminosity(colors, (np.asarray(picture) / 255.0) @ _LUMINOSITY)
    return Image.fromarray((np.clip(mixed, 0.0, 1.0) * 255.0).astype(np.uint8))


def _match_histogram(channel: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(h, w) uint8 whose cumulative histogram follows that of `wanted`; values in between are cut off.

    After match_histograms, scikit-image/scikit-image (BSD-3), skimage/exposure/histogram_matching.py.
    """
    counts = np.bincount(channel.ravel(), minlength=256)
    wanted_counts = np.bincount(wanted.ravel(), minlength=256)
    levels = np.flatnonzero(wanted_counts)
    wanted_share = np.cumsum(wanted_counts[levels]) / wanted.size
    table = np.interp(np.cumsum(counts) / channel.size, wanted_share, levels)
    return table.astype(np.uint8)[channel]


def _set_luminosity(colors: np.ndarray, luminosity: np.ndarray) -> np.ndarray:
    """(h, w, 3) moved along grey to this luminosity (h, w), and pulled towards it where that leaves [0, 1].

    SetLum of the W3C's compositing rules. A pixel that leaves both ends is pulled back from the lower first and then
    by the upper excess it had before, as in FHPythonUtils/BlendModes (MIT), blendmodes/blend.py.
    """
    moved = colors + (luminosity - colors @ _LUMINOSITY)[..., None]
    gray = (moved @ _LUMINOSITY)[..., None]
    low, high = moved.min(axis=-1, keepdims=True), moved.max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.where(low < 0, gray + (moved - gray) * gray / (gray - low), moved)
        return np.where(high > 1, gray + (moved - gray) * (1 - gray) / (high - gray), moved)
