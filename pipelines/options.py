"""`webui_options`: the webui's settings under its own names, with its defaults (version 1.10.1)."""

from collections.abc import Mapping
from typing import Any

from ..loaders.utils import unknown_choice


# What sampling alone reads.
SAMPLING_DEFAULTS = {
    "eta_noise_seed_delta": 0,  # ENSD: added to the seed after the first draw
    "eta_ancestral": 1.0,  # noise multiplier of the k samplers
    "eta_ddim": 0.0,  # noise multiplier of DDIM and DDIM CFG++
    "s_churn": 0.0,  # Karras et al. (2022): noise put in before each step, spread over the steps
    "s_tmin": 0.0,  # churn only from this sigma on
    "s_tmax": 0.0,  # churn only up to this sigma; 0 means no limit
    "s_noise": 1.0,  # multiplier of that noise, and of the step noise of some samplers
    "sigma_min": 0.0,  # 0 means the model's
    "sigma_max": 0.0,  # 0 means the model's
    "rho": 0.0,  # 0 means the schedule's own: 7 for Karras, 1 for Polyexponential
    "use_old_karras_scheduler_sigmas": False,  # sigma from 0.1 to 10
    "always_discard_next_to_last_sigma": False,
    "beta_dist_alpha": 0.6,
    "beta_dist_beta": 0.6,
    "sgm_noise_multiplier": False,
    "img2img_extra_noise": 0.0,
    "enable_quantization": False,  # timesteps are whole numbers
    "sd_noise_schedule": "Default",  # or "Zero Terminal SNR"
    "use_downcasted_alpha_bar": False,
    "uni_pc_variant": "bh1",  # or "bh2", "vary_coeff"
    "uni_pc_skip_type": "time_uniform",  # or "time_quadratic", "logSNR"
    "uni_pc_order": 3,
    "uni_pc_lower_order_final": True,
}

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
    "batch_cond_uncond": True,  # off: cond and uncond in runs of their own
    # SDXL
    "sdxl_crop_top": 0,
    "sdxl_crop_left": 0,
    "sdxl_refiner_low_aesthetic_score": 2.5,
    "sdxl_refiner_high_aesthetic_score": 6.0,
    "refiner_switch_by_sample_steps": False,
    "hires_fix_refiner_pass": "second pass",
    "hires_fix_use_firstpass_conds": False,  # the second pass's prompts are encoded under the first one's networks
    # pictures
    "ESRGAN_tile": 192,
    "ESRGAN_tile_overlap": 8,
    "img2img_color_correction": False,
    "img2img_background_color": "#ffffff",
    "overlay_inpaint": True,
    "inpainting_mask_weight": 1.0,
    # faces
    "code_former_weight": 0.5,
    # ControlNet
    "controlnet_ignore_noninpaint_mask": False,  # a mask beside the image does not become the image
    "each_unit_for_each_image": False,  # unit i is for image i of the batch, counting round
    # the detailer
    "ad_bbox_sortby": "None",  # or "Position (left to right)", "Position (center to edge)", "Area (large to small)"
    "ad_same_seed_for_each_tab": False,  # every mask of a pass begins from the picture's seed
    "ad_dynamic_denoise_power": 0.0,  # above 0 small boxes are drawn more anew than large ones
    "ad_match_inpaint_bbox_size": "Off",  # or "Strict (SDXL only)", "Free"
}


HIRES_REFINER_PASSES = ("first pass", "second pass", "both passes")  # values of `hires_fix_refiner_pass`


def webui_settings(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """All settings: the given ones over the defaults. Raises ValueError for a name the webui does not have here."""
    for name in options or {}:
        if name not in WEBUI_OPTIONS:
            raise ValueError(unknown_choice("`webui_options`: setting", name, WEBUI_OPTIONS))
    return {**WEBUI_OPTIONS, **(options or {})}


def sampling_options(options: Mapping[str, object] | None) -> dict:
    """`SAMPLING_DEFAULTS` with what `options` says instead. Names that are not in the table are left out."""
    given = options or {}
    return {name: given.get(name, default) for name, default in SAMPLING_DEFAULTS.items()}
