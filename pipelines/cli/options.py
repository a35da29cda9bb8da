"""Arguments of a call as options of a command, and as values in files of jobs and axes of grids."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import typer

from ...loaders.utils import unknown_choice
from ..infotext.fields import CALL_FIELDS, HIRES_FIELDS
from ..options import WEBUI_OPTIONS


class CallOption(NamedTuple):
    """One argument of the call on a command line."""

    read: Callable[[str], Any]  # from text; ValueError where it cannot
    help: str
    panel: str
    kind: str = "text"  # "flag": yes or no; "many": may be repeated


def read_size(text: str) -> tuple[int, int]:
    """`640x960` as (640, 960). Raises ValueError."""
    sides = text.lower().replace(",", "x").split("x")
    if len(sides) != 2:
        raise ValueError("a size is WIDTHxHEIGHT, like 640x960")
    return int(sides[0]), int(sides[1])


def _read_numbers(kind: type) -> Callable[[str], list]:
    return lambda text: [kind(part) for part in text.split(",") if part.strip()]


def _read_seed(text: str) -> int | list[int]:
    return [int(part) for part in text.split(",")] if "," in text else int(text)


def _read_flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise ValueError("it is yes or no")
    return text.lower() in ("true", "yes", "1")


_PICTURE, _NOISE, _HIRES, _NETWORKS, _FACES, _MORE = (
    "The picture",
    "Seeds and noise",
    "Hires fix",
    "Networks",
    "Faces and refiner",
    "Further arguments of diffusers",
)

# Name of the argument -> its option. `prompt` is the command's own argument; see NOT_ON_COMMAND_LINE for the rest.
CALL_OPTIONS: dict[str, CallOption] = {
    "negative_prompt": CallOption(str, "What should not be there.", _PICTURE),
    "width": CallOption(int, "Pixels, a multiple of 8.", _PICTURE),
    "height": CallOption(int, "Pixels, a multiple of 8.", _PICTURE),
    "num_inference_steps": CallOption(int, "Sampling steps (also --steps).", _PICTURE),
    "guidance_scale": CallOption(float, "CFG scale (also --cfg).", _PICTURE),
    "num_images_per_prompt": CallOption(int, "Pictures drawn at once.", _PICTURE),
    "sampler": CallOption(str, '"Euler a", "DPM++ 2M", ...; scheduler: the model\'s own.', _PICTURE),
    "schedule": CallOption(str, 'Schedule type: "Karras", "Exponential", ...', _PICTURE),
    "clip_skip": CallOption(int, "Layers skipped: one less than the webui's number.", _PICTURE),
    "tiling": CallOption(_read_flag, "Opposite edges meet.", _PICTURE, "flag"),
    "seed": CallOption(_read_seed, "A number, or a list with commas.", _NOISE),
    "subseed": CallOption(_read_seed, "Variation seed.", _NOISE),
    "subseed_strength": CallOption(float, "0..1.", _NOISE),
    "seed_resize": CallOption(read_size, "WIDTHxHEIGHT whose composition the noise keeps.", _NOISE),
    "noise_source": CallOption(str, "gpu, cpu or nv.", _NOISE),
    "eta": CallOption(float, "Noise multiplier of the step.", _NOISE),
    "hires_scale": CallOption(float, "Second pass, that many times as large.", _HIRES),
    "hires_size": CallOption(read_size, "Second pass at WIDTHxHEIGHT; 0 follows the other side.", _HIRES),
    "hires_upscaler": CallOption(str, "A label, or a model file.", _HIRES),
    "hires_steps": CallOption(int, "0: as many as the first pass.", _HIRES),
    "hires_strength": CallOption(float, "Denoising strength, 0..1.", _HIRES),
    "hires_prompt": CallOption(str, "", _HIRES),
    "hires_negative_prompt": CallOption(str, "", _HIRES),
    "hires_sampler": CallOption(str, "", _HIRES),
    "hires_schedule": CallOption(str, "", _HIRES),
    "loras": CallOption(lambda text: dict([_read_lora(text)]), "NAME=WEIGHT; may be repeated.", _NETWORKS, "many"),
    "lora_backend": CallOption(str, "webui, reference or peft.", _NETWORKS),
    "restore_faces": CallOption(str, "CodeFormer or GFPGAN.", _FACES),
    "face_fidelity": CallOption(float, "CodeFormer: 0 strongest .. 1 most faithful.", _FACES),
    "refiner_switch_at": CallOption(float, "Share after which the refiner takes over.", _FACES),
    "webui_options": CallOption(
        lambda text: dict([read_setting(text)]), "NAME=VALUE under the webui's name; may be repeated.", _MORE, "many"
    ),
    "guidance_rescale": CallOption(float, "", _MORE),
    "timesteps": CallOption(_read_numbers(int), "With commas; for a scheduler of diffusers.", _MORE),
    "sigmas": CallOption(_read_numbers(float), "With commas; for a scheduler of diffusers.", _MORE),
    "prompt_2": CallOption(str, "SDXL.", _MORE),
    "negative_prompt_2": CallOption(str, "SDXL.", _MORE),
    "denoising_end": CallOption(float, "SDXL: share of the steps to draw.", _MORE),
    "original_size": CallOption(read_size, "SDXL: HEIGHTxWIDTH it is told.", _MORE),
    "crops_coords_top_left": CallOption(read_size, "SDXL: TOPxLEFT it is told.", _MORE),
    "target_size": CallOption(read_size, "SDXL: HEIGHTxWIDTH it is told.", _MORE),
    "negative_original_size": CallOption(read_size, "SDXL.", _MORE),
    "negative_crops_coords_top_left": CallOption(read_size, "SDXL.", _MORE),
    "negative_target_size": CallOption(read_size, "SDXL.", _MORE),
}
USUAL_SAMPLER = "DPM++ 2M"
SHORT_OPTIONS = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--cfg",
    "negative_prompt": "--negative",
    "loras": "--lora",
    "webui_options": "--option",
}
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
)


def read_setting(text: str) -> tuple[str, Any]:
    """`eta_noise_seed_delta=31337` as (name, value of the setting's own type). Raises ValueError."""
    name, equals, written = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not NAME=VALUE")
    if name not in WEBUI_OPTIONS:
        raise ValueError(unknown_choice("setting", name, WEBUI_OPTIONS))
    usual = WEBUI_OPTIONS[name]
    try:
        if isinstance(usual, bool):
            return name, _read_flag(written)
        return name, type(usual)(written) if usual is not None else json.loads(written)
    except ValueError as error:
        raise ValueError(f"{written!r} is no value of `{name}`, which is usually {usual!r}") from error


def _read_lora(text: str) -> tuple[str, float]:
    name, equals, weight = text.rpartition("=")
    return (name, float(weight)) if equals else (text, 1.0)


def read_option(name: str, text: str) -> Any:
    """The value of an argument, from text. Raises ValueError that names the argument."""
    if name in ("prompt", "model"):
        return text
    try:
        return CALL_OPTIONS[name].read(text)
    except ValueError as error:
        raise ValueError(f"`{name}`: {text!r} cannot be read: {error}.") from error


def argument_name(written: str) -> str:
    """The argument of the call that a name means: its own, a short one, the webui's label, or a setting's name.

    >>> argument_name("Steps"), argument_name("cfg"), argument_name("s_churn")
    ('num_inference_steps', 'guidance_scale', 'webui_options.s_churn')
    """
    name = written.strip()
    plain = name.lower().lstrip("-").replace("-", "_").replace(" ", "_")
    labels = {label.lower(): field.argument for label, field in (CALL_FIELDS | HIRES_FIELDS).items()}
    labels |= {"schedule type": "schedule", "sampler": "sampler", "denoising strength": "hires_strength"}
    shorts = {option.lstrip("-"): argument for argument, option in SHORT_OPTIONS.items()}
    if plain in CALL_OPTIONS or plain in ("prompt", "model"):
        return plain
    if plain in shorts:
        return shorts[plain]
    if plain in (setting.lower() for setting in WEBUI_OPTIONS):
        return f"webui_options.{next(setting for setting in WEBUI_OPTIONS if setting.lower() == plain)}"
    if name.lower() in labels:
        return labels[name.lower()]
    raise ValueError(unknown_choice("argument", written, [*CALL_OPTIONS, "prompt", "model", *WEBUI_OPTIONS]))


def check_call_value(name: str, value: Any) -> Any:
    """An argument's value from JSON, in the form the call wants: lists become sizes. Raises ValueError."""
    if name not in CALL_OPTIONS and name not in ("prompt", "model"):
        raise ValueError(unknown_choice("argument", name, [*CALL_OPTIONS, "prompt", "model"]))
    if name in CALL_OPTIONS and CALL_OPTIONS[name].read is read_size and isinstance(value, (list, str)):
        return read_size(value) if isinstance(value, str) else tuple(int(side) for side in value)
    if name == "webui_options":
        for setting in value:
            if setting not in WEBUI_OPTIONS:
                raise ValueError(unknown_choice("`webui_options`: setting", setting, WEBUI_OPTIONS))
    return value


def with_call_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command every option of CALL_OPTIONS, in place of its parameter `**call`: those that were given, read."""
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    added = [_option_parameter(name, option) for name, option in CALL_OPTIONS.items()]

    def run(**values: Any) -> None:
        call = {name: _option_value(name, values.pop(name)) for name in CALL_OPTIONS}
        command(**values, **{name: value for name, value in call.items() if value is not None})

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
    return run


def _option_parameter(name: str, option: CallOption) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    names = [flag] if option.kind != "flag" else [f"{flag}/--no-{name.replace('_', '-')}"]
    names += [SHORT_OPTIONS[name]] if name in SHORT_OPTIONS else []
    told_as = typer.Option(*names, help=option.help, rich_help_panel=option.panel, show_default=False)
    kind: Any = {"flag": bool | None, "many": list[str] | None}.get(option.kind, str | None)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, told_as])


def _option_value(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool) or value == []:
        return None if value == [] else value
    if isinstance(value, (list, tuple)):
        merged: dict[str, Any] = {}
        for part in value:
            merged |= read_option(name, part)
        return merged or None
    return read_option(name, value)


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
