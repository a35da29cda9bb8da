"""Detailing passes and soft inpainting out of a text's fields."""

import re
from collections.abc import Mapping
from typing import Any

from ...loaders.utils import LOGGER, NameFromText
from ..detailer_settings import detailers_of_fields, read_detailer
from ..script_settings import soft_inpainting_of_fields


_DETAILER_NAMES = ("ad_model", "ad_checkpoint", "ad_vae", "ad_sampler", "ad_scheduler")


def passes_after(fields: Mapping[str, Any], *, img2img: bool) -> dict[str, Any]:
    """The arguments `detailers` and, for img2img, `soft_inpainting`, where the fields have them.

    Names of detectors, models and samplers are NameFromText: they are looked up, never opened or fetched. A pass with
    values that are out of range is switched off, so that the others keep their numbers; the webui drops it, too.
    """
    found: dict[str, Any] = {}
    texts = {label: str(value) for label, value in fields.items()}
    passes = [_named_pass(one, number) for number, one in enumerate(detailers_of_fields(texts), 1)]
    if any(one["ad_model"] != "None" for one in passes):
        found["detailers"] = passes
    if img2img and (soft := soft_inpainting_of_fields(texts)) is not None:
        found["soft_inpainting"] = soft
    return found


def _named_pass(one: dict[str, Any], number: int) -> dict[str, Any]:
    named = {n: NameFromText(re.split(r"[/\\]", v)[-1]) if n in _DETAILER_NAMES else v for n, v in one.items()}
    try:
        read_detailer(named, number)
    except ValueError as error:
        LOGGER.warning("A detailing pass of the text is left out. %s", error)
        return {"ad_model": "None"}
    return named
