"""Hires fix: how large the second pass is, and latents made that large without pixels in between.

    job       asked for             enlarged to    then cropped to
    64x64     scale 1.5             96x96
    64x64     scale 1.3             83x83          (10x10 latent cells: 80x80 pixels)
    64x96     size (96, 0)          96x144
    64x64     size (112, 80)        112x112        112x80

The reference is the webui, version 1.10.1. Sizes are (width, height), in pixels; a latent cell is 8x8 pixels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor, nn

from ...loaders.model_lock import moved_whole
from .upscale import WEBUI_TILE, WEBUI_TILE_OVERLAP, UpscalerModel, enlarge_picture
from .vae import encode_pictures, latents_to_pixels, pixels_to_vae_input


LATENT_CELL = 8  # pixels along one side of a latent cell, for SD 1.x, 2.x and SDXL alike

# label of the webui -> (mode of torch's interpolate, antialias)
LATENT_UPSCALERS = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}

# What the webui draws with when hires fix is on and no upscaler is named.
DEFAULT_HIRES_UPSCALER = "Latent"


class HiresTarget(NamedTuple):
    """How large the second pass is. Pixels, except for the crop."""

    enlarged_width: int  # before the crop and not rounded to 8; SDXL is conditioned on these two numbers
    enlarged_height: int
    crop_left: int = 0  # latent cells to cut off after enlarging
    crop_right: int = 0
    crop_top: int = 0
    crop_bottom: int = 0

    @property
    def enlarged_cells(self) -> tuple[int, int]:
        """(rows, columns) of the latents before the crop."""
        return self.enlarged_height // LATENT_CELL, self.enlarged_width // LATENT_CELL

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of the latents of the second pass, after the crop."""
        rows, columns = self.enlarged_cells
        return rows - self.crop_top - self.crop_bottom, columns - self.crop_left - self.crop_right

    @property
    def width(self) -> int:
        """Width of the final picture in pixels: whole latent cells."""
        return self.cells[1] * LATENT_CELL

    @property
    def height(self) -> int:
        """Height of the final picture in pixels: whole latent cells."""
        return self.cells[0] * LATENT_CELL


