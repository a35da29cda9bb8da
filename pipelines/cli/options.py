"""Arguments of a call as options of a command, and as values in files of jobs and axes of grids."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import click

from ...loaders.utils import unknown_choice
from ..infotext.fields import CALL_FIELDS, HIRES_FIELDS
from ..options import WEBUI_OPTIONS
from .common import HeadedOption, add_options
from .values import (
    SEED,
    SETTINGS,
    SIZE,
    TABLE,
    TABLES,
    TEXT,
    TEXTS,
    WEIGHTS,
    YES_NO,
    ValueKind,
    list_kind,
    number_kind,
    whole_kind,
)


class CallOption(NamedTuple):
    """One argument of the call on a command line."""

    kind: ValueKind
    help: str
    heading: str
    short: str = ""  # another name of the option


_PICTURE, _NOISE, _HIRES, _NETWORKS, _FACES, _CONTROL, _DETAILS, _MORE = (
    "The picture",
    "Seeds and noise",
    "Hires fix",
    "Networks",
    "Faces and refiner",
    "ControlNet",
    "Detail passes over finished pictures",
    "Further arguments of diffusers",
)

# Name of the argument -> its option. `prompt` is the command's own argument; see NOT_ON_COMMAND_LINE for the rest.
CALL_OPTIONS: dict[str, CallOption] = {
    "negative_prompt": CallOption(TEXTS, "What should not be there.", _PICTURE, "--negative"),
    "width": CallOption(whole_kind(8), "Pixels, a multiple of 8.", _PICTURE),
    "height": CallOption(whole_kind(8), "Pixels, a multiple of 8.", _PICTURE),
    "num_inference_steps": CallOption(whole_kind(1), "Sampling steps.", _PICTURE, "--steps"),
    "guidance_scale": CallOption(number_kind(), "CFG scale.", _PICTURE, "--cfg"),
    "num_images_per_prompt": CallOption(whole_kind(1), "Pictures drawn at once.", _PICTURE),
    "sampler": CallOption(TEXT, '"Euler a", "DPM++ 2M", ...; scheduler: the model\'s own.', _PICTURE),
    "schedule": CallOption(TEXT, 'Schedule type: "Karras", "Exponential", ...', _PICTURE),
    "clip_skip": CallOption(whole_kind(0), "Layers skipped: one less than the webui's number.", _PICTURE),
    "tiling": CallOption(YES_NO, "Opposite edges meet.", _PICTURE),
    "seed": CallOption(SEED, "A number, or several with commas.", _NOISE),
    "subseed": CallOption(SEED, "Variation seed.", _NOISE),
    "subseed_strength": CallOption(number_kind(0, 1), "Share of the variation, 0 to 1.", _NOISE),
    "seed_resize": CallOption(SIZE, "WIDTHxHEIGHT whose composition the noise keeps.", _NOISE),
    "noise_source": CallOption(TEXT, "gpu, cpu or nv.", _NOISE),
    "eta": CallOption(number_kind(0), "Noise multiplier of the step.", _NOISE),
    "hires_scale": CallOption(number_kind(0), "Second pass, that many times as large; 0: none.", _HIRES),
    "hires_size": CallOption(SIZE, "Second pass at WIDTHxHEIGHT; 0 follows the other side.", _HIRES),
    "hires_upscaler": CallOption(TEXT, "A label, or a model file.", _HIRES),
    "hires_model": CallOption(TEXT, "Checkpoint of the second pass: name or file.", _HIRES),
    "hires_steps": CallOption(whole_kind(0), "0: as many as the first pass.", _HIRES),
    "hires_strength": CallOption(number_kind(0, 1), "Denoising strength, 0 to 1.", _HIRES),
    "hires_guidance_scale": CallOption(number_kind(0), "CFG scale of the second pass; the first's otherwise.", _HIRES),
    "hires_prompt": CallOption(TEXTS, "The first pass's otherwise.", _HIRES),
    "hires_negative_prompt": CallOption(TEXTS, "The first pass's otherwise.", _HIRES),
    "hires_sampler": CallOption(TEXT, "The first pass's otherwise.", _HIRES),
    "hires_schedule": CallOption(TEXT, "The first pass's otherwise.", _HIRES),
    "loras": CallOption(WEIGHTS, "NAME=WEIGHT; may be repeated.", _NETWORKS, "--lora"),
    "lora_backend": CallOption(TEXT, "webui, reference or peft.", _NETWORKS),
    "restore_faces": CallOption(TEXT, "CodeFormer, GFPGAN, or a file.", _FACES),
    "face_fidelity": CallOption(number_kind(0, 1), "CodeFormer: 0 strongest, 1 most faithful.", _FACES),
    "refiner_switch_at": CallOption(number_kind(0, 1), "Share after which the refiner takes over.", _FACES),
    "control_units": CallOption(
        TABLES,
        "A unit: model=NAME,image=PATH,module=canny,weight=0.8; or JSON; may be repeated.",
        _CONTROL,
        "--control",
    ),
    "detailers": CallOption(
        TABLES, "A pass: ad_model=face,ad_denoising_strength=0.3; or JSON; may be repeated.", _DETAILS, "--detailer"
    ),
    "webui_options": CallOption(
        SETTINGS, "NAME=VALUE, a setting under the webui's name; may be repeated.", _MORE, "--option"
    ),
    "guidance_rescale": CallOption(number_kind(), "CFG rescale, 0 to 1.", _MORE),
    "pag_scale": CallOption(number_kind(0), "Perturbed-attention guidance; 0: none.", _MORE),
    "pag_adaptive_scale": CallOption(number_kind(0), "By how much it grows less with each timestep.", _MORE),
    "pag_applied_layers": CallOption(list_kind(TEXT, "a list of names"), "Its layers, with commas; mid.", _MORE),
    "freeu": CallOption(TABLE, "FreeU: b1=1.1,b2=1.2,s1=0.9,s2=0.2.", _MORE),
    "timesteps": CallOption(
        list_kind(whole_kind(0), "a list of whole numbers"), "With commas; for a scheduler of diffusers.", _MORE
    ),
    "sigmas": CallOption(
        list_kind(number_kind(0), "a list of numbers"), "With commas; for a scheduler of diffusers.", _MORE
    ),
    "prompt_2": CallOption(TEXTS, "SDXL: for its second encoder.", _MORE),
    "negative_prompt_2": CallOption(TEXTS, "SDXL: for its second encoder.", _MORE),
    "denoising_end": CallOption(number_kind(0, 1), "SDXL: share of the steps to draw.", _MORE),
    "original_size": CallOption(SIZE, "SDXL: HEIGHTxWIDTH it is told.", _MORE),
    "crops_coords_top_left": CallOption(SIZE, "SDXL: TOPxLEFT it is told.", _MORE),
    "target_size": CallOption(SIZE, "SDXL: HEIGHTxWIDTH it is told.", _MORE),
    "negative_original_size": CallOption(SIZE, "SDXL: the same for the negative prompt.", _MORE),
    "negative_crops_coords_top_left": CallOption(SIZE, "SDXL: the same for the negative prompt.", _MORE),
    "negative_target_size": CallOption(SIZE, "SDXL: the same for the negative prompt.", _MORE),
}
# Arguments of txt2img that img2img does not have, and those that it has besides.
_ONLY_TXT2IMG = [name for name in CALL_OPTIONS if name.startswith("hires_")]
_OVER = "Drawing over the picture"
IMG2IMG_OPTIONS: dict[str, CallOption] = {
    "strength": CallOption(number_kind(0, 1), "Denoising strength: 0 keeps the picture, 1 draws anew.", _OVER),
    "resize_mode": CallOption(TEXT, "stretch, crop, fill or latent: how it gets another size.", _OVER),
    "mask_blur": CallOption(number_kind(0), "Pixels, as a standard deviation.", _OVER),
    "masked_content": CallOption(TEXT, "original, fill, latent noise or latent nothing.", _OVER),
    "inpaint_area": CallOption(TEXT, "whole, or masked: only what the mask shows, at full size.", _OVER),
    "masked_padding": CallOption(whole_kind(0), "Pixels around the mask that are seen.", _OVER),
    "padding_mask_crop": CallOption(whole_kind(0), "The same for diffusers: area masked, mask not blurred.", _OVER),
    "invert_mask": CallOption(YES_NO, "Draw where the mask is black.", _OVER),
    "soft_mask": CallOption(YES_NO, "Grey parts of the mask count by degrees.", _OVER),
    "soft_inpainting": CallOption(TABLE, "Mix kept and drawn by degrees.", _OVER),
    "sd_upscale": CallOption(TABLE, "Enlarge and draw in tiles: scale=2,overlap=64,upscaler=NAME.", _OVER),
    "loopback": CallOption(TABLE, "Draw the result over again: loops=4,final_strength=0.3.", _OVER),
    **{name: option for name, option in CALL_OPTIONS.items() if name not in _ONLY_TXT2IMG},
    "denoising_start": CallOption(number_kind(0, 1), "SDXL: share of the steps that another model drew.", _MORE),
    "aesthetic_score": CallOption(number_kind(), "SDXL's refiner.", _MORE),
    "negative_aesthetic_score": CallOption(number_kind(), "SDXL's refiner.", _MORE),
}
ALL_OPTIONS = {**IMG2IMG_OPTIONS, **CALL_OPTIONS}
USUAL_SAMPLER = "DPM++ 2M"
# Values of a call that are objects of a program, or would make a result that is no picture file.
NOT_ON_COMMAND_LINE = (
    "generator",
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
    "ip_adapter_image",
    "ip_adapter_image_embeds",
    "output_type",
    "return_dict",
    "cross_attention_kwargs",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    # of a component `controlnet`, as in diffusers; `control_units` do the same
    "image",
    "control_image",
    "controlnet_conditioning_scale",
    "control_guidance_start",
    "control_guidance_end",
    "guess_mode",
    "control_mode",
)
NOT_OVER_PICTURES = (*NOT_ON_COMMAND_LINE, "mask_image")  # img2img has the pictures as its own
_OWN_NAMES = {"prompt": TEXTS, "model": TEXT}  # arguments of jobs and axes that are no option of the call


def call_options(table: Mapping[str, CallOption]) -> Callable[[Any], Any]:
    """A decorator that gives a command an option for each argument of `table`; `read_call` reads what they give."""
    return add_options(*(_option(name, option) for name, option in table.items()))


def _option(name: str, option: CallOption) -> Callable[[Any], Any]:
    flag = name.replace("_", "-")
    if option.kind is YES_NO:
        names, more = [f"--{flag}/--no-{flag}"], {"default": None}
    else:
        names, more = [f"--{flag}"], {"metavar": option.kind.sign}
    more |= {"multiple": True} if option.kind in (WEIGHTS, SETTINGS, TABLES) else {}
    more |= {"cls": HeadedOption, "heading": option.heading, "help": option.help}
    return click.option(name, *names, *([option.short] if option.short else []), **more)


def read_call(values: Mapping[str, Any], table: Mapping[str, CallOption] = CALL_OPTIONS) -> dict[str, Any]:
    """The arguments among a command's `values`: those that were given, read. Raises ValueError naming the argument."""
    call: dict[str, Any] = {}
    for name in table:
        value = values.get(name)
        if value is None or value == ():
            continue
        if isinstance(value, tuple):
            parts = [read_option(name, part) for part in value]
            merged = [entry for part in parts for entry in (part if isinstance(part, list) else part.items())]
            call[name] = merged if isinstance(parts[0], list) else dict(merged)
        else:
            call[name] = value if isinstance(value, bool) else read_option(name, value)
    return call


