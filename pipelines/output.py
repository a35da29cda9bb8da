"""What the drawing pipelines return, and how the last latents become that."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from .images.coerce import pictures_as
from .images.vae import decode_latents, quantize_pixels
from .infotext.files import PICTURE_FORMATS, save_picture, save_pictures


Edit = Callable[[list[Image.Image]], list[Image.Image]]


@dataclass
class WebUIPipelineOutput(BaseOutput):
    """Images and what is known of them. A call with `return_dict=False` gives (images, nsfw_content_detected).

    images: PIL images, or an array (b, h, w, 3) in [0, 1], or a tensor (b, 3, h, w) in [0, 1], or latents.
    nsfw_content_detected: one flag an image, None without a safety checker.
    infotexts: the "parameters" text of each image, as the webui writes it.
    seeds: the seed of each image; of a `generator` the one it was made with, if nothing was drawn from it before.
        Empty where none is known.
    control_images: what the units of `control_units` were shown, one image a unit, or two with hires fix, of which
        the larger comes first; black where a mask shows what is drawn anew. None without units.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    nsfw_content_detected: list[bool] | None = None
    infotexts: list[str] | None = None
    seeds: list[int] | None = None
    control_images: list[Image.Image] | None = None

    def save(self, path: str | Path, pattern: str = "[number]-[seed]", **kwargs: Any) -> list[Path]:
        """Write the images with their texts. Gives the paths. Needs `output_type="pil"`.

        path: a file of an image format, for a single image; else a folder, where `pattern` makes the names and no
        file that is there is written over. kwargs: `quality`, `lossless`; for a folder also `extension`.
        """
        if Path(path).suffix.lower() in PICTURE_FORMATS and len(self.images) == 1:
            return [save_picture(self.images[0], path, self.infotexts[0] if self.infotexts else None, **kwargs)]
        return save_pictures(self.images, self.infotexts, path, pattern, **kwargs)


def decoded_pixels(pipe: Any, latents: Tensor, *, vae: Any = None) -> tuple[Tensor, list[bool] | None]:
    """Latents to pixels (b, 3, h, w) in [0, 1], and what the safety checker says of each: flagged ones are black.

    vae: the one that decodes, by default the pipeline's. Raises ValueError for latents that are not finite.
    """
    if not torch.isfinite(latents).all():
        raise ValueError(
            "The latents contain NaN or Inf: they were produced by the UNet or the sampler. Half precision overflow "
            "or a broken network file does this: load the model in bfloat16 or float32, or draw without networks."
        )
    pixels = decode_latents(pipe.vae if vae is None else vae, latents)
    if pipe.safety_checker is None:
        return pixels, None
    _, flags = pipe.run_safety_checker(pixels * 2 - 1, pixels.device, pipe.unet.dtype)
    for index, flagged in enumerate(flags):
        if flagged:
            pixels[index] = 0
    return pixels, list(flags)


def output_images(
    pixels: Tensor, output_type: str, *, truncates: bool, edits: Sequence[Edit | None] = ()
) -> list[Image.Image] | np.ndarray | Tensor:
    """Pixels (b, 3, h, w) in [0, 1] as "pil", "np" (b, h, w, 3) or "pt".

    truncates: 8-bit values are cut off, as in the webui; else rounded, as in diffusers. edits: what is done to the
    8-bit images, in order, None for nothing; the result is then 8-bit for every output type.
    """
    edits = [edit for edit in edits if edit]
    if not edits and output_type == "pt":
        return pixels
    if not edits and output_type == "np":
        return pixels.permute(0, 2, 3, 1).cpu().float().numpy()
    if truncates:
        values = quantize_pixels(pixels)
    else:
        values = (pixels.permute(0, 2, 3, 1).cpu().float().numpy() * 255).round().astype(np.uint8)
    pictures = [Image.fromarray(picture) for picture in values]
    for edit in edits:
        pictures = edit(pictures)
    return pictures_as(pictures, output_type)
