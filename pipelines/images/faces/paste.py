"""Restored faces back into the picture: as they are, or as the change that the net made to them."""

import numpy as np
from scipy.ndimage import correlate1d

from ..opencv import Window, gaussian_blur, invert_affine, warp_affine
from .masks import face_window, parse_mask, soft_square, square_mask


class FaceCanvas:
    """The picture under work. Faces are added one after another in float; rounding happens once, in `levels`.

    background: (h, w, 3) uint8, at the final size. Only the part that faces touch is held in float.
    """

    def __init__(self, background: np.ndarray, scale: float, double: bool):
        self.background = background
        self.scale = scale
        self.size = (background.shape[1], background.shape[0])
        self.dtype = np.float64 if double else np.float32
        self._origin = (0, 0)
        self._canvas: np.ndarray = np.zeros((0, 0, 3), self.dtype)

    def hold(self, windows: list[Window]) -> None:
        """Prepare for faces in these windows. Called once, before the first face."""
        windows = [w for w in windows if w[2] > w[0] and w[3] > w[1]]
        if not windows:
            return
        x0, y0 = (min(w[i] for w in windows) for i in (0, 1))
        x1, y1 = (max(w[i] for w in windows) for i in (2, 3))
        self._origin = (x0, y0)
        self._canvas = self.background[y0:y1, x0:x1].astype(self.dtype)

    def part(self, window: Window) -> np.ndarray:
        """The held picture under a window; a view."""
        (ox, oy), (x0, y0, x1, y1) = self._origin, window
        return self._canvas[y0 - oy : y1 - oy, x0 - ox : x1 - ox]

    def blend(self, window: Window, mask: np.ndarray, face: np.ndarray) -> None:
        """out = m * face + (1 - m) * picture, in the canvas's precision."""
        part = self.part(window)
        m = mask.astype(self.dtype, copy=False)[..., None]
        part[...] = m * face.astype(self.dtype, copy=False) + (1 - m) * part

    def levels(self, rounding: str) -> np.ndarray:
        """The picture as (h, w, 3) uint8, cut to 0..255, by "trunc" or "rint". What no face touched is exact."""
        result = self.background.copy()
        (x, y), (h, w) = self._origin, self._canvas.shape[:2]
        part = np.clip(self._canvas, 0, 255)
        result[y : y + h, x : x + w] = (part if rounding == "trunc" else np.rint(part)).astype(np.uint8)
        return result


def paste_matrix(matrix: np.ndarray, scale: float, offset: str) -> np.ndarray:
    """Crop -> enlarged picture, (2, 3), for `matrix` (picture -> crop).

    offset "half scale": facexlib adds half the scale to the translation when it enlarges, so faces sit half an output
    pixel right of and below the background; "centres": (s - 1) / 2, which keeps pixel centres where they belong.
    """
    inverse = invert_affine(matrix) * scale
    if offset == "centres":
        inverse[:, 2] += (scale - 1) / 2
    elif scale > 1:
        inverse[:, 2] += 0.5 * scale
    return inverse


def upsampled_paste_matrix(matrix: np.ndarray, scale: float, offset: str) -> np.ndarray:
    """`paste_matrix` for a crop that was itself enlarged by `scale`.

    offset "half scale": the CodeFormer script's: linear part divided by the scale, translation without an offset.
    """
    if offset == "half scale":
        inverse = invert_affine(matrix) * scale
        inverse[:, :2] /= scale
        return inverse
    inverse = paste_matrix(matrix, scale, offset)
    inverse[:, 2] += inverse[:, :2] @ np.full(2, (1 - scale) / (2 * scale))
    inverse[:, :2] /= scale
    return inverse


