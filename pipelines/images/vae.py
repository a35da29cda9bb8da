"""Between latents and pixels, with the arithmetic of the webui.

    latents (b, c, h, w) --decode_latents--> pixels (b, 3, 8h, 8w) in [0, 1]
                         --latents_to_pixels--> the same, cut off to 8 bits: (b, 8h, 8w, 3) uint8
    pictures --pixels_to_vae_input--> (b, 3, h, w) in [-1, 1] --encode_pictures--> latents

Every picture goes through the VAE alone, as in the webui, so its pixels do not depend on its neighbours in the batch
and memory does not grow with the batch.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor, nn

from ...loaders.utils import LOGGER


def decode_latents(vae: nn.Module, latents: Tensor) -> Tensor:
    """Latents (b, c, h, w), scaled as the UNet sees them, to pixels (b, 3, 8h, 8w), float32 in [0, 1].

    Multiplies by the reciprocal of the scaling factor as the webui does; diffusers divides, which differs in the last
    bit. A half-precision VAE whose output is not finite is run again in float32; see `finite_or_float32`.
    """
    factor = 1.0 / vae.config.scaling_factor
    mean, deviation = _latents_scale(vae, latents.device)

    def decode(z: Tensor) -> Tensor:
        return vae.decode(z, return_dict=False)[0]

    inputs = [
        factor * z.float()[None] if mean is None else factor * z.float()[None] * deviation + mean for z in latents
    ]
    decoded = [finite_or_float32(vae, decode, z, "decoded picture") for z in inputs]
    return ((torch.cat(decoded) + 1.0) / 2.0).clamp(0.0, 1.0)


def latents_to_pixels(vae: nn.Module, latents: Tensor) -> np.ndarray:
    """Latents (b, c, h, w) to the webui's 8-bit pixels: (b, 8h, 8w, 3) uint8 RGB."""
    return quantize_pixels(decode_latents(vae, latents))


def quantize_pixels(pixels: Tensor) -> np.ndarray:
    """Pixels (b, 3, h, w) in [0, 1] to (b, h, w, 3) uint8. The webui cuts off and does not round: 0.999 is 254."""
    return (pixels.detach().permute(0, 2, 3, 1).float().cpu().numpy() * np.float32(255.0)).astype(np.uint8)


def pixels_to_vae_input(pictures: Sequence[Image.Image | np.ndarray]) -> Tensor:
    """Pictures of one size, RGB (PIL or (h, w, 3) uint8), to (b, 3, h, w) float32 in [-1, 1]."""
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"The VAE takes 8-bit RGB pictures; got {pixels.dtype} of shape {pixels.shape[1:]}. Convert them to RGB."
        )
    scaled = torch.from_numpy(pixels.astype(np.float32) / np.float32(255.0))
    return scaled.permute(0, 3, 1, 2).contiguous() * 2.0 - 1.0


def encode_pictures(vae: nn.Module, pixels: Tensor, generator: Generator | None = None) -> Tensor:
    """Pixels (b, 3, h, w) in [-1, 1], on the VAE's device, to latents (b, c, h // 8, w // 8), float32.

    factor * (mean + std * n), with n one draw of (1, c, h, w) per picture in order, by `generator` where it lives, or
    by torch's global one on the CPU. In the webui it is the global one, which in a hires pass stands at the seed of
    the last picture of the batch (noise sources "cpu" and "gpu"), and in img2img wherever it happens to stand.
    """

    def encode(x: Tensor) -> Tensor:
        return vae.encode(x).latent_dist.parameters

    latents = []
    shift, deviation = _latents_scale(vae, pixels.device)
    for picture in pixels:
        parameters = finite_or_float32(vae, encode, picture[None], "encoded picture")
        mean, logvar = parameters.chunk(2, dim=1)
        std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
        home = "cpu" if generator is None else generator.device
        noise = torch.randn(mean.shape, generator=generator, device=home).to(mean.device)
        drawn = mean + std * noise
        drawn = drawn if shift is None else (drawn - shift) / deviation
        latents.append(vae.config.scaling_factor * drawn)
    return torch.cat(latents)


def _latents_scale(vae: nn.Module, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Mean and deviation of the latents by channel, (1, c, 1, 1) each, of a model that was trained on standardised
    ones (Playground v2.5); else None."""
    mean, deviation = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or deviation is None:
        return None, None
    mean, deviation = (torch.tensor(numbers, device=device).view(1, -1, 1, 1) for numbers in (mean, deviation))
    return mean, deviation


def finite_or_float32(vae: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor, what: str) -> Tensor:
    """run(x) in the VAE's dtype, as float32; once more with the VAE in float32 where half precision overflowed.

    The VAE gets its dtype back, also after an error. Raises ValueError when the output is not finite even then, or
    when its weights lie where they cannot be converted (sequential offloading).
    """
    dtype = vae.dtype
    y = run(x.to(dtype)).float()
    if torch.isfinite(y).all():
        return y
    if not torch.isfinite(x).all():
        raise ValueError(
            f"The VAE's input for the {what} holds NaN or infinite values, so it was spoilt before. Half precision "
            "overflow in the UNet is the usual reason: load the model in bfloat16 or float32."
        )
    if dtype != torch.float32 and not any(weight.is_meta for weight in vae.parameters()):
        LOGGER.warning("The VAE overflowed in %s; the picture is made again with it in float32.", dtype)
        try:
            vae.to(dtype=torch.float32)
            y = run(x.float())
        finally:
            vae.to(dtype=dtype)
        if torch.isfinite(y).all():
            return y
    raise ValueError(
        f"The {what} holds NaN or infinite values (VAE in {dtype}). Half-precision overflow or a broken VAE file "
        "does this: load the VAE in float32, or take another one."
    )
