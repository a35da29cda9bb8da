"""The server's settings under the webui's names: those of calls (`WEBUI_OPTIONS`), and those of the server itself."""

import math
from collections.abc import Mapping
from typing import Any

from ...loaders.utils import unknown_choice
from ..infotext.files import PICTURE_FORMATS
from ..options import WEBUI_OPTIONS


NOISE_SOURCES = {"GPU": "gpu", "CPU": "cpu", "NV": "nv"}
FACE_RESTORERS = ("CodeFormer", "GFPGAN")
LONGEST_SETTING = 1000

# Settings that are no option of a call but of the server: name -> default.
SERVER_SETTINGS: dict[str, Any] = {
    "sd_model_checkpoint": "",
    "sd_checkpoint_hash": "",
    "sd_vae": "Automatic",
    "randn_source": "GPU",
    "face_restoration": False,
    "face_restoration_model": "CodeFormer",
    "tiling": False,
    "samples_format": "png",
    "control_net_no_detectmap": False,  # whether control images stay away from the answer
}
_USUAL_SETTINGS = {**WEBUI_OPTIONS, **SERVER_SETTINGS}
_SETTING_CHOICES = {
    "randn_source": tuple(NOISE_SOURCES),
    "face_restoration_model": FACE_RESTORERS,
    "samples_format": tuple(ending.removeprefix(".") for ending in PICTURE_FORMATS),
}
_TOLD_ONLY = ("sd_checkpoint_hash", "forge_additional_modules")  # clients send them back or along: never changed


class BadRequestField(ValueError):
    """A field whose value cannot be honoured."""

    def __init__(self, name: str, problem: str):
        super().__init__(f"`{name}`: {problem}")
        self.name = name


def usual_settings() -> dict[str, Any]:
    """All settings with their defaults."""
    return dict(_USUAL_SETTINGS)


def settings_with(current: Mapping[str, Any], changes: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """Settings after changes. null is a setting's default.

    Raises BadRequestField for a name that is no setting here, and a value that the setting cannot have.
    """
    settings = dict(current)
    for name, value in (changes or {}).items():
        if name in _TOLD_ONLY:
            continue
        if name not in _USUAL_SETTINGS:
            raise BadRequestField(f"{where}.{name[:100]}", "is no setting here; GET options lists them")
        settings[name] = _setting_value(name, value, f"{where}.{name}")
    return settings


def _setting_value(name: str, value: Any, where: str) -> Any:
    usual = _USUAL_SETTINGS[name]
    if value is None:
        return usual
    if isinstance(usual, bool):
        if isinstance(value, bool):
            return value
        raise BadRequestField(where, f"is true or false; got {value!r:.60}")
    if isinstance(usual, str):
        return _setting_text(name, value, where)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadRequestField(where, f"is a number; got {value!r:.60}")
    if isinstance(usual, int) and value != int(value):
        raise BadRequestField(where, f"is a whole number; got {value!r:.60}")
    return type(usual)(value)


def _setting_text(name: str, value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_SETTING:
        raise BadRequestField(where, f"is a text of at most {LONGEST_SETTING} letters; got {value!r:.60}")
    known = _SETTING_CHOICES.get(name)
    if known is not None and value not in known:
        raise BadRequestField(where, unknown_choice("value", value, known))
    return value
