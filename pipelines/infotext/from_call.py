"""The text of each picture of a call: its arguments, and what became known while drawing."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...loaders.hashes import model_hash
from ..sampling.labels import AUTOMATIC_SCHEDULE
from ..sampling.samplers import Sampler, resolve_sampler
from .settings import call_settings
from .write import format_infotext


_WEIGHT_ENDINGS = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
_SAMPLER_OPTIONS = ("s_churn", "s_tmin", "s_tmax", "s_noise", "eta_ancestral", "eta_ddim")
_TEXT_ARGUMENTS = ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt")


def call_infotexts(
    given: Mapping[str, Any],
    seeds: Sequence[int] | None,
    subseeds: Sequence[int] | None = None,
    extras: Mapping[str, Any] = {},
) -> list[str]:
    """One text an image, as the webui writes them.

    given: the call's arguments as they came, at their defaults or not; prompts may be lists, `num_images_per_prompt`
    counts. seeds, subseeds: those really used, one an image; None or empty where a `generator` drew the noise.
    extras: what the arguments do not say. Names of `format_infotext`'s settings (model_name, model_hash, vae_name,
    vae_hash, width, height, sampler_name for a diffusers scheduler, user) go there, all else are fields by their
    labels ("Lora hashes", "TI hashes", "Refiner", "Hires upscaler"); they are written after the hires pass's, in the
    webui's order. A list gives each image its own.

    >>> print(call_infotexts({"prompt": "a cat", "sampler": "DPM++ 2M", "num_inference_steps": 20}, [7])[0])
    a cat
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, Seed: 7, Version: v1.10.1
    """
    texts = {name: _texts_by_image(given, name) for name in _TEXT_ARGUMENTS}
    count = len(texts["prompt"] or seeds or [""])
    written = []
    for index in range(count):
        own: dict[str, Any] = {name: text[index % len(text)] for name, text in texts.items() if text}
        arguments = {**given, **own, "seed": None, "subseed": None}
        if seeds:
            arguments["seed"] = seeds[index]
            arguments["subseed"] = subseeds[index] if subseeds else None
        known = {name: value[index] if isinstance(value, list) else value for name, value in extras.items()}
        written.append(format_infotext(_image_settings(arguments, known)))
    return written


def model_facts(pipe: Any, *, hashed: bool = True) -> dict[str, str]:
    """model_name and, where the model is one file, model_hash: for `extras` of `call_infotexts`.

    The name is that of the file, folder or Hub repository the pipeline was loaded from. hashed: a file of several GiB
    takes seconds the first time; the hash is kept in the user's cache then.
    """
    source = str(getattr(getattr(pipe, "config", None), "_name_or_path", None) or "")
    if not source:
        return {}
    path = Path(source)
    facts = {"model_name": _file_stem(path.name)}
    if hashed and path.is_file():
        facts["model_hash"] = model_hash(path)
    return facts


def network_tags_text(loras: Mapping[str, float] | Iterable[Sequence]) -> str:
    """The argument `loras` as tags; of a path, its name.

    >>> network_tags_text({"moxin": 0.8}), network_tags_text([("styles/ink.safetensors", 1, 0.5)])
    ('<lora:moxin:0.8>', '<lora:ink:1:0.5>')
    """
    tags = []
    entries: Iterable[Sequence] = loras.items() if isinstance(loras, Mapping) else loras
    for name, *rest in entries:
        strengths = [value for value in rest[:3] if isinstance(value, (int, float))]
        if len(strengths) == 2 and strengths[0] == strengths[1]:
            del strengths[1]
        tags.append(f"<lora:{':'.join(map(str, (_file_stem(name), *strengths)))}>")
    return "".join(tags)


def _texts_by_image(given: Mapping[str, Any], name: str) -> list[str]:
    """One text for each image, where the call had several; hires texts come expanded already."""
    value = given.get(name)
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else list(value)
    images = 1 if name.startswith("hires") else given.get("num_images_per_prompt") or 1
    return [text for text in texts for _ in range(images)]


def _image_settings(arguments: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `format_infotext` for one image."""
    arguments = {name: value for name, value in arguments.items() if value is not None}
    arguments["prompt"] = arguments.get("prompt", "") + network_tags_text(arguments.pop("loras", None) or ())
    arguments["webui_options"] = _options_in_use(arguments)
    if arguments.get("sampler") and not any("eta" in sampler.takes for sampler, _ in _used_samplers(arguments)):
        arguments.pop("eta", None)
    arguments |= _names_in_use(arguments)
    if arguments.get("hires_upscaler"):
        arguments["hires_upscaler"] = _file_stem(arguments["hires_upscaler"])
    elif arguments.get("hires_scale") or any(arguments.get("hires_size") or ()):
        arguments["hires_upscaler"] = known.get("Hires upscaler", "Latent")
    settings = call_settings(arguments)
    fields = {label: value for label, value in known.items() if label[:1].isupper() and label != "Hires upscaler"}
    settings["extra"] = _with_known(settings.get("extra", {}), fields, arguments)
    return settings | {name: value for name, value in known.items() if not name[:1].isupper() and value is not None}


