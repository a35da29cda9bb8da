"""The colours of a picture brought back to those it was made from: the webui's option img2img_color_correction.

Histograms are matched channel by channel in 8-bit LAB, then the drawn picture's own lightness is put back.
"""

import numpy as np
from PIL import Image


# sRGB primaries to XYZ at D65, and that white.
_RGB_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_XYZ_WHITE = np.array([0.950456, 1.0, 1.088754])
_LAB_ONE = 1 << 14  # 1.0 in the fixed-point numbers of the way back

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
    """(h, w, 3) uint8 sRGB to (h, w, 3) uint8 LAB: lightness * 2.55, a + 128, b + 128.

    In the fixed-point numbers of opencv/opencv (Apache-2.0), modules/imgproc/src/color_lab.cpp, RGB2Lab_b: histograms
    follow single levels. Equal but for one level in one value of 30,000.
    """
    c = np.arange(256) / 255.0
    linear = np.rint(255 * 8 * np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)).astype(np.int64)
    t = np.arange(256 * 8 * 3 // 2) / (255 * 8)
    f_table = np.rint((1 << 15) * np.where(t < 0.008856, 7.787 * t + 4 / 29, np.cbrt(t))).astype(np.int64)
    to_xyz = np.rint((1 << 12) * _RGB_TO_XYZ / _XYZ_WHITE[:, None]).astype(np.int64)
    fx, fy, fz = np.moveaxis(f_table[_round_shift(linear[picture] @ to_xyz.T, 12)], -1, 0)
    lightness = (116 * 255 + 50) // 100 * fy - (16 * 255 * (1 << 15) + 50) // 100
    lab = np.stack([lightness, 500 * (fx - fy) + (128 << 15), 200 * (fy - fz) + (128 << 15)], axis=-1)
    return np.clip(_round_shift(lab, 15), 0, 255).astype(np.uint8)


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """The inverse of `rgb_to_lab`; what has no place in sRGB is clipped. After Lab2RGBinteger of the same file.

    OpenCV's within one level, and equal in 99 of 100 values.
    """
    lightness, a, b = np.moveaxis(lab.astype(np.int64), -1, 0)
    level = np.arange(256)
    fy_table = np.where(level <= 20, _LAB_ONE * (16 / 116 + level * 5 / 1479), _LAB_ONE * (level / 2.55 + 16) / 116)
    fy_table = np.rint(fy_table)
    y_table = np.rint(np.where(level <= 20, level * _LAB_ONE / 2.55 / 903.3, fy_table**3 / _LAB_ONE**2))
    fy = fy_table.astype(np.int64)[lightness]
    fx = fy + ((5 * a * 53687 + (1 << 7)) >> 13) - 128 * _LAB_ONE // 500
    fz = fy - (((b * 41943 + (1 << 4)) >> 9) - 128 * _LAB_ONE // 200 + 1)
    xyz = np.stack([_lab_inverse_f(fx), y_table.astype(np.int64)[lightness], _lab_inverse_f(fz)], axis=-1)
    to_rgb = np.rint((1 << 12) * np.linalg.inv(_RGB_TO_XYZ) * _XYZ_WHITE).astype(np.int64)
    linear = np.clip(_round_shift(xyz @ to_rgb.T, 14), 0, 4095)
    c = np.arange(4096) / 4095
    gamma = np.rint(255 * np.where(c <= 0.0031308, c * 12.92, 1.055 * c ** (1 / 2.4) - 0.055)).astype(np.uint8)
    return gamma[linear]


def _lab_inverse_f(f: np.ndarray) -> np.ndarray:
    """t from f(t), both in 1/_LAB_ONE: t = f**3, and a straight line below 6/29."""
    f = f.astype(np.float64)
    line = np.trunc(f * 108 / 841) - np.trunc(_LAB_ONE * 16 / 116 * 108 / 841)
    cube = np.trunc(np.trunc(f * f / _LAB_ONE) * f / _LAB_ONE)
    return np.where(f <= _LAB_ONE * 6 // 29 + 1, line, cube).astype(np.int64)


def _round_shift(value: np.ndarray, bits: int) -> np.ndarray:
    return (value + (1 << (bits - 1))) >> bits
