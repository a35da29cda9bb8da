"""Values that the webui's reading would cut at their first comma, quoted as it would have written them.

Hashes: {"model": "aa", "vae": "bb"}       Hashes: "{\"model\": …}", the quotes in it escaped
ADM Guidance: (1.5, 0.8, 0.3)              ADM Guidance: "(1.5, 0.8, 0.3)"
Lora hashes: “ink: aa, oil: bb”            Lora hashes: "ink: aa, oil: bb"
Lora hashes: ink: aaaaaaaa, oil: bbbbbbbb  the same, where the quotes got lost
"""

import json
import re
from collections.abc import Iterator


MOST_UNCLOSED = 8  # brackets without another half, each of which costs a look at the rest of the line
_PAIRS = {"[": "]", "{": "}", "(": ")"}
_CURLY_QUOTED = re.compile(r":(\s*)[“”„]([^“”„]*)[“”](?=\s*(?:,|$))")
_NO_NETWORK = r"\s*(?:[\w ]*(?:seed|hash|hashes)|ensd|steps)\s*:"
_BARE_HASHES = re.compile(
    rf"(?i)\b((?:lora|ti) hashes:\s*)((?:(?!{_NO_NETWORK})[^,:\"]+:\s*[0-9a-f]{{8,64}}(?:,\s*|$)){{2,}})"
)
_QUOTED_VALUE = re.compile(r'"(?:\\.|[^"\\])*"')
_BRACKET_OR_QUOTE = re.compile(r"(?:^|,)\s*\[?\w[\w \-/]*:\s*(?=[\[{(])|" + _QUOTED_VALUE.pattern)


def quote_values(line: str) -> str:
    """A line of fields in which commas inside values end none."""
    line = _CURLY_QUOTED.sub(lambda found: f":{found[1]}{json.dumps(found[2], ensure_ascii=False)}", line)
    line = _quote_bracketed(line)
    line = _BARE_HASHES.sub(_quoted_hashes, line)
    return re.sub(r'(?<=[^\\]")\s+,', ",", line)


def _quoted_hashes(found: re.Match[str]) -> str:
    written = found[2].rstrip(", ")
    return f'{found[1]}"{written}"{found[2][len(written) :]}'


def _quote_bracketed(line: str) -> str:
    parts, position = [], 0
    for start, end in _bracketed(line):
        value = line[start:end]
        if "," in value or ":" in value:
            parts += [line[position:start], json.dumps(value, ensure_ascii=False)]
            position = end
    return "".join([*parts, line[position:]])


def _bracketed(line: str) -> Iterator[tuple[int, int]]:
    """Where the line has values that begin with a bracket and end with its other half before a comma or the end."""
    position = unclosed = 0
    while unclosed < MOST_UNCLOSED and (match := _BRACKET_OR_QUOTE.search(line, position)):
        position = match.end()
        if match[0].startswith('"'):
            continue
        end = _closing(line, position)
        unclosed += end is None
        if end is not None and re.match(r"\s*(,|$)", line[end:]):
            yield position, end
            position = end


def _closing(line: str, start: int) -> int | None:
    """The place behind the bracket that closes the one at `start`; quotes hide what is in them."""
    stack, position = [], start
    while position < len(line):
        sign = line[position]
        if sign == '"' and (quoted := _QUOTED_VALUE.match(line, position)):
            position = quoted.end()
            continue
        if sign in _PAIRS:
            stack.append(_PAIRS[sign])
        elif stack and sign == stack[-1]:
            stack.pop()
            if not stack:
                return position + 1
        position += 1
    return None
