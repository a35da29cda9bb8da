"""What a detailing pass is told: its settings under ADetailer's API names, and the fields of a text that hold them.

A pass is a dict such as `{"ad_model": "face_yolov8n.pt", "ad_confidence": 0.4}`; `DETAILER_SETTINGS` lists every name
with its default, which are those of ADetailer 25.3.0. A leaf: torch-free, and any folder may import it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..loaders.utils import unknown_choice


DETAILER_VERSION = "25.3.0"  # of ADetailer: what `ADetailer version` says
SAME_CHOICES = ("None", "Use same checkpoint", "Use same VAE", "Use same sampler", "Use same scheduler", "")
GIVEN_MODEL = "detections"  # `ad_model` of a pass whose boxes are given


class DetailerSetting(NamedTuple):
    """One setting of a pass. `label` is that of the text, without the leading "ADetailer "."""

    default: Any
    label: str
    kind: type  # str, bool, int or float
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    switch: str | None = None  # the setting that must be on for this one to count


# In the order of the text.
DETAILER_SETTINGS = {
    "ad_model": DetailerSetting("None", "model", str),
    "ad_model_classes": DetailerSetting("", "model classes", str),
    "ad_tab_enable": DetailerSetting(True, "tab enable", bool),
    "ad_prompt": DetailerSetting("", "prompt", str),
    "ad_negative_prompt": DetailerSetting("", "negative prompt", str),
    "ad_confidence": DetailerSetting(0.3, "confidence", float, 0, 1),
    "ad_mask_filter_method": DetailerSetting(
        "Area", "method to decide top k masks", str, choices=("Area", "Confidence"), switch="ad_mask_k"
    ),
    "ad_mask_k": DetailerSetting(0, "mask only top k", int, 0),
    "ad_mask_min_ratio": DetailerSetting(0.0, "mask min ratio", float, 0, 1),
    "ad_mask_max_ratio": DetailerSetting(1.0, "mask max ratio", float, 0, 1),
    "ad_x_offset": DetailerSetting(0, "x offset", int),
    "ad_y_offset": DetailerSetting(0, "y offset", int),
    "ad_dilate_erode": DetailerSetting(4, "dilate erode", int),
    "ad_mask_merge_invert": DetailerSetting(
        "None", "mask merge invert", str, choices=("None", "Merge", "Merge and Invert")
    ),
    "ad_mask_blur": DetailerSetting(4, "mask blur", int, 0),
    "ad_denoising_strength": DetailerSetting(0.4, "denoising strength", float, 0, 1),
    "ad_inpaint_only_masked": DetailerSetting(True, "inpaint only masked", bool),
    "ad_inpaint_only_masked_padding": DetailerSetting(32, "inpaint padding", int, 0, switch="ad_inpaint_only_masked"),
    "ad_use_inpaint_width_height": DetailerSetting(False, "use inpaint width height", bool),
    "ad_inpaint_width": DetailerSetting(512, "inpaint width", int, 1, switch="ad_use_inpaint_width_height"),
    "ad_inpaint_height": DetailerSetting(512, "inpaint height", int, 1, switch="ad_use_inpaint_width_height"),
    "ad_use_steps": DetailerSetting(False, "use separate steps", bool),
    "ad_steps": DetailerSetting(28, "steps", int, 1, switch="ad_use_steps"),
    "ad_use_cfg_scale": DetailerSetting(False, "use separate CFG scale", bool),
    "ad_cfg_scale": DetailerSetting(7.0, "CFG scale", float, 0, switch="ad_use_cfg_scale"),
    "ad_use_checkpoint": DetailerSetting(False, "use separate checkpoint", bool),
    "ad_checkpoint": DetailerSetting(None, "checkpoint", str, switch="ad_use_checkpoint"),
    "ad_use_vae": DetailerSetting(False, "use separate VAE", bool),
    "ad_vae": DetailerSetting(None, "VAE", str, switch="ad_use_vae"),
    "ad_use_sampler": DetailerSetting(False, "use separate sampler", bool),
    "ad_sampler": DetailerSetting("DPM++ 2M Karras", "sampler", str, switch="ad_use_sampler"),
    "ad_scheduler": DetailerSetting("Use same scheduler", "scheduler", str, switch="ad_use_sampler"),
    "ad_use_noise_multiplier": DetailerSetting(False, "use separate noise multiplier", bool),
    "ad_noise_multiplier": DetailerSetting(1.0, "noise multiplier", float, 0.5, 1.5, switch="ad_use_noise_multiplier"),
    "ad_use_clip_skip": DetailerSetting(False, "use separate CLIP skip", bool),
    "ad_clip_skip": DetailerSetting(1, "CLIP skip", int, 1, 12, switch="ad_use_clip_skip"),
    "ad_restore_face": DetailerSetting(False, "restore face", bool),
    "ad_controlnet_model": DetailerSetting("None", "ControlNet model", str),
    "ad_controlnet_module": DetailerSetting("None", "ControlNet module", str, switch="ad_controlnet_model"),
    "ad_controlnet_weight": DetailerSetting(1.0, "ControlNet weight", float, 0, 1, switch="ad_controlnet_model"),
    "ad_controlnet_guidance_start": DetailerSetting(
        0.0, "ControlNet guidance start", float, 0, 1, switch="ad_controlnet_model"
    ),
    "ad_controlnet_guidance_end": DetailerSetting(
        1.0, "ControlNet guidance end", float, 0, 1, switch="ad_controlnet_model"
    ),
}

# Left out of the text where they have their default. The others stand there whatever they are, if their switch is on.
_UNWRITTEN_DEFAULTS = {
    name
    for name, row in DETAILER_SETTINGS.items()
    if row.kind is bool and row.default is False or name in ("ad_model_classes", "ad_prompt", "ad_negative_prompt")
} | {
    *("ad_mask_k", "ad_mask_min_ratio", "ad_mask_max_ratio", "ad_x_offset", "ad_y_offset", "ad_mask_merge_invert"),
    *("ad_scheduler", "ad_controlnet_model", "ad_controlnet_module", "ad_controlnet_weight"),
    *("ad_controlnet_guidance_start", "ad_controlnet_guidance_end"),
}

# Labels of ADetailer before 23.7, as texts of that time have them.
_OLD_LABELS = {
    "conf": "confidence",  # in percent
    "dilate/erode": "dilate erode",
    "inpaint full": "inpaint only masked",
    "use inpaint width/height": "use inpaint width height",
    "mask merge/invert": "mask merge invert",
}


@dataclass(frozen=True)
class Detailer:
    """One pass: its settings, checked, and where its boxes come from.

    settings: every name of DETAILER_SETTINGS. detector: a callable given in place of a model's name. detections: given
    in place of a detector, one an image, as `given_detections_of` reads them. number: which tab it is, from 1.
    """

    settings: Mapping[str, Any]
    number: int = 1
    detector: Any = None
    detections: Any = field(default=None, compare=False)

    @property
    def is_active(self) -> bool:
        """Whether the pass runs: it has a detector and is switched on."""
        return self.settings["ad_model"] != "None" and self.settings["ad_tab_enable"]

    def __getitem__(self, name: str) -> Any:
        """A setting, by its name with `ad_`."""
        return self.settings[name]

    def separate(self, name: str) -> Any:
        """A setting of this pass's own, None where its switch is off or it says "Use same …"."""
        switch = DETAILER_SETTINGS[name].switch
        value = self.settings[name]
        return value if switch is None or (self.settings[switch] and value not in (None, *SAME_CHOICES)) else None


