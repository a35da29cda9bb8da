"""Writing the "parameters" text of a picture as the webui does.

value                 written
7, 7.0, True          7, 7.0, True
a, b: c               "a, b: c"         JSON, where a comma, a colon or a line break would end the value
say "hi"              say "hi"
None                  nothing, not even the name
"""

import json
from collections.abc import Mapping
from typing import Any

from ..options import WEBUI_OPTIONS
from ..sampling.labels import SAMPLER_ROWS


WEBUI_VERSION = "v1.10.1"
ENSD_SAMPLERS = tuple(row.label for row in SAMPLER_ROWS if row.uses_ensd)  # they write "ENSD" where it is set

# The webui's settings that writing depends on, with its defaults.
INFOTEXT_WRITE_OPTIONS: dict[str, Any] = {
    "CLIP_stop_at_last_layers": WEBUI_OPTIONS["CLIP_stop_at_last_layers"],
    "eta_noise_seed_delta": WEBUI_OPTIONS["eta_noise_seed_delta"],
    "eta_ancestral": WEBUI_OPTIONS["eta_ancestral"],
    "randn_source": "GPU",
    "inpainting_mask_weight": WEBUI_OPTIONS["inpainting_mask_weight"],
    "token_merging_ratio": 0.0,
    "token_merging_ratio_hr": 0.0,
    "face_restoration_model": "CodeFormer",
    "fp8_storage": "Disable",
    "cache_fp16_weight": False,
    "add_model_name_to_info": True,
    "add_model_hash_to_info": True,
    "add_vae_name_to_info": True,
    "add_vae_hash_to_info": True,
    "add_user_name_to_info": False,
    "add_version_to_infotext": True,
}


def format_infotext(settings: Mapping[str, Any], *, options: Mapping[str, Any] | None = None) -> str:
    """The text under a picture, from the webui's own names of what drew it.

    settings: prompt, negative_prompt, steps, sampler_name, scheduler, cfg_scale, image_cfg_scale, seed, width, height
    (first pass), restore_faces (name or True), model_name, model_hash, vae_name, vae_hash, subseed, subseed_strength,
    seed_resize_from_w, seed_resize_from_h, denoising_strength, inpainting, clip_skip, token_merging_ratio,
    token_merging_ratio_hr, enable_hr, init_img_hash, tiling, fp8, user, version; all may be absent. `extra` holds
    further fields by label, in their order; one that the webui has a place for keeps that place, a list gives each
    image its own value, None is left out. `index` is the image's number in its batch. With `use_main_prompt` the text
    is about the whole batch: `main_prompt` (default: the prompt marked so), and the first seed.
    options: the webui's settings of INFOTEXT_WRITE_OPTIONS that differ from its defaults; in `settings` they may also
    stand as `opt_<name>`.

    >>> format_infotext({"prompt": "a cat", "steps": 20, "sampler_name": "Euler a", "seed": 1, "version": "v1.10.1"})
    'a cat\\nSteps: 20, Sampler: Euler a, Seed: 1, Version: v1.10.1'
    """
    whole_batch = bool(settings.get("use_main_prompt"))
    index = 0 if whole_batch else settings.get("index", 0)
    fields = infotext_fields(settings, _writing_options(settings, options), index)
    written = [(key, value[index] if isinstance(value, list) else value) for key, value in fields.items()]
    line = ", ".join(
        key if key == value else f"{key}: {quote_field(value)}" for key, value in written if value is not None
    )
    prompt, negative_prompt = settings.get("prompt", ""), settings.get("negative_prompt", "")
    if whole_batch:
        prompt = settings.get("main_prompt", f"{prompt} (main)")
    negative = f"\nNegative prompt: {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{line}".strip()


