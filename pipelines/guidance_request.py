"""The arguments of a call that say how the UNet is run and its outputs are combined, read into a Guidance."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..loaders.utils import unknown_choice
from .argument_values import is_finite_number
from .call_state import models_had
from .drop_in import argument_or_default
from .sampling.denoiser import Guidance
from .sampling.perturbed import FREEU_FACTORS, PerturbedAttention, self_attentions


def requested_guidance(pipe: Any, given: Mapping[str, Any], options: Mapping[str, Any], count: int) -> Guidance:
    """The guidance of a call's first pass. count: how many images. Raises ValueError for what cannot be done."""
    scale = argument_or_default(pipe, "guidance_scale", given)
    return Guidance(
        guidance_scale=scale,
        guidance_rescale=given["guidance_rescale"],
        do_classifier_free_guidance=given["sampler"] is not None or scale > 1,
        s_min_uncond=options["s_min_uncond"],
        s_min_uncond_all=options["s_min_uncond_all"],
        skip_early_cond=options["skip_early_cond"],
        repeats_last=given["sampler"] is not None,
        pad_cond_uncond=options["pad_cond_uncond"],
        pad_cond_uncond_v0=options["pad_cond_uncond_v0"],
        batch_cond_uncond=options["batch_cond_uncond"],
        enable_quantization=options["enable_quantization"],
        refiner_switch_at=given["refiner_switch_at"],
        refiner_switch_by_sample_steps=options["refiner_switch_by_sample_steps"],
        cross_attention_kwargs=given["cross_attention_kwargs"],
        image_embeds=_ip_adapter_embeds(pipe, given, scale, count),
        pag=_perturbed_attention(pipe.unet, given),
        freeu=read_freeu(given["freeu"]),
    )


def read_freeu(factors: Any) -> dict[str, float] | None:
    """The argument `freeu`, as `enable_freeu` takes it. Raises ValueError unless it is four numbers above 0."""
    if factors is None:
        return None
    if not isinstance(factors, Mapping):
        raise ValueError(f"`freeu` must be a dict of {', '.join(FREEU_FACTORS)}; got {factors!r:.60}.")
    for name, value in factors.items():
        if name not in FREEU_FACTORS:
            raise ValueError(unknown_choice("`freeu`:", name, FREEU_FACTORS))
        if not is_finite_number(value) or value <= 0:
            raise ValueError(f"`freeu`: `{name}` must be a number above 0; got {value!r:.60}.")
    if missing := [name for name in FREEU_FACTORS if name not in factors]:
        raise ValueError(
            f"`freeu` lacks {', '.join(missing)}: all of b1, b2 (1.1, 1.2), s1 and s2 (0.9, 0.2) are needed."
        )
    return {name: float(factors[name]) for name in FREEU_FACTORS}


def _perturbed_attention(unet: Any, given: Mapping[str, Any]) -> PerturbedAttention | None:
    scale, adaptive = given["pag_scale"], given["pag_adaptive_scale"]
    if scale < 0 or adaptive < 0:
        raise ValueError(f"`pag_scale` and `pag_adaptive_scale` must be 0 or more; got {scale} and {adaptive}.")
    layers = given["pag_applied_layers"]
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    if scale == 0 or not layers:
        return None
    if not all(isinstance(layer, str) for layer in layers):
        raise ValueError(f"`pag_applied_layers` must be a name or a list of names of layers; got {layers!r:.60}.")
    self_attentions(unet, layers)  # refuses a name that no layer has
    return PerturbedAttention(float(scale), float(adaptive), layers)


def _ip_adapter_embeds(
    pipe: Any, given: Mapping[str, Any], scale: float, count: int
) -> tuple[list[Tensor], list[Tensor]] | None:
    """The IP-Adapter's embeddings of `count` images, cond and uncond, one row an image; None without one."""
    image, embeds = given["ip_adapter_image"], given["ip_adapter_image_embeds"]
    if image is None and embeds is None:
        return None
    both_sides = image is not None or scale > 1  # given embeddings have both, as in diffusers
    with models_had([pipe], changes=False):  # offloading hooks move others' models when the encoder's turn comes
        rows = pipe.prepare_ip_adapter_image_embeds(image, embeds, pipe._execution_device, count, both_sides)
    if not both_sides:
        return rows, [torch.zeros_like(cond) for cond in rows]
    pairs = [both.chunk(2) for both in rows]
    return [cond for _, cond in pairs], [uncond for uncond, _ in pairs]