@dataclass(frozen=True)
class DetailerPlan:
    """The argument `detailers`, read. passes: all tabs, in order, those that are switched off too."""

    passes: tuple[Detailer, ...]
    skip_img2img: bool = False  # img2img draws nothing itself: the passes begin with the given picture

    @property
    def active(self) -> list[Detailer]:
        """The passes that run."""
        return [one for one in self.passes if one.is_active]


def read_detailers(detailers: Sequence[Any] | Mapping[str, Any] | None) -> DetailerPlan:
    """The argument `detailers`: dicts of settings, in the order in which the passes run.

    As in the webui's API one or two booleans may stand before the dicts: whether the passes are on at all, and whether
    img2img's own drawing is skipped. Raises ValueError for unknown names (with the near ones) and values out of range.
    """
    if detailers is None:
        return DetailerPlan(())
    given = [detailers] if isinstance(detailers, Mapping) else list(detailers)
    switches: list[bool] = []
    while given and isinstance(given[0], bool) and len(switches) < 2:
        switches.append(bool(given.pop(0)))
    passes = tuple(read_detailer(one, number) for number, one in enumerate(given, 1))
    if switches and not switches[0]:
        return DetailerPlan(())
    return DetailerPlan(passes, skip_img2img=len(switches) > 1 and switches[1])


def read_detailer(given: Mapping[str, Any], number: int = 1) -> Detailer:
    """One pass, checked. Names may come without `ad_`; numbers may be texts; fractions of whole numbers are cut."""
    where = f"`detailers`, pass {number}:"
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} a pass is a dict of settings such as {{'ad_model': 'face'}}; got {given!r:.60}.")
    settings = {name: row.default for name, row in DETAILER_SETTINGS.items()}
    detector = detections = None
    for key, value in given.items():
        if key == "detections":
            detections = value
            continue
        if key == "is_api":  # clients of the webui's API mark a pass with it
            continue
        name = key if key in DETAILER_SETTINGS else f"ad_{key}"
        if name not in DETAILER_SETTINGS:
            raise ValueError(f"{where} {unknown_choice('setting', key, [*DETAILER_SETTINGS, 'detections'])}")
        if name == "ad_model" and callable(value):
            detector, value = value, getattr(value, "__name__", type(value).__name__)
        settings[name] = _checked_setting(where, name, value)
    if detections is not None and "ad_model" not in given and "model" not in given:
        settings["ad_model"] = GIVEN_MODEL
    return Detailer(settings, number, detector, detections)