def _used_samplers(arguments: Mapping[str, Any]) -> list[tuple[Sampler, str]]:
    """Sampler and schedule of each pass, as the call reads them; none where a scheduler of diffusers steps."""
    get = arguments.get
    if get("sampler") is None:
        return []
    first = resolve_sampler(arguments["sampler"], get("schedule"))
    if not (get("hires_sampler") or get("hires_schedule")):
        return [first]
    return [first, resolve_sampler(get("hires_sampler") or first[0].label, get("hires_schedule") or first[1])]


def _names_in_use(arguments: Mapping[str, Any]) -> dict[str, str]:
    """The webui's labels: of a schedule the one drawn with, since what Automatic stands for is known afterwards."""
    names = {}
    for prefix, (sampler, schedule) in zip(("", "hires_"), _used_samplers(arguments)):
        automatic = schedule == AUTOMATIC_SCHEDULE
        names[f"{prefix}sampler"] = sampler.label
        names[f"{prefix}schedule"] = sampler.schedule or schedule if automatic else schedule
    return names


def _file_stem(name: Any) -> str:
    """A label, or a file's name without folder and ending: pictures do not tell where the user keeps files."""
    path = Path(str(name))
    return path.stem if path.suffix.lower() in _WEIGHT_ENDINGS else str(name)


def _options_in_use(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those that the samplers have no use for; the webui does not write these."""
    options = dict(arguments.get("webui_options") or {})
    used = [sampler for sampler, _ in _used_samplers(arguments)]
    taken = {sampler.eta_option if name == "eta" else name for sampler in used for name in sampler.takes}
    return {name: value for name, value in options.items() if name not in _SAMPLER_OPTIONS or name in taken}


def _with_known(extra: Mapping[str, Any], fields: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Networks' and embeddings' hashes go between the hires pass's fields and the rest, as in the webui."""
    hires = [label for label in extra if label.startswith("Hires") or label == "Denoising strength"]
    networks = {label: fields[label] for label in ("Lora hashes", "TI hashes") if fields.get(label)}
    rest = {label: value for label, value in extra.items() if label not in hires}
    emphasis = {"Emphasis": rest.pop("Emphasis")} if "Emphasis" in rest else {}
    refiner = {"Refiner": fields["Refiner"]} if fields.get("Refiner") else {}
    beta = {}
    if arguments.get("schedule") == "Beta":
        options = arguments.get("webui_options") or {}
        beta = {f"Beta schedule {name}": options.get(f"beta_dist_{name}", 0.6) for name in ("alpha", "beta")}
    others = {label: value for label, value in fields.items() if label not in {**networks, **refiner} and value}
    return {**{label: extra[label] for label in hires}, **networks, **emphasis, **beta, **refiner, **rest, **others}
