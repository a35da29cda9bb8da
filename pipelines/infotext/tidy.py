"""Any pasted parameters text in the layout that the webui writes: prompt, negative prompt, one line of fields.

found                                                        becomes
"parameters", "PNG Info", "Prompt:" before the prompt        dropped
fields over several lines, or one a line                     one line
prompt, Negative prompt: and Steps: in one line              three
Template: / Negative Template: / Time taken: lines           dropped
Used embeddings:, Postprocess …, resources behind            fields
a code fence, `>` of a forum, &lt;lora:x:1&gt;               their content
Hashes: {...}, Civitai resources: [...]                      the same, quoted, so that commas do not cut them
JSON of another program                                      the fields that it means
"""

import json
import re
from collections.abc import Mapping

from .brackets import quote_values
from .fields import FIELDS
from .other_programs import ToolText, read_command_text, read_json_text
from .programs import program_of
from .read import line_fields
from .wrapping import unwrap_text


class PictureText(str):
    """A picture's text in the webui's words; "" where it has none.

    tool: the program that wrote it ("webui", "ComfyUI", "InvokeAI", "NovelAI", …), "" for none. notes: what could not
    be read, or means something else there. raw: the text as it was, or the other program's data, by its name in the
    file; empty where nothing was changed.
    """

    tool: str = ""
    notes: tuple[str, ...] = ()
    raw: Mapping[str, str] = {}

    @classmethod
    def of(cls, found: ToolText) -> "PictureText":
        text = cls(found.text)
        text.tool, text.notes, text.raw = found.tool, found.notes, found.raw
        return text


MOST_STARTS = 50  # places with "Steps: N" that are looked at
_OWN_LABELS = {name.lower() for field in FIELDS for name in (field.label, *field.others)}
_MORE_LABELS = (
    r"(sampler|hires|\[?adetailer|postprocess|mimic|rp|pag|ultimate sd upscale|sd upscale|addnet|soft inpainting|"
    r"controlnet[ -]?\d?|freeu|refiner|tiled diffusion)( [\w ,/]{1,60})?|schedule type|scheduler|size|image size|"
    r"resolution|civitai (resources|metadata)|created date|hashes|ti hashes|lora hashes|version|app|backend|pipeline|"
    r"operations|script|[xyz] (type|values)|module \d+|distilled cfg scale|diffusion in low bits|regional prompter|"
    r"dynamic thresholding enabled|first pass size|seed resize from|init image hash|model hash|vae hash|strength|"
    r"seed mode|guidance|sharpness|performance|stable diffusion model|vae model|prompt strength|base ?model|tiling|"
    r"use (face correction|upscaling)|sampling method|ensd|eta|wildcard prompt|resources"
)
_LABEL_AT_START = re.compile(
    rf"\s*(?P<label>{_MORE_LABELS}|{'|'.join(sorted(map(re.escape, _OWN_LABELS), key=len, reverse=True))})\s*:", re.I
)
_CORE_LABELS = re.compile(
    r"(?i)\b(sampler|sampling method|cfg scale|cfg|guidance scale|seed|size|width|model hash|model|scheduler|"
    r"schedule type|clip skip|denoising strength|vae|version)\s*:"
)
_STEPS_FIELD = re.compile(
    r"(?:Steps|\bSTEPS|^[ \t]*(?i:(?:sampling )?steps))\s*:\s*\d+(?=\s*(?:[,;.|]|$)|\s+[A-Z][\w ]*:)", re.M
)
_FIELD_WITHOUT_COMMA = re.compile(
    r"(?<=[^,;\s])\s+(?=(?:Steps|Sampler|Scheduler|Schedule type|CFG [Ss]cale|Seed|Size|Model|Model hash|Clip [Ss]kip|"
    r"Denoising strength|VAE|Version)\s*:)",
    re.I,
)
_TYPED_FIELD = re.compile(  # a label with a value that no prompt would have
    r"(?i)\b(cfg scale|cfg|guidance scale|seed|clip skip|denoising strength|width|height)\s*:\s*[\d.]+\s*(,|$)|"
    r"\bsize\s*:\s*\d+\s*x\s*\d+|\bhash\s*:\s*[0-9a-f]{8}|\bsampler\s*:\s*(euler|dpm|ddim|lms|heun|uni|lcm|plms)"
)
_STEPS_INSIDE_LABEL = re.compile(r"(?i)\b(hires|adetailer|separate|sampling|all|pass|refiner|by|inference)[ \t]+$")
_BARE_RESTORER = re.compile(r"((?:^|, ))(GFPGAN|CodeFormer)(?=,|$)")  # as the first versions wrote it
_NEGATIVE = re.compile(
    r"(?i)(?<![\w])(?:negative[ _]?prompt|neg(?:ative)?|反向提示词|负面提示词|ネガティブプロンプト)\s*[:：][ \t]*"
)
_HEADINGS = re.compile(
    r"(?i)\W*(parameters|png ?info|generation (data|parameters|info(rmation)?)|prompt|positive prompt|copy( all)?|"
    r"copied|txt2img|img2img|info(text)?|other metadata|metadata|show (more|less)|edit|remix|view more|image|save)\W*"
)
_TAIL_HEADINGS = re.compile(r"(?i)\W*(extras|postprocessing|other metadata|resources used|copy( all)?|show less)\W*")
_FINISHING = re.compile(r"(?i)\W*(extras|postprocessing)\W*")  # what follows was done to the finished picture
_PROMPT_LABEL = re.compile(r"(?i)((positive )?prompt|parameters|正向提示词|提示词|プロンプト)\s*[:：]\s*")
_TEMPLATES = re.compile(r"(?i)\s*(negative )?(template|wildcard prompt|dynamic prompt)\s*:")
_BEHIND_TEMPLATES = re.compile(  # labels that no line of a template begins with
    r"(?i)civitai|steps|used|hires|\[?adetailer|controlnet|(lora|ti|vae|model) hash|hashes|version|module \d|"
    r"clip skip|ensd|rng"
)
_REMARKS = re.compile(
    r"(?i)\s*(time taken|torch active|sys vram|a: [\d.]+ (gb|mb)|saved:|download|vram|took |active/reserved|"
    r"prompt executed|gpu|execution|memory|generated (with|by|in)|[-=_*~]{3,}|\[?see more)"
)
_PARAMETERS = re.compile(r"(?:^|[\n.,>)] ?)Steps: *\d+, *\w[\w ]*:", re.MULTILINE)


