"""Where two vocabularies meet: labels of a parameters text, and arguments of the pipelines' calls."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class CallField(NamedTuple):
    """What a field means for a call."""

    argument: str  # `webui_options.<name>` for a setting
    read: Callable[[str], Any]  # from the field's text; ValueError where it cannot
    absent: Any = None  # the value that leaving the argument out means too


INPAINT_AREAS = {"Whole picture": "whole", "Only masked": "masked"}
MASK_MODES = {"Inpaint masked": False, "Inpaint not masked": True}


def read_infotext_int(text: str) -> int:
    """`20`, and `20.0` of other programs. Raises ValueError for a fraction."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(text)
    return int(text) if text.strip().lstrip("+-").isdecimal() else int(number)


def read_infotext_bool(text: str) -> bool:
    """False for `False` and nothing, as the webui has it; everything else is True."""
    return text not in ("False", "")


def _read_skipped_layers(text: str) -> int:
    """diffusers counts the layers that are skipped, the webui from the last layer on, which is its 1."""
    return max(read_infotext_int(text), 1) - 1


def _read_noise_source(text: str) -> str:
    return _read_choice({"GPU": "gpu", "CPU": "cpu", "NV": "nv"}, text)


def _read_inpaint_area(text: str) -> str:
    return _read_choice(INPAINT_AREAS, text)


def _read_mask_mode(text: str) -> bool:
    return _read_choice(MASK_MODES, text)


def _read_choice(choices: Mapping[str, Any], text: str) -> Any:
    if text not in choices:
        raise ValueError(text)
    return choices[text]


