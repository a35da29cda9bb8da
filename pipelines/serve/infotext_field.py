"""The field `infotext` of a request: what a parameters text says, where the request itself says nothing."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..infotext.read import parse_infotext
from ..infotext.tidy import tidy_infotext
from ..infotext.to_call import call_arguments
from .calls import FILL_MODES
from .requests import GenerationRequest, Img2ImgRequest
from .settings import NOISE_SOURCES


# Arguments of a call -> fields of a request, where these are called otherwise.
_FIELD_NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "sampler": "sampler_name",
    "schedule": "scheduler",
    "strength": "denoising_strength",
    "hires_strength": "denoising_strength",
    "hires_scale": "hr_scale",
    "hires_upscaler": "hr_upscaler",
    "hires_steps": "hr_second_pass_steps",
    "hires_prompt": "hr_prompt",
    "hires_negative_prompt": "hr_negative_prompt",
    "hires_sampler": "hr_sampler_name",
    "hires_schedule": "hr_scheduler",
    "hires_model": "hr_checkpoint_name",
    "masked_padding": "inpaint_full_res_padding",
}
_OF_THE_CALL = ("detailers", "soft_inpainting", "hires_guidance_scale", "sd_upscale")  # no field of a request has them


class TextReading(NamedTuple):
    """A request with what its text says. arguments: of the call, which no field has. comments: what is left out."""

    request: GenerationRequest
    arguments: dict[str, Any] = {}
    comments: tuple[str, ...] = ()


def with_infotext(
    request: GenerationRequest, find_checkpoint: Callable[[Mapping[str, str]], str | None]
) -> TextReading:
    """What a request and its `infotext` ask for. find_checkpoint: the title of the one that a text's fields name."""
    if request.infotext is None:
        return TextReading(request)
    kind = type(request)
    fields = parse_infotext(tidy_infotext(request.infotext))
    said = call_arguments(fields, img2img=kind is Img2ImgRequest)
    found, settings = _request_fields(kind, said)
    if "refiner_switch_at" in said and fields.get("Refiner"):
        found["refiner_checkpoint"] = fields["Refiner"]
    comments = []
    if fields.get("Model") or fields.get("Model hash"):
        title = find_checkpoint(fields)
        if title is not None:
            settings["sd_model_checkpoint"] = title
        else:
            written = " ".join(fields[name] for name in ("Model", "Model hash") if fields.get(name))
            comments.append(f"infotext: the model {written} is not here; the server's own draws")
    scripts = {name.strip().lower() for name in request.alwayson_scripts or {}}
    arguments = {name: said[name] for name in _OF_THE_CALL if name in said}
    if "adetailer" in scripts:
        arguments.pop("detailers", None)
    if said.get("control_units") and "controlnet" not in scripts:
        comments.append("infotext: its ControlNet units need their pictures; send them in `alwayson_scripts`")
    if settings or request.override_settings:
        found["override_settings"] = {**settings, **(request.override_settings or {})}
    given = {name: getattr(request, name) for name in request.model_fields_set if name != "infotext"}
    return TextReading(kind(**{**found, **given, **_kept(found, "override_settings")}), arguments, tuple(comments))


def _kept(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name: found[name]} if name in found else {}


def _request_fields(kind: type[GenerationRequest], said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of a call as fields of a request, and as settings."""
    found: dict[str, Any] = {}
    for argument, value in said.items():
        name = _FIELD_NAMES.get(argument, argument)
        if name in kind.model_fields and value is not None:
            found[name] = value
    if "hires_scale" in said or "hires_size" in said:
        found["enable_hr"] = True
    for argument, names in (
        ("hires_size", ("hr_resize_x", "hr_resize_y")),
        ("seed_resize", ("seed_resize_from_w", "seed_resize_from_h")),
        ("mask_blur", ("mask_blur_x", "mask_blur_y")),
    ):
        if isinstance(said.get(argument), (tuple, list)):
            found.pop(argument, None)
            found |= {name: value for name, value in zip(names, said[argument]) if name in kind.model_fields}
    if "inpaint_area" in said:
        found["inpaint_full_res"] = said["inpaint_area"] == "masked"
    if said.get("masked_content") in FILL_MODES:
        found["inpainting_fill"] = FILL_MODES.index(said["masked_content"])
    settings = dict(said.get("webui_options") or {})
    if said.get("clip_skip") is not None:
        settings["CLIP_stop_at_last_layers"] = said["clip_skip"] + 1
    if "noise_source" in said:
        settings["randn_source"] = next(n for n, own in NOISE_SOURCES.items() if own == said["noise_source"])
    if said.get("restore_faces"):
        found["restore_faces"] = True
        settings["face_restoration_model"] = str(said["restore_faces"])
    return found, settings
