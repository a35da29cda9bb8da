"""What stands around a text where people paste it from: Markdown, HTML, JSON, cells of a page, exiftool's line."""

import html
import json
import re


_SETTINGS_HEADING = (
    r"(?:other |image |generation )?(?:metadata|parameters|params|settings|data|info)|generation details|details"
)
_BULLET = re.compile(r"(?mi)^\s*[-*•–][ \t]+(?=\**[\w ]{3,30}\**\s*:)")
_LABEL_ALONE = re.compile(r"\s*(sampler|model|cfg scale|steps|seed|clip skip|size|guidance scale|scheduler)\s*", re.I)


def unwrap_text(text: str) -> str:
    """Without line ends of other systems, Markdown, HTML and JSON around it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    text = re.sub(r"(?mi)^[\u200b\u200e\u200f\u2060\ufeff]+(?=(negative prompt|steps)\s*:)", "", text)
    if re.fullmatch(r'\s*"(?:[^"\\]|\\.)*"\s*', text) and "\\n" in text:
        try:
            text = str(json.loads(text))
        except ValueError:
            pass
    if (
        "\n" not in text.strip()
        and text.lstrip()[:1] not in ("{", "[")
        and re.search(r"\\n(Negative prompt|Steps):", text)
    ):
        text = text.replace("\\n", "\n")
    text = _without_markdown(text)
    if re.search(r"(?i)<(br|p|div)\s*/?>", text):
        text = re.sub(
            r"(?i)</?(p|div|span|pre|code|b|i|strong|em)(\s[^<>]*)?>",
            "",
            re.sub(r"(?i)<br\s*/?>|</p>|</div>", "\n", text),
        )
    if re.search(r"&(lt|gt|amp|quot|nbsp|#\d+|#x[0-9a-f]+);", text):
        text = html.unescape(text)
    text = _without_exiftool(text)
    text = _paired_lines(text)
    if "Steps:" not in text and re.search(r"Steps\s*：", text):
        at = re.search(r"Steps\s*：", text)
        if at:
            head, tail = text[: at.start()], text[at.start() :]
            text = head.replace("Negative prompt：", "Negative prompt: ") + tail.replace("：", ": ").replace(
                "，", ", "
            )
    return text


def _without_markdown(text: str) -> str:
    """Without code fences, quotes, bullets, bold type, headings, tables and escapes."""
    if re.search(r"(?mi)^#+ *(positive |negative )?prompts?\b", text):
        text = re.sub(r"(?m)^```[\w-]*[ \t]*$\n?", "", text)
        text = re.sub(r"(?mi)^#+ *(?:positive )?prompts? *:? *$", "Prompt", text)
        text = re.sub(r"(?mi)^#+ *negative prompts? *:? *$", "Negative prompt", text)
        text = re.sub(rf"(?mi)^#+ *(?:{_SETTINGS_HEADING}) *:? *$", "Parameters", text)
    elif fenced := re.search(r"^```[\w-]*\n(.*?)^```", f"{text}\n", re.S | re.M):
        if "Steps" in fenced[1] or fenced.start() == 0 or "{" in fenced[1][:2]:
            text = fenced[1]
    lines = text.split("\n")
    if any(re.match(r"\s*(> ?)+(Negative prompt|Steps):", line) for line in lines):
        text = "\n".join(re.sub(r"^\s*(> ?)+", "", line) for line in lines)
    if sum(1 for _ in re.finditer(r"(?m)^--[\w ]{2,40}:", text)) >= 3:  # Civitai's data as options
        text = re.sub(r"(?m)^--", "", text)
    if re.search(r"(?mi)^\s*[-*•–][ \t]+\**(steps|prompt|negative prompt|other metadata)\**\s*:", text):
        text = _BULLET.sub("", text)
    if re.search(r"(?i)\*\*(steps|negative prompt|prompt|seed)", text):
        text = re.sub(r"\*\*([\w /.-]+?)(:?)\*\*(:?)", r"\1\2\3", text)
    text = re.sub(r"(?m)^.*Steps:.*$", lambda line: re.sub(r"\*\*([^*]+)\*\*", r"\1", line[0]), text)
    text = re.sub(rf"(?mi)^((?:negative |positive )?prompt|{_SETTINGS_HEADING})\s*:\s*`([^`]+)`\s*$", r"\1: \2", text)
    text = re.sub(rf"(?mi)^(?:{_SETTINGS_HEADING})\s*:\s*(?=steps\s*:)", "", text)
    if re.search(r"(?mi)^\|\s*steps\s*\|", text):
        text = re.sub(r"(?m)^\|[\s|:-]+\|[ \t]*\n", "", text)
        text = re.sub(r"(?m)^\|\s*([^|]+?)\s*\|\s*(.*?)\s*\|[ \t]*$", r"\1: \2", text)
        text = re.sub(r"(?i)\A(parameter|setting|field|name|key): \w+\n", "", text)
    return text.replace("\\_", "_") if re.search(r"\bModel: [^,\n]*\\_", text) else text


def _without_exiftool(text: str) -> str:
    """exiftool prints a dot for the end of a line."""
    label = re.match(r"(Parameters|User ?Comment|Comment) {2,}: ", text.lstrip())
    if not label or "\n" in text.strip():
        return text
    text = re.sub(r"\.(?=Negative prompt:)", "\n", text.lstrip()[label.end() :], count=1)
    return re.sub(r"\.(?=Steps: \d+,)", "\n", text, count=1)


def _paired_lines(text: str) -> str:
    """A page's labels and values, each on a line of its own or with a tab between, as `label: value`."""
    lines = [f"{cells[0]}: {cells[1]}" if (cells := _tabbed(line)) else line for line in text.split("\n")]
    pairs = zip(lines, lines[1:])
    alone = {number for number, (line, value) in enumerate(pairs) if _LABEL_ALONE.fullmatch(line) and value.strip()}
    if len(alone) >= 3 and any(lines[number].strip().lower() == "steps" for number in alone):
        for number in alone:
            lines[number] = f"{lines[number].strip()}: {lines[number + 1].strip()}"
        lines = [line for number, line in enumerate(lines) if number - 1 not in alone]
    return "\n".join(lines)


def _tabbed(line: str) -> list[str] | None:
    cells = [cell.strip() for cell in line.split("\t") if cell.strip()]
    return cells if len(cells) == 2 and _LABEL_ALONE.fullmatch(cells[0]) else None
