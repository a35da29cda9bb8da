"""YOLO detectors and segmenters from ONNX files, run by onnxruntime: no code of the file's author runs.

    picture -> letterbox (proportions kept, grey borders) -> network -> rows of box, class scores[, mask coefficients]
            -> best class of each row -> non-maximum suppression -> boxes in pixels of the picture[, masks]

What the network gives is told by its shape and by the `names` in the file's metadata:

    (1, 4 + classes [+ k], n)    YOLOv8, v9, 11: centre, size, scores; (1, n, 4 + classes) is the same turned
    (1, n, 5 + classes)          YOLOv5, v7: with a score for "something is here" before the classes
    (1, n, 6 [+ k])              exported with suppression (and YOLOv10): corners, score, class
    and (1, k, h, w)             prototypes of masks, of segmenters
"""

import ast
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..faces.mtcnn import suppress_boxes
from ..utils import require, unknown_choice
from ..weight_files import WeightFileError


YOLO_SIDE = 640  # pixels, where the file leaves the size open
YOLO_STRIDE = 32  # sides of the input are multiples of it
YOLO_OVERLAP = 0.7  # boxes of one class that share more of their union are one
YOLO_MOST = 300  # boxes a picture
_BORDER_GREY = 114
_SUPPRESSED_COLUMNS = 6


class Letterbox(NamedTuple):
    """How a picture lies in the network's input, in pixels of that."""

    pixels: np.ndarray  # (1, 3, h, w) float32 in [0, 1]
    scale: float  # input pixels a pixel of the picture
    left: int
    top: int
    width: int  # of the picture in there
    height: int


class YoloDetector:
    """A YOLO detector or segmenter in an ONNX file.

    Raises WeightFileError for a file that is none, ImportError without the extra [detect].
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        runtime = require("onnxruntime", extra="detect", feature="a detector from an .onnx file")
        try:
            self._session = runtime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no common base that it exports
            raise WeightFileError(
                f"{self.path} is no ONNX model that onnxruntime {runtime.__version__} can run: {error}. "
                "Export it again."
            ) from error
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3:
            raise WeightFileError(
                f"{self.path} takes {[(i.name, i.shape) for i in inputs]}; a YOLO detector takes one picture "
                "(1, 3, height, width). Is it another kind of network?"
            )
        self._input = inputs[0].name
        self._dtype = np.float16 if "float16" in inputs[0].type else np.float32
        self._size = tuple(side if isinstance(side, int) and side > 0 else None for side in shape[2:])
        self.names = self._class_names()

    def _class_names(self) -> list[str]:
        text = self._session.get_modelmeta().custom_metadata_map.get("names", "")
        try:
            names = ast.literal_eval(text) if text else {}
        except (ValueError, SyntaxError):
            names = {}
        return [str(name) for name in (names.values() if isinstance(names, dict) else names)]

    def __call__(
        self, picture: np.ndarray, confidence: float = 0.25, classes: list[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Boxes (n, 4) in pixels of the picture, scores (n,), and of segmenters masks (n, h, w) in 0..1.

        picture: (h, w, 3) uint8 RGB. confidence: boxes must score more. classes: only these, by name. The best score
        comes first. Masks are to be stretched over the picture.
        """
        wanted = self._class_numbers(classes)
        box = letterbox(picture, self._size)
        outputs = self._session.run(None, {self._input: box.pixels.astype(self._dtype)})
        outputs = [np.asarray(output, np.float32) for output in outputs]
        protos = next((output[0] for output in outputs if output.ndim == 4), None)
        rows = next((output[0] for output in outputs if output.ndim == 3), None)
        if rows is None:
            raise WeightFileError(
                f"{self.path} gives {[output.shape for output in outputs]}, and no rows of boxes as YOLO does. "
                "Export it as a detector or a segmenter."
            )
        found = self._best_rows(rows, 0 if protos is None else len(protos), confidence, wanted)
        boxes = (found.boxes - np.array([box.left, box.top] * 2)) / box.scale
        boxes = np.clip(boxes, 0, np.array([picture.shape[1], picture.shape[0]] * 2))
        masks = None if protos is None else yolo_masks(found, protos, box, keep_border=None in self._size)
        return boxes.astype(np.float64), found.scores.astype(np.float64), masks

    def _class_numbers(self, classes: list[str] | None) -> list[int] | None:
        for name in classes or ():
            if name not in self.names:
                raise ValueError(unknown_choice(f"`ad_model_classes`: class of {self.path.name}", name, self.names))
        return [self.names.index(name) for name in classes] if classes else None

    def _best_rows(self, rows: np.ndarray, extra: int, confidence: float, wanted: list[int] | None) -> "YoloRows":
        found = read_yolo_rows(rows, len(self.names), extra)
        kept = found.scores > confidence
        if wanted is not None:
            kept &= np.isin(found.classes, wanted)
        found = found.take(np.nonzero(kept)[0])
        apart = found.boxes + (found.classes * 2.0**14)[:, None]  # classes do not suppress each other
        return found.take(suppress_boxes(np.column_stack([apart, found.scores]), YOLO_OVERLAP)[:YOLO_MOST])


