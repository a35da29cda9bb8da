"""The text of each image of a call: from what the pipeline says it did, or from the call's arguments alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..options import WEBUI_OPTIONS
from ..sampling.labels import AUTOMATIC_SCHEDULE, SamplerRow, resolve_names
from .settings import call_settings
from .write import format_infotext


_WEIGHT_ENDINGS = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
_SAMPLER_OPTIONS = ("s_churn", "s_tmin", "s_tmax", "s_noise", "eta_ancestral", "eta_ddim")


@dataclass(frozen=True)
class Drawn:
    """What a call did, said by the pipeline that did it. Lists have one entry an image.

    prompts, negatives: with their network tags. hires_prompts, hires_negatives: empty where the second pass read the
    first one's. seeds, subseeds: empty where none is known. arguments: the call's others as they were in force:
    samplers, schedules and upscalers by the labels drawn with, sizes, and `webui_options` that something read.
    settings: what no argument says, by the names of `format_infotext` (model_name, model_hash, ...). fields: the same
    by labels ("Lora hashes", "TI hashes", "Refiner"); a list gives each image its own. leading: fields of other
    passes, which stand before those of masks and the hires pass; one mapping an image, or one for all.
    """

    prompts: Sequence[str]
    negatives: Sequence[str]
    arguments: Mapping[str, Any]
    hires_prompts: Sequence[str] = ()
    hires_negatives: Sequence[str] = ()
    seeds: Sequence[int] = ()
    subseeds: Sequence[int] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    leading: Sequence[Mapping[str, Any]] = ()


def drawn_infotexts(drawn: Drawn) -> list[str]:
    """One text an image, as the webui writes them."""
    return [format_infotext(_image_settings(drawn, index)) for index in range(len(drawn.prompts))]


def call_infotexts(
    given: Mapping[str, Any],
    seeds: Sequence[int] | None,
    subseeds: Sequence[int] | None = None,
    extras: Mapping[str, Any] = {},
) -> list[str]:
    """The same for a call of which only the arguments are known. A pipeline's own texts say more: see `Drawn`.

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
    samplers = _named_samplers(given)
    arguments = {**given, "webui_options": options_read(given.get("webui_options"), given.get("eta"), samplers)}
    for prefix, (sampler, schedule) in zip(("", "hires_"), samplers):
        arguments |= {f"{prefix}sampler": sampler.label, f"{prefix}schedule": schedule_read(sampler, schedule)}
    if given.get("hires_upscaler"):
        arguments["hires_upscaler"] = file_label(given["hires_upscaler"])
    elif given.get("hires_scale") or any(given.get("hires_size") or ()):
        arguments["hires_upscaler"] = extras.get("Hires upscaler", "Latent")
    images, tags = given.get("num_images_per_prompt") or 1, network_tags_text(given.get("loras") or ())
    prompts = _texts_by_image(given.get("prompt"), images) or [""] * len(seeds or [""])
    hires_prompts = _texts_by_image(given.get("hires_prompt"), 1)
    return drawn_infotexts(
        Drawn(
            prompts=[text + tags for text in prompts],
            negatives=_texts_by_image(given.get("negative_prompt"), images),
            arguments=arguments,
            hires_prompts=[text and text + tags for text in hires_prompts],
            hires_negatives=_texts_by_image(given.get("hires_negative_prompt"), 1),
            seeds=seeds or (),
            subseeds=subseeds or (),
            settings={name: value for name, value in extras.items() if not name[:1].isupper()},
            fields={name: v for name, v in extras.items() if name[:1].isupper() and name != "Hires upscaler"},
        )
    )


def network_tags_text(loras: Mapping[str, float] | Iterable[Sequence]) -> str:
    """The argument `loras` as tags; of a path, its name.

    >>> network_tags_text({"moxin": 0.8}), network_tags_text([("styles/ink.safetensors", 1, 0.5)])
    ('<lora:moxin:0.8>', '<lora:ink:1:0.5>')
    """
    tags = []
    entries: Iterable[Sequence] = loras.items() if isinstance(loras, Mapping) else loras
    for name, *rest in entries:
        multipliers = [value for value in rest[:3] if isinstance(value, (int, float))]
        if len(multipliers) == 2 and multipliers[0] == multipliers[1]:
            del multipliers[1]
        tags.append(f"<lora:{':'.join(map(str, (file_label(name), *multipliers)))}>")
    return "".join(tags)


