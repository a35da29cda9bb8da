"""Between the passes of hires fix: the latents of the first, enlarged."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from .hires import LATENT_UPSCALERS, HiresTarget, crop_latents, enlarge_through_pixels, upscale_latents
from .upscale import UpscalerModel


def enlarge_latents(
    vae: Any,
    latents: Tensor,
    target: HiresTarget,
    upscaler: UpscalerModel | str,
    options: Mapping[str, Any],
    generator: Generator | None,
) -> Tensor:
    """Latents (b, c, h, w) as the second pass takes them: enlarged, and cropped to the target.

    Latent upscalers work without decoding; all others on 8-bit pictures. generator: draws the noise of the VAE's
    encoding; None is torch's global one, as in the webui with the noise source "nv".
    """
    if isinstance(upscaler, str) and upscaler in LATENT_UPSCALERS:
        enlarged = upscale_latents(latents, upscaler, target.enlarged_height, target.enlarged_width)
        return crop_latents(enlarged, target)
    if isinstance(upscaler, torch.nn.Module):
        upscaler.to(latents.device)
    return enlarge_through_pixels(
        vae,
        latents,
        target,
        upscaler,
        generator=torch.default_generator if generator is None else generator,
        tile=options["ESRGAN_tile"],
        overlap=options["ESRGAN_tile_overlap"],
    )
