"""From the last latents to what the user gets: pixels, the safety checker, faces."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from ..loaders.faces.load import load_face_detector, load_face_restorer
from .images.faces.nets import picture_restorer
from .images.vae import quantize_pixels
from .infotext.from_call import call_infotexts, model_facts
from .registry import NetworkUses
from .request import NoiseRequest, PassRequest


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


def face_restoration(
    pipe: Any, name: str | None, fidelity: float | None, options: Mapping[str, Any], generator: Generator | None = None
) -> Callable[[np.ndarray], np.ndarray] | None:
    """What `restore_faces=name` does to an 8-bit picture (h, w, 3), as the webui does it; None for nothing.

    The pipeline's component `face_restorer` is what restores, whatever its kind; without one, the file known by
    `name` ("CodeFormer", "GFPGAN", a path) is loaded once. Without `face_detector`, MTCNN finds the faces.
    fidelity: 0..1; None is the option `code_former_weight`.
    """
    if name is None or name == "None":
        return None
    restorer = pipe.face_restorer
    if restorer is None:
        restorer = pipe.attached.face_model(name, load_face_restorer)
    detector = pipe.face_detector
    if detector is None:
        detector = pipe.attached.face_model("MTCNN", load_face_detector)
    device = pipe._execution_device
    weight = options["code_former_weight"] if fidelity is None else fidelity
    return picture_restorer(
        restorer.to(device), detector.to(device), pipe.face_parser, fidelity=weight, generator=generator
    )


def picture_texts(
    pipe: Any,
    given: Mapping[str, Any],
    seeds: NoiseRequest | None,
    first: PassRequest,
    uses: NetworkUses,
    names: Sequence[str],
) -> list[str]:
    """The "parameters" text of each image. given: the call's arguments; names: the textual inversions in use."""
    hashes = pipe.attached.embedding_hashes()
    facts: dict[str, Any] = {"width": first.asked_size[1], "height": first.asked_size[0]}
    facts |= model_facts(pipe)
    if uses:
        facts["Lora hashes"] = pipe.attached.lora_hashes(uses)
    if first.sampler is None:
        facts["sampler_name"] = type(pipe.scheduler).__name__
    if names:
        facts["TI hashes"] = ", ".join(f"{name.replace(':', '').replace(',', '')}: {hashes[name]}" for name in names)
    return call_infotexts(given, seeds and seeds.seeds, seeds and seeds.subseeds, facts)
