"""What a call did, for the texts under its images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from ..loaders.lora.read import Network
from .control.units import unit_texts
from .infotext.from_call import Drawn, options_read, schedule_read
from .loras import lora_hashes
from .options import WEBUI_OPTIONS
from .registry import model_facts, model_label, vae_facts
from .request import NoiseRequest, Pass, Request


def request_drawn(
    pipe: Any,
    request: Request,
    embeddings: Sequence[str],
    second_embeddings: Sequence[str] = (),
    details: Sequence[Mapping[str, Any]] = (),
) -> Drawn:
    """What was drawn for a request. embeddings: names of the textual inversions in use, by pass. details: the fields
    of the detailing passes, one mapping an image."""
    first, second, options = request.first, request.second, request.options
    plans = [plan for plan in (first, second) if plan is not None]
    samplers = [(plan.sampler, plan.schedule) for plan in plans if plan.sampler is not None]
    changed = {name: value for name, value in options.items() if value != WEBUI_OPTIONS[name]}
    arguments = {
        "num_inference_steps": first.steps,
        "guidance_scale": first.guidance.guidance_scale,
        "guidance_rescale": first.guidance.guidance_rescale,
        "freeu": first.guidance.freeu,
        **_pag_arguments(first),
        "width": first.asked_size[1],
        "height": first.asked_size[0],
        "clip_skip": request.prompt_settings.CLIP_stop_at_last_layers - 1,
        "tiling": request.tiling,
        "restore_faces": request.faces and request.faces.name,
        "refiner_switch_at": first.guidance.refiner_switch_at,
        "webui_options": options_read(changed, request.eta, samplers),
        **_sampler_names("", first, request.scheduler),
        **_noise_arguments(request.noise),
        **_hires_arguments(request),
    }
    if request.init is not None:
        asked = request.init.arguments
        if request.init.images.area is None:  # also where the mask was black
            asked = replace(asked, inpaint_area="whole")
        arguments |= {"strength": first.strength, **asked.written(masked=request.init.masked)}
    loras = [lora for plan in plans for lora in plan.loras]
    names = [name for name in second_embeddings if name not in embeddings] + list(embeddings)
    networks = [lora.network for lora in loras]
    fields = {
        "Lora hashes": lora_hashes(loras),
        "TI hashes": _embedding_hashes(pipe, names, networks),
        "Refiner": model_label(pipe.refiner, "refiner") if any(plan.refines for plan in plans) else None,
        **unit_texts(request.units),
    }
    return Drawn(
        prompts=first.written,
        negatives=first.negatives,
        arguments=arguments,
        hires_prompts=second.written if second is not None else (),
        hires_negatives=second.negatives if second is not None else (),
        seeds=request.seeds,
        subseeds=request.noise.subseeds,
        settings={**model_facts(pipe), **vae_facts(pipe)},
        # of a unit with a comma in a name the webui writes the label alone
        fields={label: value for label, value in fields.items() if value or label.startswith("ControlNet")},
        leading=_leading_fields(request, details),
    )


def _embedding_hashes(pipe: Any, names: Sequence[str], networks: Sequence[Network] = ()) -> str:
    """Names and hashes of textual inversions, as "TI hashes" has them. networks: in which some may be."""
    hashes = pipe.attached.embedding_hashes(networks) if names else {}
    return ", ".join(f"{name.replace(':', '').replace(',', '')}: {hashes[name]}" for name in names)


def _leading_fields(request: Request, details: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The fields of soft inpainting, of a script and of the detailing passes, one mapping an image."""
    init, script = request.init, request.script
    shared: dict[str, Any] = {}
    if init is not None and init.masked and init.arguments.soft is not None:
        shared |= init.arguments.soft.fields
    if script is not None:
        shared |= script.fields
    last: dict[str, Any] = {}
    if request.enlargement is not None and request.enlargement.pipe is not None:
        last["Hires checkpoint"] = model_label(request.enlargement.pipe, "another checkpoint")
    return [{**shared, **fields, **last} for fields in details or [{}]]


