"""ControlNet units on a command line: those of a text, which holds no images, and those of --control."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..infotext.control_fields import control_units_of_fields
from .common import HeadedOption


UNIT_IMAGES = ("image", "mask", "effective_region_mask")  # keys of a unit that are paths here

control_image_option = click.option(
    "--control-image",
    "control_images",
    multiple=True,
    metavar="N=PATH",
    cls=HeadedOption,
    heading="ControlNet",
    help="The image of unit N, from 0 on, of the text or of --control; may be repeated.",
)


def with_control_images(call: Mapping[str, Any], fields: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """The call with the units of a text that got an image, and with images in those it has.

    given: `N=PATH` each. In a call over a picture that stands in for the others. Raises ValueError for a unit that
    neither the call nor the text has.
    """
    images = dict(_numbered_path(text) for text in given)
    told = control_units_of_fields(fields)
    units = {number: dict(unit) for number, unit in enumerate(call.get("control_units") or ())}
    for number, path in images.items():
        if number not in units and number not in told:
            known = ", ".join(map(str, sorted({*units, *told}))) or "none"
            raise ValueError(f"`--control-image {number}={path}`: there is no unit {number}. Units: {known}.")
        units[number] = {**told.get(number, {}), **units.get(number, {}), "image": path}
    if "image" in call:
        units = {**told, **units}
    if not units:
        return dict(call)
    return {**call, "control_units": [units[number] for number in sorted(units)]}


def unit_paths(call: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where each image file of a call's units is named, and its path."""
    for number, unit in enumerate(call.get("control_units") or ()):
        for key in UNIT_IMAGES:
            if isinstance(unit.get(key), (str, Path)):
                yield f"control_units {number}: {key}", str(unit[key])


def _numbered_path(text: str) -> tuple[int, str]:
    number, equals, path = text.partition("=")
    if not equals or not number.strip().isdecimal() or not path:
        raise ValueError(f"`--control-image` must be N=PATH, like 0=edges.png; got {text!r}.")
    return int(number), path