def file_label(name: Any) -> str:
    """A label, or a file's name without folder and ending: texts do not say where the user keeps files."""
    path = Path(str(name))
    return path.stem if path.suffix.lower() in _WEIGHT_ENDINGS else str(name)


def schedule_read(sampler: SamplerRow, schedule: str) -> str:
    """The schedule type that is written: the one drawn with, where "Automatic" means one."""
    return (sampler.schedule or schedule) if schedule == AUTOMATIC_SCHEDULE else schedule


def options_read(
    options: Mapping[str, Any] | None, eta: float | None, samplers: Sequence[tuple[SamplerRow, str]]
) -> dict[str, Any]:
    """The options that something read: of those that only some samplers have, the ones of these samplers. eta: the
    argument, which stands for the option of a sampler that has one; a scheduler's is written as "Eta"."""
    read = {sampler.eta_option if name == "eta" else name for sampler, _ in samplers for name in sampler.takes}
    found = {name: v for name, v in (options or {}).items() if name not in _SAMPLER_OPTIONS or name in read}
    if eta is not None:
        etas = [sampler.eta_option for sampler, _ in samplers if "eta" in sampler.takes]
        found |= dict.fromkeys(etas if samplers else ["eta_ancestral"], eta)
    return found


def _named_samplers(given: Mapping[str, Any]) -> list[tuple[SamplerRow, str]]:
    """Sampler and schedule of each pass, as a call reads them; none where a scheduler of diffusers steps."""
    get = given.get
    if get("sampler") is None:
        return []
    first = resolve_names(given["sampler"], get("schedule"))
    if not (get("hires_sampler") or get("hires_schedule")):
        return [first]
    return [first, resolve_names(get("hires_sampler") or first[0].label, get("hires_schedule") or first[1])]


def _texts_by_image(value: Any, images: int) -> list[str]:
    """One text for each image, where the call had several; a single text holds for all."""
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else list(value)
    return [text for text in texts for _ in range(images)]


def _image_settings(drawn: Drawn, index: int) -> dict[str, Any]:
    """Settings of `format_infotext` for one image."""

    def own(values: Sequence[Any]) -> Any:
        return values[index % len(values)] if values else None

    texts = {
        "prompt": own(drawn.prompts),
        "negative_prompt": own(drawn.negatives),
        "hires_prompt": own(drawn.hires_prompts),
        "hires_negative_prompt": own(drawn.hires_negatives),
        "seed": own(drawn.seeds),
        "subseed": own(drawn.subseeds),
    }
    arguments = {**drawn.arguments, **texts, "loras": None, "eta": None}
    settings = call_settings({name: value for name, value in arguments.items() if value is not None})
    fields, others = (
        {name: value[index] if isinstance(value, list) else value for name, value in known.items()}
        for known in (drawn.fields, drawn.settings)
    )
    extra = _fields_in_order(settings.get("extra", {}), fields, arguments)
    strength = {"Denoising strength": extra.pop("Denoising strength")} if "Denoising strength" in extra else {}
    settings["extra"] = {**strength, **(own(drawn.leading) or {}), **extra}
    return settings | {name: value for name, value in others.items() if value is not None}


def _fields_in_order(
    extra: Mapping[str, Any], fields: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """ControlNets go before the hires pass's fields, networks' and embeddings' hashes between those and the rest, as
    in the webui."""
    hires = [label for label in extra if label.startswith("Hires") or label == "Denoising strength"]
    units = {label: value for label, value in fields.items() if label.startswith("ControlNet ")}
    strength = {label: extra[label] for label in hires if label == "Denoising strength"}
    networks = {label: fields[label] for label in ("Lora hashes", "TI hashes") if fields.get(label)}
    rest = {label: value for label, value in extra.items() if label not in hires}
    emphasis = {"Emphasis": rest.pop("Emphasis")} if "Emphasis" in rest else {}
    refiner = {"Refiner": fields["Refiner"]} if fields.get("Refiner") else {}
    beta = {}
    if arguments.get("schedule") == "Beta":
        options = {**WEBUI_OPTIONS, **(arguments.get("webui_options") or {})}
        beta = {f"Beta schedule {name}": options[f"beta_dist_{name}"] for name in ("alpha", "beta")}
    told = {**units, **networks, **refiner}
    others = {label: value for label, value in fields.items() if label not in told and value}
    hires_fields = {label: extra[label] for label in hires if label not in strength}
    return {**strength, **units, **hires_fields, **networks, **emphasis, **beta, **refiner, **rest, **others}
