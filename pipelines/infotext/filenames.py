"""File names made from what drew a picture.

pattern                            name
[number]-[seed]                    00012-4711
[date]/[model_name]/[seed]         2024-05-01/dreamshaper_8/4711
[datetime<%H%M%S>]-[sampler]       134502-Euler a
[prompt_words]-[steps]             a red fox in snow-20
"""

import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from ...loaders.utils import unknown_choice
from .read import parse_infotext


PICTURE_NAME_LENGTH = 128  # characters that a field may fill, as in the webui
LONGEST_NAME = 240  # bytes of a name without its ending; file systems take 255 with it, and a number may be added
_FIELD_CAPS = (512, 200, 160, 120, 100, 80, 60, 40, 20, 10)  # bytes of each field, until the whole fits
_NAME_FIELD = re.compile(r"\[(\w+)(?:<([^>\[\]]*)>)?\]")
_NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]')
_RESERVED_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.I)  # Windows takes them for devices
_BETWEEN_FOLDERS = re.compile(r"/(?![^<>]*>)")  # not those inside `<%Y/%m>`
_NUMBERED = re.compile(r"(\d+)(?:-|\.|$)")
_PROMPT_WORDS = 8


def picture_name(
    pattern: str,
    infotext: str,
    *,
    number: int = 0,
    batch_index: int = 1,
    picture: Image.Image | None = None,
    now: datetime | None = None,
) -> str:
    """A name without ending, from a pattern with fields in brackets; `/` makes folders.

    number: for [number], written with five digits. batch_index: for [batch_number], from 1. now: for the dates.
    Fields that the text does not have are left out. Raises ValueError for an unknown field or an absolute path.

    >>> picture_name("[seed]-[sampler]", "a cat\\nSteps: 20, Sampler: Euler a, Seed: 7")
    '7-Euler a'
    """
    fields = _named_fields(infotext)
    given = {"number": f"{number:05d}", "batch_number": str(batch_index), "now": now or datetime.now()}
    if picture is not None:
        given |= {"width": str(picture.width), "height": str(picture.height)}

    def written(match: re.Match[str]) -> str:
        name, argument = match[1], match[2]
        if name not in PICTURE_NAME_FIELDS:
            raise ValueError(unknown_choice("`pattern`: field", name, PICTURE_NAME_FIELDS))
        return safe_name(PICTURE_NAME_FIELDS[name](fields, given, argument))

    parts = [_fitting_name(part, written) for part in _BETWEEN_FOLDERS.split(pattern)]
    kept = [part.rstrip(". ") for part in parts if part and part != "."]
    if not kept or "" in kept or Path(pattern).is_absolute():
        raise ValueError(
            f"`pattern`: {pattern!r} makes no file name inside the folder. Write one like '[date]/[number]-[seed]'."
        )
    return "/".join(kept)


def safe_name(text: str) -> str:
    """Text as part of a file name on every system: signs with a meaning of their own become `_`, and 128 at most.

    >>> safe_name("a/b: <c>")
    'a_b_ _c_'
    """
    return _NOT_IN_NAMES.sub("_", text.strip())[:PICTURE_NAME_LENGTH].rstrip(". ")


def _fitting_name(part: str, written: Callable[[re.Match[str]], str]) -> str:
    """One part of a path with its fields filled in, those that are long cut until a file system takes the whole."""
    name = ""
    for cap in _FIELD_CAPS:
        name = _NAME_FIELD.sub(lambda match, cap=cap: _cut_bytes(written(match), cap), part).strip()  # type: ignore[misc]
        if len(name.encode("utf-8", "replace")) <= LONGEST_NAME:
            break
    name = _cut_bytes(name, LONGEST_NAME)
    return f"_{name}" if _RESERVED_NAME.match(name) else name


def _cut_bytes(text: str, length: int) -> str:
    """The beginning of a text that fills `length` bytes at most, no sign of it cut in two."""
    return text.encode("utf-8", "replace")[:length].decode("utf-8", "ignore")


def next_picture_number(folder: Path) -> int:
    """One more than the largest number that a file in the folder begins with; 0 for an empty one."""
    try:
        names = os.listdir(folder)
    except OSError:
        return 0
    numbers = [int(found[1]) for name in names if (found := _NUMBERED.match(name)) and len(found[1]) < 10]
    return max(numbers, default=-1) + 1


def _named_fields(infotext: str) -> dict[str, Any]:
    try:
        return parse_infotext(infotext)
    except ValueError:  # a weight that is no number concerns drawing, not naming
        return {"Prompt": infotext.partition("\n")[0]}


def _from_field(label: str) -> Callable[[Mapping[str, Any], Mapping[str, Any], str | None], str]:
    return lambda fields, given, argument: str(fields.get(label, ""))


def _size_field(side: str, label: str) -> Callable[[Mapping[str, Any], Mapping[str, Any], str | None], str]:
    return lambda fields, given, argument: str(given.get(side, fields.get(label, "")))


def _date_field(usual: str) -> Callable[[Mapping[str, Any], Mapping[str, Any], str | None], str]:
    def written(fields: Mapping[str, Any], given: Mapping[str, Any], argument: str | None) -> str:
        try:
            return given["now"].strftime(argument or usual)
        except ValueError as error:
            raise ValueError(
                f"`pattern`: {argument!r} is no format of dates ({error}). Write one like %Y-%m-%d."
            ) from error

    return written


_WEIGHT_SIGNS = r":[\d.]+(?=\))|[()\[\]{}]"


def _prompt_words(fields: Mapping[str, Any], given: Mapping[str, Any], argument: str | None) -> str:
    """The first words of the prompt, without brackets, weights and tags; as many as the argument says (8)."""
    prompt = str(fields.get("Prompt", ""))
    end = prompt.rfind(">") + 1  # no tag begins behind it: each `<` would look for its end in vain
    plain = re.sub(r"<[^>]*>|" + _WEIGHT_SIGNS, " ", prompt[:end]) + re.sub(_WEIGHT_SIGNS, " ", prompt[end:])
    words = [word for word in re.split(r"[\s,]+", plain) if word]
    return " ".join(words[: int(argument) if argument and argument.isdecimal() else _PROMPT_WORDS])


PICTURE_NAME_FIELDS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], str | None], str]] = {
    "number": lambda fields, given, argument: given["number"],
    "batch_number": lambda fields, given, argument: given["batch_number"],
    "seed": _from_field("Seed"),
    "steps": _from_field("Steps"),
    "cfg": _from_field("CFG scale"),
    "sampler": _from_field("Sampler"),
    "scheduler": _from_field("Schedule type"),
    "width": _size_field("width", "Size-1"),
    "height": _size_field("height", "Size-2"),
    "denoising": _from_field("Denoising strength"),
    "clip_skip": _from_field("Clip skip"),
    "model_name": _from_field("Model"),
    "model_hash": _from_field("Model hash"),
    "prompt": lambda fields, given, argument: str(fields.get("Prompt", "")).replace(" ", "_"),
    "prompt_spaces": _from_field("Prompt"),
    "prompt_words": _prompt_words,
    "date": _date_field("%Y-%m-%d"),
    "datetime": _date_field("%Y%m%d%H%M%S"),
}