def paste_face(
    canvas: FaceCanvas, face: np.ndarray, inverse: np.ndarray, classes: np.ndarray | None, mask: str
) -> tuple[np.ndarray, Window, float]:
    """Blend a restored face into the canvas. Returns the mask used, its window, and the square's area in pixels.

    face: (n, n, 3) RGB in 0..255, uint8 or float; inverse: crop -> picture; classes: (512, 512) from a parser, or None
    for the square mask; mask: "parse alone" or "min(parse, square)" where there are classes.
    """
    n = face.shape[0]
    window = face_window(inverse, n, canvas.size, canvas.scale)
    warped = warp_affine(face, inverse, canvas.size, window=window)
    if classes is not None and mask == "parse alone":
        soft = warp_affine(parse_mask(classes, n), inverse, canvas.size, window=window)
        canvas.blend(window, soft, warped)
        return soft, window, float("nan")
    square = square_mask(inverse, n, canvas.size, canvas.scale, window)
    soft = square.mask
    if classes is not None:
        parts = warp_affine(parse_mask(classes, n), inverse, canvas.size, window=window)
        soft = np.where(parts < square.mask, parts, square.mask)
    canvas.blend(window, soft, square.whole[..., None] * warped.astype(canvas.dtype))
    return soft, window, square.area


def paste_change(
    canvas: FaceCanvas, face: np.ndarray, crop: np.ndarray, inverse: np.ndarray, classes: np.ndarray | None
) -> tuple[np.ndarray, Window, float]:
    """Add what the net changed: out = picture + m * W(face - crop), minus the detail that the change replaces.

    crop, face: (n, n, 3) float32 in 0..255, the canvas's own crop and what the net made of it; W: the warp back. Where
    the net changed nothing the picture keeps the detail that two warps would have cost it, so an identity net gives
    the picture back exactly. Where it changed much, that detail (noise, as a rule) goes: `_kept_detail` says how much
    stays. Returns as `paste_face`.
    """
    n = face.shape[0]
    window = face_window(inverse, n, canvas.size, canvas.scale)
    change, part = face - crop, canvas.part(window)
    layers = [smooth_for_warp(change, inverse), smooth_for_warp(crop, inverse), _kept_detail(change), np.ones((n, n))]
    # One warp for all: most of its time goes into finding the pixels.
    warped = warp_affine(np.dstack(layers).astype(np.float32), inverse, canvas.size, window=window)
    back, plain, kept = warped[..., :3], warped[..., 3:6], warped[..., 6:7]
    square = soft_square(warped[..., 7].astype(np.float64), canvas.scale)
    soft = square.mask
    if classes is not None:
        soft = np.minimum(soft, warp_affine(parse_mask(classes, n), inverse, canvas.size, window=window))
    weight = np.where(square.whole >= 1, soft, 0).astype(part.dtype)[..., None]
    part += weight * (back - (1 - kept) * (part - plain))
    return soft.astype(np.float32), window, square.area


def _kept_detail(change: np.ndarray, tolerance: float = 1.0) -> np.ndarray:
    """(n, n), 0..1: how much of the picture's finest detail stays where the net made a `change`, in levels."""
    size = 2 * (change.shape[0] // 32) + 1
    local = gaussian_blur(np.abs(change).mean(2, dtype=np.float64), size)
    return (1 / (1 + (local / tolerance) ** 2)).astype(np.float32)


def smooth_for_warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A float picture ready to be shrunk by `matrix` without aliasing: Lanczos3 at the size of the result."""
    scale = float(np.sqrt(abs(np.linalg.det(np.asarray(matrix)[:, :2]))))
    if scale >= 1:
        return image
    reach = int(np.ceil(3 / scale))
    t = np.arange(-reach, reach + 1) * scale
    kernel = np.where(np.abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0)
    kernel /= kernel.sum()
    across = correlate1d(image, kernel, axis=1, mode="mirror")
    return correlate1d(across, kernel, axis=0, mode="mirror").astype(image.dtype)


def draw_face_boxes(picture: np.ndarray, inverses: list[np.ndarray], areas: list[float], n: int) -> np.ndarray:
    """The picture with a green frame around each face, about 1400 / sqrt(area) crop pixels wide; (h, w, 3) uint8."""
    size = (picture.shape[1], picture.shape[0])
    result = picture.astype(np.float32)
    for inverse, area in zip(inverses, areas):
        square = np.ones((n, n), np.float32)
        area = area if np.isfinite(area) else n**2 * abs(float(np.linalg.det(inverse[:, :2])))
        border = int(1400 / np.sqrt(max(area, 1)))
        square[border : n - border, border : n - border] = 0
        frame = warp_affine(square, inverse, size)[..., None]
        result = frame * np.array([0, 255, 0], np.float32) + (1 - frame) * result
    return np.rint(np.clip(result, 0, 255)).astype(np.uint8)
