"""Where a restored face replaces the picture: the square soft mask and the mask of face parts."""

from typing import NamedTuple

import numpy as np

from ..opencv import Window, erode_box, gaussian_blur, resize_picture, warp_affine


FACE_PARTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15)
"""CelebAMask-HQ classes that are replaced: hair (13) and earrings too; not background, hat, necklace, neck, cloth."""


class SquareMask(NamedTuple):
    """The soft square of one face, for the part of the picture that `face_window` gave."""

    mask: np.ndarray  # (h, w) 0..1, soft
    whole: np.ndarray  # (h, w) 0..1, eroded by the first step only: where the warped face can be trusted
    area: float  # of `whole`, in pixels
    first_erosion: int
    second_erosion: int
    blur: int


def face_window(inverse: np.ndarray, face: int, size: tuple[int, int], scale: float) -> Window:
    """The part of a picture of `size` (w, h) that a face can touch: its corners and a margin for the soft edge.

    Outside it every mask is 0, inside it masks come out as they would on the whole picture: there is at least one
    pixel of zeros on each side that is not the picture's own border.
    """
    corners = np.array([[-1, -1, 1], [face, -1, 1], [-1, face, 1], [face, face, 1]], np.float64)
    x, y = np.asarray(inverse) @ corners.T
    margin = int(np.hypot(np.ptp(x), np.ptp(y)) / 10 + 2 * max(scale, 1)) + 4
    x0, y0 = (int(np.clip(np.floor(v.min()) - margin, 0, n)) for v, n in zip((x, y), size))
    x1, y1 = (int(np.clip(np.ceil(v.max()) + margin + 1, 0, n)) for v, n in zip((x, y), size))
    return x0, y0, max(x1, x0), max(y1, y0)


def square_mask(inverse: np.ndarray, face: int, size: tuple[int, int], scale: float, window: Window) -> SquareMask:
    """The whole crop, eroded and blurred by a twentieth of its side. inverse: crop -> picture.

    Outside the picture counts as more face: one cut by the border keeps its full weight there. Tiny faces (under 400
    pixels) get a 3x3 erosion and no blur, as in OpenCV, whose empty kernel means that.
    """
    return soft_square(warp_affine(np.ones((face, face), np.float32), inverse, size, window=window), scale)


def soft_square(warped: np.ndarray, scale: float) -> SquareMask:
    """`square_mask` from a warped crop of ones: in float32 with OpenCV's rounding, in float64 faster."""
    first = int(2 * scale)
    whole = erode_box(warped, first)
    area = float(whole.sum(dtype=np.float64))
    edge = int(np.sqrt(area)) // 20
    mask = gaussian_blur(erode_box(whole, 2 * edge), 2 * edge + 1)
    return SquareMask(mask, whole, area, first, 2 * edge, 2 * edge + 1)


def parse_mask(classes: np.ndarray, face: int) -> np.ndarray:
    """The mask of face parts in the crop's frame, (face, face) float64, 0..1.

    classes: (512, 512). Blurred twice (101 taps, sigma 11), the outermost 10 px cleared.
    """
    if classes.shape != (512, 512):
        raise ValueError(f"a face parser must give classes of shape (512, 512); got {tuple(classes.shape)}.")
    mask = np.where(np.isin(classes, FACE_PARTS), 255.0, 0.0)
    mask = gaussian_blur(gaussian_blur(mask, 101, 11), 101, 11)
    inside = np.zeros_like(mask)
    inside[10:-10, 10:-10] = mask[10:-10, 10:-10]
    return resize_picture(inside / 255, (face, face), "linear")
