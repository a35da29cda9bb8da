"""The README's before and after: an old small photo, enlarged by bicubic, and by what ships with the package.

    python docs/make_before_after.py

Restoring networks are the user's own, so the shipped Real-ESRGAN stands in for one: it sees each aligned face at a
quarter of its size and draws it at full size again.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from PIL import Image, ImageFilter
from webui_diffusers.loaders import load_upscaler
from webui_diffusers.pipelines import FaceRestorePipeline


PHOTO = Path(__file__).parents[1] / "tests" / "golden" / "faces" / "in" / "astro_320.png"
LABEL = "R-ESRGAN AnimeVideo"


class FaceRedrawer(ModelMixin, ConfigMixin):
    """(1, 3, 512, 512) in [-1, 1] -> the same: down to a quarter, and up again by the upscaler."""

    def __init__(self, upscaler: ModelMixin):
        super().__init__()
        self.upscaler = upscaler

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = F.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True)
        return self.upscaler((small / 2 + 0.5).clamp(0, 1)).clamp(0, 1) * 2 - 1


def main() -> None:
    upscaler = load_upscaler(LABEL)
    photo = Image.open(PHOTO).convert("RGB")
    old = photo.filter(ImageFilter.GaussianBlur(1.2)).resize((160, 160), Image.Resampling.BICUBIC)
    pipe = FaceRestorePipeline(face_restorer=FaceRedrawer(upscaler), upscaler=upscaler)
    restored = pipe(old, upscale=4).images[0]
    sheet = Image.new("RGB", (2 * 480, 480), "white")
    sheet.paste(old.resize((480, 480), Image.Resampling.BICUBIC), (0, 0))
    sheet.paste(restored.resize((480, 480), Image.Resampling.LANCZOS), (480, 0))
    sheet.save(Path(__file__).parent / "pictures" / "before-after.jpg", quality=88)


if __name__ == "__main__":
    main()
