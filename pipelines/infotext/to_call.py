"""Parameters texts: what the webui writes under its pictures, and what it means for a call.

text --parse_infotext--> fields --call_arguments--> WebUITxt2ImgPipeline(**arguments)
                                --call_report-->    what the text asks for and the call cannot give
call --call_settings--> settings --format_infotext--> text
"""

from collections.abc import Mapping
from typing import Any

from .fields import (
    CALL_FIELDS,
    HIRES_FIELDS,
    IMG2IMG_FIELDS,
    NEEDED_FIELDS,
    QUIET_FIELDS,
    CallField,
    read_infotext_int,
)
from .sampler_names import (
    SAME_SAMPLER,
    SAME_SCHEDULE,
    find_infotext_schedule,
    infotext_hires_sampler,
    infotext_sampler,
    is_infotext_sampler,
)
from .styles import PromptStyle, apply_styles
from .write import quote_field


WEBUI_HIRES_SCALE = 2.0  # what the webui's slider shows where a text has no size for its hires pass
_HIRES_SIZES = ("Hires resize-1", "Hires resize-2")
_HIRES_ONLY = {*HIRES_FIELDS, *_HIRES_SIZES, "Hires sampler", "Hires schedule type"} - {"Denoising strength"}


def call_arguments(
    fields: Mapping[str, Any], *, img2img: bool = False, styles: Mapping[str, PromptStyle] | None = None
) -> dict[str, Any]:
    """Keyword arguments of WebUITxt2ImgPipeline that draw what `fields` describe (see `parse_infotext`).

    Arguments whose value is the default anyway are left out; settings are in `webui_options`. img2img: for
    WebUIImg2ImgPipeline instead, without its pictures. styles: merged into the prompts again where parsing took some
    out. A "Denoising strength" beside any hires field means hires fix, as in the webui; at 2 times the size if there
    is no size. What the call cannot give is told by `call_report`.

    >>> fields = {"Prompt": "a cat", "Sampler": "DPM++ 2M Karras", "Seed": "1", "Clip skip": "2", "Eta": "0.5"}
    >>> call_arguments(fields)["sampler"], call_arguments(fields)["clip_skip"]
    ('DPM++ 2M', 1)
    >>> call_arguments(fields)["webui_options"]
    {'eta_ancestral': 0.5}
    """
    return _CallReading(fields, img2img, styles, None).arguments


def call_report(
    fields: Mapping[str, Any],
    *,
    img2img: bool = False,
    styles: Mapping[str, PromptStyle] | None = None,
    model_hash: str | None = None,
) -> list[str]:
    """What `fields` ask for and `call_arguments` cannot give, a line each: `Label: value: what follows`.

    model_hash: that of the checkpoint in use (10 hex digits or more), so that only another one is told. Every field is
    either in the arguments, here, or without consequence for the picture.
    """
    return _CallReading(fields, img2img, styles, model_hash).report


def named_hashes(written: str) -> dict[str, str]:
    """Names and hashes of a "Lora hashes" or "TI hashes" field.

    >>> named_hashes("add_detail: 7c6bad76eb54, epi_noiseoffset2: d1131f7207d6")
    {'add_detail': '7c6bad76eb54', 'epi_noiseoffset2': 'd1131f7207d6'}
    """
    pairs = (entry.rpartition(":") for entry in written.split(","))
    return {name.strip(): digest.strip() for name, _, digest in pairs if name.strip()}


