"""Canny's edges of a color image with OpenCV's arithmetic."""

import numpy as np
from scipy.ndimage import correlate1d, label

from ..opencv import resize_picture


_TAN_22 = 13573  # tan(22.5 degrees) in 1/32768
_EDGE_CELL = 64  # sides are padded to multiples of this


def canny_image(image: np.ndarray, resolution: int, low: float, high: float) -> np.ndarray:
    """Edges (h, w, 3), 0 or 255, of an image (h, w, 3) uint8 whose shorter side is brought to `resolution` pixels.

    low, high: thresholds 0..255 of the gradient; edges above `high` are kept, and those above `low` that touch them.
    """
    rows, columns = image.shape[:2]
    k = resolution / min(rows, columns)
    size = round(columns * k), round(rows * k)
    resized = resize_picture(image, size, "cubic" if k > 1 else "area")
    padding = (-size[1] % _EDGE_CELL, -size[0] % _EDGE_CELL)
    padded = np.pad(resized, ((0, padding[0]), (0, padding[1]), (0, 0)), mode="edge")
    edges = canny_edges(padded, int(low), int(high))[: size[1], : size[0]]
    return np.repeat(edges[..., None], 3, axis=2)


def canny_edges(image: np.ndarray, low: int, high: int) -> np.ndarray:
    """(h, w) uint8, 0 or 255: Canny (1986) with 3x3 Sobel gradients of the strongest channel and their L1 norm.

    After modules/imgproc/src/canny.cpp, opencv/opencv 4.10 (Apache-2.0).
    """
    low, high = sorted((low, high))
    dx, dy = _sobel(image.astype(np.int32), 1), _sobel(image.astype(np.int32), 0)
    norms = np.abs(dx) + np.abs(dy)
    strongest = norms.argmax(axis=2)[..., None]
    dx, dy, norm = (np.take_along_axis(each, strongest, 2)[..., 0] for each in (dx, dy, norms))
    candidates = (norm > low) & _is_ridge(dx, dy, norm)
    regions, _ = label(candidates, np.ones((3, 3)))
    kept = np.unique(regions[candidates & (norm > high)])
    return np.where(candidates & np.isin(regions, kept), 255, 0).astype(np.uint8)


def _sobel(image: np.ndarray, axis: int) -> np.ndarray:
    """The derivative along an axis (0 down, 1 across) of (h, w, c), the edge repeated."""
    return correlate1d(correlate1d(image, [-1, 0, 1], axis, mode="nearest"), [1, 2, 1], 1 - axis, mode="nearest")


def _is_ridge(dx: np.ndarray, dy: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """Where the gradient is the largest of the three pixels along its direction, which is rounded to 45 degrees."""
    rows, columns = norm.shape
    padded = np.pad(norm, 1)

    def at(down: int, right: int) -> np.ndarray:
        return padded[1 + down : 1 + down + rows, 1 + right : 1 + right + columns]

    x, y = np.abs(dx).astype(np.int64), np.abs(dy).astype(np.int64) << 15
    flat, steep = y < x * _TAN_22, y > x * _TAN_22 + (x << 16)
    across = (norm > at(0, -1)) & (norm >= at(0, 1))
    down = (norm > at(-1, 0)) & (norm >= at(1, 0))
    falling = (norm > at(-1, -1)) & (norm > at(1, 1))
    rising = (norm > at(-1, 1)) & (norm > at(1, -1))
    diagonal = np.where((dx ^ dy) < 0, rising, falling)
    return np.where(flat, across, np.where(steep, down, diagonal))
