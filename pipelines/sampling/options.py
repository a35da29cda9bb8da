"""The webui's settings that sampling reads, under the webui's own names."""

from collections.abc import Mapping


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


def sampling_options(options: Mapping[str, object] | None) -> dict:
    """`SAMPLING_DEFAULTS` with what `options` says instead. Names that are not in the table are left out."""
    given = options or {}
    return {name: given.get(name, default) for name, default in SAMPLING_DEFAULTS.items()}