def stock_noise(pipe: Any, given: Mapping[str, Any]) -> NoiseRequest:
    """The noise of diffusers' own pipeline. Where the model lies counts only without a generator: it takes a while."""
    generator = given["generator"]
    return NoiseRequest(generator=generator) if generator else NoiseRequest(device=pipe.unet.device)


def stock_drawn(
    pipe: Any,
    given: Mapping[str, Any],
    images: Any,
    noise: NoiseRequest,
    seeds: Sequence[int],
    embeddings: Sequence[str] = (),
) -> Drawn:
    """What diffusers' own pipeline drew. given: the arguments that it was called with, and its scheduler; images: what
    it gave. embeddings: names of the textual inversions in use."""
    steps = next((len(given[name]) for name in ("timesteps", "sigmas") if given.get(name) is not None), None)
    width, height = _image_size(images[0], pipe.vae_scale_factor)
    padding = given.get("padding_mask_crop")
    if padding is not None:  # drawn at that size, and put into an image of another one
        width, height = given["width"], given["height"]
    arguments = {
        "num_inference_steps": given["num_inference_steps"] if steps is None else steps,
        "guidance_scale": given["guidance_scale"],
        "guidance_rescale": given.get("guidance_rescale"),
        "sampler": type(given["scheduler"]).__name__,
        "width": width,
        "height": height,
        "clip_skip": given.get("clip_skip"),
        "strength": given.get("strength"),
        "inpaint_area": "whole" if padding is None else "masked",
        "masked_padding": padding,
        **_noise_arguments(noise),
    }
    return Drawn(
        prompts=_by_image(given["prompt"], len(images)),
        negatives=_by_image(given["negative_prompt"], len(images)),
        arguments=arguments,
        seeds=seeds,
        settings={**model_facts(pipe), **vae_facts(pipe)},
        fields={"TI hashes": hashes} if (hashes := _embedding_hashes(pipe, embeddings)) else {},
    )


def _sampler_names(prefix: str, plan: Pass, scheduler: Any) -> dict[str, Any]:
    """Sampler and schedule of a pass by the labels it was drawn with; of a scheduler, its class."""
    if plan.sampler is None:
        return {f"{prefix}sampler": type(scheduler).__name__}
    return {f"{prefix}sampler": plan.sampler.label, f"{prefix}schedule": schedule_read(plan.sampler, plan.schedule)}


def _pag_arguments(plan: Pass) -> dict[str, Any]:
    pag = plan.guidance.pag
    if pag is None:
        return {}
    return {
        "pag_scale": pag.scale,
        "pag_adaptive_scale": pag.adaptive_scale,
        "pag_applied_layers": pag.applied_layers,
    }


def _hires_arguments(request: Request) -> dict[str, Any]:
    second, before = request.second, request.enlargement
    if second is None:
        return {}
    scale = second.guidance.guidance_scale
    return {
        "hires_scale": before.scale,
        "hires_size": before.size,
        "hires_upscaler": before.label,
        "hires_steps": before.steps,
        "hires_strength": second.strength,
        "hires_guidance_scale": None if scale == request.first.guidance.guidance_scale else scale,
        **_sampler_names("hires_", second, request.scheduler),
    }


def _noise_arguments(noise: NoiseRequest) -> dict[str, Any]:
    """Arguments about seeds. A generator on the CPU draws what the webui's noise source "cpu" does."""
    if noise.seeds is None:
        first = noise.generator[0] if isinstance(noise.generator, list) else noise.generator
        device = noise.device if first is None else first.device
        return {"noise_source": "cpu" if device.type == "cpu" else "gpu"}
    return {
        "noise_source": noise.source,
        "subseed_strength": noise.subseed_strength,
        "seed_resize": noise.seed_resize,
    }


def _by_image(text: Any, count: int) -> list[str]:
    """The text of each image, from one for all or one a prompt."""
    texts = [text or ""] if text is None or isinstance(text, str) else list(text)
    return [texts[i * len(texts) // count] for i in range(count)]


def _image_size(image: Any, cell: int) -> tuple[int, int]:
    """(width, height) in pixels of an image of any output type."""
    if isinstance(image, Tensor):
        factor = 1 if image.shape[0] == 3 else cell
        return image.shape[2] * factor, image.shape[1] * factor
    return (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size
