"""Where two vocabularies meet: labels of a parameters text, and arguments of the pipelines' calls. One row a field."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..options import HIRES_REFINER_PASSES, WEBUI_OPTIONS


class TextField(NamedTuple):
    """What a field means for a call, or what a reader is told about it."""

    label: str
    argument: str = ""  # `webui_options.<name>` for a setting; "" where no argument gives it
    read: Callable[[str], Any] = str  # from the field's text; ValueError where it cannot
    absent: Any = None  # the value that leaving the argument out means too
    part: str = "call"  # "call", "hires" or "img2img": the pass it belongs to; "needed": told; "quiet": nothing
    note: str = ""  # of "needed": what is told, `{}` being the value
    idle: tuple[str, ...] = ()  # of "needed": values that mean that nothing is needed
    others: tuple[str, ...] = ()  # the same field as other programs and people call it, in lower case


def _setting(label: str, option: str, read: Callable[[str], Any], part: str = "call") -> TextField:
    """The field of one of the webui's settings; leaving it out means the setting's default."""
    return TextField(label, f"webui_options.{option}", read, WEBUI_OPTIONS[option], part)


INPAINT_AREAS = {"Whole picture": "whole", "Only masked": "masked"}
MASK_MODES = {"Inpaint masked": False, "Inpaint not masked": True}
LARGEST_SIDE, LARGEST_STEPS, LARGEST_SEED = 65_535, 10_000, 2**64 - 1


def read_infotext_int(text: str) -> int:
    """`20`, and `20.0` of other programs. Raises ValueError for a fraction."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(text)
    return int(text) if text.strip().lstrip("+-").isdecimal() else int(number)


def read_infotext_bool(text: str) -> bool:
    """False for `False` and nothing, as the webui has it; everything else is True."""
    return text not in ("False", "")


