"""A control image brought to the size of a pass, as the webui's ControlNet extension does it.

What kind of image it is decides how it is resampled: photographs by area or cubic, maps of few colors by their nearest
pixels, and line drawings of two tones are made two tones again, thin lines one pixel wide again.

Images are (h, w, 3) uint8, or (h, w, 4) float32 in 0..255 with a mask as fourth channel. Sizes are (width, height).
"""

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter

from ..opencv import resize_picture


HINT_RESIZE_MODES = ("Just Resize", "Crop and Resize", "Resize and Fill")

# What is thinned: 1 is set, 0 clear, -1 either. Each goes through its four rotations, in turn with the other.
_THINNED = (((0, 0, 0), (-1, 1, -1), (1, 1, 1)), ((-1, 0, 0), (1, 1, 0), (-1, 1, -1)))
_PRUNED = (((0, 0, 0), (0, 1, 0), (-1, -1, 0)), ((0, 0, 0), (0, 1, 0), (0, -1, -1)))
_THINNING_ROUNDS = 32
_LINES = (  # the four directions in which a line may run through a pixel
    ((0, 0, 0), (1, 1, 1), (0, 0, 0)),
    ((0, 1, 0), (0, 1, 0), (0, 1, 0)),
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
)


def fit_hint(image: np.ndarray, size: tuple[int, int], resize_mode: str) -> np.ndarray:
    """The control image at `size`, by one of HINT_RESIZE_MODES: stretched, cut to cover it, or filled around."""
    (width, height), (rows, columns) = size, image.shape[:2]
    if resize_mode == "Just Resize":
        return resize_hint(image, size)
    ratios = height / rows, width / columns
    k = max(ratios) if resize_mode == "Crop and Resize" else min(ratios)
    fitted = resize_hint(image, (round(columns * k), round(rows * k)))
    if resize_mode == "Crop and Resize":
        top, left = (max(0, (have - want) // 2) for have, want in zip(fitted.shape, (height, width)))
        return fitted[top : top + height, left : left + width]
    result = np.empty((height, width, image.shape[2]), image.dtype)
    result[...] = _border_color(image)
    top, left = (max(0, (want - have) // 2) for have, want in zip(fitted.shape, (height, width)))
    result[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return result


def _border_color(image: np.ndarray) -> np.ndarray:
    """The median of the four border lines by channel, corners counted twice; a mask beside it is all white."""
    lines = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    color = np.median(lines, axis=0).astype(image.dtype)
    color[3:] = 255
    return color


def perfect_resolution(image: np.ndarray, size: tuple[int, int], resize_mode: str) -> int:
    """The resolution of a module at which its result has one pixel for each of the pass ("pixel perfect")."""
    rows, columns = image.shape[:2]
    ratios = size[1] / rows, size[0] / columns
    return round((min if resize_mode == "Resize and Fill" else max)(ratios) * min(rows, columns))


def resize_hint(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image stretched to `size`, resampled after its kind."""
    rows, columns = image.shape[:2]
    if (columns, rows) == tuple(size):
        return image
    colors = image[..., :3]
    smaller, bigger = size[0] * size[1] < rows * columns, size[0] * size[1] > rows * columns
    count = len(np.unique(colors.reshape(-1, colors.shape[-1]), axis=0))
    two_tone = count == 2 and colors.min() < 16 and colors.max() > 240
    thin = two_tone and _is_thin(colors)
    method = "nearest" if 2 < count < 200 else "area" if smaller else "cubic"
    result = resize_picture(image, size, method)
    if image.shape[2] == 4:
        result[..., 3] = np.where(result[..., 3] > 127, 255, 0)
    if two_tone:
        result[..., :3] = _two_tones(result[..., :3], thin=thin, prune=bigger)[..., None]
    return result


def _is_thin(colors: np.ndarray) -> bool:
    """Whether most of what is bright goes in a 3x3 opening: lines, not areas."""
    opened = maximum_filter(minimum_filter(colors, (3, 3, 1), mode="nearest"), (3, 3, 1), mode="nearest")
    lost = np.count_nonzero(opened < colors)
    return 2 * lost > np.count_nonzero(colors > 127)


def _two_tones(colors: np.ndarray, *, thin: bool, prune: bool) -> np.ndarray:
    """(h, w) of 0 and 255 from a resampled drawing (h, w, 3)."""
    gray = colors.mean(axis=2).astype(np.uint8)
    if thin:
        gray = _ridges(gray)
    tones = np.where(gray > otsu_threshold(gray), 255, 0).astype(np.uint8)
    return thin_lines(tones, prune=prune) if thin else tones


def _ridges(gray: np.ndarray) -> np.ndarray:
    """Pixels that are brightest along a line of three in some direction; the others become 0."""
    kept = np.zeros(gray.shape, bool)
    for line in _LINES:
        kept |= maximum_filter(gray, footprint=np.array(line, bool), mode="constant", cval=0) == gray
    return np.where(kept, gray, 0)


def otsu_threshold(gray: np.ndarray) -> int:
    """The level at which an 8-bit image falls into two classes that differ most: Otsu (1979). Brighter is above it.

    After getThreshVal_Otsu, opencv/opencv, modules/imgproc/src/thresh.cpp (Apache-2.0).
    """
    share = np.bincount(gray.ravel(), minlength=256) * (1.0 / gray.size)
    mean = float((np.arange(256) * share).sum())
    below, mean_below, best, level = 0.0, 0.0, 0.0, 0
    for i in range(256):
        mean_below *= below
        below += share[i]
        if min(below, 1 - below) < 1.1920929e-07 or max(below, 1 - below) > 1 - 1.1920929e-07:
            continue
        mean_below = (mean_below + i * share[i]) / below
        mean_above = (mean - below * mean_below) / (1 - below)
        variance = below * (1 - below) * (mean_below - mean_above) ** 2
        if variance > best:
            best, level = variance, i
    return level


def thin_lines(tones: np.ndarray, *, prune: bool = False) -> np.ndarray:
    """Lines of a two-tone drawing (0 and 255) one pixel wide, by hit-or-miss thinning. prune: ends cut by a pixel."""
    tones = tones.copy()
    for _ in range(_THINNING_ROUNDS):
        if not _clear_matches(tones, _THINNED):
            break
    if prune:
        _clear_matches(tones, _PRUNED)
    return tones


def _clear_matches(tones: np.ndarray, patterns: tuple) -> bool:
    """Clear in place the pixels that match a pattern, one pattern after the other; -> whether any did."""
    found = False
    for turn in range(4):
        for pattern in patterns:
            matching = _hit_or_miss(tones > 0, np.rot90(np.array(pattern), turn))
            found |= bool(matching.any())
            tones[matching] = 0
    return found


def _hit_or_miss(on: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """Where the 3x3 neighborhood is as `pattern` says. Outside the image anything goes."""
    matching = np.ones(on.shape, bool)
    rows, columns = on.shape
    for (y, x), wanted in np.ndenumerate(pattern):
        if wanted >= 0:
            padded = np.pad(on, 1, constant_values=bool(wanted))
            matching &= padded[y : y + rows, x : x + columns] == bool(wanted)
    return matching