class _CallReading:
    """Fields on their way into arguments; what is left of them makes the report."""

    def __init__(
        self,
        fields: Mapping[str, Any],
        img2img: bool,
        styles: Mapping[str, PromptStyle] | None,
        model_hash: str | None,
    ) -> None:
        self.fields = {label: value for label, value in fields.items() if value is not None}
        self.arguments: dict[str, Any] = {}
        self.report: list[str] = []
        self.done: set[str] = set(QUIET_FIELDS)
        if styles is not None:
            self._merge_styles(styles)
        self._read(CALL_FIELDS)
        self._read_sampler()
        self._read_seed_resize()
        if img2img:
            self._read(IMG2IMG_FIELDS)
        elif self._has_hires():
            self._read_hires()
        self._tell_needs(model_hash)
        self._tell_rest()

    def _read(self, table: Mapping[str, CallField]) -> None:
        for label, field in table.items():
            if label not in self.fields or label in self.done:
                continue
            self.done.add(label)
            try:
                value = field.read(str(self.fields[label]))
            except ValueError:
                self._tell(label, f"it is not readable, so `{field.argument}` stays as it is")
                continue
            if value != field.absent:
                self._set(field.argument, value)

    def _set(self, argument: str, value: Any) -> None:
        group, _, name = argument.rpartition(".")
        (self.arguments.setdefault(group, {}) if group else self.arguments)[name] = value

    def _tell(self, label: str, consequence: str) -> None:
        self.report.append(f"{label}: {quote_field(self.fields[label])}: {consequence}.")

    def _merge_styles(self, styles: Mapping[str, PromptStyle]) -> None:
        """The styles that parsing took out, in again. An empty hires prompt means the first pass's, which has them."""
        names = self.fields.get("Styles array") or []
        self.done.add("Styles array")
        for name in names:
            if name not in styles:
                self._tell("Styles array", f"the style `{name}` is not among `styles`")
        for labels in (("Prompt", "Negative prompt"), ("Hires prompt", "Hires negative prompt")):
            prompts = [self.fields.get(label, "") for label in labels]
            merged = apply_styles(prompts[0], prompts[1], names, styles)
            for label, before, after in zip(labels, prompts, merged):
                if before or not label.startswith("Hires"):
                    self.fields[label] = after

    def _read_sampler(self) -> None:
        self.done |= {"Sampler", "Schedule type"}
        written, schedule = self.fields.get("Sampler"), self.fields.get("Schedule type")
        self.arguments["sampler"], self.arguments["schedule"] = infotext_sampler(written, schedule)
        if written and not is_infotext_sampler(written):
            self._tell("Sampler", f"it is unknown; the webui takes {self.arguments['sampler']} then, and so does this")
        if schedule and find_infotext_schedule(schedule) is None:
            self._tell("Schedule type", "it is unknown; the webui takes Automatic then, and so does this")

    def _read_seed_resize(self) -> None:
        """`448x512` is width and height of the picture whose noise is used; `-1x-1` of old texts means none."""
        self.done |= {"Seed resize from-1", "Seed resize from-2"}
        if self.fields.get("Seed resize from") == "-1x-1":
            self.done.add("Seed resize from")
        size = self._whole("Seed resize from-1"), self._whole("Seed resize from-2")
        if min(size) > 0:
            self.arguments["seed_resize"] = size

    def _has_hires(self) -> bool:
        """The webui's rule. Reading fills "Hires resize" in, so that a denoising strength alone is enough."""
        asked = any(label in self.fields for label in (*_HIRES_SIZES, "Hires upscale", "Hires upscaler"))
        return asked and "Denoising strength" in self.fields

    def _read_hires(self) -> None:
        size = self._whole(_HIRES_SIZES[0]), self._whole(_HIRES_SIZES[1])
        if any(size):
            self.arguments["hires_size"] = size
            self.done.add("Hires upscale")
        elif "Hires upscale" not in self.fields:
            self.arguments["hires_scale"] = WEBUI_HIRES_SCALE
            self._tell("Denoising strength", "no size for a hires pass is given; the webui enlarges 2 times then")
        self._read(HIRES_FIELDS)
        self.done |= _HIRES_ONLY
        first = self.arguments["sampler"], self.arguments["schedule"]
        if (second := infotext_hires_sampler(self.fields)) != first:
            self.arguments["hires_sampler"], self.arguments["hires_schedule"] = second

    def _whole(self, label: str) -> int:
        try:
            return read_infotext_int(str(self.fields.get(label, 0)))
        except ValueError:
            self._tell(label, "it is no whole number of pixels, and counts as 0")
            return 0

    def _tell_needs(self, model_hash: str | None) -> None:
        written = str(self.fields.get("Model hash", ""))
        same_model = bool(written and model_hash) and (model_hash or "").lower().startswith(written.lower())
        if written and not same_model and "Model" not in self.fields:
            self._tell("Model hash", "it was drawn with the checkpoint of this hash; load that one")
        for label, (consequence, none) in NEEDED_FIELDS.items():
            value = str(self.fields.get(label, ""))
            if value and value not in none and not (label == "Model" and same_model) and label not in self.done:
                self._tell(
                    label, consequence.format(f"{value} [{written}]" if label == "Model" and written else value)
                )
            self.done.add(label)

    def _tell_rest(self) -> None:
        idle = ("", "0", SAME_SAMPLER, SAME_SCHEDULE)
        for label, value in self.fields.items():
            field = IMG2IMG_FIELDS.get(label)
            if label in self.done or (label in _HIRES_ONLY and str(value) in idle):
                continue
            if label in _HIRES_ONLY:
                self._tell(label, "it is for a hires pass, and here is none")
            elif field is None:
                self._tell(label, "nothing here is called so (an extension wrote it, or another program)")
            elif not _is_absent(field, value):
                self._tell(label, f"it is for drawing over a picture, as `{field.argument}` of the img2img pipeline")


def _is_absent(field: CallField, value: Any) -> bool:
    try:
        return field.read(str(value)) == field.absent
    except ValueError:
        return False
