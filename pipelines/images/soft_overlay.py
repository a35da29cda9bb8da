"""Soft inpainting's overlay: the original covers the picture where the latent hardly changed, by degrees.

change of each cell -> two percentile filters over its neighbours -> how much the original shows -> blur -> overlay
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter
from torch import Tensor

from ..script_settings import SoftInpainting
from .fit import fit_picture
from .init_image import InitPictures
from .masks import LatentMasks, MaskArea, overlay_picture


FILTER_RADIUS = 2  # cells around each that its filters look at
OVERLAY_BLUR = 4  # pixels


def with_soft_overlays(
    images: InitPictures,
    rows: Sequence[int],
    latents: Tensor,
    init: Tensor,
    masks: LatentMasks,
    soft: SoftInpainting,
    size: tuple[int, int],
) -> InitPictures:
    """The pictures with an overlay for each image of the batch, as far as each was changed.

    rows: which picture each image began with. latents, init: (b, c, h, w), sampled and clean. size: (width, height) of
    the job in pixels.
    """
    overlays = []
    for row, sampled, clean in zip(rows, latents, init, strict=True):
        mask = soft_overlay_mask(sampled, clean, masks.change[0], soft, size)
        original = images.originals[row]
        if images.area is not None:
            mask = placed_mask(mask, images.area, original.size)
        overlays.append(overlay_picture(original, mask))
    return replace(images, overlays=overlays)


def soft_overlay_mask(
    latent: Tensor,
    init: Tensor,
    change: Tensor,
    soft: SoftInpainting,
    size: tuple[int, int],
) -> Image.Image:
    """Where one picture's original is covered: "L", of the job's size (width, height) in pixels, white where it is.

    latent, init: (c, h, w), the sampled and the clean one. change: (h, w), the latent mask, 1 where it was drawn anew.
    """
    distance = (latent.float() - init.float()).norm(dim=0).cpu().numpy()
    scale = np.float32(1) - np.clip(change.float().cpu().numpy(), 0, 1) ** np.float32(soft.preservation_strength / 2)
    scale = np.float32(0.5 * (1 - soft.mask_influence)) + scale * np.float32(soft.mask_influence)
    scale = scale / (np.float32(1.00001) - scale)
    distance = percentile_filter(percentile_filter(distance, 0.9, 1.0), 0.25, 0.75)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = distance / (np.float32(soft.difference_threshold) * scale)
        share = 1 / (1 + share ** np.float32(soft.difference_contrast))
    share = share**3 * (share * (6 * share - 15) + 10)
    levels = np.nan_to_num(255 * (1 - share), nan=0.0).astype(np.uint8)  # 0/0 at threshold 0: nothing changed
    return fit_picture(Image.fromarray(levels), *size, "fill").filter(ImageFilter.GaussianBlur(OVERLAY_BLUR))


def placed_mask(mask: Image.Image, area: MaskArea, size: tuple[int, int]) -> Image.Image:
    """The mask fitted into `area` of a picture of `size`; black around it."""
    canvas = Image.new("RGBA", size)
    canvas.paste(fit_picture(mask, *area.size, "crop"), (area.left, area.top))
    return canvas.convert("L")


def percentile_filter(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(h, w) float32: of each cell's neighbours, weighted by nearness, the mean of those between two percentiles.

    Neighbours are sorted by value and their weights stacked; the window is as wide as one weight of 1 at least.
    """
    kernel = _nearness_kernel()
    h, w = values.shape
    radius = FILTER_RADIUS
    padded = np.pad(values, radius, constant_values=np.float32(np.inf))
    inside = np.pad(np.ones((h, w)), radius)
    offsets = [(y, x) for y in range(2 * radius + 1) for x in range(2 * radius + 1)]
    around = np.stack([padded[y : y + h, x : x + w] for y, x in offsets], axis=-1)
    weights = np.stack([kernel[y, x] * inside[y : y + h, x : x + w] for y, x in offsets], axis=-1)
    order = np.argsort(around, axis=-1, kind="stable")
    around, weights = np.take_along_axis(around, order, -1), np.take_along_axis(weights, order, -1)
    top = np.cumsum(weights, axis=-1)
    total = top[..., -1:]
    first, last = _window(total, low, high)
    shares = np.clip(np.minimum(top, last) - np.maximum(top - weights, first), 0, None)
    around = np.where(shares > 0, around, 0).astype(np.float64)
    return ((around * shares).sum(-1) / shares.sum(-1)).astype(np.float32)


def _window(total: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """From where to where the stacked weights count: total * low to total * high, 1 wide at least, within 0..total."""
    first, last = total * low, total * high
    middle = (first + last) / 2
    narrow = last - first < 1
    first, last = np.where(narrow, middle - 0.5, first), np.where(narrow, middle + 0.5, last)
    over = narrow & (last > total)
    first, last = np.where(over, total - 1, first), np.where(over, total, last)
    under = narrow & (first < 0)
    return np.where(under, 0.0, first), np.where(under, 1.0, last)


def _nearness_kernel() -> np.ndarray:
    """Weights around a cell, 1 in the middle and falling to 0 at the radius's corner distance; float64."""
    y, x = np.mgrid[-FILTER_RADIUS : FILTER_RADIUS + 1, -FILTER_RADIUS : FILTER_RADIUS + 1]
    bell = np.exp(-(x**2 + y**2) / 2.25)
    return np.maximum((bell - np.exp(-4.0)) / (1 - np.exp(-4.0)), 0)
