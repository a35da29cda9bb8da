"""Between the passes of hires fix: the latents of the first, enlarged."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor

from .images.hires import LATENT_UPSCALERS, HiresTarget, crop_latents, upscale_latents
from .images.upscale import UpscalerModel, enlarge_picture
from .images.vae import encode_pictures, latents_to_pixels, pixels_to_vae_input


def enlarge_latents(
    vae: Any,
    latents: Tensor,
    target: HiresTarget,
    upscaler: UpscalerModel | str,
    options: Mapping[str, Any],
    generator: Generator | None,
) -> Tensor:
    """Latents (b, c, h, w) as the second pass takes them: enlarged, and cropped to the target.

    Latent upscalers work without decoding; all others on 8-bit pictures, one by one. generator: draws the noise of
    the VAE's encoding; None is torch's global one.
    """
    if upscaler in LATENT_UPSCALERS:
        enlarged = upscale_latents(latents, upscaler, target.enlarged_height, target.enlarged_width)
        return crop_latents(enlarged, target)
    if isinstance(upscaler, torch.nn.Module):
        upscaler.to(latents.device)
    encoded = []
    for picture in latents_to_pixels(vae, latents):
        large = enlarge_picture(
            Image.fromarray(picture),
            target.enlarged_width,
            target.enlarged_height,
            upscaler,
            tile=options["ESRGAN_tile"],
            overlap=options["ESRGAN_tile_overlap"],
            generator=generator,
        )
        encoded.append(encode_pictures(vae, pixels_to_vae_input([large]).to(latents.device), generator))
    return crop_latents(torch.cat(encoded), target)
