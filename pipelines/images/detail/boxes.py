"""What a detector finds: boxes with scores, perhaps with masks; which of them are taken, and in what order."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


BOX_ORDERS = ("None", "Position (left to right)", "Position (center to edge)", "Area (large to small)")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """What was found in one picture, best first as a rule.

    boxes: (left, top, right, bottom) in pixels, floats. scores: 0..1, one a box. masks: (n, h, w) float 0..1 of any
    size, which are stretched over the picture; None: the boxes are the masks.
    """

    boxes: tuple[Box, ...] = ()
    scores: tuple[float, ...] = ()
    masks: np.ndarray | None = None

    def take(self, chosen: Sequence[int]) -> "Detection":
        """These boxes, in this order."""
        masks = None if self.masks is None else self.masks[list(chosen)]
        return Detection(tuple(self.boxes[i] for i in chosen), tuple(self.scores[i] for i in chosen), masks)


def read_detection(found: Any, source: str) -> Detection:
    """A Detection from `{"bboxes": (n, 4), "confidences": (n,), "masks": (n, h, w) or None}`, from a tuple (boxes,
    scores[, masks]), or from None for nothing. Lists, arrays and tensors will do; scores left out are 1.

    Raises ValueError, naming `source`, for numbers of another shape, or not finite.
    """
    if found is None or isinstance(found, Detection):
        return found or Detection()
    if isinstance(found, Mapping):
        unknown = set(found) - {"bboxes", "confidences", "masks"}
        if unknown or "bboxes" not in found:
            raise ValueError(f"{source}: a detection has the keys bboxes, confidences and masks; got {sorted(found)}.")
        parts = [found.get(name) for name in ("bboxes", "confidences", "masks")]
    elif isinstance(found, (tuple, list)) and len(found) in (2, 3) and np.ndim(found[0]) != 1:
        parts = [*found, None][:3]
    else:
        raise ValueError(
            f"{source}: a detection is a dict of bboxes, confidences and masks, or a tuple (boxes, scores[, masks]); "
            f"got {type(found).__name__}."
        )
    boxes = np.asarray(parts[0], np.float64)
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    scores = np.ones(len(boxes)) if parts[1] is None else np.asarray(parts[1], np.float64).reshape(-1)
    masks = None if parts[2] is None else np.asarray(parts[2], np.float32)
    if masks is not None and masks.size == 0 and not len(boxes):
        masks = None
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(scores) != len(boxes):
        raise ValueError(
            f"{source}: boxes are rows x1, y1, x2, y2, each with a score; got {boxes.shape} and {scores.shape}."
        )
    if masks is not None and (masks.ndim != 3 or len(masks) != len(boxes) or not masks.size):
        raise ValueError(f"{source}: masks are (n, h, w), one a box; got {masks.shape} for {len(boxes)} boxes.")
    if not all(np.isfinite(part).all() for part in (boxes, scores, *([] if masks is None else [masks]))):
        raise ValueError(f"{source}: boxes, scores and masks must be finite numbers.")
    rows: list[Box] = [(float(a), float(b), float(c), float(d)) for a, b, c, d in boxes]
    return Detection(tuple(rows), tuple(float(score) for score in scores), masks)


def box_area(box: Box) -> float:
    """Area in pixels of the box as it is, not cut to the picture."""
    return (box[2] - box[0]) * (box[3] - box[1])


def confident_boxes(found: Detection, confidence: float) -> list[int]:
    """Which boxes score above `confidence`; one that is equal is dropped."""
    return [i for i, score in enumerate(found.scores) if score > confidence]


def boxes_by_ratio(found: Detection, size: tuple[int, int], low: float, high: float) -> list[int]:
    """Which boxes cover from `low` to `high` (both included) of a picture of `size` (w, h)."""
    whole = size[0] * size[1]
    return [i for i, box in enumerate(found.boxes) if low <= box_area(box) / whole <= high]


def top_boxes(found: Detection, k: int, by: str) -> list[int]:
    """The `k` largest ("Area") or most confident ("Confidence") boxes, that first; of equals the later. 0: all."""
    order = range(len(found.boxes))
    if k == 0:
        return list(order)
    keys = [box_area(box) for box in found.boxes] if by == "Area" else list(found.scores)
    return sorted(order, key=keys.__getitem__)[-k:][::-1]


def sorted_boxes(found: Detection, size: tuple[int, int], order: str) -> list[int]:
    """The boxes by one of BOX_ORDERS; equals keep their order."""

    def key(i: int) -> float:
        box = found.boxes[i]
        if order == "Position (left to right)":
            return box[0]
        if order == "Position (center to edge)":
            return math.dist(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), (size[0] / 2, size[1] / 2))
        return -box_area(box) if order == "Area (large to small)" else 0.0

    return sorted(range(len(found.boxes)), key=key)
