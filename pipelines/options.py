"""`webui_options`: the webui's settings under its own names, with its defaults (version 1.10.1)."""

from collections.abc import Mapping
from typing import Any

from .sampling.names import unknown_choice
from .sampling.options import SAMPLING_DEFAULTS


# A setting that is an argument of the call (sampler, tiling, noise_source, loras, …) is not here.
WEBUI_OPTIONS: dict[str, Any] = {
    # prompts
    "emphasis": "Original",
    "comma_padding_backtrack": 20,
    "CLIP_stop_at_last_layers": 1,
    "sdxl_clip_l_skip": False,
    "use_old_scheduling": False,
    "enable_prompt_comments": True,
    # noise and steps
    **SAMPLING_DEFAULTS,
    "initial_noise_multiplier": 1.0,
    "img2img_fix_steps": False,
    # guidance
    "s_min_uncond": 0.0,
    "s_min_uncond_all": False,
    "skip_early_cond": 0.0,
    "pad_cond_uncond": False,
    "pad_cond_uncond_v0": False,
    # SDXL
    "sdxl_crop_top": 0,
    "sdxl_crop_left": 0,
    "sdxl_refiner_low_aesthetic_score": 2.5,
    "sdxl_refiner_high_aesthetic_score": 6.0,
    "refiner_switch_by_sample_steps": False,
    "hires_fix_refiner_pass": "second pass",
    # pictures
    "ESRGAN_tile": 192,
    "ESRGAN_tile_overlap": 8,
    "img2img_color_correction": False,
    "img2img_background_color": "#ffffff",
    "overlay_inpaint": True,
    "inpainting_mask_weight": 1.0,
    # faces
    "code_former_weight": 0.5,
}


def webui_settings(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """All settings: the given ones over the defaults. Raises ValueError for a name the webui does not have here."""
    for name in options or {}:
        if name not in WEBUI_OPTIONS:
            raise ValueError(unknown_choice("`webui_options`: setting", name, WEBUI_OPTIONS))
    return {**WEBUI_OPTIONS, **(options or {})}