def hires_target(
    width: int, height: int, scale: float | None = None, size: tuple[int, int] | None = None
) -> HiresTarget:
    """The second pass of a `width` x `height` job, by `scale` or by `size` = (width, height).

    A 0 in `size` follows the other side; (0, 0) or None means: by scale. With both sides given the picture is enlarged
    until it covers them and what stands out is cropped in latent cells, the larger half at the end. Raises ValueError
    for a size that leaves no latent cell.

    >>> hires_target(64, 96, size=(96, 0))[:2]
    (96, 144)
    """
    wanted_width, wanted_height = size or (0, 0)
    if wanted_width < 0 or wanted_height < 0:
        raise ValueError(f"`size` must be (width, height) of 0 or more; got {size}. 0 follows the other side.")
    if not wanted_width and not wanted_height:
        target = HiresTarget(*_hires_size_by_scale(width, height, scale))
    elif not wanted_height:
        target = HiresTarget(wanted_width, wanted_width * height // width)
    elif not wanted_width:
        target = HiresTarget(wanted_height * width // height, wanted_height)
    else:
        target = _hires_cover(width, height, wanted_width, wanted_height)
    if min(target.cells) < 1:
        raise ValueError(
            f"A second pass of {target.enlarged_width}x{target.enlarged_height} pixels (scale={scale}, size={size}) "
            f"is smaller than one latent cell of {LATENT_CELL} pixels. Ask for a larger `hires_scale` or `hires_size`."
        )
    return target


def _hires_size_by_scale(width: int, height: int, scale: float | None) -> tuple[int, int]:
    if scale is None or not scale > 0:
        raise ValueError(f"Hires fix needs a scale above 0 or a size; got scale={scale}. 2.0 doubles both sides.")
    return int(width * scale), int(height * scale)


def _hires_cover(width: int, height: int, wanted_width: int, wanted_height: int) -> HiresTarget:
    if width / height < wanted_width / wanted_height:
        enlarged_width, enlarged_height = wanted_width, wanted_width * height // width
    else:
        enlarged_width, enlarged_height = wanted_height * width // height, wanted_height
    cut_x = (enlarged_width - wanted_width) // LATENT_CELL
    cut_y = (enlarged_height - wanted_height) // LATENT_CELL
    crop = (cut_x // 2, (cut_x + 1) // 2, cut_y // 2, (cut_y + 1) // 2)
    return HiresTarget(enlarged_width, enlarged_height, *crop)


def upscale_latents(latents: Tensor, label: str, height: int, width: int) -> Tensor:
    """Latents (b, c, h, w) enlarged to (b, c, height // 8, width // 8); `height` and `width` are pixels.

    label: a key of LATENT_UPSCALERS; ValueError names them for any other.
    """
    if label not in LATENT_UPSCALERS:
        known = ", ".join(f'"{name}"' for name in LATENT_UPSCALERS)
        raise ValueError(f'"{label}" enlarges no latents. Those that do are {known}.')
    mode, antialias = LATENT_UPSCALERS[label]
    cells = (height // LATENT_CELL, width // LATENT_CELL)
    return F.interpolate(latents, size=cells, mode=mode, antialias=antialias)


def crop_latents(latents: Tensor, target: HiresTarget) -> Tensor:
    """The part of enlarged latents (b, c, h, w) that the second pass draws: `target.cells` large, contiguous."""
    rows, columns = latents.shape[-2:]
    kept = latents[..., target.crop_top : rows - target.crop_bottom, target.crop_left : columns - target.crop_right]
    return kept.contiguous()


def enlarge_latents(
    vae: nn.Module,
    latents: Tensor,
    target: HiresTarget,
    upscaler: UpscalerModel | str,
    options: Mapping[str, Any],
    generator: Generator | None,
    encoder: nn.Module | None = None,
) -> Tensor:
    """Latents (b, c, h, w) as the second pass takes them: enlarged, and cropped to the target.

    Latent upscalers work without decoding; all others on 8-bit pictures. generator: draws the noise of the VAE's
    encoding; None is torch's global one, as in the webui with the noise source "nv". encoder: the VAE that encodes,
    where it is another one.
    """
    if isinstance(upscaler, str) and upscaler in LATENT_UPSCALERS:
        enlarged = upscale_latents(latents, upscaler, target.enlarged_height, target.enlarged_width)
        return crop_latents(enlarged, target)
    if isinstance(upscaler, nn.Module):
        moved_whole(upscaler, latents.device)
    return enlarge_through_pixels(
        vae,
        latents,
        target,
        upscaler,
        generator=torch.default_generator if generator is None else generator,
        tile=options["ESRGAN_tile"],
        overlap=options["ESRGAN_tile_overlap"],
        encoder=encoder,
    )


def enlarge_through_pixels(
    vae: nn.Module,
    latents: Tensor,
    target: HiresTarget,
    upscaler: UpscalerModel | str | None,
    *,
    generator: Generator | None = None,
    tile: int = WEBUI_TILE,
    overlap: int = WEBUI_TILE_OVERLAP,
    encoder: nn.Module | None = None,
) -> Tensor:
    """Latents (b, c, h, w) of the first pass to those the second begins with, through 8-bit pictures; cropped.

    All pictures are decoded and enlarged (see `enlarge_picture`) before the first is encoded, each alone.
    generator: what the webui's global CPU generator is there: with the noise sources "cpu" and "gpu" one seeded with
    the last picture's seed. With "nv" that generator is whatever it was, so pass None (torch's own is used, but not
    advanced for the models) or `torch.default_generator`. encoder: the VAE that encodes, where it is another one.
    """
    width, height = target.enlarged_width, target.enlarged_height
    pictures = [
        enlarge_picture(
            Image.fromarray(pixels),
            width,
            height,
            upscaler,
            tile=tile,
            overlap=overlap,
            generator=generator,
        )
        for pixels in latents_to_pixels(vae, latents)
    ]
    pixels = pixels_to_vae_input(pictures).to(latents.device)
    return crop_latents(encode_pictures(vae if encoder is None else encoder, pixels, generator), target)