def tidy_infotext(text: str) -> PictureText:
    """Any pasted text as the webui would have written it; itself where it is so already.

    The prompts are kept as they are, but for what clearly is none of them. `.tool` names the program that wrote it,
    `.notes` what was left out. JSON of other programs is read as far as it goes.

    >>> str(tidy_infotext("parameters\\na kite Negative prompt: blurry Steps: 4, Sampler: Euler a,\\nSeed: 7"))
    'a kite\\nNegative prompt: blurry\\nSteps: 4, Sampler: Euler a, Seed: 7'
    """
    plain = unwrap_text(text)
    if (found := read_json_text(plain) or read_command_text(plain)) is not None:
        return PictureText.of(found)
    start = _fields_start(plain)
    if start is None:
        prompt, negative, _ = _prompts(plain)
        return _as_picture_text(
            text, _joined(prompt, negative, "") if plain != text or _is_mended(plain) else plain, ()
        )
    head, fields, tail, notes = _parted(plain, start)
    prompt, negative, above = _prompts(head)
    tail_fields, behind, more_notes = _read_tail(fields, tail)
    line = _plain_spaces(", ".join(part for part in (tail_fields, above) if part))
    for sign in ("|", ";", " / "):
        if line.count(sign) > max(line.count(","), 1):
            line = ", ".join(part.strip() for part in line.split(sign))
    if line.count(",") + 1 < len(_CORE_LABELS.findall(line)):
        line = _FIELD_WITHOUT_COMMA.sub(", ", line)
    line = quote_values(_BARE_RESTORER.sub(r"\1Face restoration: \2", line))
    if line and sum(1 for _ in line_fields(line)) < 3:
        first = line.partition(",")[0]
        line = ", ".join([first, first, line])  # the webui reads three fields or none; the last of a name counts
    return _as_picture_text(text, _joined(prompt or behind[0], negative or behind[1], line), (*notes, *more_notes))


