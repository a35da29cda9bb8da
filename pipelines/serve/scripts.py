"""The scripts of a request: `alwayson_scripts` and `script_name`, as arguments of the pipelines' calls."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...loaders.utils import NameFromText
from .calls import BadRequestField
from .pictures import decode_picture
from .requests import GenerationRequest, Img2ImgRequest


_FILE_SETTINGS = ("ad_model", "ad_checkpoint", "ad_vae", "ad_controlnet_model")  # names, never paths


def script_arguments(request: GenerationRequest) -> dict[str, Any]:
    """`detailers`, `control_units`, `soft_inpainting`, `sd_upscale`, `loopback`: what the scripts of a request mean.

    Raises BadRequestField for a script that is not known here: none is left out in silence.
    """
    arguments: dict[str, Any] = {}
    for title, given in (request.alwayson_scripts or {}).items():
        where = f"alwayson_scripts.{title}"
        read = _ALWAYS_ON.get(title.lower())
        if read is None:
            raise BadRequestField(where, f"is no script known here; known are {', '.join(_ALWAYS_ON)}")
        args = given.get("args") if isinstance(given, Mapping) else None
        if not isinstance(args, list):
            raise BadRequestField(where, 'must be {"args": [...]}')
        arguments |= read(args, where)
    if request.script_name:
        read = _SELECTED.get(request.script_name.lower()) if isinstance(request, Img2ImgRequest) else None
        if read is None:
            raise BadRequestField("script_name", f"is no script known here; img2img knows {', '.join(_SELECTED)}")
        arguments |= read(request.script_args or [], "script_args")
    if "soft_inpainting" in arguments and not isinstance(request, Img2ImgRequest):
        raise BadRequestField("alwayson_scripts.soft inpainting", "belongs to img2img")
    return arguments


def _detailers(args: list[Any], where: str) -> dict[str, Any]:
    """ADetailer: [enabled, skip img2img, {pass}, {pass}, …]; the two switches may be left out."""
    switches = [value for value in args if isinstance(value, bool)]
    passes = [value for value in args if isinstance(value, Mapping)]
    if len(switches) + len(passes) != len(args):
        raise BadRequestField(where, "takes [enabled, skip img2img, {pass}, …]")
    if switches and not switches[0]:
        return {}
    running = [one for one in passes if one.get("ad_tab_enable", True) and one.get("ad_model", "None") != "None"]
    wanted = [{name: _file_name(name, value) for name, value in one.items()} for one in running]
    if len(switches) > 1 and switches[1]:
        raise BadRequestField(where, "cannot skip img2img: send the picture without drawing over it")
    return {"detailers": wanted} if wanted else {}


def _file_name(setting: str, value: Any) -> Any:
    """A name among the server's files: one that is a path is refused, like every other that is not there."""
    if setting in _FILE_SETTINGS and isinstance(value, str) and Path(value).name != value:
        raise BadRequestField(setting, f"{value!r} is a path; give the name of one of the server's files")
    return value


def _control_units(args: list[Any], where: str) -> dict[str, Any]:
    """ControlNet: a list of units, whose pictures are base64."""
    units = []
    for number, one in enumerate(args):
        if not isinstance(one, Mapping):
            raise BadRequestField(f"{where}[{number}]", "must be an object, a unit")
        if one.get("enabled", True):
            units.append(_control_unit(dict(one), f"{where}[{number}]"))
    return {"control_units": units} if units else {}


def _control_unit(unit: dict[str, Any], where: str) -> dict[str, Any]:
    if isinstance(unit.get("model"), str):
        unit["model"] = NameFromText(unit["model"])
    image = unit.pop("input_image", None) or unit.get("image")
    if isinstance(image, Mapping):
        unit["mask"] = unit.get("mask") or image.get("mask")
        image = image.get("image")
    for name, value in (("image", image), ("mask", unit.get("mask") or unit.pop("mask_image", None))):
        if isinstance(value, str) and value:
            unit[name] = decode_picture(value, f"{where}.{name}")
        elif name in unit:
            del unit[name]
    region = unit.get("effective_region_mask")
    if isinstance(region, str) and region:
        unit["effective_region_mask"] = decode_picture(region, f"{where}.effective_region_mask")
    return unit


def _soft_inpainting(args: list[Any], where: str) -> dict[str, Any]:
    """Soft inpainting: [enabled, schedule bias, preservation, contrast, mask influence, threshold, contrast], or a
    dict under these names."""
    names = ("schedule_bias", "preservation_strength", "transition_contrast_boost", "mask_influence")
    names += ("difference_threshold", "difference_contrast")
    if len(args) == 1 and isinstance(args[0], Mapping):
        labels = {name.replace("_", " ").capitalize(): name for name in names} | {name: name for name in names}
        given = {str(name): value for name, value in args[0].items()}
        enabled = given.pop("Soft inpainting", given.pop("enabled", True))
        unknown = [name for name in given if name not in labels]
        if unknown:
            raise BadRequestField(f"{where}.{unknown[0]}", f"is no setting; known are {', '.join(names)}")
        return {"soft_inpainting": {labels[name]: value for name, value in given.items()} or True} if enabled else {}
    if len(args) > len(names) + 1:
        raise BadRequestField(where, f"takes [enabled, {', '.join(names)}]")
    if not args or not args[0]:
        return {}
    return {"soft_inpainting": dict(zip(names, args[1:])) or True}


def _sd_upscale(args: list[Any], where: str) -> dict[str, Any]:
    """SD upscale: [_, tile overlap, upscaler, scale], as its controls stand."""
    if len(args) != 4 or not isinstance(args[2], str):
        raise BadRequestField(where, 'of SD upscale is ["", overlap, name of the upscaler, scale]')
    return {"sd_upscale": {"overlap": args[1], "upscaler": args[2], "scale": args[3]}}


def _loopback(args: list[Any], where: str) -> dict[str, Any]:
    """Loopback: [loops, final denoising strength, curve]."""
    if not 1 <= len(args) <= 4:
        raise BadRequestField(where, "of Loopback is [loops, final denoising strength, curve]")
    return {"loopback": dict(zip(("loops", "final_strength", "curve"), args))}


_Reader = Callable[[list[Any], str], dict[str, Any]]
_ALWAYS_ON: dict[str, _Reader] = {
    "adetailer": _detailers,
    "controlnet": _control_units,
    "soft inpainting": _soft_inpainting,
}
_SELECTED: dict[str, _Reader] = {"sd upscale": _sd_upscale, "loopback": _loopback}
