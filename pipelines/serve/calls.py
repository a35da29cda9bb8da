"""From a request of the webui's API to calls of the pipelines: names, numbers and settings, nothing loaded.

    request  ->  Generation(arguments of each batch, which model, what to answer)

Values are names: of samplers, upscalers, models, networks. None of them is opened as a path, here or later.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...loaders.utils import NameFromText
from ..infotext.read import parse_infotext
from ..infotext.styles import PromptStyle, apply_styles
from ..infotext.tidy import tidy_infotext
from ..infotext.to_call import call_arguments
from ..options import WEBUI_OPTIONS, webui_settings
from ..prompt.network_tags import split_network_tags
from ..sampling.labels import find_sampler_row, find_schedule
from .pictures import decode_picture
from .requests import MAX_PIXELS, GenerationRequest, Img2ImgRequest, Txt2ImgRequest


RESIZE_MODES = ("stretch", "crop", "fill", "latent")
FILL_MODES = ("fill", "original", "latent noise", "latent nothing")
NOISE_SOURCES = {"GPU": "gpu", "CPU": "cpu", "NV": "nv"}
LARGEST_SEED = 2**32 - 1

# Settings that are no option of a call but of the server: name -> default.
SERVER_SETTINGS: dict[str, Any] = {
    "sd_model_checkpoint": "",
    "sd_checkpoint_hash": "",
    "sd_vae": "Automatic",
    "randn_source": "GPU",
    "face_restoration": False,
    "face_restoration_model": "CodeFormer",
    "tiling": False,
    "samples_format": "png",
    "upscaler_for_img2img": "None",
}


class BadRequestField(ValueError):
    """A field whose value cannot be honoured."""

    def __init__(self, name: str, problem: str):
        super().__init__(f"`{name}`: {problem}")
        self.name = name


@dataclass(frozen=True)
class Batch:
    """One call of a pipeline: the seeds of its images."""

    seeds: list[int]
    subseeds: list[int]


@dataclass
class Generation:
    """All that a request asks for."""

    kind: str  # "txt2img" or "img2img"
    arguments: dict[str, Any]  # of every call, but for seeds
    batches: list[Batch]
    settings: dict[str, Any]  # the server's, with the request's own
    refiner: str | None = None
    hires_model: str | None = None
    send_images: bool = True
    save_images: bool = False
    init_images: list[str] = field(default_factory=list)  # as sent, where the answer returns them


def settings_with(current: Mapping[str, Any], changes: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """Settings after changes. Raises BadRequestField for a name that is no setting here."""
    for name in changes or {}:
        if name not in WEBUI_OPTIONS and name not in SERVER_SETTINGS:
            raise BadRequestField(f"{where}.{name}", "is no setting here; GET options lists them")
    return {**current, **(changes or {})}


def txt2img_generation(
    request: Txt2ImgRequest, current: Mapping[str, Any], styles: Mapping[str, PromptStyle]
) -> Generation:
    """A txt2img request as calls. current: the server's settings. Raises BadRequestField."""
    made = _generation("txt2img", request, current, styles)
    call, asks_size = made.arguments, bool(request.hr_resize_x or request.hr_resize_y)
    if request.firstpass_image is not None:
        raise BadRequestField("firstpass_image", "is not taken; send it to img2img")
    if not request.enable_hr:
        return made
    if request.firstphase_width or request.firstphase_height:
        raise BadRequestField("firstphase_width", "belongs to the webui before 1.0; use `width` and hr_scale")
    call["hires_strength"] = 0.75 if request.denoising_strength is None else request.denoising_strength
    if asks_size:
        call["hires_size"] = (request.hr_resize_x, request.hr_resize_y)
    else:
        call["hires_scale"] = request.hr_scale
    call["hires_upscaler"] = NameFromText(request.hr_upscaler or "Latent")
    call["hires_steps"] = request.hr_second_pass_steps
    for name, value in (("hires_prompt", request.hr_prompt), ("hires_negative_prompt", request.hr_negative_prompt)):
        if value:
            call[name] = value
    if request.hr_sampler_name and request.hr_sampler_name != "Use same sampler":
        call["hires_sampler"] = _sampler("hr_sampler_name", request.hr_sampler_name)
    if request.hr_scheduler and request.hr_scheduler != "Use same scheduler":
        call["hires_schedule"] = _schedule("hr_scheduler", request.hr_scheduler)
    if request.hr_checkpoint_name and request.hr_checkpoint_name != "Use same checkpoint":
        made.hires_model = request.hr_checkpoint_name
    return made


def img2img_generation(
    request: Img2ImgRequest, current: Mapping[str, Any], styles: Mapping[str, PromptStyle]
) -> Generation:
    """An img2img request as calls. Raises BadRequestField."""
    if not request.init_images:
        raise BadRequestField("init_images", "is empty: send at least one picture")
    made = _generation("img2img", request, current, styles)
    call = made.arguments
    call["image"] = [decode_picture(text, f"init_images[{i}]") for i, text in enumerate(request.init_images)]
    call["strength"] = request.denoising_strength
    call["resize_mode"] = RESIZE_MODES[request.resize_mode]
    if request.initial_noise_multiplier is not None:
        call["webui_options"]["initial_noise_multiplier"] = request.initial_noise_multiplier
    if request.latent_mask is not None:
        raise BadRequestField("latent_mask", "is not taken; send `mask`")
    if request.mask is not None:
        blur = (request.mask_blur_x, request.mask_blur_y) if request.mask_blur is None else request.mask_blur
        call |= {
            "mask_image": decode_picture(request.mask, "mask"),
            "mask_blur": blur,
            "masked_content": FILL_MODES[request.inpainting_fill],
            "inpaint_area": "masked" if request.inpaint_full_res else "whole",
            "masked_padding": request.inpaint_full_res_padding,
            "invert_mask": bool(request.inpainting_mask_invert),
            "soft_mask": not request.mask_round,
        }
    made.init_images = list(request.init_images) if request.include_init_images else []
    return made