class YoloRows(NamedTuple):
    """What a network gave, in pixels of its input."""

    boxes: np.ndarray  # (n, 4) corners
    scores: np.ndarray  # (n,)
    classes: np.ndarray  # (n,) numbers of the best class
    coefficients: np.ndarray  # (n, k) of mask prototypes

    def take(self, chosen: np.ndarray) -> "YoloRows":
        """These rows, in this order."""
        return YoloRows(*(part[chosen] for part in self))


def letterbox(picture: np.ndarray, size: tuple[int | None, ...]) -> Letterbox:
    """A picture (h, w, 3) uint8 in the middle of an input of `size` (h, w), shrunk or enlarged to fit.

    A side that is None is as long as it takes, to the next multiple of the stride, with the longer side at YOLO_SIDE.
    """
    h, w = picture.shape[:2]
    scale = min((size[0] or YOLO_SIDE) / h, (size[1] or YOLO_SIDE) / w)
    height, width = max(round(h * scale), 1), max(round(w * scale), 1)
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
    if (height, width) != (h, w):
        pixels = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False).round()
    full_h = size[0] or -(-height // YOLO_STRIDE) * YOLO_STRIDE
    full_w = size[1] or -(-width // YOLO_STRIDE) * YOLO_STRIDE
    top, left = (full_h - height) // 2, (full_w - width) // 2
    canvas = torch.full((1, 3, full_h, full_w), float(_BORDER_GREY))
    canvas[..., top : top + height, left : left + width] = pixels
    return Letterbox((canvas / 255).numpy(), scale, left, top, width, height)


def read_yolo_rows(rows: np.ndarray, classes: int, extra: int) -> YoloRows:
    """Boxes, scores and classes from a network's rows. classes: how many it knows, 0 if its file does not say; extra:
    numbers of mask coefficients."""
    columns = {4 + classes + extra, 5 + classes + extra} if classes else set()
    suppressed = rows.shape[1] == _SUPPRESSED_COLUMNS + extra and rows.shape[0] <= YOLO_MOST
    if not suppressed and rows.shape[1] not in columns and (rows.shape[0] in columns or rows.shape[0] < rows.shape[1]):
        rows = rows.T
    if suppressed:
        return YoloRows(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64), rows[:, _SUPPRESSED_COLUMNS:])
    known = rows.shape[1] - extra - 4
    if known < 1:
        raise WeightFileError(
            f"a YOLO network gives boxes and scores of classes; this one rows of {rows.shape[1]} numbers."
        )
    objectness = classes > 0 and known == classes + 1
    scores = rows[:, 4 + objectness : 4 + known]
    if objectness:
        scores = scores * rows[:, 4:5]
    best = scores.argmax(axis=1)
    centre, half = rows[:, :2], rows[:, 2:4] / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    return YoloRows(boxes, scores[np.arange(len(rows)), best], best, rows[:, 4 + known :])


def yolo_masks(found: YoloRows, protos: np.ndarray, box: Letterbox, *, keep_border: bool) -> np.ndarray:
    """(n, h, w) float32, 0 or 1: prototypes (k, h', w') weighted by each row's coefficients, cut to its box.

    keep_border: the masks cover the whole input, grey borders too, and lie off by them when stretched over the
    picture. So it is in ADetailer, whose borders are as narrow as here where the input's size is open. Inputs of a
    fixed size have wide ones: those are cut off.
    """
    if not len(found.boxes):
        return np.zeros((0, 1, 1), np.float32)
    size = box.pixels.shape[-2:]
    low = np.einsum("nk,khw->nhw", found.coefficients, protos)
    high: Tensor = F.interpolate(torch.from_numpy(low)[None], size=size, mode="bilinear", align_corners=False)[0]
    masks = (high.numpy() > 0).astype(np.float32)
    y, x = np.arange(size[0])[:, None], np.arange(size[1])[None]
    for mask, (x1, y1, x2, y2) in zip(masks, found.boxes):
        mask *= (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    if keep_border:
        return masks
    return masks[:, box.top : box.top + box.height, box.left : box.left + box.width]
