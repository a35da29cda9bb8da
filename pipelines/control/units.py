"""`control_units`: ControlNet units under the API names of the webui's extension, with its defaults and its ranges.

key                       default               values
image, mask               None                  any image; in img2img the init image stands in for it
module                    "none"                name or label of a preprocessor
model                     None                  a known name; None is the component of the same place
weight                    1.0                   0..2
guidance_start, _end      0.0, 1.0              share of the steps, both ends included
control_mode              "Balanced"            or "My prompt is more important", "ControlNet is more important"
resize_mode               "Crop and Resize"     or "Just Resize", "Resize and Fill"
hr_option                 "Both"                or "Low res only", "High res only"
pixel_perfect             False                 the module's resolution is that of the pass
processor_res             -1                    pixels of the shorter side; out of range is the module's default
threshold_a, threshold_b  -1                    the module's own numbers; out of range is its default
inpaint_crop_input_image  True                  "only masked": the image is cut like the init image
advanced_weighting        None                  a factor for each residual, in place of `weight` and the mode's
effective_region_mask     None                  where in the image the unit acts, white is all
union_control_type        None                  which of its tasks a union model does; None goes by the module
enabled                   True                  a unit that is not enabled does not exist
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ...loaders.utils import unknown_choice


CONTROL_MODES = ("Balanced", "My prompt is more important", "ControlNet is more important")  # the API's 0, 1, 2
UNIT_RESIZE_MODES = ("Just Resize", "Crop and Resize", "Resize and Fill")  # the API's 0, 1, 2
HR_OPTIONS = ("Both", "Low res only", "High res only")

# Names that earlier versions of the extension, and programs that call its API, use for the same.
OLDER_UNIT_VALUES = {
    "control_mode": {
        "ControlMode.BALANCED": "Balanced",
        "ControlMode.PROMPT": "My prompt is more important",
        "ControlMode.CONTROL": "ControlNet is more important",
    },
    "resize_mode": {
        "ResizeMode.RESIZE": "Just Resize",
        "ResizeMode.INNER_FIT": "Crop and Resize",
        "ResizeMode.OUTER_FIT": "Resize and Fill",
        "Scale to Fit (Inner Fit)": "Crop and Resize",
        "Inner Fit (Scale to Fit)": "Crop and Resize",
        "Envelope (Outer Fit)": "Resize and Fill",
        "Outer Fit (Shrink to Fit)": "Resize and Fill",
    },
    "hr_option": {
        "HiResFixOption.BOTH": "Both",
        "HiResFixOption.LOW_RES_ONLY": "Low res only",
        "HiResFixOption.HIGH_RES_ONLY": "High res only",
    },
}
UNIT_CHOICES: dict[str, Sequence[str]] = {
    "control_mode": CONTROL_MODES,
    "resize_mode": UNIT_RESIZE_MODES,
    "hr_option": HR_OPTIONS,
}


@dataclass(frozen=True)
class Slider:
    """A number of a module: what it may be, and what it is where none in range is given."""

    low: float
    high: float
    default: float

    def value(self, given: float) -> float:
        return given if self.low <= given <= self.high else self.default


_HIDDEN = Slider(0, 1, 0.5)  # sliders that a module does not show
_RESOLUTION = Slider(64, 2048, 512)


@dataclass(frozen=True)
class ControlModule:
    """A preprocessor: its label, and what its numbers may be."""

    name: str
    label: str
    resolution: Slider = _RESOLUTION
    threshold_a: Slider = _HIDDEN
    threshold_b: Slider = _HIDDEN


# The modules that come with the pack; others are of the package controlnet_aux.
CONTROL_MODULES = {
    module.name: module
    for module in (
        ControlModule("none", "none"),
        ControlModule("invert", "invert (from white bg & black line)", _HIDDEN),
        ControlModule("canny", "canny", _RESOLUTION, Slider(1, 255, 100), Slider(1, 255, 200)),
        ControlModule("inpaint", "inpaint_global_harmonious", _HIDDEN),
        ControlModule("inpaint_only", "inpaint_only", _HIDDEN),
    )
}
INPAINT_MODULES = ("inpaint", "inpaint_only")


@dataclass(frozen=True)
class ControlUnit:
    """One unit, checked. `place` is where it stood in `control_units`; see the module for the others."""

    image: Any = None
    mask: Any = None
    module: str = "none"
    model: Any = None
    weight: float = 1.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    control_mode: str = "Balanced"
    resize_mode: str = "Crop and Resize"
    hr_option: str = "Both"
    pixel_perfect: bool = False
    processor_res: float = -1
    threshold_a: float = -1
    threshold_b: float = -1
    inpaint_crop_input_image: bool = True
    advanced_weighting: Sequence[float] | None = None
    effective_region_mask: Any = None
    union_control_type: str | int | None = None
    enabled: bool = True
    place: int = 0

    @property
    def module_name(self) -> str:
        """The module without its label."""
        for module in CONTROL_MODULES.values():
            if self.module == module.label:
                return module.name
        return self.module

    @property
    def text_fields(self) -> dict[str, Any]:
        """The unit's fields that a text names, as the extension writes them, in its order."""
        return {
            "Module": self.module,
            "Model": "None" if self.model is None else _model_label(str(self.model)),
            "Weight": self.weight,
            "Resize Mode": self.resize_mode,
            "Processor Res": self.processor_res,
            "Threshold A": self.threshold_a,
            "Threshold B": self.threshold_b,
            "Guidance Start": self.guidance_start,
            "Guidance End": self.guidance_end,
            "Pixel Perfect": self.pixel_perfect,
            "Control Mode": self.control_mode,
        }


