"""Between latents and pixels, with the arithmetic of the webui.

    latents (b, c, h, w) --decode_latents--> pixels (b, 3, 8h, 8w) in [0, 1]
                         --latents_to_pixels--> the same, cut off to 8 bits: (b, 8h, 8w, 3) uint8
    pictures --pixels_to_vae_input--> (b, 3, h, w) in [-1, 1] --encode_pictures--> latents

Every picture goes through the VAE alone, as in the webui, so its pixels do not depend on its neighbours in the batch
and memory does not grow with the batch.
"""

from collections.abc import Callable, Sequence
from weakref import WeakSet

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor, nn

from ...loaders.casting import cast
from ...loaders.model_lock import model_gate
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
    decoded = finite_or_float32(vae, decode, inputs, "decoded image")
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
    TAESD (AutoencoderTiny) gives latents as they are, and nothing is drawn.
    """

    def encode(x: Tensor) -> Tensor:
        found = vae.encode(x)
        return found.latent_dist.parameters if hasattr(found, "latent_dist") else found.latents

    latents = []
    shift, deviation = _latents_scale(vae, pixels.device)
    inputs = [picture[None] for picture in pixels]
    for parameters in finite_or_float32(vae, encode, inputs, "encoded image"):
        if parameters.shape[1] == vae.config.latent_channels:
            latents.append(vae.config.scaling_factor * parameters)
            continue
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


def needs_float32(vae: nn.Module) -> None:
    """Remember that a VAE overflows in float16, so that it is not tried in it again."""
    _OVERFLOWED.add(vae)


def finite_or_float32(
    vae: nn.Module, run: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], what: str
) -> list[Tensor]:
    """run(x) for each x in the VAE's dtype, as float32; from the first one that overflows on with the VAE in float32.

    An overflow is remembered: later images begin in float32. The VAE gets its dtype back, also after an error, and
    nobody else runs it meanwhile. Raises ValueError when an output is not finite even then, or when the VAE's weights
    lie where they cannot be converted (sequential offloading).
    """
    done: list[Tensor] = []
    with model_gate().part_lock(vae):
        dtype = vae.dtype  # read here: another thread's images may have it in float32 until now
        if dtype != torch.float16 or vae not in _OVERFLOWED:
            for x in inputs:
                y = run(x.to(dtype)).float()
                if not torch.isfinite(y).all():
                    _refuse_not_finite(x, f"The VAE's input for the {what}")
                    break
                done.append(y)
        rest = inputs[len(done) :]
        if not rest:
            return done
        if dtype != torch.float32 and not any(weight.is_meta for weight in vae.parameters()):
            if vae not in _OVERFLOWED:
                LOGGER.warning("The VAE overflowed in %s; it draws in float32 from now on.", dtype)
            needs_float32(vae)
            try:
                cast(vae, torch.float32)
                return done + [_checked_finite(run(x.float()), what, dtype) for x in rest]
            finally:
                cast(vae, dtype)
        return done + [_checked_finite(run(x.to(dtype)).float(), what, dtype) for x in rest]


def _refuse_not_finite(x: Tensor, what: str) -> None:
    if not torch.isfinite(x).all():
        raise ValueError(
            f"{what} contains NaN or Inf: they were produced earlier, by the UNet or the sampler. Half precision "
            "overflow in the UNet is the usual reason: load the model in bfloat16 or float32."
        )


def _checked_finite(y: Tensor, what: str, dtype: torch.dtype) -> Tensor:
    if torch.isfinite(y).all():
        return y
    raise ValueError(
        f"The {what} contains NaN or Inf (VAE in {dtype}). Half-precision overflow or a broken VAE file does this: "
        "load the VAE in float32, or take another one."
    )


_OVERFLOWED: "WeakSet[nn.Module]" = WeakSet()