def _generation(
    kind: str, request: GenerationRequest, current: Mapping[str, Any], styles: Mapping[str, PromptStyle]
) -> Generation:
    """What both kinds of request have in common."""
    if request.width * request.height > MAX_PIXELS:
        raise BadRequestField("width", f"{request.width}x{request.height} is more than {MAX_PIXELS} pixels")
    settings = settings_with(current, request.override_settings, "override_settings")
    settings["override_settings_restore_afterwards"] = request.override_settings_restore_afterwards
    prompt, negative = _prompts(request, styles)
    schedule = _schedule("scheduler", request.scheduler)
    call: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.steps,
        "guidance_scale": request.cfg_scale,
        "sampler": _sampler("sampler_name", request.sampler_name or request.sampler_index or "Euler"),
        "subseed_strength": request.subseed_strength,
        "noise_source": NOISE_SOURCES.get(str(settings["randn_source"]), "gpu"),
        "tiling": settings["tiling"] if request.tiling is None else request.tiling,
        "webui_options": {name: value for name, value in settings.items() if name in WEBUI_OPTIONS},
    }
    if schedule is not None:
        call["schedule"] = schedule
    if request.seed_resize_from_w > 0 and request.seed_resize_from_h > 0:
        call["seed_resize"] = (request.seed_resize_from_w, request.seed_resize_from_h)
    if request.eta is not None and "eta" in find_sampler_row(call["sampler"]).takes:
        call["eta"] = request.eta
    for name in ("s_min_uncond", "s_churn", "s_tmin", "s_tmax", "s_noise"):
        value = getattr(request, name)
        if value is not None:
            call["webui_options"][name] = value
    faces = settings["face_restoration"] if request.restore_faces is None else request.restore_faces
    if faces:
        call["restore_faces"] = settings["face_restoration_model"]
    made = Generation(kind, call, _batches(request), settings, send_images=request.send_images)
    made.save_images = request.save_images
    if request.refiner_checkpoint and request.refiner_checkpoint != "None" and request.refiner_switch_at is not None:
        made.refiner, call["refiner_switch_at"] = request.refiner_checkpoint, request.refiner_switch_at
    try:
        webui_settings(call["webui_options"])
    except ValueError as error:
        raise BadRequestField("override_settings", str(error)) from error
    return made


def with_infotext(request: GenerationRequest, kind: type) -> GenerationRequest:
    """The request with what its `infotext` says, where the request itself says nothing."""
    if request.infotext is None:
        return request
    said = call_arguments(parse_infotext(tidy_infotext(request.infotext)), img2img=kind is Img2ImgRequest)
    names = {"num_inference_steps": "steps", "guidance_scale": "cfg_scale", "sampler": "sampler_name"}
    names |= {"schedule": "scheduler", "strength": "denoising_strength", "hires_strength": "denoising_strength"}
    names |= {"hires_scale": "hr_scale", "hires_upscaler": "hr_upscaler", "hires_steps": "hr_second_pass_steps"}
    names |= {"hires_prompt": "hr_prompt", "hires_negative_prompt": "hr_negative_prompt"}
    names |= {"hires_sampler": "hr_sampler_name", "hires_schedule": "hr_scheduler"}
    fields: dict[str, Any] = {}
    for argument, value in said.items():
        name = names.get(argument, argument)
        if name in kind.model_fields and value is not None:
            fields[name] = value
    if "hires_scale" in said or "hires_size" in said:
        fields["enable_hr"] = True
    if "hires_size" in said:
        fields["hr_resize_x"], fields["hr_resize_y"] = said["hires_size"]
    if said.get("webui_options"):
        fields["override_settings"] = {**said["webui_options"], **(request.override_settings or {})}
    if said.get("restore_faces"):
        fields["restore_faces"] = True
    given = {name: getattr(request, name) for name in request.model_fields_set if name != "infotext"}
    return kind(**{**fields, **given})


def _prompts(request: GenerationRequest, styles: Mapping[str, PromptStyle]) -> tuple[str, str]:
    """Prompt and negative prompt with the styles that are named, and without tags where they are switched off."""
    for name in request.styles or []:
        if name not in styles:
            raise BadRequestField("styles", f"there is no style {name!r}; GET prompt-styles lists them")
    prompt, negative = apply_styles(request.prompt, request.negative_prompt, request.styles or [], styles)
    if request.disable_extra_networks:
        prompt = split_network_tags(prompt)[0]
    return prompt, negative


def _batches(request: GenerationRequest) -> list[Batch]:
    """The seeds of every call: image i of the request has seed + i, or seed + 0 with its own variation seed."""
    seed = random.randint(0, LARGEST_SEED) if request.seed < 0 else request.seed
    subseed = random.randint(0, LARGEST_SEED) if request.subseed < 0 else request.subseed
    count = request.batch_size * request.n_iter
    fixed = request.subseed_strength != 0  # then images differ by their variation seeds alone
    seeds = [seed if fixed else seed + i for i in range(count)]
    subseeds = [subseed + i for i in range(count)]
    size = request.batch_size
    return [Batch(seeds[i : i + size], subseeds[i : i + size]) for i in range(0, count, size)]


def _sampler(field_name: str, name: str) -> str:
    try:
        return find_sampler_row(name).label
    except ValueError as error:
        raise BadRequestField(field_name, str(error)) from error


def _schedule(field_name: str, name: str | None) -> str | None:
    if not name:
        return None
    try:
        return find_schedule(name)
    except ValueError as error:
        raise BadRequestField(field_name, str(error)) from error