def is_parameters_text(text: str) -> bool:
    """Whether a text is no prompt but the parameters of a picture, as pasted from any program.

    >>> is_parameters_text("a cat\\nSteps: 20, Sampler: Euler a"), is_parameters_text("a cat on steps: 3, red")
    (True, False)
    """
    return bool(_PARAMETERS.search(text) or _PARAMETERS.search(tidy_infotext(text)))


def _as_picture_text(given: str, tidied: str, notes: tuple[str, ...]) -> PictureText:
    """What was found, with the program's name; the text that was given where nothing but blanks differs."""
    lines, tidy_lines = ([line.strip() for line in part.strip().split("\n")] for part in (given, tidied))
    doubled = len(lines) > 4 and not any(lines[1::2])  # an empty line behind each
    same = lines == tidy_lines if doubled else list(filter(None, lines)) == list(filter(None, tidy_lines))
    kept = given if same else tidied
    program = program_of(dict(line_fields(tidied.rsplit("\n", 1)[-1])))
    tool = "" if not kept.strip() else program.name if program else "webui"
    return PictureText.of(ToolText(kept, tool, notes, {} if kept == given else {"parameters": given}))


def _joined(prompt: str, negative: str, line: str) -> str:
    parts = (prompt, f"Negative prompt: {negative}" if negative else "", line)
    return "\n".join(part for part in parts if part)


def _plain_spaces(line: str) -> str:
    """The line of fields with blanks that are blanks, and without what is no sign at all."""
    line = re.sub(r"[\u200b\u200e\u200f\u2060\ufeff]", "", line)
    line = re.sub(r"[\u00a0\u3000\u202f\t]", " ", line).strip()
    if re.match(r"(?i)steps +:", line):  # a blank before every colon
        line = re.sub(r"(?<=[\w)]) +:(?= |$)", ":", line)
    return re.sub(r"(?<=[\w\"])\.$", "", line).rstrip(" ,;\n")


def _is_mended(text: str) -> bool:
    first = text.strip().split("\n")[0]
    return bool(_HEADINGS.fullmatch(first) or _PROMPT_LABEL.match(first) or _NEGATIVE.search(text))


# --- where the fields begin


def _fields_start(text: str) -> int | None:
    """Where the fields begin: at the first `Steps: N` with other fields around it, else at a line of fields."""
    found = [
        m
        for m in _STEPS_FIELD.finditer(text)
        if not _STEPS_INSIDE_LABEL.search(text[max(m.start() - 20, 0) : m.start()])
    ]
    starts = [match.start() + len(match[0]) - len(match[0].lstrip()) for match in found]
    for start, following in zip(starts[:MOST_STARTS], [*starts[1:], len(text)]):
        begin = _run_above(text, start)
        block = text[begin : min(following, start + 4000)]
        at_line = not begin or text[begin - 1] == "\n"
        if len({label.lower() for label in _CORE_LABELS.findall(block)}) >= (1 if at_line else 2):
            return begin
        if at_line and re.fullmatch(r"Steps: ?\d+[.,;]?\s*", text[start:]):
            return begin
    for match in re.finditer(r"^.*$", text, re.M):
        if _LABEL_AT_START.match(match[0]) and not _NEGATIVE.match(match[0].lstrip()):
            block = text[match.start() : match.start() + 2000]
            labels = {label.lower() for label in _CORE_LABELS.findall(match[0])}
            last = not text[match.end() :].strip() and len(labels) >= 2
            if last or len(labels) >= 3 or (len({x.lower() for x in _CORE_LABELS.findall(block)}) >= 4 and labels):
                return match.start()
    return None


def _run_above(text: str, start: int) -> int:
    """The start of the lines of fields right above a line of fields."""
    if start and text[start - 1] != "\n":
        line_start = text.rfind("\n", 0, start) + 1
        if not (_LABEL_AT_START.match(text, line_start) and len(_CORE_LABELS.findall(text[line_start:start]))):
            return start
        start = line_start
    is_whole = len(set(_CORE_LABELS.findall(text[start:].partition("\n")[0]))) >= 3  # as the webui writes it
    while start > 0:
        previous = text.rfind("\n", 0, start - 1) + 1
        line = text[previous:start]
        if not _LABEL_AT_START.match(line) or _NEGATIVE.match(line.lstrip()) or _PROMPT_LABEL.match(line.lstrip()):
            break
        if is_whole and not _TYPED_FIELD.search(line):
            break
        start = previous
    return start