def _read_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _read_within(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = read_infotext_int(text)
        if not low <= number <= high:
            raise ValueError(text)
        return number

    return read


def _read_skipped_layers(text: str) -> int:
    """diffusers counts the layers that are skipped, the webui from the last layer on, which is its 1. -2 is 2."""
    return max(abs(read_infotext_int(text)), 1) - 1


def _read_choice(choices: Mapping[str, Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text not in choices:
            raise ValueError(text)
        return choices[text]

    return read


def _among(*choices: str) -> Callable[[str], str]:
    return _read_choice({choice: choice for choice in choices})


def _read_restorer(text: str) -> str | None:
    return None if text in ("None", "False", "") else text


def _read_title(text: str) -> str:
    """The name of `name [hash]`."""
    return re.sub(r"\s*\[[0-9a-fA-F]{6,64}\]$", "", text)


_PIXELS, _STEPS, _SEED = _read_within(1, LARGEST_SIDE), _read_within(1, LARGEST_STEPS), _read_within(-1, LARGEST_SEED)
_RNG = {"GPU": "gpu", "CPU": "cpu", "NV": "nv", "cuda": "gpu", "cpu": "cpu"}
_MERGING = "token merging at {} is not done here; it changes pictures a little"

# Order is the order of writing. Fields that make one argument together (sampler and schedule, the sizes of a hires
# pass, seed resize) are read in to_call.py.
FIELDS = (
    TextField("Prompt", "prompt"),
    TextField("Negative prompt", "negative_prompt"),
    TextField("Steps", "num_inference_steps", _STEPS, others=("sampling steps", "num inference steps")),
    TextField("CFG scale", "guidance_scale", _read_number, others=("cfg", "guidance scale", "cfg_scale", "cfgscale")),
    TextField("Seed", "seed", _SEED, others=("noise seed",)),
    TextField("Face restoration", "restore_faces", _read_restorer),
    TextField("Size-1", "width", _PIXELS, others=("width", "image size-1", "resolution-1")),
    TextField("Size-2", "height", _PIXELS, others=("height", "image size-2", "resolution-2")),
    TextField("Variation seed", "subseed", _SEED),
    TextField("Variation seed strength", "subseed_strength", _read_number, 0.0, others=("variation strength",)),
    TextField("Clip skip", "clip_skip", _read_skipped_layers, 0, others=("clip_skip", "clipskip", "clip")),
    _setting("ENSD", "eta_noise_seed_delta", read_infotext_int),
    TextField("RNG", "noise_source", _read_choice(_RNG), "gpu"),
    TextField("Tiling", "tiling", read_infotext_bool, False),
    _setting("Emphasis", "emphasis", _among("None", "Ignore", "Original", "No norm")),
    _setting("Eta", "eta_ancestral", _read_number),
    _setting("Eta DDIM", "eta_ddim", _read_number),
    _setting("Sigma churn", "s_churn", _read_number),
    _setting("Sigma tmin", "s_tmin", _read_number),
    _setting("Sigma tmax", "s_tmax", _read_number),
    _setting("Sigma noise", "s_noise", _read_number),
    _setting("Schedule min sigma", "sigma_min", _read_number),
    _setting("Schedule max sigma", "sigma_max", _read_number),
    _setting("Schedule rho", "rho", _read_number),
    _setting("Beta schedule alpha", "beta_dist_alpha", _read_number),
    _setting("Beta schedule beta", "beta_dist_beta", _read_number),
    _setting("Discard penultimate sigma", "always_discard_next_to_last_sigma", read_infotext_bool),
    _setting("SGM noise multiplier", "sgm_noise_multiplier", read_infotext_bool),
    _setting("Pad conds", "pad_cond_uncond", read_infotext_bool),
    _setting("Pad conds v0", "pad_cond_uncond_v0", read_infotext_bool),
    _setting("NGMS", "s_min_uncond", _read_number),
    _setting("NGMS all steps", "s_min_uncond_all", read_infotext_bool),
    _setting("Skip Early CFG", "skip_early_cond", _read_number),
    _setting("Noise Schedule", "sd_noise_schedule", _among("Default", "Zero Terminal SNR")),
    _setting("Downcast alphas_cumprod", "use_downcasted_alpha_bar", read_infotext_bool),
    _setting("Old prompt editing timelines", "use_old_scheduling", read_infotext_bool),
    TextField("Refiner switch at", "refiner_switch_at", _read_number),
    _setting("Refiner switch by sampling steps", "refiner_switch_by_sample_steps", read_infotext_bool),
    _setting("Hires refiner", "hires_fix_refiner_pass", _among(*HIRES_REFINER_PASSES)),
    TextField(
        "CFG rescale",
        "guidance_rescale",
        _read_number,
        0.0,
        others=("cfg rescale phi", "cfg_rescale", "cfg rescale φ", "guidance rescale", "rescale cfg"),
    ),
    # the hires pass
    TextField("Denoising strength", "hires_strength", _read_number, part="hires"),
    TextField("Hires prompt", "hires_prompt", absent="", part="hires"),
    TextField("Hires negative prompt", "hires_negative_prompt", absent="", part="hires"),
    TextField("Hires upscale", "hires_scale", _read_number, part="hires", others=("hires scale",)),
    TextField("Hires steps", "hires_steps", _read_within(0, LARGEST_STEPS), 0, part="hires"),
    TextField("Hires upscaler", "hires_upscaler", part="hires"),
    TextField("Hires CFG Scale", "hires_guidance_scale", _read_number, part="hires"),
    TextField("Hires checkpoint", "hires_model", _read_title, "Use same checkpoint", part="hires"),
    # drawing over a picture
    TextField("Denoising strength", "strength", _read_number, part="img2img"),
    TextField("Mask mode", "invert_mask", _read_choice(MASK_MODES), False, part="img2img"),
    TextField("Mask blur", "mask_blur", read_infotext_int, part="img2img"),
    TextField("Inpaint area", "inpaint_area", _read_choice(INPAINT_AREAS), "whole", part="img2img"),
    TextField("Masked area padding", "masked_padding", read_infotext_int, 32, part="img2img"),
    TextField("Masked content", "masked_content", absent="original", part="img2img"),
    _setting("Noise multiplier", "initial_noise_multiplier", _read_number, part="img2img"),
    _setting("Extra noise", "img2img_extra_noise", _read_number, part="img2img"),
    _setting("Conditional mask weight", "inpainting_mask_weight", _read_number, part="img2img"),
    # what else the picture was made of
    TextField(
        "Model",
        part="needed",
        note="it was drawn with the checkpoint `{}`; load that one",
        others=("stable diffusion model", "checkpoint", "model name"),
    ),
    TextField(
        "VAE",
        part="needed",
        note="it was decoded with the VAE `{}`; load that one as `vae`",
        idle=("Automatic", "None", "Default (model)", "default", "baked VAE", "Baked VAE"),
        others=("vae model",),
    ),
    TextField(
        "Lora hashes",
        part="needed",
        note="it needs these LoRA files, by name and hash: {}",
        others=("lyco hashes",),
    ),
    TextField("TI hashes", part="needed", note="it needs these textual inversions, by name and hash: {}"),
    TextField(
        "Used embeddings",
        part="needed",
        note="it needs these textual inversions: {}",
        others=("embeddings", "ti"),
    ),
    TextField(
        "Refiner",
        part="needed",
        note="it was finished by the refiner `{}`; give its UNet as the component `refiner`",
        idle=("None", "False"),
    ),
    TextField(
        "Styles array",
        part="needed",
        note="the styles {} were taken out of its prompts; pass the same `styles` to merge them again",
        idle=("[]",),
    ),
    TextField("Token merging ratio", part="needed", note=_MERGING, idle=("0", "0.0")),
    TextField("Token merging ratio hr", part="needed", note=_MERGING, idle=("0", "0.0")),
    TextField(
        "Image CFG scale",
        part="needed",
        note="image guidance at {} belongs to models that edit pictures; there is none here",
        idle=("1.5", "0", "0.0", "1", "1.0"),  # values that are written though nothing reads them
    ),
    TextField(
        "FP8 weight",
        part="needed",
        note="weights were held in FP8 ({}); here they are as loaded",
        idle=("Disable", "False"),
    ),
    TextField(
        "VAE Encoder",
        part="needed",
        note="pictures were encoded by `{}` instead of the VAE; here the VAE does it",
        idle=("Full",),
    ),
    TextField(
        "VAE Decoder",
        part="needed",
        note="the picture was decoded by `{}` instead of the VAE; here the VAE does it",
        idle=("Full",),
    ),
    TextField(
        "Hypernet",
        part="needed",
        note="it was drawn with the hypernetwork `{}`; they are not applied here",
        idle=("None",),
    ),
    # said by others, or of no consequence for the picture
    *(
        TextField(label, part="quiet")
        for label in (
            "Version",
            "User",
            "Model hash",
            "VAE hash",
            "Cache FP16 weight for LoRA",
            "Hypernet strength",
            "Hypernet hash",
            "First pass size-1",
            "First pass size-2",
        )
    ),
)
CALL_FIELDS = {field.label: field for field in FIELDS if field.part == "call"}
HIRES_FIELDS = {field.label: field for field in FIELDS if field.part == "hires"}
IMG2IMG_FIELDS = {field.label: field for field in FIELDS if field.part == "img2img"}
NEEDED_FIELDS = {field.label: field for field in FIELDS if field.part == "needed"}
QUIET_FIELDS = tuple(field.label for field in FIELDS if field.part == "quiet")
# What reading writes where a text has nothing.
_FILLED_IN = {
    "Schedule type": "Automatic",
    "RNG": "GPU",
    "Clip skip": "1",
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Hires checkpoint": "Use same checkpoint",
}
# Fields that make one argument together, as other programs and people call them.
_OTHER_LABELS = {
    "Sampler": ("sampling method", "sampler name", "sampler_name", "ksampler"),
    "Schedule type": ("sampler sigma", "scheduler", "schedule", "sampler schedule"),
    "Hires sampler": (),
    "Hires schedule type": ("hires scheduler",),
}


# Of Forge's modules, which are text encoders or VAEs.
_TEXT_ENCODER = re.compile(r"(?i)clip|t5|qwen|gemma|llama|text.?encoder")


def fields_by_own_labels(fields: dict[str, Any]) -> dict[str, Any]:
    """The same fields under the webui's labels, where another program's (or a person's) stand alone."""
    spellings: dict[str, list[str]] = {}
    for label in fields:
        spellings.setdefault(label.lower(), []).append(label)
    others = {
        label: field.others for table in (CALL_FIELDS, HIRES_FIELDS, NEEDED_FIELDS) for label, field in table.items()
    }
    for label, names in (others | _OTHER_LABELS).items():
        known = label in fields and str(fields[label]) != _FILLED_IN.get(label)
        spelt = (other for name in (label.lower(), *names) for other in spellings.get(name, ()))
        found = (other for other in spelt if other != label and other in fields)
        name = next((name for name in found if label != "Schedule type" or not _is_class(fields[name])), None)
        if not known and name is not None:
            fields[label] = fields.pop(name)
    modules = [str(value) for label, value in fields.items() if re.fullmatch(r"Module \d+", label)]
    if "VAE" not in fields and (vae := next((name for name in modules if not _TEXT_ENCODER.search(name)), None)):
        fields["VAE"] = vae
    size = re.fullmatch(r"\D{0,2}(\d+)\s*[x×*,]\s*(\d+)\D{0,2}", str(fields.get("Size", "")))
    if size and "Size-1" not in fields:
        fields |= {"Size-1": size[1], "Size-2": size[2]}
        del fields["Size"]
    return fields


def _is_class(name: Any) -> bool:
    """Whether a "Scheduler" is a class of diffusers, which steps and is no schedule."""
    return str(name).endswith("Scheduler")
