"""Parameters texts: what the webui writes under its pictures, and what it means for a call.

text --tidy_infotext--> text --parse_infotext--> fields --call_arguments--> WebUITxt2ImgPipeline(**arguments)
                                                        --call_report-->    what it asks for and the call cannot give
call --call_settings--> settings --format_infotext--> text
"""

import re
from collections.abc import Mapping
from typing import Any

from ...loaders.utils import NameFromText
from .control_fields import control_units_of_fields
from .extensions import extension_notes
from .families import family_refusal, other_family
from .fields import (
    CALL_FIELDS,
    HIRES_FIELDS,
    IMG2IMG_FIELDS,
    NEEDED_FIELDS,
    QUIET_FIELDS,
    TextField,
    fields_by_own_labels,
    read_infotext_int,
)
from .other_names import named_sampler
from .passes_after import passes_after
from .programs import program_line, program_of
from .sampler_names import SAME_SAMPLER, SAME_SCHEDULE
from .styles import PromptStyle, apply_styles
from .unet_fields import unet_fields
from .write import quote_field


WEBUI_HIRES_SCALE = 2.0  # what the webui's slider shows where a text has no size for its hires pass
MOST_REPORT_LINES = 9
_HIRES_SIZES = ("Hires resize-1", "Hires resize-2")
_HIRES_ONLY = {*HIRES_FIELDS, *_HIRES_SIZES, "Hires sampler", "Hires schedule type"} - {"Denoising strength"}
_ASKS_BY_PASTING = (*_HIRES_SIZES, "Hires upscale", "Hires upscaler")
_ASKS_FOR_HIRES = (*_ASKS_BY_PASTING, "Hires steps", "Hires prompt", "Hires negative prompt")
_BLOCK_WEIGHT = ("lbw", "start", "stop", "step")
_NUMBERS = re.compile(r"\s*-?[\d.,e+-]+\s*")
_OLD_VERSIONS = ("Old prompt editing timelines", "Pad conds v0", "Downcast alphas_cumprod")
_NAME_ARGUMENTS = ("hires_upscaler", "hires_model", "restore_faces")


def call_arguments(
    fields: Mapping[str, Any],
    *,
    img2img: bool = False,
    styles: Mapping[str, PromptStyle] | None = None,
    webui_paste_rule: bool = False,
    extensions: bool = False,
) -> dict[str, Any]:
    """Keyword arguments of WebUITxt2ImgPipeline that draw what `fields` describe (see `parse_infotext`).

    Arguments whose value is the default anyway are left out; settings are in `webui_options`. img2img: for
    WebUIImg2ImgPipeline instead, without its pictures. styles: merged into the prompts again where parsing took some
    out. There is a hires pass where a hires field is; webui_paste_rule: where a "Denoising strength" is, as in the
    webui, at 2 times the size if there is none. extensions: with `control_units` (their images are still to be put
    in), `detailers` and, for img2img, `soft_inpainting`, where the text has them. What the call cannot give is told by
    `call_report`.
    Names of files (`hires_upscaler`, `restore_faces`) are NameFromText: they are looked up, never opened or fetched.
    Raises ValueError for a picture of a model that is no Stable Diffusion 1, 2 or SDXL.

    >>> fields = {"Prompt": "a cat", "Sampler": "DPM++ 2M Karras", "Seed": "1", "Clip skip": "2", "Eta": "0.5"}
    >>> call_arguments(fields)["sampler"], call_arguments(fields)["clip_skip"]
    ('DPM++ 2M', 1)
    >>> call_arguments(fields)["webui_options"]
    {'eta_ancestral': 0.5}
    """
    if family := other_family(fields):
        raise ValueError(family_refusal(family))
    arguments = _CallReading(fields, img2img, styles, None, webui_paste_rule).arguments
    return arguments | (_extension_arguments(fields, img2img) if extensions else {})


def call_report(
    fields: Mapping[str, Any],
    *,
    img2img: bool = False,
    styles: Mapping[str, PromptStyle] | None = None,
    model_hash: str | None = None,
    webui_paste_rule: bool = False,
) -> list[str]:
    """What `fields` ask for and the arguments do not give: one line each, at most nine.

    model_hash: of the checkpoint in use, as hex; a picture of that one is not told about its model.

    >>> call_report({"Prompt": "a cat", "Model": "dreamshaper_8"})
    ['Model: dreamshaper_8: it was drawn with the checkpoint `dreamshaper_8`; load that one.']
    """
    if family := other_family(fields):
        return [family_refusal(family)]
    return _CallReading(fields, img2img, styles, model_hash, webui_paste_rule).report()


