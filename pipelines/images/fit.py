"""Pictures brought to the size of a job with the arithmetic of the webui, and holes in them filled.

    resize mode   what happens
    "stretch"     both sides to the size, whatever that does to the proportions
    "crop"        enlarged or reduced to cover the size, what stands out is cut off on both sides
    "fill"        to fit inside, borders filled with the stretched edge rows or columns
    "latent"      the picture stays; its latents are stretched

Resampling is Lanczos.
"""

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageColor, ImageFilter, ImageOps
from torch import Tensor

from ..options import WEBUI_OPTIONS


RESIZE_MODES = ("stretch", "crop", "fill", "latent")  # the webui's numbers 0 to 3

# (radius in pixels, how often it is laid over the picture), in turn: far colours first, near ones last.
_FILL_BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))


def flatten_picture(picture: Image.Image, color: str = WEBUI_OPTIONS["img2img_background_color"]) -> Image.Image:
    """RGB; what is transparent shows `color` (any name or #rrggbb that PIL reads), as far as it is transparent.

    Turned as its EXIF data say; 16-bit grey loses its lower 8 bits.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("LA", "La", "PA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode == "RGBA":
        background = Image.new("RGB", picture.size, ImageColor.getrgb(color))
        background.paste(picture, mask=picture)
        return background
    return picture.convert("RGB")


def fit_picture(picture: Image.Image, width: int, height: int, mode: str) -> Image.Image:
    """An RGB or "L" picture at exactly (width, height), by one of RESIZE_MODES.

    "latent" stretches too: the webui has no picture to fit then, but a mask or an overlay may still need the size.
    Raises ValueError for another mode, naming those there are.
    """
    if mode not in RESIZE_MODES:
        known = ", ".join(f'"{name}"' for name in RESIZE_MODES)
        raise ValueError(f"`resize_mode` is {mode!r}, which is none of {known}.")
    if mode == "crop":
        return _fit_crop(picture, width, height)
    if mode == "fill":
        return _fit_fill(picture, width, height)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _fit_crop(picture: Image.Image, width: int, height: int) -> Image.Image:
    if width / height > picture.width / picture.height:
        size = (width, picture.height * width // picture.width)
    else:
        size = (picture.width * height // picture.height, height)
    resized = _fit_resized(picture, size)
    canvas = Image.new(picture.mode, (width, height))
    canvas.paste(resized, (width // 2 - size[0] // 2, height // 2 - size[1] // 2))
    return canvas


def _fit_fill(picture: Image.Image, width: int, height: int) -> Image.Image:
    wanted, have = width / height, picture.width / picture.height
    if wanted < have:
        size = (width, picture.height * width // picture.width)
    else:
        size = (picture.width * height // picture.height, height)
    resized = _fit_resized(picture, size)
    x, y = width // 2 - size[0] // 2, height // 2 - size[1] // 2
    canvas = Image.new(picture.mode, (width, height))
    canvas.paste(resized, (x, y))
    if wanted < have and y > 0:
        canvas.paste(resized.resize((width, y), box=(0, 0, width, 0)), (0, 0))
        canvas.paste(resized.resize((width, y), box=(0, size[1], width, size[1])), (0, y + size[1]))
    elif wanted > have and x > 0:
        canvas.paste(resized.resize((x, height), box=(0, 0, 0, height)), (0, 0))
        canvas.paste(resized.resize((x, height), box=(size[0], 0, size[0], height)), (x + size[0], 0))
    return canvas


def _fit_resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if min(size) < 1:
        raise ValueError(
            f"A picture of {picture.width}x{picture.height} pixels is too narrow: in proportion it would have "
            f"{size[0]}x{size[1]}. Crop it, or stretch it."
        )
    return picture.resize(size, Image.Resampling.LANCZOS)


def fill_masked(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The RGB picture with what the mask ("L") shows replaced by the colours around it, blurred ever less."""
    kept = Image.new("RGBa", picture.size)
    kept.paste(picture.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    filled = Image.new("RGBA", picture.size)
    for radius, times in _FILL_BLURS:
        blurred = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            filled.alpha_composite(blurred)
    return filled.convert("RGB")


def resize_latents(latents: Tensor, width: int, height: int) -> Tensor:
    """Latents (b, c, h, w) stretched to (b, c, height // 8, width // 8), bilinear: resize mode "latent"."""
    return F.interpolate(latents, size=(height // 8, width // 8), mode="bilinear")