def _parted(text: str, start: int) -> tuple[str, str, list[str], tuple[str, ...]]:
    """What is before the fields, their first line, and the lines behind it up to the next text."""
    head, rest = text[:start], text[start:]
    sets = [m for m in re.finditer(r"^[ \t]*Steps: ?(\d+),", rest, re.M) if m.start() > 0]
    above = rest[: sets[0].start()] if sets else ""  # without Steps and a gap they are fields of the same set
    others = sets if re.search(r"\bSteps: ?\d|\n\s*\n|Negative prompt:", above) else sets[1:]
    notes: tuple[str, ...] = ()
    first, *tail = rest.split("\n")
    if others:
        told = ", ".join(f"Steps: {match[1]}" for match in others[:3])
        notes = (f"the text holds {len(others) + 1} sets of fields; the first is read, not that of {told}",)
        tail = rest[: others[0].start()].split("\n")[1:]
        tail = tail[: next((i for i, line in enumerate(tail) if _NEGATIVE.match(line.lstrip())), len(tail))]
        while tail and not (_LABEL_AT_START.match(tail[-1]) or not tail[-1].strip() or _REMARKS.match(tail[-1])):
            tail.pop()
    return head, first, tail, notes


# --- what is before the fields


def _prompts(head: str) -> tuple[str, str, str]:
    """Prompt and negative prompt, and fields that stand above them."""
    lines = head.split("\n")
    above: list[str] = []
    marked = [
        i
        for i, line in enumerate(lines)
        if _PROMPT_LABEL.match(line.strip()) or re.fullmatch(r"(?i)\s*prompt\s*", line)
    ]
    if marked and all(_is_around(line) for line in lines[: marked[0]]):
        above = [line.strip() for line in lines[: marked[0]] if _LABEL_AT_START.match(line)]
        lines = lines[marked[0] :]
    sides: list[list[str]] = [[], []]
    side, template = 0, False
    for raw in lines:
        line = raw.strip()
        if _TEMPLATES.match(line) and (sides[0] or side):
            template = True
            continue
        if not any(sides[side]) and side == 0 and _HEADINGS.fullmatch(line):
            continue
        if re.fullmatch(r"(?i)negative prompt", line):
            if sides[0] and sides[0][-1].lower() == "copy":  # a button of the page
                sides[0].pop()
            side, template = 1, False
            continue
        if side == 1 and not any(sides[0]) and _PROMPT_LABEL.match(line):
            side, line = 0, _PROMPT_LABEL.sub("", line, count=1)
        if not any(sides[0]) and side == 0:
            line = _PROMPT_LABEL.sub("", line, count=1) if _PROMPT_LABEL.match(line) else line
        if negative := _negative_mark(line, side):
            before, after = line[: negative.start()].rstrip(), line[negative.end() :]
            again = _NEGATIVE.match(after.strip())
            if before and not template:
                sides[side].append(before)
            side, template, line = 1, False, _NEGATIVE.sub("", after.strip(), count=1) if again else after.strip()
        elif side == 0 and re.match(r"-\S", line) and any(sides[0]) and raw is lines[-1 if lines[-1].strip() else -2]:
            side, line = 1, line[1:].strip()  # Draw Things writes the negative prompt behind a dash
        if template or (side == 1 and _HEADINGS.fullmatch(line)):
            continue
        sides[side].append(line)
    prompt, negative_prompt = ("\n".join(part).strip("\n") for part in sides)
    return prompt, negative_prompt, ", ".join(above)


def _negative_mark(line: str, side: int) -> re.Match[str] | None:
    """Where a line has "Negative prompt:", at its start in any case, elsewhere as the webui writes it."""
    if found := _NEGATIVE.match(line):
        return found if found[0][:9].lower() in ("negative ", "negative_") or side == 0 else None
    return re.search(r"Negative prompt:[ \t]*", line) if side == 0 else None


