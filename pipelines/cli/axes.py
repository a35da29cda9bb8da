"""Axes of a grid, in the notation of the webui's X/Y/Z plot.

written                      values
steps=10,20,30               10, 20, 30
seed=1-5                     1, 2, 3, 4, 5
seed=1-10 (+3)               1, 4, 7, 10
cfg=1-3 (+0.5)               1, 1.5, 2, 2.5, 3
cfg=5-10 [3]                 5, 7.5, 10
sampler="Euler a",DDIM       Euler a, DDIM
replace=red,green,blue       the prompt's red as it is, as green, as blue
matrix=red,big               the prompt as it is; with red; with big; with both
controlnet 0 weight=0-1 [3]  of the unit 0: 0, 0.5, 1
detailer 0 confidence=0.3    of the first detail pass
"""

import csv
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from ..infotext.fields import FIELDS
from ..options import WEBUI_OPTIONS
from ..script_settings import prompt_matrix
from .entry_axes import entry_setting
from .options import CALL_OPTIONS, argument_name, merge_call, read_option
from .values import read_setting


MOST_AXIS_VALUES = 1000
_SIZE = "width and height"
# Types of the webui's plot that are called otherwise than the fields of a text.
_PLOT_TYPES = {
    "checkpoint name": "model",
    "size": _SIZE,
    "var. seed": "subseed",
    "var. strength": "subseed_strength",
    "denoising": "hires_strength",
    "face restore": "restore_faces",
    "rng source": "noise_source",
    "initial noise multiplier": "webui_options.initial_noise_multiplier",
    "extra noise": "webui_options.img2img_extra_noise",
    "sigma min": "webui_options.s_tmin",
    "sigma max": "webui_options.s_tmax",
    "negative guidance minimum sigma": "webui_options.s_min_uncond",
    "skip early cfg": "webui_options.skip_early_cond",
    "always discard next-to-last sigma": "webui_options.always_discard_next_to_last_sigma",
    "unipc order": "webui_options.uni_pc_order",
    "cfg scale": "guidance_scale",
}
# Labels whose values the webui counts or spells otherwise than the argument does.
_LABEL_READERS = {
    field.label: field.read for field in FIELDS if field.argument in ("clip_skip", "noise_source", "tiling")
} | {"RNG source": next(field.read for field in FIELDS if field.argument == "noise_source")}
_MATRIX_NAMES = ("matrix", "prompt matrix")
_REPLACE_NAMES = ("replace", "prompt s/r", "s/r")
_AXIS_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_STEP_RANGE = re.compile(rf"\s*({_AXIS_NUMBER})\s*-\s*({_AXIS_NUMBER})(?:\s*\(\s*({_AXIS_NUMBER})\s*\))?\s*")
_COUNT_RANGE = re.compile(rf"\s*({_AXIS_NUMBER})\s*-\s*({_AXIS_NUMBER})\s*\[\s*(\d+)\s*\]\s*")


class Axis(NamedTuple):
    """One axis: what it is called, and for each value its label and how it changes a call."""

    name: str
    labels: list[str]
    changes: list[Callable[[Mapping[str, Any]], dict[str, Any]]]


NO_AXIS = Axis("", [""], [dict])


def read_axis(written: str | None) -> Axis:
    """An axis as written on a command line. Raises ValueError for an unknown name, or values it cannot have."""
    if written is None:
        return NO_AXIS
    name, equals, values = written.partition("=")
    texts = next(csv.reader([values], skipinitialspace=True), []) if equals else []
    if not texts or texts == [""]:
        raise ValueError(f"an axis is NAME=VALUE,VALUE,...; got {written!r}.")
    if name.strip().lower() in _REPLACE_NAMES:
        return Axis("replace", texts, [_replacement(texts[0], text) for text in texts])
    if name.strip().lower() in _MATRIX_NAMES:
        return _matrix_axis(texts)
    if (setting := entry_setting(name)) is not None:
        labels = [label for text in texts for label in _range_values(text, float)]
        return Axis(name.strip(), labels, [setting.change(label) for label in labels])
    argument = _PLOT_TYPES.get(name.strip().lower()) or argument_name(name)
    kind = _number_kind(argument)
    read = _LABEL_READERS.get(name.strip())
    labels = [label for text in texts for label in (_range_values(text, kind) if kind else [text])]
    if len(labels) > MOST_AXIS_VALUES:
        raise ValueError(f"the axis {name!r} has {len(labels)} values; at most {MOST_AXIS_VALUES} are drawn.")
    return Axis(name.strip(), labels, [_change(argument, label, read) for label in labels])


