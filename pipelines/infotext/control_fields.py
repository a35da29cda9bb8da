"""ControlNet units in parameters texts, as every version of the extension wrote them.

until          fields of a unit
2023-02        ControlNet Enabled: True, ControlNet Module: canny, ControlNet Model: x [fef5e48e]
2023-04        ControlNet-0 Enabled: True, ControlNet-0 Module: canny, ControlNet-0 Weight: 0.8
2023-05        ControlNet 0 Preprocessor: canny, ControlNet 0 Starting Step: 0.1, ControlNet 0 …
2023-08        ControlNet 0: "preprocessor: canny, model: x, starting/ending: (0.1, 0.9), …"
since          ControlNet 0: "Module: canny, Model: x, Weight: 0.8, Guidance Start: 0.1, Control Mode: Balanced"

A field without a number is of unit 0. The image is in none of them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...loaders.utils import NameFromText
from ..control.units import OLDER_UNIT_VALUES, UNIT_CHOICES


_UNIT_FIELD = re.compile(r"ControlNet(?:[ -](\d{1,3}))?(?: ([A-Z][\w ]*))?")
_UNIT_ITEM = re.compile(r"\s*([A-Za-z][A-Za-z /]*?):\s*(\([^()]*\)(?=,|$)|[^,]*)(?:,|$)")
# Name in a text, in lower case -> keys of a unit; of several a value in brackets gives each its own.
_UNIT_KEYS = {
    "module": ("module",),
    "preprocessor": ("module",),
    "model": ("model",),
    "weight": ("weight",),
    "resize mode": ("resize_mode",),
    "processor res": ("processor_res",),
    "threshold a": ("threshold_a",),
    "threshold b": ("threshold_b",),
    "guidance start": ("guidance_start",),
    "guidance end": ("guidance_end",),
    "guidance strength": ("guidance_end",),
    "starting step": ("guidance_start",),
    "ending step": ("guidance_end",),
    "starting/ending": ("guidance_start", "guidance_end"),
    "pixel perfect": ("pixel_perfect",),
    "control mode": ("control_mode",),
    "hr option": ("hr_option",),
    "preprocessor params": ("processor_res", "threshold_a", "threshold_b"),
    "preprocessor parameters": ("processor_res", "threshold_a", "threshold_b"),
}


def control_units_of_fields(fields: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The units that a text's fields name, by number; their values are entries of the argument `control_units`.

    What a text does not say of a unit is left out, so that it is at its default; the images are always. Models are
    NameFromText. Units that are switched off, that name neither module nor model, or that the extension would not
    read (weight over 2, start behind end, an unknown mode) are left out.

    >>> control_units_of_fields({"ControlNet 0": "Module: canny, Model: x [aaaaaaaa], Weight: 0.8"})
    {0: {'module': 'canny', 'model': 'x [aaaaaaaa]', 'weight': 0.8}}
    """
    units: dict[int, dict[str, Any]] = {}
    switched_off = set()
    for label, value in fields.items():
        found = _UNIT_FIELD.fullmatch(label)
        if found is None:
            continue
        number, name = int(found[1] or 0), found[2]
        if name == "Enabled":
            switched_off |= {number} if str(value) == "False" else set()
            continue
        items = [(name, str(value))] if name else _UNIT_ITEM.findall(str(value))
        units.setdefault(number, {}).update(pair for item in items for pair in _unit_values(*item))
    return {n: unit for n, unit in sorted(units.items()) if n not in switched_off and _is_readable(unit)}


def _unit_values(name: str, written: str) -> Iterator[tuple[str, Any]]:
    keys = _UNIT_KEYS.get(name.strip().lower(), ())
    parts = written.strip().strip("()").split(",") if len(keys) > 1 else [written.strip()]
    for key, part in zip(keys, parts):
        yield key, _unit_value(key, part.strip())


def _unit_value(key: str, written: str) -> Any:
    if key == "model":
        return NameFromText(re.split(r"[/\\]", written)[-1])
    if key == "module":
        return "none" if written == "None" else written
    if written in ("True", "False"):
        return written == "True"
    try:
        return int(written) if re.fullmatch(r"-?\d{1,9}", written) else float(written)
    except ValueError:
        return OLDER_UNIT_VALUES.get(key, {}).get(written, written)


def _is_readable(unit: Mapping[str, Any]) -> bool:
    numbers = [unit.get("weight", 1.0), unit.get("guidance_start", 0.0), unit.get("guidance_end", 1.0)]
    if not all(isinstance(number, (int, float)) for number in numbers) or not {"module", "model"} & set(unit):
        return False
    if any(key in unit and unit[key] not in known for key, known in UNIT_CHOICES.items()):
        return False
    weight, start, end = numbers
    return unit.get("model") != "None" and 0 <= weight <= 2 and 0 <= start <= end <= 1
