"""ParseNet: which part of a face each pixel is. Skin, eyes, hair, hat, ...: the 19 classes of CelebAMask-HQ.

Architecture after facexlib (Apache-2.0), facexlib/parsing/parsenet.py, itself after PSFRGAN. Weights are the user's:
`parsing_parsenet.pth`.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class ParseConv(nn.Module):
    """[nearest x2 ->] reflected 3x3 convolution [stride 2] -> [batch norm] -> [leaky ReLU]."""

    def __init__(self, c_in: int, c_out: int, scale: str = "none", *, norm: bool = False, relu: bool = False):
        super().__init__()
        self.scale, self.relu = scale, relu
        self.conv2d = nn.Conv2d(c_in, c_out, 3, 2 if scale == "down" else 1, bias=not norm)
        self.norm = nn.ModuleDict({"norm": nn.BatchNorm2d(c_out)} if norm else {})

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest") if self.scale == "up" else x
        x = self.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"))
        x = self.norm["norm"](x) if "norm" in self.norm else x
        return F.leaky_relu(x, 0.2) if self.relu else x


class ParseBlock(nn.Module):
    """Residual block; its first convolution enlarges, or its second shrinks."""

    def __init__(self, c_in: int, c_out: int, scale: str = "none"):
        super().__init__()
        self.shortcut_func = nn.Identity() if scale == "none" and c_in == c_out else ParseConv(c_in, c_out, scale)
        self.conv1 = ParseConv(c_in, c_out, "up" if scale == "up" else "none", norm=True, relu=True)
        self.conv2 = ParseConv(c_out, c_out, "down" if scale == "down" else "none", norm=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut_func(x) + self.conv2(self.conv1(x))


class FaceParser(ModelMixin, ConfigMixin):
    """ParseNet as a component. base: channels at full size; depth: blocks in the middle; steps: halvings."""

    @register_to_config
    def __init__(self, base: int = 64, depth: int = 10, steps: int = 4, most: int = 256, classes: int = 19):
        super().__init__()
        widths = [min(base * 2**i, most) for i in range(steps + 1)]
        down = [ParseBlock(a, b, "down") for a, b in zip(widths, widths[1:])]
        up = [ParseBlock(b, a, "up") for a, b in zip(widths[-2::-1], widths[:0:-1])]
        self.encoder = nn.Sequential(ParseConv(3, base), *down)
        self.body = nn.Sequential(*[ParseBlock(widths[-1], widths[-1]) for _ in range(depth)])
        self.decoder = nn.Sequential(*up)
        self.out_img_conv = ParseConv(base, 3)
        self.out_mask_conv = ParseConv(base, classes)

    @torch.no_grad()
    def forward(self, face: Tensor) -> Tensor:
        """(n, 3, 512, 512) RGB in [-1, 1] -> (n, classes, 512, 512) scores; the largest is the class."""
        feat = self.encoder(face.to(self.device, self.dtype))
        return self.out_mask_conv(self.decoder(feat + self.body(feat)))
