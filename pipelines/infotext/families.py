"""Pictures of other model families, told by their texts: no Stable Diffusion 1, 2 or SDXL model draws them.

what tells                                           example
a name of the model, VAE or text encoder             Model: flux1-dev-Q8_0; Module 3: t5xxl_fp16
the class of the pipeline, or the base               Pipeline: FluxPipeline; baseModel: Flux1; urn:air:sd3:
a field that only they have                          Distilled CFG Scale: 3.5 beside CFG scale: 1
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any


# Family -> what its models are called. The first one that is found counts.
_MODEL_NAMES = {
    "Flux": r"flux[ ._-]*(1|2|dev|schnell|pro|kontext|fill|krea|redux)|(?<![a-z])flux(?![a-z])",
    "Stable Diffusion 3": r"(?<![a-z])sd[ ._-]?3(?!\d\d)([ ._-]|m|l|$|5)|sd35|stable[ ._-]?diffusion[ ._-]?3",
    "Chroma": r"(?<![a-z])chroma[ ._-]?(unlocked|1|hd|v\d\d|radiance|flash|base)",
    "Qwen-Image": r"qwen",
    "Z-Image": r"z[ ._-]?image",
    "Wan": r"(?<![a-z])wan[ ._-]?(2|video|vace)",
    "Anima": r"(?<![a-z])anima[ ._-]?(preview|base|v?\d|$)(?![a-z]*pencil)",
    "Hunyuan": r"hunyuan",
    "PixArt": r"pixart",
    "Kolors": r"kolors",
    "AuraFlow": r"aura[ ._-]?flow",
    "Lumina": r"lumina|neta[ ._-]?yume",
    "HiDream": r"hidream",
    "Sana": r"(?<![a-z])sana[ ._-]?(\d|sprint)",
    "Stable Cascade": r"stable[ ._-]?cascade|wuerstchen",
    "Kandinsky": r"kandinsky",
    "OmniGen": r"omnigen",
    "Cosmos": r"cosmos[ ._-]?predict",
    "LTX-Video": r"(?<![a-z])ltx[ ._-]?(v|\d)",
    "DeepFloyd IF": r"deepfloyd",
}
_TEXT_ENCODERS = {
    "Qwen-Image": r"qwen",
    "Wan": r"umt5",
    "HiDream": r"llama",
    "Lumina": r"gemma",
    "Flux": r"t5|flux",
}
_VAES = {"Flux": r"^(ae|flux[\w .-]*ae)(\.\w+)?$|flux", "Qwen-Image": r"qwen", "Wan": r"wan[ ._-]?2"}
_SD_NAMES = re.compile(r"xl|sd[ ._-]?(v?1|2)|pony|illustrious|noob|hyper|lightning|turbo|lcm", re.I)
_NAMES_OF_BASE = re.compile(r"^(sd|stable[ _-]?diffusion)?[ _-]?(xl|1|2|v1|v2|any|pony|illustrious|noob)", re.I)


def other_family(fields: Mapping[str, Any]) -> str | None:
    """The family of models that drew a picture ("Flux"), None for Stable Diffusion 1, 2, SDXL and what is unknown.

    >>> other_family({"Model": "flux1-dev-Q8_0"}), other_family({"Model": "dreamshaper_8"})
    ('Flux', None)
    """
    if by_class := _pipeline_family(str(fields.get("Pipeline") or "")):
        return by_class
    if by_base := _base_family(fields):
        return by_base
    model = str(fields.get("Model") or fields.get("Checkpoint") or fields.get("Unet") or _resource_model(fields))
    if not _SD_NAMES.search(re.sub(r"(?i)schnell|turbo|hyper|lightning|t5xxl", "", model)) and (
        found := _first_match(_MODEL_NAMES, [model])
    ):
        return found
    modules = [
        str(value) for label, value in fields.items() if re.fullmatch(r"Module \d+|Text [Ee]ncoders?|TE", label)
    ]
    if found := _first_match(_TEXT_ENCODERS, modules):
        return found
    if found := _first_match(_VAES, [str(fields.get("VAE") or "")]):
        return found
    return "Flux" if _is_distilled(fields, model) else None


def family_refusal(family: str) -> str:
    """The one sentence about such a picture."""
    return f"this is a picture of {family}; it cannot be drawn with a Stable Diffusion model."


def _is_distilled(fields: Mapping[str, Any], model: str) -> bool:
    """Guidance that is distilled, and none beside it: no Stable Diffusion model, unless its name says so."""
    try:
        plain = float(fields.get("CFG scale") or 0) == 1
    except ValueError:
        return False
    distilled = any(label.lower() in ("distilled cfg scale", "fluxmode") for label in fields)
    return distilled and plain and not fields.get("Negative prompt") and not _SD_NAMES.search(model)


def _pipeline_family(pipeline: str) -> str | None:
    name = re.sub(r"(Img2Img|Inpaint|ControlNet|Control|PAG|InstructPix2Pix|Fill)*Pipeline$", "", pipeline)
    if (
        not name.isidentifier()
        or pipeline == name
        or re.fullmatch(r"StableDiffusion(XL)?|LatentConsistencyModel", name)
    ):
        return None
    return {"StableDiffusion3": "Stable Diffusion 3", "QwenImage": "Qwen-Image", "ZImage": "Z-Image"}.get(name, name)


def _base_family(fields: Mapping[str, Any]) -> str | None:
    """The base that Civitai and InvokeAI name, in words or as `urn:air:flux1:checkpoint:…`."""
    base = str(fields.get("baseModel") or fields.get("Base model") or "")
    named = re.search(r"urn:air:(\w+):checkpoint", " ".join(map(str, fields.values())))
    for name in (base, named[1] if named else ""):
        if name and not _NAMES_OF_BASE.match(name):
            return _first_match(_MODEL_NAMES, [name]) or (name if name == base and name.lower() != "other" else None)
    return None


def _resource_model(fields: Mapping[str, Any]) -> str:
    """The checkpoint among Civitai's resources, by its name there; "" for none."""
    try:
        entries = json.loads(str(fields.get("Civitai resources") or "[]"))
    except (ValueError, RecursionError):
        return ""
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping) and str(entry.get("type")).lower() == "checkpoint":
            return f"{entry.get('modelName') or ''} {entry.get('modelVersionName') or ''}".strip()
    return ""


def _first_match(names: Mapping[str, str], values: Iterable[str]) -> str | None:
    values = [value.lower() for value in values if value]
    return next((family for family, names_ in names.items() if any(re.search(names_, v) for v in values)), None)