def text_axes(fields: Mapping[str, Any]) -> tuple[Axis, Axis, Axis]:
    """The axes of an X/Y/Z plot's text. Raises ValueError for a type that is no argument here, naming it.

    The values of a seed that was drawn at random stand in "Fixed X Values".
    """
    axes = []
    for letter in "XYZ":
        kind = str(fields.get(f"{letter} Type") or "Nothing")
        values = str(fields.get(f"Fixed {letter} Values") or fields.get(f"{letter} Values") or "")
        axes.append(NO_AXIS if kind == "Nothing" else read_axis(f"{kind}={values}"))
    return axes[0], axes[1], axes[2]


def _number_kind(argument: str) -> type | None:
    """int or float for arguments whose values may be written as ranges."""
    if argument.startswith("webui_options."):
        usual = WEBUI_OPTIONS[argument.partition(".")[2]]
        return None if isinstance(usual, bool) or not isinstance(usual, (int, float)) else type(usual)
    return {"N": int, "X": float}.get(CALL_OPTIONS[argument].kind.sign) if argument in CALL_OPTIONS else None


def _range_values(text: str, kind: type) -> list[str]:
    """The numbers of a range, both ends included where the steps meet them; anything else is itself."""
    if found := _COUNT_RANGE.fullmatch(text):
        first, last, count = float(found[1]), float(found[2]), int(found[3])
        gap = (last - first) / (count - 1) if count > 1 else 0.0
        numbers = [first + gap * index for index in range(min(count, MOST_AXIS_VALUES + 1))]
    elif found := _STEP_RANGE.fullmatch(text):
        first, last = float(found[1]), float(found[2])
        gap = float(found[3]) if found[3] else 1.0 if last >= first else -1.0
        if gap == 0 or (last - first) * gap < 0:
            raise ValueError(f"{text!r} goes nowhere: its step leads away from its end.")
        steps = min(int((last - first) / gap + 1e-9), MOST_AXIS_VALUES)
        numbers = [first + gap * index for index in range(steps + 1)]
    else:
        return [text.strip()]
    return [str(int(number)) if kind is int else f"{number:.6g}" for number in numbers]


def _change(
    argument: str, text: str, read: Callable[[str], Any] | None = None
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """What a value does to a call. read: for a label of the webui's whose values are others than the argument's."""
    if argument == _SIZE:
        width, height = read_option("hires_size", text)
        return lambda call: {**call, "width": width, "height": height}
    group, _, setting = argument.rpartition(".")
    if group:
        name, value = read_setting(f"{setting}={text}")
        return lambda call: merge_call(call, {group: {name: value}})
    value = read_option(argument, text) if read is None else _read_label(argument, text, read)
    return lambda call: merge_call(call, {argument: value})


def _read_label(argument: str, text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(f"`{argument}`: {text!r} is no value of that field of the webui's.") from error


def _matrix_axis(parts: list[str]) -> Axis:
    """The prompt with every combination of parts behind it."""
    base = "\0"
    texts = prompt_matrix("|".join([base, *parts]))

    def changed(call: Mapping[str, Any], text: str) -> dict[str, Any]:
        return {**call, "prompt": text.replace(base, str(call.get("prompt") or ""))}

    labels = [text.removeprefix(base).strip(", ") or "(as it is)" for text in texts]
    return Axis("prompt matrix", labels, [partial(changed, text=text) for text in texts])


def _replacement(before: str, after: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def change(call: Mapping[str, Any]) -> dict[str, Any]:
        names = [name for name in ("prompt", "negative_prompt") if before in str(call.get(name) or "")]
        if not names:
            raise ValueError(f"neither prompt nor negative prompt has {before!r} to replace.")
        return {**call, **{name: call[name].replace(before, after) for name in names}}

    return change