def named_hashes(written: str) -> dict[str, str]:
    """Names and hashes of a "Lora hashes" or "TI hashes" field.

    >>> named_hashes("add_detail: 7c6bad76eb54, epi_noiseoffset2: d1131f7207d6")
    {'add_detail': '7c6bad76eb54', 'epi_noiseoffset2': 'd1131f7207d6'}
    """
    pairs = (entry.rpartition(":") for entry in written.split(","))
    return {name.strip(): digest.strip() for name, _, digest in pairs if name.strip()}


def _extension_arguments(fields: Mapping[str, Any], img2img: bool) -> dict[str, Any]:
    """What the fields of extensions are as arguments; names of files are names there, too."""
    units = list(control_units_of_fields(fields).values())
    return passes_after(fields, img2img=img2img) | ({"control_units": units} if units else {})


class _CallReading:
    """Fields on their way into arguments; what is left of them makes the report."""

    def __init__(
        self,
        fields: Mapping[str, Any],
        img2img: bool,
        styles: Mapping[str, PromptStyle] | None,
        model_hash: str | None,
        webui_paste_rule: bool,
    ) -> None:
        self.program = program_of(fields)
        self.fields = fields_by_own_labels({label: value for label, value in fields.items() if value is not None})
        self.arguments: dict[str, Any] = {}
        self.lines: list[str] = []
        self.done: set[str] = set(QUIET_FIELDS)
        self.img2img, self.webui_paste_rule, self.model_hash = img2img, webui_paste_rule, model_hash
        self._tell_unread_steps()
        if self.program is not None:
            self.lines.append(program_line(self.program))
            for label in _OLD_VERSIONS:
                if self.fields.get(label) is True:  # filled in after a version that is no webui's
                    del self.fields[label]
            for label in self.program.unused:
                self.fields.pop(label, None)
            if self.program.noise and self.fields.get("RNG", "GPU") == "GPU":
                self.fields["RNG"] = self.program.noise
        if styles is not None:
            self._merge_styles(styles)
        self._read(CALL_FIELDS)
        if "Size-1" in self.fields and ("width" in self.arguments) != ("height" in self.arguments):
            self.arguments = {n: value for n, value in self.arguments.items() if n not in ("width", "height")}
        self._read_sampler("")
        self._read_seed_resize()
        if img2img:
            self._read(IMG2IMG_FIELDS)
        elif self._has_hires():
            self._read_hires()
        unet = unet_fields(self.fields)
        self.arguments |= unet.arguments
        self.done |= unet.labels
        self.extension_lines, harmless = extension_notes(
            {label: value for label, value in self.fields.items() if label not in self.done}
        )

        self._tell_picture()
        self._tell_tags()
        self.lines += [f"{line}." for line in (*self.extension_lines, *unet.lines)]
        self.done |= harmless
        self._tell_needs(model_hash)
        self._tell_rest()

    def report(self) -> list[str]:
        """At most nine lines; what is more is named in the last."""
        if len(self.lines) <= MOST_REPORT_LINES:
            return self.lines
        kept, more = self.lines[: MOST_REPORT_LINES - 1], self.lines[MOST_REPORT_LINES - 1 :]
        return [*kept, "also " + "; ".join(re.split(r"[:;(]", line)[0].strip(" .") for line in more) + "."]

    def _read(self, table: Mapping[str, TextField]) -> None:
        for label, field in table.items():
            if label not in self.fields or label in self.done:
                continue
            self.done.add(label)
            try:
                value = field.read(str(self.fields[label]))
            except (ValueError, OverflowError):
                self._tell(label, f"it is not readable, so `{field.argument}` stays as it is")
                continue
            if value != field.absent:
                self._set(field.argument, self._name(label, value) if field.argument in _NAME_ARGUMENTS else value)

    def _name(self, label: str, value: str) -> "NameFromText":
        """A text names files; where it has a path or an address, the last part is the name."""
        name = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
        if name != value:
            self._tell(label, f"a text does not say where files are: `{name}` is looked up by its name")
        return NameFromText(name)

    def _set(self, argument: str, value: Any) -> None:
        group, _, name = argument.rpartition(".")
        (self.arguments.setdefault(group, {}) if group else self.arguments)[name] = value

    def _tell(self, label: str, consequence: str) -> None:
        self.lines.append(f"{label}: {_shortened(str(quote_field(self.fields[label])))}: {consequence}.")

    def _tell_unread_steps(self) -> None:
        read = str(self.fields.get("Steps", ""))
        for label in ("Prompt", "Negative prompt"):
            found = re.search(r"\bSteps: ?(\d+)", str(self.fields.get(label, "")))
            if found and found[1] != read:
                self.lines.append(f"`{found[0]}` stands in the {label.lower()} and is not read as a field.")

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

    def _read_sampler(self, part: str) -> None:
        """Sampler and schedule of a pass ("" or "Hires "); those of the hires pass only where they are others."""
        labels = (f"{part}Sampler", "Schedule type") if not part else ("Hires sampler", "Hires schedule type")
        self.done |= set(labels)
        written = [self.fields.get(label) for label in labels]
        if part:
            first = self.fields.get("Sampler"), self.fields.get("Schedule type")
            same = (SAME_SAMPLER, SAME_SCHEDULE)
            written = [first[i] if written[i] in (None, "", same[i]) else written[i] for i in (0, 1)]
        sampler, schedule = named_sampler(*(None if name is None else str(name) for name in written))
        if sampler is None:
            self._tell_unless_done(labels[0], "there is no such sampler here; it is drawn with DPM++ 2M instead")
        if schedule is None:
            self._tell_unless_done(labels[1], "there is no such schedule here; it is drawn with Automatic instead")
        pair = sampler or "DPM++ 2M", schedule or "Automatic"
        if part and pair == (self.arguments["sampler"], self.arguments["schedule"]):
            return
        prefix = "hires_" if part else ""
        self.arguments[f"{prefix}sampler"], self.arguments[f"{prefix}schedule"] = pair

    def _tell_unless_done(self, label: str, consequence: str) -> None:
        if label in self.fields and self.fields[label] not in (SAME_SAMPLER, SAME_SCHEDULE):
            self._tell(label, consequence)

    def _read_seed_resize(self) -> None:
        """`448x512` is width and height of the picture whose noise is used; `-1x-1` of old texts means none."""
        self.done |= {"Seed resize from-1", "Seed resize from-2"}
        if self.fields.get("Seed resize from") == "-1x-1":
            self.done.add("Seed resize from")
        size = self._whole("Seed resize from-1"), self._whole("Seed resize from-2")
        if min(size) > 0:
            self.arguments["seed_resize"] = size

    def _has_hires(self) -> bool:
        """A hires field with a value. By the webui's rule any will do, and reading fills "Hires resize" in."""
        if "Denoising strength" not in self.fields:
            return False
        if self.webui_paste_rule:
            return any(label in self.fields for label in _ASKS_BY_PASTING)
        return any(str(self.fields.get(label, "0")) not in ("0", "0.0", "", "None") for label in _ASKS_FOR_HIRES)

    def _read_hires(self) -> None:
        size = self._whole(_HIRES_SIZES[0]), self._whole(_HIRES_SIZES[1])
        if any(size):
            self.arguments["hires_size"] = size
            self.done.add("Hires upscale")
        elif "Hires upscale" not in self.fields:
            self.arguments["hires_scale"] = WEBUI_HIRES_SCALE
            self._tell("Denoising strength", "no size for a hires pass is given; the webui enlarges 2 times then")
        self._read(HIRES_FIELDS)
        if name := self.arguments.get("hires_model"):
            self._tell(
                "Hires checkpoint", f"it drew the hires pass; make it known: `add_checkpoint(path, {str(name)!r})`"
            )
        self.done |= _HIRES_ONLY
        self._read_sampler("Hires ")
        if self.arguments.get("hires_guidance_scale") == self.arguments.get("guidance_scale"):
            self.arguments.pop("hires_guidance_scale", None)

    def _whole(self, label: str) -> int:
        try:
            number = read_infotext_int(str(self.fields.get(label, 0)))
            return number if number <= 65_535 else int("too large")
        except (ValueError, OverflowError):
            self._tell(label, "it is no whole number of pixels, and counts as 0")
            return 0

    def _tell_picture(self) -> None:
        """Once, that it was drawn over another picture."""
        if self.img2img:
            return
        strength = None if "Denoising strength" in self.done else self.fields.get("Denoising strength")
        if _same_number(strength, 0) or (self.program is not None and _same_number(strength, 1)):
            self.done.add("Denoising strength")
            strength = None
        leaked = [v for label, v in self.fields.items() if re.match(r"(?i)adetailer denoising", label)]
        own = {label for label in IMG2IMG_FIELDS if label in self.fields and label not in self.done}
        meant = [label for label in own if not _is_absent(IMG2IMG_FIELDS[label], self.fields[label])]
        inner = any(label.lower().startswith("adetailer") for label in self.fields) and (
            strength is None or any(_same_number(strength, value) for value in leaked) or not leaked
        )
        self.done |= own | {"Init image hash"}
        second = "hires_strength" in self.arguments  # SD.Next names the first pass's result, too
        source = None if second and self.program else self.fields.get("Init image hash")
        if (meant or source) and not (inner and not source):
            at = f" at a strength of {strength}" if strength is not None else ""
            mask = ", with a mask" if set(meant) - {"Denoising strength", "Noise multiplier", "Extra noise"} else ""
            names = f" (hash {source})" if source else ""
            self.lines.append(
                f"it was drawn over another picture{names}{at}{mask} (img2img), which the text does not hold; here it "
                "is drawn from noise. The img2img pipeline draws it, with the picture and "
                "`call_arguments(fields, img2img=True)`."
            )

    def _tell_tags(self) -> None:
        """What stands between `<` and `>` and is no network, or asks a network for what an extension does."""
        weighted = []
        for tag in dict.fromkeys(re.findall(r"<([^<>]{1,300})>", str(self.fields.get("Prompt", "")))):
            kind, *rest = tag.split(":")
            named = dict(part.split("=") for part in rest[1:] if part.count("=") == 1)
            unknown = [name for name in named if name not in ("te", "unet", "dyn", *_BLOCK_WEIGHT)]
            unknown += [named["lbw"]] if not re.fullmatch(r"ALL|NONE|[\d.,\s-]*", named.get("lbw", "")) else []
            unknown += [part for part in rest[1:] if "=" not in part and not _NUMBERS.fullmatch(part)]
            if kind == "hypernet" and rest and "Hypernet" not in self.fields:
                self.lines.append(f"<{tag}>: hypernetworks are not applied here; draw without it.")
            elif kind not in ("lora", "lyco", "hypernet") and rest:
                self.lines.append(f"<{tag}>: there is no such kind of network here.")
            elif kind != "hypernet" and unknown:
                self.lines.append(f"<{_shortened(tag)}>: {', '.join(unknown)} of LoRA Block Weight has no like here.")
            elif set(named) & set(_BLOCK_WEIGHT) or any("," in part for part in rest[1:]):
                weighted.append(rest[0])
        if weighted:
            names = ", ".join(f"`{name}`" for name in weighted)
            self.lines.append(f"LoRA Block Weight set blocks or steps of {names}; so they are here.")

    def _tell_needs(self, model_hash: str | None) -> None:
        written = str(self.fields.get("Model hash", ""))
        same_model = bool(written and model_hash) and (model_hash or "").lower().startswith(written.lower())
        if written and not same_model and "Model" not in self.fields:
            self._tell("Model hash", "it was drawn with the checkpoint of this hash; load that one")
        for label, field in NEEDED_FIELDS.items():
            value = str(self.fields.get(label, ""))
            if label == "Image CFG scale" and _same_number(value, self.fields.get("CFG scale")):
                value = ""  # SD.Next writes it without using it
            if value and value not in field.idle and not (label == "Model" and same_model) and label not in self.done:
                shown = f"{value} [{written}]" if label == "Model" and written else value
                self._tell(label, field.note.format(_shortened(shown)))
            self.done.add(label)

    def _tell_rest(self) -> None:
        idle = ("", "0", "0.0", "None", "False", SAME_SAMPLER, SAME_SCHEDULE, "Use same checkpoint")
        rest = {label: value for label, value in self.fields.items() if label not in self.done}
        for label in [label for label in rest if label in _HIRES_ONLY]:
            if str(rest.pop(label)) not in idle:
                self._tell(label, "it is for a hires pass, and here is none")
        unknown = [label for label, value in rest.items() if str(value) not in idle]
        if len(unknown) == 1:
            self._tell(unknown[0], "nothing here is called so (an extension wrote it, or another program)")
        elif unknown:
            self.lines.append(
                f"nothing here is called {', '.join(f'`{_shortened(label)}`' for label in unknown[:12])}"
                f"{' …' if len(unknown) > 12 else ''} (extensions wrote them, or another program)."
            )


def _shortened(text: str, length: int = 160) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _same_number(one: Any, other: Any) -> bool:
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return False


def _is_absent(field: TextField, value: Any) -> bool:
    try:
        return field.read(str(value)) == field.absent
    except ValueError:
        return False