def quote_field(value: Any) -> Any:
    """A field's value as written: itself, or JSON where it would not be read back whole.

    >>> quote_field("a, b"), quote_field("a"), quote_field(7.0)
    ('"a, b"', 'a', 7.0)
    """
    text = str(value)
    if not any(sign in text for sign in ",:\n"):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def infotext_fields(settings: Mapping[str, Any], options: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The line of fields, label to value, in the webui's order. None: not written."""
    get = settings.get
    strength = get("subseed_strength") or 0
    resized = get("seed_resize_from_w", 0) > 0 and get("seed_resize_from_h", 0) > 0
    clip_skip = get("clip_skip") or options["CLIP_stop_at_last_layers"]
    merging, merging_hr = _merging_ratios(settings, options)
    fp8 = get("fp8") or None
    return {
        "Steps": get("steps"),
        "Sampler": get("sampler_name"),
        "Schedule type": get("scheduler"),
        "CFG scale": get("cfg_scale"),
        "Image CFG scale": get("image_cfg_scale"),
        "Seed": _of_image(get("seed"), 0 if strength else index, index),
        "Face restoration": _restorer(get("restore_faces"), options),
        "Size": f"{get('width')}x{get('height')}" if get("width") and get("height") else None,
        "Model hash": options["add_model_hash_to_info"] and get("model_hash") or None,
        "Model": options["add_model_name_to_info"] and get("model_name") or None,
        "FP8 weight": fp8 and options["fp8_storage"],
        "Cache FP16 weight for LoRA": fp8 and options["cache_fp16_weight"],
        "VAE hash": options["add_vae_hash_to_info"] and get("vae_hash") or None,
        "VAE": options["add_vae_name_to_info"] and get("vae_name") or None,
        "Variation seed": _of_image(get("subseed", 0), index, index) if strength else None,
        "Variation seed strength": strength or None,
        "Seed resize from": f"{get('seed_resize_from_w')}x{get('seed_resize_from_h')}" if resized else None,
        "Denoising strength": get("denoising_strength"),
        "Conditional mask weight": options["inpainting_mask_weight"] if get("inpainting") else None,
        "Clip skip": clip_skip if clip_skip > 1 else None,
        "ENSD": _ensd(settings, options),
        "Token merging ratio": merging,
        "Token merging ratio hr": merging_hr,
        "Init image hash": get("init_img_hash"),
        "RNG": options["randn_source"] if options["randn_source"] != "GPU" else None,
        "Tiling": "True" if get("tiling") else None,
        **(get("extra") or {}),
        "Version": get("version", WEBUI_VERSION) if options["add_version_to_infotext"] else None,
        "User": get("user") if options["add_user_name_to_info"] else None,
    }


def _writing_options(settings: Mapping[str, Any], options: Mapping[str, Any] | None) -> dict[str, Any]:
    for name in options or {}:
        if name not in INFOTEXT_WRITE_OPTIONS:
            raise ValueError(
                f"`options`: `{name}` is no setting that writing parameters depends on. "
                f"Known: {', '.join(INFOTEXT_WRITE_OPTIONS)}. Fields of your own go into `extra`."
            )
    named = {name: settings[f"opt_{name}"] for name in INFOTEXT_WRITE_OPTIONS if f"opt_{name}" in settings}
    if "opt_fp8" in settings:
        named["fp8_storage"] = settings["opt_fp8"]
    return INFOTEXT_WRITE_OPTIONS | named | dict(options or {})


def _of_image(seed: Any, step: int, index: int) -> Any:
    """Seed of image `index`: from a list of all, or `step` further than the first."""
    if isinstance(seed, (list, tuple)):
        return seed[index]
    return None if seed is None else seed + step


def _restorer(restore_faces: Any, options: Mapping[str, Any]) -> str | None:
    return options["face_restoration_model"] if restore_faces is True else restore_faces or None


def _merging_ratios(settings: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[float | None, float | None]:
    ratio = settings.get("token_merging_ratio") or options["token_merging_ratio"]
    hires = settings.get("token_merging_ratio_hr") or options["token_merging_ratio_hr"] or ratio
    return ratio or None, (hires or None) if settings.get("enable_hr") else None


def _ensd(settings: Mapping[str, Any], options: Mapping[str, Any]) -> int | None:
    eta = settings.get("eta")
    draws_noise = options["eta_ancestral"] if eta is None else eta
    used = settings.get("sampler_name") in ENSD_SAMPLERS and draws_noise != 0
    return (options["eta_noise_seed_delta"] or None) if used else None
