"""From what was found to the masks that are drawn anew: filters, order, shift, growth, union.

1  boxes above the confidence              confident_boxes
2  one mask a box                          box_mask, stretched_mask
3  boxes of the wanted share of the picture, the largest or surest of them, their order
4  masks shifted, grown or shrunk, made one, inverted
5  in an inpainting of the whole picture: those that touch its mask
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from ...detailer_settings import Detailer
from ..opencv import dilate_box, erode_box
from .boxes import Box, Detection, boxes_by_ratio, confident_boxes, sorted_boxes, top_boxes


class DetailRegions(NamedTuple):
    """What a pass draws anew in one picture. After a union, or where masks vanished, box j need not be of mask j."""

    boxes: tuple[Box, ...]
    masks: list[Image.Image]  # "L", of the picture's size, white where it is drawn anew


def detail_regions(
    found: Detection,
    size: tuple[int, int],
    one: Detailer,
    *,
    order: str = "None",
    within: Image.Image | None = None,
) -> DetailRegions:
    """The masks of one pass, in the order in which they are drawn. size: (width, height) of the picture.

    order: one of BOX_ORDERS. within: the mask ("L") of an inpainting of the whole picture that goes on around it.
    """
    found = found.take(confident_boxes(found, one["ad_confidence"]))
    if found.masks is None:
        masks = [box_mask(box, size) for box in found.boxes]
    else:
        masks = [stretched_mask(mask, size) for mask in found.masks]
    ranks = Detection(found.boxes, found.scores, np.arange(len(masks)))  # so that masks follow their boxes
    ranks = ranks.take(boxes_by_ratio(ranks, size, one["ad_mask_min_ratio"], one["ad_mask_max_ratio"]))
    ranks = ranks.take(top_boxes(ranks, one["ad_mask_k"], one["ad_mask_filter_method"]))
    ranks = ranks.take(sorted_boxes(ranks, size, order))
    kept = [masks[i] for i in ranks.masks] if ranks.boxes else []
    kept = [shifted_mask(mask, one["ad_x_offset"], one["ad_y_offset"]) for mask in kept]
    if one["ad_dilate_erode"]:
        grown = [grown_mask(mask, one["ad_dilate_erode"]) for mask in kept]
        kept = [mask for mask in grown if mask.any()]
    if one["ad_mask_merge_invert"] != "None" and kept:
        union = np.bitwise_or.reduce(kept)
        kept = [union if one["ad_mask_merge_invert"] == "Merge" else 255 - union]
    if within is not None:
        outer = np.asarray(within if within.size == size else within.resize(size, Image.Resampling.LANCZOS))
        kept = [mask for mask in kept if (mask & outer).any()]
    return DetailRegions(ranks.boxes, [Image.fromarray(mask) for mask in kept])


def box_mask(box: Box, size: tuple[int, int]) -> np.ndarray:
    """(h, w) uint8, 255 in the box. Coordinates are cut towards zero, and both ends belong to it."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    x1, y1, x2, y2 = (int(value) for value in box)
    mask[max(y1, 0) : max(y2 + 1, 0), max(x1, 0) : max(x2 + 1, 0)] = 255
    return mask


def stretched_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A segmenter's mask, (h, w) float 0..1, as (h, w) uint8 over a picture of `size`; PIL's bicubic, greys stay."""
    levels = (np.clip(mask, 0, 1).astype(np.float32) * np.float32(255)).astype(np.uint8)
    return np.asarray(Image.fromarray(levels).resize(size))


def shifted_mask(mask: np.ndarray, x: int, y: int) -> np.ndarray:
    """The mask moved right by x and *up* by y pixels; what leaves one side comes in on the other, as in ADetailer."""
    return np.roll(mask, (-y, x), axis=(0, 1))


def grown_mask(mask: np.ndarray, pixels: int) -> np.ndarray:
    """(h, w) uint8 grown by a square of `pixels`, or shrunk by one of `-pixels`.

    A square of even side reaches one pixel further to the right and down: 4 grows by 1 to the left and 2 to the right.
    """
    return dilate_box(mask, pixels) if pixels > 0 else erode_box(mask, -pixels)