# Label in the text -> what it is in a call. Order is the order of writing. Fields that make one argument together
# (sampler and schedule, hires fix, seed resize) are read in infotext.py.
CALL_FIELDS = {
    "Prompt": CallField("prompt", str),
    "Negative prompt": CallField("negative_prompt", str),
    "Steps": CallField("num_inference_steps", read_infotext_int),
    "CFG scale": CallField("guidance_scale", float),
    "Seed": CallField("seed", read_infotext_int),
    "Face restoration": CallField("restore_faces", str),
    "Size-1": CallField("width", read_infotext_int),
    "Size-2": CallField("height", read_infotext_int),
    "Variation seed": CallField("subseed", read_infotext_int),
    "Variation seed strength": CallField("subseed_strength", float, 0.0),
    "Clip skip": CallField("clip_skip", _read_skipped_layers, 0),
    "ENSD": CallField("webui_options.eta_noise_seed_delta", read_infotext_int, 0),
    "RNG": CallField("noise_source", _read_noise_source, "gpu"),
    "Tiling": CallField("tiling", read_infotext_bool, False),
    "Emphasis": CallField("webui_options.emphasis", str, "Original"),
    "Eta": CallField("webui_options.eta_ancestral", float, 1.0),
    "Eta DDIM": CallField("webui_options.eta_ddim", float, 0.0),
    "Sigma churn": CallField("webui_options.s_churn", float, 0.0),
    "Sigma tmin": CallField("webui_options.s_tmin", float, 0.0),
    "Sigma tmax": CallField("webui_options.s_tmax", float, 0.0),
    "Sigma noise": CallField("webui_options.s_noise", float, 1.0),
    "Schedule min sigma": CallField("webui_options.sigma_min", float, 0.0),
    "Schedule max sigma": CallField("webui_options.sigma_max", float, 0.0),
    "Schedule rho": CallField("webui_options.rho", float, 0.0),
    "Beta schedule alpha": CallField("webui_options.beta_dist_alpha", float, 0.6),
    "Beta schedule beta": CallField("webui_options.beta_dist_beta", float, 0.6),
    "Discard penultimate sigma": CallField(
        "webui_options.always_discard_next_to_last_sigma", read_infotext_bool, False
    ),
    "SGM noise multiplier": CallField("webui_options.sgm_noise_multiplier", read_infotext_bool, False),
    "Pad conds": CallField("webui_options.pad_cond_uncond", read_infotext_bool, False),
    "Pad conds v0": CallField("webui_options.pad_cond_uncond_v0", read_infotext_bool, False),
    "NGMS": CallField("webui_options.s_min_uncond", float, 0.0),
    "NGMS all steps": CallField("webui_options.s_min_uncond_all", read_infotext_bool, False),
    "Skip Early CFG": CallField("webui_options.skip_early_cond", float, 0.0),
    "Noise Schedule": CallField("webui_options.sd_noise_schedule", str, "Default"),
    "Downcast alphas_cumprod": CallField("webui_options.use_downcasted_alpha_bar", read_infotext_bool, False),
    "Old prompt editing timelines": CallField("webui_options.use_old_scheduling", read_infotext_bool, False),
    "Refiner switch at": CallField("refiner_switch_at", float),
    "Refiner switch by sampling steps": CallField(
        "webui_options.refiner_switch_by_sample_steps", read_infotext_bool, False
    ),
    "Hires refiner": CallField("webui_options.hires_fix_refiner_pass", str, "second pass"),
}
HIRES_FIELDS = {
    "Denoising strength": CallField("hires_strength", float),
    "Hires prompt": CallField("hires_prompt", str, ""),
    "Hires negative prompt": CallField("hires_negative_prompt", str, ""),
    "Hires upscale": CallField("hires_scale", float),
    "Hires steps": CallField("hires_steps", read_infotext_int, 0),
    "Hires upscaler": CallField("hires_upscaler", str),
}
IMG2IMG_FIELDS = {
    "Denoising strength": CallField("strength", float),
    "Mask mode": CallField("invert_mask", _read_mask_mode, False),
    "Mask blur": CallField("mask_blur", read_infotext_int),
    "Inpaint area": CallField("inpaint_area", _read_inpaint_area, "whole"),
    "Masked area padding": CallField("masked_padding", read_infotext_int, 32),
    "Masked content": CallField("masked_content", str, "original"),
    "Noise multiplier": CallField("webui_options.initial_noise_multiplier", float, 1.0),
    "Extra noise": CallField("webui_options.img2img_extra_noise", float, 0.0),
    "Conditional mask weight": CallField("webui_options.inpainting_mask_weight", float, 1.0),
}
# Fields that say what else a picture was made of: (what the reader is told, values that mean nothing is needed).
NEEDED_FIELDS = {
    "Model": ("it was drawn with the checkpoint `{}`; load that one", ()),
    "VAE": ("it was decoded with the VAE `{}`; load that one as `vae`", ("Automatic", "None")),
    "Lora hashes": ("it needs these LoRA files, by name and hash: {}", ()),
    "TI hashes": ("it needs these textual inversions, by name and hash: {}", ()),
    "Refiner": ("it was finished by the refiner `{}`; give its UNet as the component `refiner`", ()),
    "Styles array": (
        "the styles {} were taken out of its prompts; pass the same `styles` to merge them again",
        ("[]",),
    ),
    "Hires checkpoint": (
        "its hires pass was drawn by `{}`; both passes are drawn by one here",
        ("Use same checkpoint",),
    ),
    "Token merging ratio": ("token merging at {} is not done here; it changes pictures a little", ("0", "0.0")),
    "Token merging ratio hr": ("token merging at {} is not done here; it changes pictures a little", ("0", "0.0")),
    "Image CFG scale": ("image guidance at {} belongs to models that edit pictures; there is none here", ()),
    "FP8 weight": ("weights were held in FP8 ({}); here they are as loaded", ("Disable",)),
    "VAE Encoder": ("pictures were encoded by `{}` instead of the VAE; here the VAE does it", ("Full",)),
    "VAE Decoder": ("the picture was decoded by `{}` instead of the VAE; here the VAE does it", ("Full",)),
    "Hypernet": ("it was drawn with the hypernetwork `{}`; there are none here", ()),
    "Init image hash": ("it was drawn over another picture (hash {}), which the text does not hold", ()),
}
# Said by others, or of no consequence for the picture.
QUIET_FIELDS = (
    "Version",
    "User",
    "Model hash",
    "VAE hash",
    "Cache FP16 weight for LoRA",
    "Hypernet strength",
    "First pass size-1",
    "First pass size-2",
)
