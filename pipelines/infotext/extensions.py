"""What fields of extensions, forks and other programs say about a picture: one line each, nothing where idle.

ADetailer model: face_yolov8n.pt, ...      ADetailer redrew 1 area (face_yolov8n.pt at 0.4) ...
Script: X/Y/Z plot, X Type: Steps, ...     X/Y/Z grid (Steps): it is the text of a grid; ...
Kohya HRFix: True                          the U-Net worked on a shrunken picture ...
Template: a {red|blue} kite                (nothing: it is what the prompt was made from)
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Extension(NamedTuple):
    """Fields that belong together, and what they mean."""

    labels: str  # regular expression of whole labels, in any case
    tell: str | Callable[[Mapping[str, str]], str]  # the line, or what makes it; "" for no consequence
    off: str = ""  # where a field of this label says no, the extension did nothing


def _adetailer(fields: Mapping[str, str]) -> str:
    models = [value for label, value in fields.items() if re.fullmatch(r"(?i)ADetailer model( \d\w\w)?", label)]
    models = [model for model in models if model not in ("None", "")]
    if not models:
        return ""
    strength = next((v for k, v in fields.items() if k.lower().startswith("adetailer denoising strength")), "0.4")
    areas = f"{len(models)} area" + ("s" if len(models) > 1 else "")
    return (
        f"ADetailer redrew {areas} of the finished picture ({', '.join(models)} at {strength}), faces or the like; "
        "here `detailers` does, with what a detector finds"
    )


def _control(fields: Mapping[str, str]) -> str:
    units = sorted({found[1] or "0" for label in fields if (found := re.match(r"(?i)ControlNet[ -]?(\d*)", label))})
    models = [m for value in fields.values() for m in re.findall(r"(?i)model: ([^,]+)", value)]
    models += [value for label, value in fields.items() if label.lower().endswith(" model")]
    models = [model for model in models if model != "None"]
    named = f" ({', '.join(dict.fromkeys(models))})" if models else ""
    switched_off = any(label.lower().endswith("enabled") and value == "False" for label, value in fields.items())
    if not models and (switched_off or all(value in ("False", "None", "") for value in fields.values())):
        return ""
    images = "needs its control image" if len(units) == 1 else "need their control images"
    return f"ControlNet {', '.join(units)}{named} {images}, which the text does not hold; give `control_units` with it"


def _grid(fields: Mapping[str, str]) -> str:
    script = fields.get("Script", "X/Y/Z plot")
    if script in ("None", ""):
        return ""
    if "plot" not in script.lower():
        return f"the script `{script}` drew it; here it is drawn without"
    axes = ", ".join(value for label, value in fields.items() if label.endswith("Type") and value != "Nothing")
    return f"X/Y/Z grid ({axes or script}): it is the text of a grid of pictures; `webui-diffusers grid` draws it"


def _resources(fields: Mapping[str, str]) -> str:
    """Civitai's list of what was used, by the names that people know."""
    try:
        entries = json.loads(next(iter(fields.values())))
    except (ValueError, RecursionError):
        return "Civitai's list of resources is cut off, so that it cannot be read"
    entries = [entries] if isinstance(entries, Mapping) else entries
    if not isinstance(entries, list) or not entries:
        return ""
    told = []
    for entry in entries:
        if isinstance(entry, Mapping):
            name = entry.get("modelName") or entry.get("name") or entry.get("air")
            name = name or f"number {entry.get('modelVersionId')}"
            weight = f" at {entry['weight']}" if entry.get("weight") is not None else ""
            version = f" {entry['modelVersionName']}" if entry.get("modelVersionName") else ""
            told.append(f"{entry.get('type', 'file')} `{name}{version}`{weight}")
    return f"it was drawn with, as Civitai names them: {', '.join(told)}"


def _hash_table(fields: Mapping[str, str]) -> str:
    try:
        table = json.loads(next(iter(fields.values())))
    except (ValueError, RecursionError):
        return ""
    if not isinstance(table, Mapping):
        return ""
    kept = {name: digest for name, digest in table.items() if ":" in str(name) and digest}
    return f"it needs these files, by kind, name and hash: {', '.join(f'{n} {d}' for n, d in kept.items())}" * bool(
        kept
    )


def _postprocessing(fields: Mapping[str, str]) -> str:
    steps = ", ".join(
        f"{re.sub('(?i)^postprocess(ing)? ', '', label)} {value}" for label, value in fields.items() if value
    )
    return f"postprocessing changed the finished picture ({steps}); here it is as drawn"


