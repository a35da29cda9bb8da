"""Where diffusers' own pipeline is meant: the drop-in half of the drawing pipelines.

With diffusers' arguments alone and prompts without the webui's syntax, diffusers' own code draws, so the picture is
its picture bit for bit, with any scheduler and any of its features.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from .output import WebUIPipelineOutput


def diffusers_pipeline(pipe: Any) -> type:
    """The diffusers pipeline that `pipe` stands in for, for the kind of model that is loaded."""
    return pipe._stands_for[pipe.is_sdxl]


def asks_for_diffusers_own(pipe: Any, given: Mapping[str, Any]) -> bool:
    """Whether only diffusers' arguments are given, and prompts without syntax that fit one chunk.

    given: the call's arguments by name.
    """
    defaults = signature(type(pipe).__call__).parameters
    own = signature(diffusers_pipeline(pipe).__call__).parameters
    for name, value in given.items():
        default = defaults[name].default
        if name not in own and value is not None and (default is None or value != default):
            return False
    if given["clip_skip"] is not None and not pipe.is_sdxl:
        return False  # diffusers' own reads `text_encoder.text_model`, which transformers 5 no longer has
    texts = [given[name] for name in ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")]
    flat = [t for text in texts if text is not None for t in ([text] if isinstance(text, str) else text)]
    if not all(isinstance(text, str) for text in flat):
        return False
    encoder = pipe.attached.encoder(pipe) if flat else None
    return encoder is None or all(encoder.is_plain(text) for text in flat)


def draw_as_diffusers(
    pipe: Any, given: Mapping[str, Any], deprecated: Mapping[str, Any]
) -> WebUIPipelineOutput | tuple:
    """diffusers' own call, with its own arguments out of `given`."""
    parent = diffusers_pipeline(pipe)
    known = signature(parent.__call__).parameters
    arguments = {name: value for name, value in given.items() if name in known}
    for name in ("eta", "crops_coords_top_left", "negative_crops_coords_top_left"):  # our None is its default
        if name in arguments and arguments[name] is None:
            arguments[name] = known[name].default
    arguments["callback_on_step_end_tensor_inputs"] = list(given["callback_on_step_end_tensor_inputs"])
    output = parent.__call__(pipe, **arguments, **deprecated)
    if not given["return_dict"]:
        return output
    return WebUIPipelineOutput(output.images, getattr(output, "nsfw_content_detected", None), None, [])


def argument_or_default(pipe: Any, name: str, value: Any) -> Any:
    """The argument `name` of a call, by default that of diffusers' pipeline: kinds of models differ in some."""
    return signature(diffusers_pipeline(pipe).__call__).parameters[name].default if value is None else value


def size_or_default(pipe: Any, width: int | None, height: int | None, sampler: str | None) -> tuple[int, int]:
    """(width, height) in pixels. SDXL takes any with a sampler named: it is told them, and the latents are cut."""
    sample = pipe.unet.config.sample_size
    rows, columns = (sample, sample) if isinstance(sample, int) else sample
    width, height = width or columns * pipe.vae_scale_factor, height or rows * pipe.vae_scale_factor
    if (width % 8 or height % 8) and not (pipe.is_sdxl and sampler is not None):
        raise ValueError(
            f"`width` and `height` must be multiples of 8 (a latent cell is 8x8 pixels); got {width}x{height}. "
            f"The nearest are {round(width / 8) * 8 or 8}x{round(height / 8) * 8 or 8}."
        )
    return width, height


def ip_adapter_embeds(pipe: Any, given: Mapping[str, Any], count: int) -> tuple[list[Tensor], list[Tensor]] | None:
    """The IP-Adapter's embeddings of `count` images, positive and negative, one row an image; None without one."""
    image, embeds = given["ip_adapter_image"], given["ip_adapter_image_embeds"]
    if image is None and embeds is None:
        return None
    two_sided = image is not None or given["guidance_scale"] > 1  # given embeddings have both sides, as in diffusers
    rows = pipe.prepare_ip_adapter_image_embeds(image, embeds, pipe._execution_device, count, two_sided)
    if not two_sided:
        return rows, [torch.zeros_like(positive) for positive in rows]
    pairs = [both.chunk(2) for both in rows]
    return [positive for _, positive in pairs], [negative for negative, _ in pairs]
