"""Values of a call's arguments, refused by their kind before any work; and the names of the webui's API."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any


# Name in the webui's API -> what takes it here.
WEBUI_API_NAMES = {
    "steps": "`num_inference_steps`",
    "cfg_scale": "`guidance_scale`",
    "sampler_name": "`sampler`",
    "sampler_index": "`sampler`",
    "scheduler": "`schedule`",
    "batch_size": "`num_images_per_prompt`",
    "n_iter": "a call for each batch, its `seed` counted on, or `num_images_per_prompt`",
    "styles": "`prompt` and `negative_prompt`, into which `apply_styles` merges them",
    "denoising_strength": "`hires_strength` (of img2img: `strength`)",
    "enable_hr": "`hires_scale` or `hires_size`: where one is given there is a second pass",
    "hr_scale": "`hires_scale`",
    "hr_upscaler": "`hires_upscaler`",
    "hr_second_pass_steps": "`hires_steps`",
    "hr_resize_x": "`hires_size`, as (width, height)",
    "hr_resize_y": "`hires_size`, as (width, height)",
    "hr_checkpoint_name": "`hires_model`",
    "hr_sampler_name": "`hires_sampler`",
    "hr_scheduler": "`hires_schedule`",
    "hr_prompt": "`hires_prompt`",
    "hr_negative_prompt": "`hires_negative_prompt`",
    "hr_cfg": "`hires_guidance_scale`",
    "override_settings": "`webui_options`",
    "override_settings_restore_afterwards": "nothing: settings hold for one call",
    "seed_resize_from_w": "`seed_resize`, as (width, height)",
    "seed_resize_from_h": "`seed_resize`, as (width, height)",
    "refiner_checkpoint": "the component `refiner`",
    "alwayson_scripts": "`control_units` and `detailers`",
    "script_name": "`sd_upscale` and `loopback` of img2img",
    "init_images": "`image` of img2img",
    "mask": "`mask_image` of img2img",
    "inpainting_fill": "`masked_content`",
    "inpaint_full_res": '`inpaint_area="masked"`',
    "inpaint_full_res_padding": "`masked_padding`",
    "inpainting_mask_invert": "`invert_mask`",
    "initial_noise_multiplier": "`webui_options`",
    "save_images": "`output.save(folder)`",
    "send_images": "nothing: the output has them",
    **dict.fromkeys(
        ("s_churn", "s_tmin", "s_tmax", "s_noise", "s_min_uncond", "clip_stop_at_last_layers"), "`webui_options`"
    ),
}
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_WHOLE_ARGUMENTS = (
    *("num_inference_steps", "num_images_per_prompt", "width", "height", "clip_skip", "hires_steps"),
    *("masked_padding", "padding_mask_crop"),
)
_NUMBER_ARGUMENTS = (
    "guidance_scale",
    "hires_guidance_scale",
    "subseed_strength",
    "hires_scale",
    "hires_strength",
    "strength",
    "guidance_rescale",
    "pag_scale",
    "pag_adaptive_scale",
)
_SEED_ARGUMENTS = ("seed", "subseed")


def check_values(given: Mapping[str, Any]) -> None:
    """Refuse values that are not of their argument's kind. given: arguments by name; those of no call are left out.

    Raises ValueError naming argument and value.
    """
    for name in _WHOLE_ARGUMENTS:
        if given.get(name) is not None:
            _refuse_unless(_is_whole(given[name]), name, given[name], "a whole number")
    for name in _NUMBER_ARGUMENTS:
        if given.get(name) is not None:
            _refuse_unless(is_finite_number(given[name]), name, given[name], "a finite number")
    for name in _SEED_ARGUMENTS:
        seed = given.get(name)
        listed = list(seed) if isinstance(seed, Sequence) and not isinstance(seed, str) else [seed]
        fine = seed is None or all(map(_is_whole, listed))
        _refuse_unless(fine, name, seed, "a whole number, or a list with one for each image")
    size = given.get("hires_size")
    fine = size is None or (isinstance(size, (tuple, list)) and len(size) == 2 and all(map(_is_whole, size)))
    _refuse_unless(fine, "hires_size", size, "(width, height)")
    if (given.get("clip_skip") or 0) < 0:
        _refuse_unless(False, "clip_skip", given["clip_skip"], "0 or more, one less than the webui's number")
    output_type = given.get("output_type", "pil")
    _refuse_unless(output_type in OUTPUT_TYPES, "output_type", output_type, f"one of {', '.join(OUTPUT_TYPES)}")


def check_clip_skip(clip_skip: int | None, text_encoder: Any) -> None:
    """Refuse to skip as many layers as a text encoder has, or more."""
    layers = getattr(getattr(text_encoder, "config", None), "num_hidden_layers", None)
    if clip_skip is not None and layers is not None and clip_skip >= layers:
        raise ValueError(
            f"`clip_skip` is {clip_skip}, and the text encoder has {layers} layers, of which one must be read: "
            f"give {layers - 1} at most."
        )


def _refuse_unless(fine: bool, name: str, value: Any, kind: str) -> None:
    if not fine:
        raise ValueError(f"`{name}` must be {kind}; got {value!r:.60}.")


def _is_whole(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def is_finite_number(value: Any) -> bool:
    """Whether a value is a finite number, of Python, NumPy or torch, and no bool."""
    if isinstance(value, (str, bytes, bool)):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