def _named(line: str, *labels: str) -> Callable[[Mapping[str, str]], str]:
    """A line with the values of some labels in it, those that are there."""

    def tell(fields: Mapping[str, str]) -> str:
        lower = {label.lower(): value for label, value in fields.items()}
        shown = ", ".join(f"{label} {lower[label.lower()]}" for label in labels if label.lower() in lower)
        return line.format(f" ({shown})" if shown else "")

    return tell


def _values(fields: Mapping[str, str], labels: str) -> str:
    return ", ".join(value for label, value in fields.items() if re.fullmatch(labels, label, re.I)) or "unknown"


_NOT_HERE = "it is not done here, and the picture differs"
# In the order in which lines are told.
EXTENSIONS = (
    Extension(r"script|[xyz] (type|values)|fixed [xyz] values", _grid),
    Extension(r"adetailer .*", _adetailer, off="adetailer enable"),
    Extension(r"\[?controlnet.*", _control),
    Extension(r"(civitai )?resources", _resources),
    Extension(r"hashes", _hash_table),
    Extension(
        r"ultimate sd upscale .*",
        _named(
            f"Ultimate SD upscale{{}} redrew a smaller picture in tiles; {_NOT_HERE}", "Ultimate SD upscale upscaler"
        ),
    ),
    Extension(r"sd upscale .*", "SD upscale redrew a smaller picture in tiles; `sd_upscale` of img2img does here"),
    Extension(
        r"(final denoising strength|denoising curve)",
        "Loopback drew it over its own results; `loopback` of img2img does here",
    ),
    Extension(r"postprocess.*|postprocessing.*|extras.*", _postprocessing),
    Extension(
        r"sag.*|self.attention.guidance.*",
        f"self-attention guidance (SAG): {_NOT_HERE}",
        off="sag enabled|sag_enabled|sag active",
    ),
    Extension(
        r"seg .*|seg_.*|smoothed.energy.*",
        f"smoothed energy guidance (SEG): {_NOT_HERE}",
        off="seg active|seg_enabled",
    ),
    Extension(
        r"dynamic thresholding.*|dynthres.*|mimic (scale|mode).*|threshold percentile|cfg (mode|scale minimum)|"
        r"scheduler value|(cfg|mimic) scheduler.*|separate feature channels|scaling startpoint|variability measure|"
        r"interpolate phi",
        _named(f"Dynamic thresholding{{}} (CFG scale fix) held the guidance back; {_NOT_HERE}", "Mimic scale"),
        off="dynamic thresholding enabled|dynthres_enabled",
    ),
    Extension(
        r"(rp|regional prompter).*|ad(vanced)? regional.*",
        f"Regional Prompter gave each region its own prompt; {_NOT_HERE}",
        off="rp active",
    ),
    Extension(
        r"(latent couple|composable lora|multidiffusion|tiled.diffusion|tile overlap|regions?|noise inversion).*",
        f"Tiled Diffusion or regions: drawn in overlapping tiles; {_NOT_HERE}",
        off="tiled diffusion enabled",
    ),
    Extension(r"tiled vae.*", ""),
    Extension(r"cutoff .*", f"Cutoff kept colours to their words; {_NOT_HERE}", off="cutoff enabled"),
    Extension(
        r"addnet .*",
        _named(
            "Additional Networks added LoRAs{}; write them as <lora:name:weight>",
            "AddNet Model 1",
            "AddNet Model 2",
            "AddNet Model 3",
        ),
        off="addnet enabled",
    ),
    Extension(r"negpip.*", f"NegPiP let weights be negative in the prompt; {_NOT_HERE}", off="negpip active"),
    Extension(
        r"layerdiffusion.*|layerdiffuse.*",
        f"LayerDiffuse drew transparency; {_NOT_HERE}",
        off="layerdiffusion enabled",
    ),
    Extension(r"ip-?adapter.*", "IP-Adapter needs its image, which the text does not hold; give `ip_adapter_image`"),
    Extension(
        r"(reactor|roop|face ?swap|insightface).*",
        f"a face was swapped in afterwards; {_NOT_HERE}",
        off="reactor enabled",
    ),
    Extension(
        r"kohya hrfix.*|kohya_hrfix.*|hypertile.*|deep ?shrink.*",
        f"the U-Net worked on a shrunken picture (HyperTile or Kohya's hires fix); {_NOT_HERE}",
        off="kohya_hrfix_enabled|hypertile u-net",
    ),
    Extension(r"hires cfg scale", ""),
    Extension(r"hires distilled cfg scale|distilled cfg scale", ""),
    Extension(
        r"soft inpainting .*",
        "soft inpainting blended its mask; `soft_inpainting` of img2img does here",
        off="soft inpainting enabled",
    ),
    Extension(
        r"detail daemon.*|dd_.*",
        f"Detail Daemon changed the noise levels; {_NOT_HERE}",
        off="dd_enabled|detail daemon enabled",
    ),
    Extension(
        r"(cd tuner|cdt|color tuner|cd).*tuner.*|vectorscope.*|cc_.*",
        f"colours were changed while drawing; {_NOT_HERE}",
        off="vec cc enabled",
    ),
    Extension(r"lora block weight.*|lbw.*", f"LoRA block weights: {_NOT_HERE}"),
    Extension(r"animatediff.*", f"AnimateDiff drew a film, of which this is a frame; {_NOT_HERE}"),
    Extension(r"refiner (hash|steps|vae|start|prompt).*|refine", ""),
    Extension(
        r"lora_\d+ .*|lora \d+ (name|hash|weight|strength.*)",
        lambda fields: (
            "it needs these LoRA files: "
            + _values(fields, r".* (model )?name")
            + ", at "
            + _values(fields, r".* (weight|strength( model)?)")
        ),
    ),
    Extension(r"embedding_\d+ .*", lambda fields: "it needs these textual inversions: " + _values(fields, r".* name")),
    Extension(r"aesthetic .*", f"an aesthetic gradient was followed; {_NOT_HERE}", off="aesthetic embedding"),
    Extension(
        r"advanced.sampling.*|sd3.shift",
        _named(f"the model was sampled as another kind of model{{}}; {_NOT_HERE}", "advanced_sampling_mode"),
        off="advanced.sampling.enabled",
    ),
    Extension(r"shift|(hires )?shift", ""),
    Extension(r"diffusion in low bits", ""),
)
# Fields that no picture differs by, or that are told where another is.
_HARMLESS = re.compile(
    r"(?i)(negative )?(template|prompt2|wildcard( negative)? prompt|raw( negative)? prompt|original prompt)|"
    r"(negative )?(dynamic prompts?|file includes|styles?(?! array)|prompt styles?)( .*)?|"
    r"time( taken)?|created( date| by)?|civitai metadata|created|date|batch.*|index|comment|generator|app|backend|"
    r"ksampler|style selector .*|task ?id|aspect ?ratio|orientation|"
    r"operations|pipeline|parser|attention|metadata.*|workflow|draft|quantity|nsfw|base ?model|disablepoi|poi|"
    r"priority|sourceimage|fluxmode|fluxultra.*|checkpoint|extra( info)?|source|software|te|"
    r"downcast.*|eta noise.*|hires (module|vae).*|module \d+|text encoders?|model ?hash.*|.* hash|sdcpp|unet|refine|"
    r"guidance|rng ?device|device|gpu|cuda.*|torch.*|python|performance|sharpness|adm guidance|adaptive cfg|"
    r"overwrite.*|refiner swap.*|metadata scheme|(lora|vae) weights|lora networks|scheduler|schedule|sampler ?name|"
    r"sampler (options|order|sigma|spacing|range|type|dynamic.*|low order|beta.*|prediction.*|shift|solver.*|version|"
    r"rescale.*|timesteps?)|image size.*|init ?im(g|age).*|resize (mode|scale|by|to).*|mask weight|upscaler?.*|"
    r"hires (force|size.*|strength|mode)|ml compute unit|strength|seed mode|noise schedule|sampling schedule|"
    r"(hypertile|ensd).*version|emphasis ?mode|prompt emphasis|comma.*|lora.*names?|model ?type|model ?name|width|"
    r"height|size|app ?version|generation ?mode|(positive|negative) style prompt|rand ?device|seamless.*|version.*|"
    r"extension.*|cfg ?(start|end|interval)|inpaint (width|height)|mask (mode|blur.*)|denoising|denoise|"
    r"use (stable diffusion|vae|lora) model|stable diffusion model|vae model|use (face correction|upscaling)|"
    r"never ?oom.*|prompt strength|output (format|quality)|vram.*|latent (upscaler|scale)|sd ?upscale.*version"
)


def extension_notes(fields: Mapping[str, Any]) -> tuple[list[str], set[str]]:
    """Lines about extensions, and the labels that they are about, told or of no consequence."""
    lines: list[str] = []
    done: set[str] = set()
    for row in EXTENSIONS:
        own = {label: str(fields[label]) for label in fields if re.fullmatch(row.labels, label, re.I)}
        own = {label: value for label, value in own.items() if label not in done}
        if not own:
            continue
        done |= set(own)
        switched_off = any(
            re.fullmatch(row.off, label, re.I) and value.lower() in ("false", "off", "none", "0", "")
            for label, value in own.items()
            if row.off
        )
        line = "" if switched_off else row.tell if isinstance(row.tell, str) else row.tell(own)
        if line:
            lines.append(line)
    return lines, done | {label for label in fields if _HARMLESS.fullmatch(label)}
