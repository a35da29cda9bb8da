"""`alwayson_scripts` of a request, as arguments of the pipelines' calls."""

from collections.abc import Callable, Mapping
from typing import Any

from ...loaders.utils import NameFromRequest
from ..detailer_settings import DETAILER_SETTINGS
from .pictures import decode_picture
from .requests import MAX_IMAGES, MAX_PIXELS, MAX_STEPS, GenerationRequest, Img2ImgRequest
from .settings import BadRequestField


_FILE_SETTINGS = ("ad_model", "ad_checkpoint", "ad_vae", "ad_controlnet_model")  # names, never paths
_OLDER_SETTINGS = {"ad_mask_k_largest": "ad_mask_k"}  # names of ADetailer's earlier versions
_PASS_LIMITS = {"ad_steps": MAX_STEPS, "ad_dilate_erode": 512, "ad_mask_blur": 512}
_NO_PASS = "None"

# What the ControlNet extension knows besides, and which asks for nothing where it says nothing.
_EMPTY_UNIT_KEYS = (
    *("input_mode", "batch_images", "batch_mask_dir", "output_dir", "loopback", "use_preview_as_input"),
    *("generated_image", "is_ui", "ipadapter_input", "animatediff_batch", "batch_modifiers", "batch_keyframe_idx"),
)


def script_arguments(request: GenerationRequest) -> dict[str, Any]:
    """`detailers`, `control_units`, `soft_inpainting`, and `refiner`: what the scripts of a request mean.

    Raises BadRequestField for a script that is not known here: none is left out in silence.
    """
    arguments: dict[str, Any] = {}
    for title, given in (request.alwayson_scripts or {}).items():
        where = f"alwayson_scripts.{title[:100]}"
        read = ALWAYS_ON.get(title.strip().lower())
        if read is None:
            raise BadRequestField(where, f"is no script known here; known are {', '.join(ALWAYS_ON)}")
        args = given.get("args") if isinstance(given, Mapping) else None
        if not isinstance(args, list):
            raise BadRequestField(where, 'must be {"args": [...]}')
        arguments |= read(args, where)
    if "soft_inpainting" in arguments and not isinstance(request, Img2ImgRequest):
        raise BadRequestField("alwayson_scripts.soft inpainting", "belongs to img2img")
    return arguments


def _detailers(args: list[Any], where: str) -> dict[str, Any]:
    """ADetailer: [enabled, skip img2img, {pass}, {pass}, …]; the two switches may be left out."""
    switches = [value for value in args if isinstance(value, bool)]
    passes = [value for value in args if isinstance(value, Mapping)]
    if [*switches, *passes] != args or len(switches) > 2 or len(passes) > MAX_IMAGES:
        raise BadRequestField(where, "takes [enabled, skip img2img, {pass}, …]")
    if switches and not switches[0]:
        return {}
    wanted = [_detail_pass(one, f"{where}.args[{number}]") for number, one in enumerate(passes, len(switches))]
    if all(one.get("ad_model", _NO_PASS) == _NO_PASS and "detections" not in one for one in wanted):
        return {}
    return {"detailers": [*switches, *wanted]}


def _detail_pass(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A pass whose names of files are only names: a path among them is a name that is not there."""
    one = {_setting_name(str(name)): value for name, value in given.items()}
    for name in _FILE_SETTINGS:
        if isinstance(one.get(name), str):
            one[name] = NameFromRequest(one[name])
    for name, most in _PASS_LIMITS.items():
        if isinstance(one.get(name), (int, float)) and abs(one[name]) > most:
            raise BadRequestField(f"{where}.{name}", f"is {one[name]}; at most {most} is drawn here")
    sides = [one.get(name, 512) for name in ("ad_inpaint_width", "ad_inpaint_height")]
    if all(isinstance(side, (int, float)) for side in sides) and sides[0] * sides[1] > MAX_PIXELS:
        raise BadRequestField(f"{where}.ad_inpaint_width", f"makes more than {MAX_PIXELS} pixels")
    return one


def _setting_name(name: str) -> str:
    """A setting's own name, of one written as earlier versions had it or without `ad_`."""
    name = _OLDER_SETTINGS.get(name, name)
    return f"ad_{name}" if f"ad_{name}" in DETAILER_SETTINGS else name


def _control_units(args: list[Any], where: str) -> dict[str, Any]:
    """ControlNet: a list of units, whose pictures are base64."""
    units = []
    for number, one in enumerate(args):
        if not isinstance(one, Mapping):
            raise BadRequestField(f"{where}.args[{number}]", "must be an object, a unit")
        if one.get("enabled", True):
            units.append(_control_unit(dict(one), f"{where}.args[{number}]"))
    if len(units) > MAX_IMAGES:
        raise BadRequestField(where, f"has {len(units)} units; at most {MAX_IMAGES} are drawn")
    return {"control_units": units} if units else {}


def _control_unit(unit: dict[str, Any], where: str) -> dict[str, Any]:
    _read_older_keys(unit)
    if isinstance(unit.get("model"), str):
        unit["model"] = NameFromRequest(unit["model"])
    for name in _EMPTY_UNIT_KEYS:
        if unit.get(name) in (None, False, "", "simple", [], {}):
            unit.pop(name, None)
    if isinstance(unit.get("image"), Mapping):
        unit["mask"] = unit.get("mask") or unit["image"].get("mask")
        unit["image"] = unit["image"].get("image")
    for name in ("image", "mask", "effective_region_mask"):
        value = unit.pop(name, None)
        if isinstance(value, str) and value:
            unit[name] = decode_picture(value, f"{where}.{name}")
        elif value not in (None, "", []):
            raise BadRequestField(f"{where}.{name}", "must be base64 of a picture file")
    return unit


def _read_older_keys(unit: dict[str, Any]) -> None:
    """Other names of the same: `input_image`, `mask_image`, and `guidance` and `guessmode` of the first versions."""
    for older, name in (("input_image", "image"), ("mask_image", "mask"), ("guidance", "guidance_end")):
        value = unit.pop(older, None)
        if value is not None and unit.get(name) is None:
            unit[name] = value
    if any([unit.pop("guessmode", None), unit.pop("guess_mode", None)]):
        unit.setdefault("control_mode", "ControlNet is more important")


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


def _refiner(args: list[Any], where: str) -> dict[str, Any]:
    """Refiner: [enabled, checkpoint, share of the steps after which it goes on]."""
    if not args or args[0] is False:
        return {}
    if (
        len(args) != 3
        or not isinstance(args[1], str)
        or isinstance(args[2], bool)
        or not isinstance(args[2], float | int)
    ):
        raise BadRequestField(where, "takes [enabled, name of the checkpoint, share of the steps]")
    return {"refiner": args[1], "refiner_switch_at": args[2]}


ALWAYS_ON: dict[str, Callable[[list[Any], str], dict[str, Any]]] = {
    "adetailer": _detailers,
    "controlnet": _control_units,
    "refiner": _refiner,
    "soft inpainting": _soft_inpainting,
}
