"""From a call's arguments to the settings that `format_infotext` writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from .fields import CALL_FIELDS, HIRES_FIELDS, IMG2IMG_FIELDS, INPAINT_AREAS, MASK_MODES, TextField
from .unet_fields import unet_extra


def call_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for `format_infotext` from the arguments of a pipeline's call, for one image.

    arguments: as `call_arguments` gives them; those at their defaults may be there or not. `loras` become tags at the
    end of the prompt. `seed` may be a list, one for each image; then add `index`. Add what a call does not know:
    model_name, model_hash, and into `extra` "Lora hashes", "TI hashes".

    >>> call_settings({"prompt": "a cat", "num_inference_steps": 20, "clip_skip": 1})
    {'prompt': 'a cat', 'steps': 20, 'clip_skip': 2, 'extra': {}}
    """
    settings = {name: arguments[argument] for name, argument in _SETTING_ARGUMENTS.items() if argument in arguments}
    if arguments.get("loras"):
        settings["prompt"] = settings.get("prompt", "") + _lora_tags(arguments["loras"])
    if arguments.get("clip_skip"):
        settings["clip_skip"] = arguments["clip_skip"] + 1
    if arguments.get("seed_resize"):
        settings["seed_resize_from_w"], settings["seed_resize_from_h"] = arguments["seed_resize"]
    if arguments.get("noise_source"):
        settings["opt_randn_source"] = arguments["noise_source"].upper()
    options = dict(arguments.get("webui_options") or {})
    if arguments.get("eta") is not None:
        ddim = str(arguments.get("sampler")).startswith("DDIM")
        options["eta_ddim" if ddim else "eta_ancestral"] = arguments["eta"]
    for name in ("eta_noise_seed_delta", "CLIP_stop_at_last_layers", "eta_ancestral"):
        if name in options:
            settings[f"opt_{name}"] = options[name]
    settings["extra"] = _hires_extra(arguments) | _img2img_extra(arguments) | _option_extra(arguments, options)
    settings["enable_hr"] = "Hires resize" in settings["extra"] or "Hires upscale" in settings["extra"]
    return {name: value for name, value in settings.items() if value is not None and value is not False}


_SETTING_ARGUMENTS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "steps": "num_inference_steps",
    "sampler_name": "sampler",
    "scheduler": "schedule",
    "cfg_scale": "guidance_scale",
    "seed": "seed",
    "width": "width",
    "height": "height",
    "restore_faces": "restore_faces",
    "subseed": "subseed",
    "subseed_strength": "subseed_strength",
    "tiling": "tiling",
}
_PLACED_LABELS = ("ENSD", "Refiner switch at")  # written in places of their own


def _hires_extra(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The hires pass's fields, in the webui's order."""
    size, scale = arguments.get("hires_size"), arguments.get("hires_scale")
    if not scale and not any(size or ()):
        return {}
    get = arguments.get
    return {
        "Denoising strength": get("hires_strength", 0.7),
        "Hires sampler": get("hires_sampler") if get("hires_sampler") != get("sampler") else None,
        "Hires prompt": get("hires_prompt") if get("hires_prompt") not in ("", get("prompt")) else None,
        "Hires negative prompt": (
            get("hires_negative_prompt") if get("hires_negative_prompt") not in ("", get("negative_prompt")) else None
        ),
        "Hires schedule type": get("hires_schedule") if get("hires_schedule") != get("schedule") else None,
        "Hires upscale": scale if not any(size or ()) else None,
        "Hires resize": f"{size[0]}x{size[1]}" if size and any(size) else None,
        "Hires steps": get("hires_steps") or None,
        "Hires upscaler": get("hires_upscaler"),
        "Hires CFG Scale": get("hires_guidance_scale"),
        **({"Hires checkpoint": get("hires_model")} if isinstance(get("hires_model"), str) else {}),
    }


def _img2img_extra(arguments: Mapping[str, Any]) -> dict[str, Any]:
    if arguments.get("strength") is None:
        return {}
    areas = {value: label for label, value in INPAINT_AREAS.items()}
    modes = {value: label for label, value in MASK_MODES.items()}
    written = {
        "Denoising strength": arguments["strength"],
        "Mask mode": modes[True] if arguments.get("invert_mask") else None,
        "Mask blur": arguments.get("mask_blur"),
        "Inpaint area": areas.get(arguments.get("inpaint_area", "whole")),
        "Masked area padding": arguments.get("masked_padding"),
        "Masked content": arguments.get("masked_content"),
    }
    found = {label: None if _reads_absent(IMG2IMG_FIELDS[label], value) else value for label, value in written.items()}
    if found["Inpaint area"] is not None:  # the webui writes the padding with it, whatever it is
        found["Masked area padding"] = written["Masked area padding"]
    return found


def _option_extra(arguments: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are not at their defaults, by label."""
    prompts = f"{arguments.get('prompt', '')}{arguments.get('negative_prompt') or ''}"
    extra: dict[str, Any] = {}
    for label, field in (CALL_FIELDS | HIRES_FIELDS | IMG2IMG_FIELDS).items():
        group, _, name = field.argument.rpartition(".")
        if group and name in options and label not in _PLACED_LABELS and options[name] != field.absent:
            extra[label] = options[name]
    if "Emphasis" in extra and not set(prompts) & set("(["):
        del extra["Emphasis"]  # the webui writes it only where some text could have a weight
    if arguments.get("guidance_rescale"):
        extra["CFG rescale"] = arguments["guidance_rescale"]
    extra |= unet_extra(arguments)
    if arguments.get("refiner_switch_at") is not None:
        extra["Refiner switch at"] = arguments["refiner_switch_at"]
    return extra


def _reads_absent(field: TextField, value: Any) -> bool:
    return value is None or field.read(str(value)) == field.absent


def _lora_tags(loras: Mapping[str, float] | Sequence[tuple]) -> str:
    """Tags right behind the text: what is left when they are cut out is the text itself. `dyn` and blocks stay out."""
    entries = [(name, weight) for name, weight in loras.items()] if isinstance(loras, Mapping) else loras
    uses = [(name, te, rest[0] if rest else te) for name, te, *rest in entries]
    return "".join(f"<lora:{name}:{te}>" if te == unet else f"<lora:{name}:{te}:{unet}>" for name, te, unet in uses)
