"""MTCNN: where faces are, and five landmarks of each. Three small nets, each looking closer than the one before.

Zhang et al. (2016), arXiv:1604.02878. Architecture and cascade after facenet-pytorch (MIT), models/mtcnn.py and
models/utils/detect_face.py; the weights that ship with the pack are that package's.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class MTCNNProposal(nn.Module):
    """(n, 3, h, w) -> box corrections (n, 4, h', w') and face probability (n, h', w'), one per 12x12 px, stride 2."""

    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_2(x), self.conv4_1(x).softmax(1)[:, 1]


class MTCNNRefinement(nn.Module):
    """(n, 3, 24, 24) -> box corrections (n, 4) and face probability (n,)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).flatten(1)
        x = self.prelu4(self.dense4(x))
        return self.dense5_2(x), self.dense5_1(x).softmax(1)[:, 1]


class MTCNNOutput(nn.Module):
    """(n, 3, 48, 48) -> box corrections (n, 4), landmarks (n, 10: five x, five y) and face probability (n,)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.conv4(x)).permute(0, 3, 2, 1).flatten(1)
        x = self.prelu5(self.dense5(x))
        return self.dense6_2(x), self.dense6_3(x), self.dense6_1(x).softmax(1)[:, 1]


class FaceDetector(ModelMixin, ConfigMixin):
    """MTCNN as a component. Its scores are not RetinaFace's: do not hold them against that net's 0.97.

    min_face_size: of the smallest face looked for, in pixels. thresholds: of the three nets' probabilities. factor:
    between the sizes of the pyramid. Stays in float32: in half precision landmarks move by several pixels.
    """

    _keep_in_fp32_modules = ["pnet", "rnet", "onet"]

    @register_to_config
    def __init__(
        self,
        min_face_size: int = 20,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7),
        factor: float = 0.709,
    ):
        super().__init__()
        self.pnet, self.rnet, self.onet = MTCNNProposal(), MTCNNRefinement(), MTCNNOutput()

    def to(self, *args: Any, **kwargs: Any) -> "FaceDetector":
        """`ModelMixin.to`, but dtypes are passed over."""
        args, kwargs = without_dtypes(args, kwargs)
        return super().to(*args, **kwargs) if args or kwargs else self

    @torch.no_grad()
    def forward(self, picture: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 RGB -> (n, 15) float32: x1, y1, x2, y2, score, five landmarks; the best score first."""
        pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
        pixels = pixels.to(self.device, self.dtype)
        boxes = self._propose(pixels)
        boxes = self._refine(pixels, boxes)
        return self._locate(pixels, boxes)

    def _propose(self, pixels: Tensor) -> np.ndarray:
        """First net, over a pyramid of sizes: (n, 5) candidate boxes with scores, made square."""
        h, w = pixels.shape[2:]
        scale, found = 12.0 / self.config.min_face_size, []
        while min(h, w) * scale >= 12:
            small = F.interpolate(pixels, size=(int(h * scale + 1), int(w * scale + 1)), mode="area")
            reg, score = (v.float().cpu().numpy()[0] for v in self.pnet((small - 127.5) * 0.0078125))
            y, x = np.nonzero(score >= self.config.thresholds[0])
            corners = [np.floor((2 * v + d) / np.float32(scale)) for d in (1, 12) for v in (x, y)]
            boxes = np.stack([*corners, score[y, x], *reg[:, y, x]], axis=1).astype(np.float32)
            found.append(boxes[suppress_boxes(boxes, 0.5)])
            scale *= self.config.factor
        boxes = np.concatenate(found) if found else np.zeros((0, 9), np.float32)
        boxes = boxes[suppress_boxes(boxes, 0.7)]
        size = np.tile(boxes[:, 2:4] - boxes[:, :2], 2)
        return _square_boxes(np.column_stack([boxes[:, :4] + boxes[:, 5:9] * size, boxes[:, 4]]))

    def _refine(self, pixels: Tensor, boxes: np.ndarray) -> np.ndarray:
        boxes, patches = _cut_boxes(pixels, boxes, 24)
        if not len(boxes):
            return boxes
        reg, score = (v.float().cpu().numpy() for v in self.rnet(patches))
        passed = score > self.config.thresholds[1]
        boxes, reg = np.column_stack([boxes[passed, :4], score[passed]]), reg[passed]
        kept = suppress_boxes(boxes, 0.7)
        return _square_boxes(_correct_boxes(boxes[kept], reg[kept]))

    def _locate(self, pixels: Tensor, boxes: np.ndarray) -> np.ndarray:
        boxes, patches = _cut_boxes(pixels, boxes, 48)
        if not len(boxes):
            return np.zeros((0, 15), np.float32)
        reg, points, score = (v.float().cpu().numpy() for v in self.onet(patches))
        passed = score > self.config.thresholds[2]
        boxes, reg, points = np.column_stack([boxes[passed, :4], score[passed]]), reg[passed], points[passed]
        size = boxes[:, 2:4] - boxes[:, :2] + 1
        x = size[:, :1] * points[:, :5] + boxes[:, :1] - 1
        y = size[:, 1:] * points[:, 5:] + boxes[:, 1:2] - 1
        rows = np.column_stack([_correct_boxes(boxes, reg), np.stack([x, y], axis=2).reshape(-1, 10)])
        return rows[suppress_boxes(rows, 0.7, smaller=True)].astype(np.float32)


