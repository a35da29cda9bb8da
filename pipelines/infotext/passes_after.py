"""Detailing passes and soft inpainting out of a text's fields."""

from collections.abc import Mapping
from typing import Any

from ...loaders.utils import NameFromText
from ..detailer_settings import detailers_of_fields, read_detailer
from ..script_settings import soft_inpainting_of_fields


_DETAILER_NAMES = ("ad_model", "ad_checkpoint", "ad_vae", "ad_sampler", "ad_scheduler")


def passes_after(fields: Mapping[str, Any], *, img2img: bool) -> tuple[dict[str, Any], list[str]]:
    """The arguments `detailers` and `soft_inpainting`, and a line for each pass that cannot be read and is left out.

    Names of detectors, models and samplers are NameFromText: they are looked up, never opened or fetched.
    """
    arguments: dict[str, Any] = {}
    passes, lines = [], []
    for number, one in enumerate(detailers_of_fields(fields), 1):
        named = {name: NameFromText(value) if name in _DETAILER_NAMES else value for name, value in one.items()}
        try:
            read_detailer(named, number)
        except ValueError as error:
            lines.append(f"{error} It is left out.")
            named = {"ad_model": "None"}
        passes.append(named)
    if any(one["ad_model"] != "None" for one in passes):
        arguments["detailers"] = passes
    if img2img and (soft := soft_inpainting_of_fields(fields)) is not None:
        arguments["soft_inpainting"] = soft
    return arguments, lines
