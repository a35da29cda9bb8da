"""Kinds of values that arguments have: read from the text of a command line, and checked in JSON.

kind          on a command line    in JSON
whole         20                   20
number        7.5                  7.5
text          a cat                "a cat"
yes or no     (a flag)             true
size          640x960              [640, 960] or "640x960"
seed          1 or 1,2,3           1 or [1, 2, 3]
weights       ink=0.8              {"ink": 0.8} or [["ink", 0.8]]
settings      s_churn=1            {"s_churn": 1}
table         on or a=1,b=text     true or {"a": 1, "b": "text"}
tables        a=1,b=text           [{"a": 1, "b": "text"}]
"""

import csv
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...loaders.utils import unknown_choice
from ..options import WEBUI_OPTIONS


class ValueKind(NamedTuple):
    """One kind of value. `read` and `take` raise ValueError, with nothing or what else is wrong."""

    name: str  # as in "must be a whole number"
    sign: str  # for it in --help
    read: Callable[[str], Any]  # from text
    take: Callable[[Any], Any]  # from JSON; gives what the call wants


def whole_kind(least: int | None = None) -> ValueKind:
    """Whole numbers, from `least` on."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer():
            raise ValueError
        if least is not None and value < least:
            raise ValueError
        return int(value)

    return ValueKind(
        f"a whole number{'' if least is None else f' from {least} on'}", "N", lambda text: check(int(text)), check
    )


def number_kind(least: float | None = None, most: float | None = None) -> ValueKind:
    """Numbers, from `least` to `most`."""

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError
        if (least is not None and value < least) or (most is not None and value > most):
            raise ValueError
        return value

    bounds = "" if least is None else f" from {least:g} on" if most is None else f" from {least:g} to {most:g}"
    return ValueKind(f"a number{bounds}", "X", lambda text: check(float(text)), check)


def list_kind(of: ValueKind, name: str) -> ValueKind:
    """Values of another kind in a row: with commas on a command line."""

    def take(value: Any) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise ValueError
        return [of.take(entry) for entry in value]

    return ValueKind(name, f"{of.sign},{of.sign}", lambda text: [of.read(part) for part in text.split(",")], take)


def read_size(text: str) -> tuple[int, int]:
    """`640x960` as (640, 960). Raises ValueError."""
    sides = text.lower().replace(",", "x").split("x")
    if len(sides) != 2 or not all(side.strip().isdecimal() for side in sides):
        raise ValueError
    return int(sides[0]), int(sides[1])


def read_yes(text: str) -> bool:
    """`yes`, `true` and `1`, or their contraries. Raises ValueError."""
    if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise ValueError
    return text.lower() in ("true", "yes", "1")


def read_setting(text: str) -> tuple[str, Any]:
    """`eta_noise_seed_delta=31337` as (name, value of the setting's own type). Raises ValueError."""
    name, equals, written = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not NAME=VALUE.")
    usual = _usual_setting(name)
    try:
        if isinstance(usual, bool):
            return name, read_yes(written)
        return name, type(usual)(written) if usual is not None else json.loads(written)
    except ValueError as error:
        raise ValueError(f"{written!r} is no value of `{name}`, which is usually {usual!r}.") from error


def _usual_setting(name: Any) -> Any:
    if name not in WEBUI_OPTIONS:
        raise ValueError(unknown_choice("setting", name, WEBUI_OPTIONS))
    return WEBUI_OPTIONS[name]


def _take_settings(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError
    return {name: _take_setting(name, entry) for name, entry in value.items()}


def _take_setting(name: str, value: Any) -> Any:
    usual = _usual_setting(name)
    kinds = {bool: YES_NO, int: WHOLE, float: NUMBER, str: TEXT}
    if type(usual) not in kinds:
        return value
    try:
        return kinds[type(usual)].take(value)
    except ValueError:
        raise ValueError(f"`{name}` must be {kinds[type(usual)].name}, like {usual!r}; got {value!r}.") from None


def _take_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _take_yes(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _take_size(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        return read_size(value)
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError
    return _SIDE.take(value[0]), _SIDE.take(value[1])


def _read_weight(text: str) -> dict[str, float]:
    name, equals, weight = text.rpartition("=")
    return {name: NUMBER.read(weight)} if equals else {text: 1.0}


def _take_weights(value: Any) -> Any:
    """{name: weight}, or [[name, weight, ...]] as the call takes it."""
    entries = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(entries, list):
        raise ValueError
    for entry in entries:
        if not isinstance(entry, (list, tuple)) or not 2 <= len(entry) <= 5 or not isinstance(entry[0], str):
            raise ValueError(f"The entry {entry!r} is not [name, weight].")
        NUMBER.take(entry[1])
    return dict(value) if isinstance(value, Mapping) else [tuple(entry) for entry in value]


def read_table(text: str) -> dict[str, Any]:
    """`weight=0.8,model=canny` as {"weight": 0.8, "model": "canny"}; JSON too. Raises ValueError."""
    if text.lstrip().startswith("{"):
        found = json.loads(text)
        return found
    table: dict[str, Any] = {}
    for part in next(csv.reader([text], skipinitialspace=True), []):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not NAME=VALUE.")
        table[name.strip()] = plain_value(value.strip())
    return table


def plain_value(text: str) -> Any:
    """A number or yes or no, where it is written like one; else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float)) else text


def _take_table(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError
    return dict(value)


WHOLE, NUMBER, _SIDE = whole_kind(), number_kind(), whole_kind(0)
TEXT = ValueKind("a text", "TEXT", str, _take_text)
TEXTS = ValueKind(
    "a text, or a list of texts",
    "TEXT",
    str,
    lambda value: [_take_text(text) for text in value] if isinstance(value, list) else _take_text(value),
)
YES_NO = ValueKind("true or false", "", read_yes, _take_yes)
SIZE = ValueKind("a size like 640x960", "WxH", read_size, _take_size)
SEED = ValueKind(
    "a whole number, or a list of them",
    "N",
    lambda text: [int(part) for part in text.split(",")] if "," in text else int(text),
    lambda value: [WHOLE.take(part) for part in value] if isinstance(value, list) else WHOLE.take(value),
)
WEIGHTS = ValueKind("names with their weights, like ink=0.8", "NAME=X", _read_weight, _take_weights)
TABLES = ValueKind(
    "tables like model=canny,weight=0.8",
    "NAME=VALUE,...",
    lambda text: [read_table(text)],
    lambda value: [_take_table(entry) for entry in (value if isinstance(value, list) else [value])],
)
TABLE = ValueKind(
    "on, or settings like scale=2,overlap=64",
    "on|NAME=VALUE,...",
    lambda text: True if text.lower() in ("on", "true", "yes") else read_table(text),
    lambda value: value if isinstance(value, bool) else _take_table(value),
)
SETTINGS = ValueKind(
    "settings of the webui, like s_churn=1", "NAME=X", lambda text: dict([read_setting(text)]), _take_settings
)
