"""The colours of a picture brought back to those it was made from: the webui's option img2img_color_correction.

Histograms are matched channel by channel in 8-bit LAB, then the drawn picture's own lightness is put back.
"""

import numpy as np
from PIL import Image


# sRGB primaries to XYZ at D65, and that white: the numbers of OpenCV's 8-bit LAB.
_RGB_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_XYZ_WHITE = np.array([0.950456, 1.0, 1.088754])

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


def rgb_to_lab(picture: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 sRGB to (h, w, 3) uint8 LAB: lightness * 2.55, a + 128, b + 128; OpenCV's within 2 levels."""
    c = picture / 255.0
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _RGB_TO_XYZ.T / _XYZ_WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    y = xyz[..., 1]
    lightness = np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)
    a, b = 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])
    return np.clip(np.rint(np.stack([lightness * 2.55, a + 128, b + 128], axis=-1)), 0, 255).astype(np.uint8)


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """The inverse of `rgb_to_lab`; what has no place in sRGB is clipped. OpenCV's within 2 levels."""
    lightness, a, b = np.moveaxis(lab.astype(np.float64), -1, 0)
    lightness = lightness / 2.55
    y = np.where(lightness <= 8, lightness / 903.3, ((lightness + 16) / 116) ** 3)
    fy = np.where(lightness <= 8, 7.787 * y + 16 / 116, (lightness + 16) / 116)
    f = np.stack([fy + (a - 128) / 500, fy - (b - 128) / 200], axis=-1)
    xz = np.where(f <= 0.206893, (f - 16 / 116) / 7.787, f**3)
    xyz = np.stack([xz[..., 0], y, xz[..., 1]], axis=-1) * _XYZ_WHITE
    linear = np.clip(xyz @ np.linalg.inv(_RGB_TO_XYZ).T, 0.0, 1.0)
    c = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(c * 255.0).astype(np.uint8)