def _model_label(model: str) -> str:
    """A network's name in texts: of a path the file's, without its ending.

    >>> _model_label("nets/canny.safetensors"), _model_label("control_v11p_sd15_canny [d14c016b]")
    ('canny', 'control_v11p_sd15_canny [d14c016b]')
    """
    name = re.split(r"[\\/]", model)[-1]
    return re.sub(r"\.(safetensors|pth|pt|bin|ckpt)$", "", name)


UNIT_KEYS = tuple(field.name for field in fields(ControlUnit) if field.name != "place")

_NOTHING_TO_DO = ("low_vram", "lowvram", "save_detected_map")  # about memory and display: taken, and passed over


def read_units(units: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None) -> list[ControlUnit]:
    """The enabled units of `control_units`, checked, their numbers in the ranges of their modules.

    Raises ValueError for unknown keys and values, naming the unit by its place and the near ones.
    """
    given = [units] if isinstance(units, Mapping) else list(units or ())
    read = [_read_unit(unit, place) for place, unit in enumerate(given)]
    return [unit for unit in read if unit.enabled]


def _read_unit(given: Mapping[str, Any], place: int) -> ControlUnit:
    where = f"`control_units[{place}]`"
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {type(given).__name__}: pass a dict, such as {{'image': image, 'weight': 0.8}}.")
    for key in given:
        if key not in UNIT_KEYS and key not in _NOTHING_TO_DO:
            raise ValueError(unknown_choice(f"{where}: key", key, UNIT_KEYS))
    values = {key: value for key, value in given.items() if key not in _NOTHING_TO_DO}
    for key, known in UNIT_CHOICES.items():
        if key in values:
            values[key] = _choice(f"{where}: `{key}`", values[key], known, OLDER_UNIT_VALUES[key])
    for key in ("weight", "guidance_start", "guidance_end", "processor_res", "threshold_a", "threshold_b"):
        if key in values:
            values[key] = _number(f"{where}: `{key}`", values[key])
    unit = ControlUnit(**values, place=place)
    if not isinstance(unit.module, str):
        raise ValueError(f"{where}: `module` is {unit.module!r}: pass a preprocessor's name, 'none' for none.")
    if not 0 <= unit.weight <= 2:
        raise ValueError(f"{where}: `weight` is {unit.weight}: it goes from 0 (off) to 2.")
    if not 0 <= unit.guidance_start <= unit.guidance_end <= 1:
        raise ValueError(
            f"{where}: `guidance_start` is {unit.guidance_start} and `guidance_end` {unit.guidance_end}: they are "
            "shares of the steps from 0 to 1, the start not after the end."
        )
    if unit.advanced_weighting is not None:
        unit = replace(unit, advanced_weighting=_factors(where, unit.advanced_weighting))
    return replace(unit, **_module_numbers(unit))


def _module_numbers(unit: ControlUnit) -> dict[str, Any]:
    """Resolution and thresholds in range, and the fractions as floats, as the extension keeps them."""
    module = CONTROL_MODULES.get(unit.module_name)
    numbers: dict[str, Any] = {name: float(getattr(unit, name)) for name in ("weight", "guidance_start")}
    numbers["guidance_end"] = float(unit.guidance_end)
    if module is None:  # of another package: its numbers are its own
        defaults = {"processor_res": _RESOLUTION.default, "threshold_a": 0.5, "threshold_b": 0.5}
        return numbers | {
            key: default if getattr(unit, key) < 0 else getattr(unit, key) for key, default in defaults.items()
        }
    numbers["processor_res"] = module.resolution.value(unit.processor_res)
    for key, slider in (("threshold_a", module.threshold_a), ("threshold_b", module.threshold_b)):
        value = getattr(unit, key)
        numbers[key] = float(value) if slider.low <= value <= slider.high else slider.default
    return numbers


def _choice(what: str, value: Any, known: Sequence[str], older: Mapping[str, str]) -> str:
    """One of `known`, which may be given by its number or by an older name."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(known):
        return known[value]
    value = older.get(str(value), value)
    if value not in known:
        raise ValueError(unknown_choice(what, value, known))
    return str(value)


def _number(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ValueError(f"{what} is {value!r}, which is no number.")
    return value


def _factors(where: str, factors: Any) -> tuple[float, ...]:
    try:
        return tuple(float(factor) for factor in factors)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: `advanced_weighting` is {factors!r}: pass a list of numbers, one for each residual."
        ) from error


def unit_text(unit: ControlUnit) -> str:
    """What the webui's text says of a unit; empty where a value has a comma or a colon, as in the extension.

    >>> unit_text(ControlUnit(model="control_v11p_sd15_canny [d14c016b]", weight=0.8))[:62]
    'Module: none, Model: control_v11p_sd15_canny [d14c016b], Weight'
    """
    fields_of_text = {name: str(value) for name, value in unit.text_fields.items()}
    if any("," in value or ":" in value for value in fields_of_text.values()):
        return ""
    return ", ".join(f"{name}: {value}" for name, value in fields_of_text.items())


def unit_texts(units: Sequence[ControlUnit]) -> dict[str, str]:
    """The fields "ControlNet 0", "ControlNet 1", ... of a text, numbered by the enabled units."""
    return {f"ControlNet {i}": unit_text(unit) for i, unit in enumerate(units)}
