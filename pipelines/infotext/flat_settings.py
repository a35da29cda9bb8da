"""Settings of other programs: from JSON of one level under whatever keys, and as a text in the webui's words.

{"negativePrompt": "x", "cfgScale": 7}        {"negative_prompt": "x", "cfg_scale": 7}
{"uc": "x", "scale": 7, "size": "64x32"}      {"negative_prompt": "x", "cfg_scale": 7, "width": "64", "height": "32"}
"""

import re
from collections.abc import Mapping
from typing import Any

from .comfy import file_stem
from .write import quote_field


_FLAT_KEYS = {
    "prompt": ("prompt", "positiveprompt", "c", "inputs"),
    "negative_prompt": ("negativeprompt", "uc", "negative"),
    "steps": ("steps", "numinferencesteps", "samplingsteps"),
    "sampler_name": ("sampler", "samplername", "samplerindex", "samplingmethod"),
    "scheduler": ("scheduler", "scheduletype", "schedule", "noiseschedule"),
    "cfg_scale": ("cfgscale", "guidancescale", "scale", "cfg"),
    "seed": ("seed", "noiseseed"),
    "width": ("width",),
    "height": ("height",),
    "model_name": (
        "model",
        "modelname",
        "basemodel",
        "basemodelname",
        "usestablediffusionmodel",
        "sdmodelname",
        "checkpoint",
    ),
    "model_hash": ("modelhash", "basemodelhash", "sdmodelhash"),
    "vae_name": ("vae", "usevaemodel"),
    "clip_skip": ("clipskip",),
    "denoising_strength": ("denoisingstrength", "strength", "promptstrength", "denoise"),
    "subseed": ("variationseed", "subseed"),
    "subseed_strength": ("variationseedstrength", "subseedstrength"),
}
_FLAT_LABELS = ("Hires upscale", "Hires upscaler", "Hires steps", "Hires resize", "ENSD", "RNG", "Version")


def flat_settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `format_infotext` from the usual keys, whatever their case and dashes."""
    plain = {re.sub(r"[^a-z0-9]", "", str(key).lower()): value for key, value in data.items()}
    settings: dict[str, Any] = {}
    for name, keys in _FLAT_KEYS.items():
        value = next((plain[key] for key in keys if plain.get(key) not in (None, "", [], {})), None)
        if isinstance(value, Mapping):
            value = value.get("name", value.get("model_name", value.get("label")))
        if value is not None and not isinstance(value, bool):
            settings[name] = value
    size = re.findall(r"\d+", str(plain.get("size") or plain.get("resolution") or ""))
    if "width" not in settings and len(size) == 2:
        settings["width"], settings["height"] = size
    settings["extra"] = {
        label: data[label] for label in _FLAT_LABELS if isinstance(data.get(label), (str, int, float))
    }
    return settings


def with_lora_tags(settings: dict[str, Any], loras: Any, weights: Any = ()) -> dict[str, Any]:
    """Networks as tags behind the prompt: entries are names, {name, weight}, [name, weight] or {model: {name}}."""
    tags = []
    for index, entry in enumerate(loras if isinstance(loras, list) else []):
        name, weight = entry, weights[index] if isinstance(weights, list) and index < len(weights) else 1
        if isinstance(entry, Mapping):
            model = entry.get("lora") or entry.get("model") or entry.get("name") or entry.get("file")
            name = model.get("name", model.get("model_name")) if isinstance(model, Mapping) else model
            weight = entry.get("weight", 1)
        elif isinstance(entry, list) and len(entry) > 1:
            name, weight = entry[:2]
        if isinstance(name, str) and name not in ("", "None") and not isinstance(weight, (list, Mapping)):
            tags.append(f"<lora:{file_stem(name)}:{weight}>")
    prompt = single_value(settings.get("prompt")) or ""
    return {**settings, "prompt": f"{prompt}{''.join(tag for tag in tags if tag not in str(prompt))}"}


# Setting -> field, in the webui's order.
_SETTING_LABELS = {
    "steps": "Steps",
    "sampler_name": "Sampler",
    "scheduler": "Schedule type",
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "width": "Size",
    "model_hash": "Model hash",
    "model_name": "Model",
    "vae_name": "VAE",
    "subseed": "Variation seed",
    "subseed_strength": "Variation seed strength",
    "denoising_strength": "Denoising strength",
    "clip_skip": "Clip skip",
    "noise": "RNG",
}


def settings_text(settings: Mapping[str, Any]) -> str:
    """The text of settings: what is no single value, or says nothing, is left out."""
    known = {name: single_value(value) for name, value in settings.items() if name != "extra"}
    known = {name: value for name, value in known.items() if value not in (None, "")}
    if not known:
        return ""
    for name in ("model_name", "vae_name"):
        known |= {name: file_stem(known[name])} if name in known else {}
    sides = str(known.pop("width", "")), str(known.pop("height", ""))
    if all(re.fullmatch(r"\d{1,9}(\.0)?", side) for side in sides):
        known["width"] = "x".join(side.removesuffix(".0") for side in sides)
    if str(known.get("clip_skip", "1")) in ("0", "1"):
        known.pop("clip_skip", None)
    fields = {label: known[name] for name, label in _SETTING_LABELS.items() if name in known}
    extra = {label: single_value(value) for label, value in (settings.get("extra") or {}).items()}
    fields |= {label: value for label, value in extra.items() if value not in (None, "")}
    if "version" in known:
        fields["Version"] = known["version"]
    line = ", ".join(f"{label}: {quote_field(value)}" for label, value in fields.items())
    negative = known.get("negative_prompt")
    parts = (str(known.get("prompt", "")), f"Negative prompt: {negative}" if negative else "", line)
    return "\n".join(part for part in parts if part)


def single_value(value: Any) -> Any:
    """A value as a field has it: the first of a list, no tables."""
    while isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, (str, int, float)) else None
