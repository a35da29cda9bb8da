"""RetinaFace (ResNet-50): the detector that the webui, GFPGAN and CodeFormer use. Weights are the user's.

Deng et al. (2019), arXiv:1905.00641. Architecture, key names and decoding after facexlib (Apache-2.0),
facexlib/detection/retinaface.py, retinaface_net.py and retinaface_utils.py; the body is torchvision's ResNet-50.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .mtcnn import suppress_boxes, without_dtypes


RETINA_STRIDES = (8, 16, 32)
RETINA_ANCHORS = ((16, 32), (64, 128), (256, 512))  # side in pixels, per stride
RETINA_MEAN = (104.0, 117.0, 123.0)  # of blue, green, red
RETINA_VARIANCE = (0.1, 0.2)  # of positions and of logarithms of sizes


class RetinaBottleneck(nn.Module):
    """ResNet's 1x1, 3x3 (stride), 1x1 with a shortcut; `c` inside, 4c outside."""

    def __init__(self, c_in: int, c: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c, 1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, stride, 1, bias=False), nn.BatchNorm2d(c)
        self.conv3, self.bn3 = nn.Conv2d(c, 4 * c, 1, bias=False), nn.BatchNorm2d(4 * c)
        self.downsample = None
        if stride > 1 or c_in != 4 * c:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, 4 * c, 1, stride, bias=False), nn.BatchNorm2d(4 * c))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class RetinaBody(nn.Module):
    """ResNet without its head; the outputs of stages 2 to 4, at strides 8, 16 and 32."""

    def __init__(self, width: int, blocks: tuple[int, int, int, int]):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        c_in = width
        for stage, count in enumerate(blocks):
            c = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (count - 1)
            layer = [RetinaBottleneck(c_in if i == 0 else 4 * c, c, stride) for i, stride in enumerate(strides)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
            c_in = 4 * c

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer1(x)
        stages = [self.layer2(x)]
        stages.append(self.layer3(stages[0]))
        return [*stages, self.layer4(stages[1])]


def _retina_conv(c_in: int, c_out: int, size: int = 3, *, leaky: float | None = None) -> nn.Sequential:
    layers = [nn.Conv2d(c_in, c_out, size, 1, size // 2, bias=False), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, *([] if leaky is None else [nn.LeakyReLU(leaky)]))


class RetinaPyramid(nn.Module):
    """Feature pyramid: each level plus the one above, enlarged."""

    def __init__(self, c_in: list[int], c: int, leaky: float):
        super().__init__()
        self.output1, self.output2, self.output3 = (_retina_conv(n, c, 1, leaky=leaky) for n in c_in)
        self.merge1, self.merge2 = _retina_conv(c, c, leaky=leaky), _retina_conv(c, c, leaky=leaky)

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        a, b, c = self.output1(stages[0]), self.output2(stages[1]), self.output3(stages[2])
        b = self.merge2(b + F.interpolate(c, size=b.shape[2:], mode="nearest"))
        a = self.merge1(a + F.interpolate(b, size=a.shape[2:], mode="nearest"))
        return [a, b, c]


class RetinaContext(nn.Module):
    """SSH: 3x3, 5x5 and 7x7 surroundings side by side."""

    def __init__(self, c: int, leaky: float):
        super().__init__()
        self.conv3X3 = _retina_conv(c, c // 2)
        self.conv5X5_1, self.conv5X5_2 = _retina_conv(c, c // 4, leaky=leaky), _retina_conv(c // 4, c // 4)
        self.conv7X7_2, self.conv7x7_3 = _retina_conv(c // 4, c // 4, leaky=leaky), _retina_conv(c // 4, c // 4)

    def forward(self, x: Tensor) -> Tensor:
        five = self.conv5X5_1(x)
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(five), self.conv7x7_3(self.conv7X7_2(five))], 1))


class RetinaHead(nn.Module):
    """(n, c, h, w) -> (n, h * w * 2 anchors, values)."""

    def __init__(self, c: int, values: int):
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(c, 2 * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.values)


class RetinaFaceDetector(ModelMixin, ConfigMixin):
    """RetinaFace as a component, in float32. The defaults are `detection_Resnet50_Final.pth`'s."""

    _keep_in_fp32_modules = ["body", "fpn", "ssh1", "ssh2", "ssh3", "BboxHead", "ClassHead", "LandmarkHead"]

    @register_to_config
    def __init__(self, width: int = 64, blocks: tuple[int, int, int, int] = (3, 4, 6, 3), channels: int = 256):
        super().__init__()
        leaky = 0.1 if channels <= 64 else 0.0
        self.body = RetinaBody(width, tuple(blocks))
        self.fpn = RetinaPyramid([8 * width, 16 * width, 32 * width], channels, leaky)
        self.ssh1, self.ssh2, self.ssh3 = (RetinaContext(channels, leaky) for _ in range(3))
        self.BboxHead, self.ClassHead, self.LandmarkHead = (
            nn.ModuleList(RetinaHead(channels, values) for _ in range(3)) for values in (4, 2, 10)
        )

    def to(self, *args: Any, **kwargs: Any) -> "RetinaFaceDetector":
        """`ModelMixin.to`, but dtypes are passed over."""
        args, kwargs = without_dtypes(args, kwargs)
        return super().to(*args, **kwargs) if args or kwargs else self

    @torch.no_grad()
    def forward(self, picture: np.ndarray, threshold: float | None = None) -> np.ndarray:
        """(h, w, 3) uint8 RGB -> (n, 15) float32: x1, y1, x2, y2, score, five landmarks; the best score first.

        threshold: least score, 0.8 if None. Overlapping faces: of those sharing more than 0.4 the best stays.
        """
        h, w = picture.shape[:2]
        bgr = torch.from_numpy(picture[..., ::-1].astype(np.float32) - np.array(RETINA_MEAN, np.float32))
        features = self.fpn(self.body(bgr.permute(2, 0, 1)[None].to(self.device, self.dtype)))
        features = [ssh(x) for ssh, x in zip((self.ssh1, self.ssh2, self.ssh3), features)]
        heads = (self.BboxHead, self.ClassHead, self.LandmarkHead)
        boxes, classes, points = (
            torch.cat([head(x) for head, x in zip(heads_of, features)], 1)[0].float().cpu() for heads_of in heads
        )
        score = classes.softmax(-1)[:, 1].numpy()
        kept = score > (0.8 if threshold is None else threshold)
        rows = _decode_retina(boxes.numpy()[kept], points.numpy()[kept], _retina_priors(h, w)[kept])
        rows[:, 4] = score[kept]
        return rows[suppress_boxes(rows, 0.4)].astype(np.float32)


def _retina_priors(h: int, w: int) -> np.ndarray:
    """Centre and side of every anchor in pixels, (n, 3)."""
    levels = []
    for stride, sides in zip(RETINA_STRIDES, RETINA_ANCHORS):
        y, x, side = np.meshgrid(
            (np.arange(-(-h // stride)) + 0.5) * stride,
            (np.arange(-(-w // stride)) + 0.5) * stride,
            sides,
            indexing="ij",
        )
        levels.append(np.stack([x, y, side], axis=-1).reshape(-1, 3))
    return np.concatenate(levels)


def _decode_retina(boxes: np.ndarray, points: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Net outputs relative to anchors -> (n, 15) rows in pixels, the score left 0."""
    centre, side = priors[:, :2], priors[:, 2:]
    middle = centre + boxes[:, :2] * RETINA_VARIANCE[0] * side
    size = side * np.exp(boxes[:, 2:] * RETINA_VARIANCE[1])
    first = middle - size / 2
    landmarks = centre[:, None] + points.reshape(-1, 5, 2) * RETINA_VARIANCE[0] * side[:, None]
    return np.column_stack([first, first + size, np.zeros(len(boxes)), landmarks.reshape(-1, 10)])