def _checked_setting(where: str, name: str, value: Any) -> Any:
    row = DETAILER_SETTINGS[name]
    if value is None:
        return row.default
    try:
        value = _as_kind(row.kind, value)
    except (TypeError, ValueError):
        kind = {str: "a text", bool: "True or False", int: "a whole number", float: "a number"}[row.kind]
        raise ValueError(f"{where} `{name}` must be {kind}; got {value!r:.60}.") from None
    if row.choices and value not in row.choices:
        raise ValueError(f"{where} {unknown_choice(f'`{name}`:', value, row.choices)}")
    low, high = row.low, row.high
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        limits = f"from {low:g} to {high:g}" if high is not None else f"{low:g} or more"
        raise ValueError(f"{where} `{name}` must be {limits}; got {value!r}.")
    return value


def _as_kind(kind: type, value: Any) -> Any:
    """The value as its setting's kind. Raises ValueError or TypeError where it cannot be."""
    if kind is bool:
        if isinstance(value, str):
            value = {"true": 1, "false": 0, "1": 1, "0": 0}.get(value.strip().lower())
        if value in (0, 1):
            return bool(value)
        raise ValueError(value)
    if kind is str:
        if not isinstance(value, str):
            raise TypeError(value)
        return value
    if isinstance(value, bool):
        raise TypeError(value)
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(value)
    return int(number) if kind is int else number


# --- the text of a picture


def detailer_fields(passes: Iterable[Detailer]) -> dict[str, Any]:
    """The fields of the text, label -> value, in its order; nothing without an active pass.

    The second pass's labels end in " 2nd" and so on, by its place among all, inactive ones counted.
    """
    fields: dict[str, Any] = {}
    for one in passes:
        if not one.is_active:
            continue
        for name, row in DETAILER_SETTINGS.items():
            if name != "ad_tab_enable" and _is_written(one.settings, name, row):
                fields[f"ADetailer {row.label}{pass_suffix(one.number)}"] = one.settings[name]
    return {**fields, "ADetailer version": DETAILER_VERSION} if fields else {}


def _is_written(settings: Mapping[str, Any], name: str, row: DetailerSetting) -> bool:
    if settings[name] is None or (row.switch is not None and settings[row.switch] in (False, 0, "None")):
        return False
    return name not in _UNWRITTEN_DEFAULTS or settings[name] != row.default


def pass_suffix(number: int) -> str:
    """What ends the labels of pass `number`: nothing, " 2nd", " 3rd", " 4th".

    >>> pass_suffix(1), pass_suffix(3), pass_suffix(11)
    ('', ' 3rd', ' 11th')
    """
    if number == 1:
        return ""
    teens = number % 100 in (11, 12, 13)
    return f" {number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def detailers_of_fields(fields: Mapping[str, str]) -> list[dict[str, Any]]:
    """The argument `detailers` from a text's fields, label -> text; empty where no pass stands there.

    Fields of every version are read; values that are none, and labels of no setting, are left out, as in the webui.
    A pass that is missing between others is `{"ad_model": "None"}`, so that the others keep their number.
    """
    names = {row.label: name for name, row in DETAILER_SETTINGS.items()}
    passes: dict[int, dict[str, Any]] = {}
    for label, text in fields.items():
        found = re.fullmatch(r"ADetailer (.+?)(?: (\d+)(?:st|nd|rd|th))?", label)
        if found is None:
            continue
        own = _OLD_LABELS.get(found[1], found[1])
        if own not in names or own == "tab enable":
            continue
        try:
            value = _as_text_kind(DETAILER_SETTINGS[names[own]], text)
        except ValueError:
            continue
        passes.setdefault(int(found[2] or 1), {})[names[own]] = (
            value / 100 if found[1] == "conf" and value > 1 else value
        )
    with_model = {number for number, given in passes.items() if given.get("ad_model", "None") != "None"}
    if not with_model:
        return []
    return [passes[n] if n in with_model else {"ad_model": "None"} for n in range(1, max(with_model) + 1)]


def _as_text_kind(row: DetailerSetting, text: str) -> Any:
    """A field's text as the webui reads it: everything but `False` is True, numbers of any form, texts as they are."""
    if row.kind is bool:
        return text not in ("False", "")
    return text if row.kind is str else _as_kind(row.kind, text)
