"""From the last latents to what the user gets: pixels, the safety checker, faces."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images.vae import quantize_pixels


def finite_latents(latents: Tensor) -> Tensor:
    """The latents, or a ValueError that says what NaN and Inf in them usually mean."""
    if not torch.isfinite(latents).all():
        raise ValueError(
            "The latents hold NaN or infinite values, so there is no picture to decode. Half precision "
            "overflow in the UNet or a broken network file does this: load the model in bfloat16 or float32, or draw "
            "without networks."
        )
    return latents


def hide_flagged(pipe: Any, pixels: Tensor) -> tuple[Tensor, list[bool] | None]:
    """Run the pipeline's safety checker over pixels (b, 3, h, w) in [0, 1]; flagged pictures come back black."""
    if getattr(pipe, "safety_checker", None) is None:
        return pixels, None
    _, flags = pipe.run_safety_checker(pixels * 2 - 1, pixels.device, pipe.unet.dtype)
    for index, flagged in enumerate(flags):
        if flagged:
            pixels[index] = 0
    return pixels, list(flags)


def pictures_of(
    pixels: Tensor, output_type: str, *, truncates: bool, restore: Callable[[np.ndarray], np.ndarray] | None = None
) -> list[Image.Image] | np.ndarray | Tensor:
    """Pixels (b, 3, h, w) in [0, 1] as "pil", "np" (b, h, w, 3) or "pt".

    truncates: 8-bit values are cut off, as in the webui; else rounded, as in diffusers. restore: applied to each
    8-bit picture (h, w, 3); the result is then 8-bit for every output type.
    """
    if restore is None and output_type == "pt":
        return pixels
    if restore is None and output_type == "np":
        return pixels.permute(0, 2, 3, 1).cpu().float().numpy()
    if truncates:
        eight_bit = quantize_pixels(pixels)
    else:
        eight_bit = (pixels.permute(0, 2, 3, 1).cpu().float().numpy() * 255).round().astype(np.uint8)
    if restore is not None:
        eight_bit = np.stack([restore(picture) for picture in eight_bit])
    if output_type == "pil":
        return [Image.fromarray(picture) for picture in eight_bit]
    values = eight_bit.astype(np.float32) / 255
    return values if output_type == "np" else torch.from_numpy(values).permute(0, 3, 1, 2)