def without_dtypes(
    args: tuple, kwargs: dict[str, Any], unwanted: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)
) -> tuple[tuple, dict[str, Any]]:
    """Arguments of `Module.to` without these dtypes."""
    kept = {key: value for key, value in kwargs.items() if value not in unwanted}
    return tuple(value for value in args if value not in unwanted), kept


def suppress_boxes(boxes: np.ndarray, threshold: float, *, smaller: bool = False) -> np.ndarray:
    """Indices of boxes (n, 5+) that overlap no better one by more than `threshold`, best first.

    Overlap: of the union; `smaller`: of the smaller box, with corners counted as pixels.
    """
    x1, y1, x2, y2 = (boxes[:, i].astype(np.float64) for i in range(4))
    one = 1.0 if smaller else 0.0
    area = (x2 - x1 + one) * (y2 - y1 + one)
    order, kept = np.argsort(-boxes[:, 4], kind="stable"), []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(best)
        w = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]) + one
        h = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]) + one
        shared = np.maximum(w, 0) * np.maximum(h, 0)
        whole = np.minimum(area[best], area[rest]) if smaller else area[best] + area[rest] - shared
        order = rest[shared <= threshold * whole]
    return np.array(kept, np.int64)


def _correct_boxes(boxes: np.ndarray, reg: np.ndarray) -> np.ndarray:
    size = np.tile(boxes[:, 2:4] - boxes[:, :2] + 1, 2)
    return np.column_stack([boxes[:, :4] + reg * size, boxes[:, 4]])


def _square_boxes(boxes: np.ndarray) -> np.ndarray:
    """Each box grown to a square about its centre."""
    size = boxes[:, 2:4] - boxes[:, :2]
    side = size.max(axis=1, keepdims=True) if len(boxes) else size[:, :1]
    first = boxes[:, :2] + size * 0.5 - side * 0.5
    return np.column_stack([first, first + side, boxes[:, 4]])


def _cut_boxes(pixels: Tensor, boxes: np.ndarray, size: int) -> tuple[np.ndarray, Tensor]:
    """The boxes that lie in the picture, and what they show, (n, 3, size, size) in the nets' range."""
    h, w = pixels.shape[2:]
    corners = np.trunc(boxes[:, :4]).astype(np.int64)
    x1, y1 = np.maximum(corners[:, 0], 1), np.maximum(corners[:, 1], 1)
    x2, y2 = np.minimum(corners[:, 2], w), np.minimum(corners[:, 3], h)
    inside = np.nonzero((x2 > x1 - 1) & (y2 > y1 - 1))[0]
    cuts = [pixels[:, :, y1[i] - 1 : y2[i], x1[i] - 1 : x2[i]] for i in inside]
    small = [F.interpolate(cut, size=(size, size), mode="area") for cut in cuts]
    patches = torch.cat(small) if small else pixels.new_zeros((0, 3, size, size))
    return boxes[inside], (patches - 127.5) * 0.0078125
