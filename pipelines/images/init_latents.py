"""From prepared pictures to the latents that img2img and inpainting draw over."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from .init_image import InitArguments, InitPictures, stretched_picture
from .masks import LatentMasks, latent_masks
from .vae import encode_pictures, finite_or_float32, pixels_to_vae_input


class InitLatents(NamedTuple):
    """What a pass draws over, all on one device.

    latents: (b, c, h, w) float32, clean. mask: which of them stay; None without a mask. extra_channels: (b, 1 + c, h,
    w) beside the latent, for UNets made for inpainting.
    """

    latents: Tensor
    mask: LatentMasks | None = None
    extra_channels: Tensor | None = None


def init_latents(
    init: InitPictures,
    rows: Sequence[int],
    cells: tuple[int, int],
    asked: InitArguments,
    *,
    encode: Callable[[Tensor], Tensor],
    noise: Callable[[], Tensor],
    device: torch.device,
    mask_weight: float | None = None,
) -> InitLatents:
    """Steps 8 to 11 of images/masks.py.

    rows: which picture each image of the batch begins with. cells: (rows, columns) of the latents. encode: pixels
    (n, 3, h, w) to the batch's latents. noise: the first draw of the batch, for masked content "latent noise".
    mask_weight: how far an inpainting UNet's view of the painted part is hidden, 0..1; None for other UNets.
    """
    if init.latents is not None:
        if mask_weight is not None:
            raise ValueError("`image` is latents, but this inpainting `unet` looks at the picture: pass that.")
        return InitLatents(init.latents[list(rows)].to(device))
    pixels = pixels_to_vae_input(init.pictures).to(device)
    latents = _at_job_size(encode(pixels), cells)
    mask = None
    if init.mask is not None:
        mask = latent_masks(init.mask, latents, soft=asked.keeps_greys)
        if asked.masked_content == "latent noise":
            latents = latents * mask.keep + noise() * mask.change
        elif asked.masked_content == "latent nothing":
            latents = latents * mask.keep
    if mask_weight is None:
        return InitLatents(latents, mask)
    seen = pixel_mask(init.mask, *pixels.shape[-2:], soft=asked.keeps_greys).to(device)
    hidden = _at_job_size(encode(torch.lerp(pixels, pixels * (1.0 - seen), mask_weight)), cells)
    return InitLatents(latents, mask, inpainting_channels(seen, hidden))


def _at_job_size(latents: Tensor, cells: tuple[int, int]) -> Tensor:
    """Resize mode "latent" encodes pictures at their own size; in all others latents have the job's already."""
    fits = tuple(latents.shape[-2:]) == cells
    return latents if fits else F.interpolate(latents, size=cells, mode="bilinear")


def encode_init(
    vae: Any, pixels: Tensor, rows: Sequence[int], generator: Generator | list[Generator] | None, *, each: bool
) -> Tensor:
    """Latents (b, c, h // 8, w // 8) of the pictures `rows` of pixels (n, 3, h, w), on their device.

    each: every image of the batch draws the VAE's noise for itself, as in the webui, also where images share a
    picture. Else each picture is encoded once, as in diffusers. generator: what draws that noise; None is torch's
    global one, as in the webui, wherever it stands. A list has one an image.
    """
    if isinstance(generator, list):
        pairs = zip(rows, generator, strict=True)
        return torch.cat([encode_pictures(vae, pixels[row, None], one) for row, one in pairs])
    if each:
        return encode_pictures(vae, pixels[list(rows)], generator)
    return encode_pictures(vae, pixels, generator)[list(rows)]


def pixel_mask(mask: Image.Image | None, height: int, width: int, *, soft: bool) -> Tensor:
    """What an inpainting UNet is told of the mask: (1, 1, h, w) in [0, 1], 0 or 1 unless `soft`; ones without one."""
    if mask is None:
        return torch.ones(1, 1, height, width)
    levels = np.asarray(stretched_picture(mask, width, height)).astype(np.float32) / np.float32(255.0)
    return torch.from_numpy(levels if soft else np.around(levels))[None, None]


def inpainting_channels(mask: Tensor, hidden: Tensor) -> Tensor:
    """The channels beside the latent of a UNet made for inpainting: (b, 1 + c, h, w) = mask, then the latents of the
    picture with the painted part hidden. mask: (1, 1, H, W), brought to the latents' size by its nearest pixels."""
    small = F.interpolate(mask.to(hidden), size=hidden.shape[-2:])
    return torch.cat([small.expand(len(hidden), -1, -1, -1), hidden], dim=1)


def takes_inpainting_channels(unet: Any, channels: int) -> bool:
    """Whether the UNet is one made for inpainting: it takes a mask and a second latent beside the latent.

    Raises ValueError for a UNet that takes something else again (depth, a picture to edit).
    """
    count = unet.config.in_channels
    if count not in (channels, 2 * channels + 1):
        raise ValueError(
            f"`unet` takes {count} channels: it is neither a plain one ({channels}) nor one for inpainting "
            f"({2 * channels + 1}), but made for depth maps or edits by instruction. Load one of those two kinds."
        )
    return count != channels


def blank_channels(vae: Any, width: int, height: int, count: int, device: torch.device) -> Tensor:
    """What an inpainting UNet sees where nothing is given: all is to be painted, over grey. (count, 1 + c, h, w) for
    an image of width x height pixels."""
    grey = torch.zeros((1, 3, height, width), device=device)
    (mode,) = finite_or_float32(vae, lambda x: vae.encode(x).latent_dist.mode(), [grey], "encoded grey")
    hidden = mode * vae.config.scaling_factor
    return inpainting_channels(torch.ones((1, 1, height, width), device=device), hidden.expand(count, -1, -1, -1))
