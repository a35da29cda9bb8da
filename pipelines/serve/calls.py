"""From a request of the webui's API to calls of the pipelines: names, numbers and settings, nothing loaded.

    request  ->  Generation(arguments of each batch, which model, what to answer)

Values are names: of samplers, upscalers, models, networks. None of them is opened as a path, here or later.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...loaders.utils import NameFromRequest
from ..infotext.styles import PromptStyle, apply_styles
from ..options import WEBUI_OPTIONS
from ..prompt.network_tags import split_network_tags
from ..sampling.labels import AUTOMATIC_SCHEDULE, SamplerRow, find_schedule, resolve_names
from .pictures import decode_picture
from .requests import MAX_IMAGES, MAX_PIXELS, MAX_SIDE, MAX_STEPS, GenerationRequest, Img2ImgRequest, Txt2ImgRequest
from .settings import NOISE_SOURCES, BadRequestField, settings_with


RESIZE_MODES = ("stretch", "crop", "fill", "latent")
FILL_MODES = ("fill", "original", "latent noise", "latent nothing")
LARGEST_SEED = 2**32 - 1
MOST_BATCH = 4  # times MAX_PIXELS: of all images of a batch, and of all init images
FORGE_USUAL = "Use same choices"


@dataclass(frozen=True)
class Batch:
    """One call of a pipeline: the seeds of its images, and their prompts where they are not all the same."""

    seeds: list[int]
    subseeds: list[int]
    prompts: list[str] | None = None
    negatives: list[str] | None = None


@dataclass
class Generation:
    """All that a request asks for."""

    kind: str  # "txt2img" or "img2img"
    arguments: dict[str, Any]  # of every call, but for seeds
    batches: list[Batch]
    settings: dict[str, Any]  # the server's, with the request's own
    overrides: dict[str, Any] = field(default_factory=dict)  # of these, what the request changed
    restore_afterwards: bool = True  # whether the request's own settings end with it
    refiner: str | None = None
    hires_model: str | None = None
    send_images: bool = True
    save_images: bool = False
    init_images: list[str] = field(default_factory=list)  # as sent, where the answer returns them
    comments: list[str] = field(default_factory=list)  # what the answer says besides


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
    call["hires_upscaler"] = NameFromRequest(request.hr_upscaler or "Latent")
    call["hires_steps"] = request.hr_second_pass_steps
    for name, value in (("hires_prompt", request.hr_prompt), ("hires_negative_prompt", request.hr_negative_prompt)):
        if value:
            call[name] = value
    schedule = None if request.hr_scheduler == "Use same scheduler" else request.hr_scheduler
    if request.hr_sampler_name and request.hr_sampler_name != "Use same sampler":
        row, label = _sampler("hr_sampler_name", request.hr_sampler_name, "hr_scheduler", schedule)
        call["hires_sampler"] = row.label
        schedule = schedule if label == AUTOMATIC_SCHEDULE else label
    if schedule:
        call["hires_schedule"] = _schedule("hr_scheduler", schedule)
    if request.hr_additional_modules not in ([], [FORGE_USUAL]):
        raise BadRequestField("hr_additional_modules", "is Forge's, and there are none here; leave it out")
    if request.hr_checkpoint_name and request.hr_checkpoint_name != "Use same checkpoint":
        made.hires_model = request.hr_checkpoint_name
    return made


def img2img_generation(
    request: Img2ImgRequest, current: Mapping[str, Any], styles: Mapping[str, PromptStyle]
) -> Generation:
    """An img2img request as calls. Raises BadRequestField."""
    if not request.init_images:
        raise BadRequestField("init_images", "is empty: send at least one picture")
    count = len(request.init_images)
    if count > MAX_IMAGES or 1 < count != request.batch_size:
        raise BadRequestField("init_images", f"holds {count} pictures; send one, or `batch_size` of them")
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
    overrides = dict(request.override_settings or {})
    if request.clip_skip is not None:
        overrides.setdefault("CLIP_stop_at_last_layers", request.clip_skip)
    settings = settings_with(current, overrides, "override_settings")
    prompt, negative = _prompts(request, styles)
    asked_sampler = request.sampler_name or request.sampler_index or "Euler"
    row, schedule = _sampler("sampler_name", asked_sampler, "scheduler", request.scheduler)
    call: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.steps,
        "guidance_scale": request.cfg_scale,
        "sampler": row.label,
        "schedule": schedule,
        "subseed_strength": request.subseed_strength,
        "noise_source": NOISE_SOURCES[settings["randn_source"]],
        "tiling": settings["tiling"] if request.tiling is None else request.tiling,
        "webui_options": {name: value for name, value in settings.items() if name in WEBUI_OPTIONS},
    }
    if request.seed_resize_from_w > 0 and request.seed_resize_from_h > 0:
        call["seed_resize"] = (request.seed_resize_from_w, request.seed_resize_from_h)
    if request.eta is not None and "eta" in row.takes:
        call["eta"] = request.eta
    for name in ("s_min_uncond", "s_churn", "s_tmin", "s_tmax", "s_noise"):
        value = getattr(request, name)
        if value is not None:
            call["webui_options"][name] = value
    faces = settings["face_restoration"] if request.restore_faces is None else request.restore_faces
    if faces:
        call["restore_faces"] = NameFromRequest(settings["face_restoration_model"])
    made = Generation(kind, call, _batches(request), settings, send_images=request.send_images)
    made.overrides = {name: settings[name] for name in overrides if name in settings}
    made.restore_afterwards, made.save_images = request.override_settings_restore_afterwards, request.save_images
    if request.refiner_checkpoint and request.refiner_checkpoint != "None" and request.refiner_switch_at is not None:
        made.refiner, call["refiner_switch_at"] = request.refiner_checkpoint, request.refiner_switch_at
    return made


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


def check_limits(made: Generation) -> None:
    """Refuse what no picture needs and what would take a machine's memory or a day, whoever asked for it how.

    Raises BadRequestField.
    """
    call = made.arguments
    width, height = call["width"], call["height"]
    _check_pixels("width", width, height)
    if width * height * max(len(batch.seeds) for batch in made.batches) > MOST_BATCH * MAX_PIXELS:
        raise BadRequestField("batch_size", "and the size make more than one call draws at once: raise n_iter instead")
    if sum(image.width * image.height for image in call.get("image", ())) > MOST_BATCH * MAX_PIXELS:
        raise BadRequestField("init_images", f"have more than {MOST_BATCH * MAX_PIXELS} pixels together")
    if call.get("hires_size"):
        wide, high = call["hires_size"]
        _check_pixels("hr_resize_x", wide or width * high / height, high or height * wide / width)
    elif call.get("hires_scale"):
        _check_pixels("hr_scale", width * call["hires_scale"], height * call["hires_scale"])
    if call.get("sd_upscale"):
        scale = call["sd_upscale"]["scale"]
        _check_pixels("script_args[3]", *(side * scale for side in call["image"][0].size))
    for name in ("num_inference_steps", "hires_steps"):
        if not 0 <= (call.get(name) or 0) <= MAX_STEPS:
            raise BadRequestField("steps", f"is {call[name]}; at most {MAX_STEPS} are drawn")


def _check_pixels(field_name: str, width: float, height: float) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        limits = f"at most {MAX_PIXELS} pixels, {MAX_SIDE} a side"
        raise BadRequestField(field_name, f"makes pictures of {width:.0f}x{height:.0f}; here are {limits}")


def _sampler(field_name: str, name: str, schedule_field: str, schedule: str | None) -> tuple[SamplerRow, str]:
    """Row and schedule of a sampler's name, which may have the schedule in it, as before the webui 1.9."""
    label = _schedule(schedule_field, schedule)
    try:
        return resolve_names(name, label)
    except ValueError as error:
        raise BadRequestField(field_name, str(error)) from error


def _schedule(field_name: str, name: str | None) -> str | None:
    try:
        return find_schedule(name) if name else None
    except ValueError as error:
        raise BadRequestField(field_name, str(error)) from error