def read_option(name: str, text: str) -> Any:
    """The value of an argument, from text. Raises ValueError that names the argument."""
    return _checked(name, lambda kind: kind.read(text), text)


def take_option(name: str, value: Any) -> Any:
    """An argument's value from JSON, in the form that the call wants. Raises ValueError that names the argument."""
    if name not in CALL_OPTIONS and name not in _OWN_NAMES:
        raise ValueError(unknown_choice("argument", name, [*CALL_OPTIONS, *_OWN_NAMES]))
    return None if value is None else _checked(name, lambda kind: kind.take(value), value)


def _checked(name: str, read: Callable[[ValueKind], Any], value: Any) -> Any:
    kind = ALL_OPTIONS[name].kind if name in ALL_OPTIONS else _OWN_NAMES[name]
    try:
        return read(kind)
    except (ValueError, OverflowError) as error:
        more = f" {error}" if str(error).endswith((".", "?")) else ""
        raise ValueError(f"`{name}` must be {kind.name}; got {value!r}.{more}") from error


def argument_name(written: str) -> str:
    """The argument of the call that a name means: its own, a short one, the webui's label, or a setting's name.

    >>> argument_name("Steps"), argument_name("cfg"), argument_name("s_churn")
    ('num_inference_steps', 'guidance_scale', 'webui_options.s_churn')
    """
    name = written.strip()
    plain = name.lower().lstrip("-").replace("-", "_").replace(" ", "_")
    labels = {label.lower(): field.argument for label, field in (CALL_FIELDS | HIRES_FIELDS).items()}
    labels |= {"schedule type": "schedule", "sampler": "sampler", "denoising strength": "hires_strength"}
    shorts = {option.short.lstrip("-"): argument for argument, option in CALL_OPTIONS.items() if option.short}
    if plain in CALL_OPTIONS or plain in _OWN_NAMES:
        return plain
    if plain in shorts:
        return shorts[plain]
    if plain in (setting.lower() for setting in WEBUI_OPTIONS):
        return f"webui_options.{next(setting for setting in WEBUI_OPTIONS if setting.lower() == plain)}"
    if name.lower() in labels:
        return labels[name.lower()]
    raise ValueError(unknown_choice("argument", written, [*CALL_OPTIONS, *_OWN_NAMES, *WEBUI_OPTIONS]))


def with_usual_sampler(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with the webui's sampler where none is named. "scheduler" means the model's own, as in diffusers."""
    if call.get("sampler", "") == "scheduler":
        return {**call, "sampler": None}
    if "sampler" in call or call.get("timesteps") or call.get("sigmas"):
        return dict(call)
    return {**call, "sampler": USUAL_SAMPLER}


def merge_call(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments over others; settings and networks are merged one by one."""
    merged = {**base, **over}
    for name in ("webui_options", "loras"):
        if isinstance(base.get(name), Mapping) and isinstance(over.get(name), Mapping):
            merged[name] = {**base[name], **over[name]}
    return merged