def _is_around(line: str) -> bool:
    if _NEGATIVE.match(line.strip()):
        return False
    return not line.strip() or len(line) < 60 or bool(_LABEL_AT_START.match(line) or _HEADINGS.fullmatch(line))


# --- what is behind the first line of fields


def _read_tail(first: str, tail: list[str]) -> tuple[str, list[str], tuple[str, ...]]:
    """The whole line of fields, prompt and negative prompt that stand behind it, and notes on what is no field."""
    pieces, behind, left_out = [_cut_remark(first).rstrip()], ["", ""], list[str]()
    value, side, template, gap, finishing = _OpenValue(pieces[0]), -1, False, False, False
    for index, raw in enumerate(tail):
        text = raw.strip()
        label = _LABEL_AT_START.match(text)
        prompt = _PROMPT_LABEL.match(text) or _NEGATIVE.match(text)
        if not text:
            gap = True
        elif value.open and not gap and not prompt:
            pieces.append(f" {text}")
            value.add(text)
        elif prompt:
            side, template = int(not _PROMPT_LABEL.match(text)), False
            behind[side] = text[prompt.end() :]
        elif _TEMPLATES.match(text):
            template, side = True, -1
        elif label and not (template and not _BEHIND_TEMPLATES.match(label["label"])):
            template, side = False, -1
            pieces.append(f"{'' if value.comma else ','} {_with_quotes(text, label)}")
            value.add(text)
        elif finishing := finishing or bool(_FINISHING.fullmatch(text)):
            pieces += [] if _FINISHING.fullmatch(text) else [f", Extras: {json.dumps(text, ensure_ascii=False)}"]
        elif template or _TAIL_HEADINGS.fullmatch(text) or _REMARKS.match(text):
            continue
        elif side >= 0:
            behind[side] = f"{behind[side]}\n{text}".strip()
        elif not gap and not left_out and _goes_on(tail[index : index + 20]):
            pieces.append(f" {text}")
            value.add(text)
        else:
            left_out.append(text)
    notes: tuple[str, ...] = ()
    if left_out:
        shown = left_out[0] if len(left_out[0]) <= 80 else f"{left_out[0][:80]}…"
        notes = (f"what stands behind the fields is left out ({len(left_out)} line(s), `{shown}`)",)
    return "".join(pieces), behind, notes


def _goes_on(lines: list[str]) -> bool:
    """Whether lines right behind a line of fields are the rest of it: a field's label is still to come in them."""
    together = ""
    for line in lines:
        if not line.strip() or _TEMPLATES.match(line) or _NEGATIVE.match(line.strip()):
            break
        together += f" {line.strip()}"
    return bool(_CORE_LABELS.search(together) and "," in together)


def _cut_remark(line: str) -> str:
    """A first line of fields without a remark of the page in the same line."""
    return line.partition(" Time taken: ")[0].rstrip()


class _OpenValue:
    """Whether the line of fields so far ends inside a value: a quote or bracket that is not closed, or at a comma."""

    def __init__(self, line: str) -> None:
        self.quotes = self.brackets = 0
        self.comma = False
        self.add(line)

    def add(self, piece: str) -> None:
        """What the line goes on with."""
        self.quotes += len(re.findall(r'(?<!\\)"', piece))
        if re.search(r":\s?[\[{]", piece) or self.brackets > 0:
            self.brackets += sum(map(piece.count, "[{")) - sum(map(piece.count, "]}"))
        self.comma = piece.rstrip().endswith(",")

    @property
    def open(self) -> bool:
        return self.comma or bool(self.quotes % 2) or self.brackets > 0


def _with_quotes(text: str, label: re.Match[str]) -> str:
    """A line of one field whose value has commas, quoted; others as they are."""
    value = text[label.end() :].strip()
    single = not re.search(r",\s*\w[\w \-/]*:", value) or label["label"].lower() in _LISTS
    if single and not value.startswith(('"', "[", "{")) and "," in value.rstrip(", "):
        return f"{label['label']}: {json.dumps(value, ensure_ascii=False)}"
    return text


_LISTS = ("used embeddings", "embeddings", "styles", "wildcard prompt")
