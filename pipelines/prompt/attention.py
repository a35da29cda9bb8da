r"""Which weight each piece of a prompt has.

written              read
a (b) c              a 1.0, b 1.1, c 1.0
(b:1.3)              b 1.3
((b:1.3))            b 1.43           the inner bracket counts first
[b]                  b 0.909...       1 / 1.1; square brackets take no number
[x:1.3]              x:1.3 at 0.909...
\( \[ \) \] \\       the sign itself
a BREAK b            a 1.0, BREAK -1.0, b 1.0
(a (b                a 1.1, b 1.21    what is left open closes at the end
a) b]                itself
(a:1,2)              a:1,2 at 1.1     no weight: plain text
(a:1.2.3)            an error         the one prompt that is refused
"""

import re

import numpy as np


ROUND_WEIGHT = 1.1
SQUARE_WEIGHT = 1 / 1.1
_ENOUGH_FACTORS = 15_400  # 1.1 to this power takes the smallest float64 beyond the largest
_SHARED_WEIGHTS = 64  # weights that are told apart before they are multiplied in their places

_ATTENTION_TOKEN = re.compile(
    r"""
    \\(?P<escape>[()\[\]\\])                        # the sign itself
    | (?P<backslash>\\)                             # a lone one: vanishes
    | (?P<open>[(\[])
    | (?P<weight>:\s*(?P<number>[+-]?[.\d]+)\s*\))  # closes a round bracket with a number
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]+|:)
    """,
    re.VERBOSE,
)
_BREAK_WORD = re.compile(r"\bBREAK\b")


def parse_attention(text: str) -> list[tuple[str, float]]:
    """Split `text` at its brackets into (fragment, weight), in order; neighbours of equal weight are one fragment.

    BREAK outside every bracket is the entry ("BREAK", -1.0); inside brackets its -1.0 is multiplied, which makes it an
    ordinary word of negative weight (kept: pictures depend on it). A text without anything is [("", 1.0)].
    Weights are products of float64 in the order in which brackets close. Raises ValueError for a number such as
    `1.2.3` behind a colon, which ends the drawing in the webui too.

    >>> parse_attention("a (b:1.3) [c]")
    [('a ', 1.0), ('b', 1.3), (' ', 1.0), ('c', 0.9090909090909091)]
    """
    fragments: list[tuple[str, float]] = []
    spans: list[tuple[int, int, float]] = []  # (first fragment, end, factor), in the order of closing
    marks: dict[str, list[int]] = {"(": [], "[": []}
    for token in _ATTENTION_TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "weight" and marks["("]:
            spans.append((marks["("].pop(), len(fragments), _attention_number(token)))
        elif kind == "close" and marks["(" if token[0] == ")" else "["]:
            round_one = token[0] == ")"
            factor = ROUND_WEIGHT if round_one else SQUARE_WEIGHT
            spans.append((marks["(" if round_one else "["].pop(), len(fragments), factor))
        elif kind == "open":
            marks[token[0]].append(len(fragments))
        elif kind in ("escape", "backslash"):
            fragments.append((token[0][1:], 1.0))
        else:
            fragments += _split_at_break(token[0])
    weights = np.array([weight for _, weight in fragments], dtype=np.float64)
    with np.errstate(all="ignore"):
        for start, end, factor in spans:
            weights[start:end] *= factor
        weights = _multiply_from(weights, marks["("], ROUND_WEIGHT)
        weights = _multiply_from(weights, marks["["], SQUARE_WEIGHT)
    return _merge_equal(fragments, weights.tolist()) or [("", 1.0)]


def _attention_number(token: re.Match[str]) -> float:
    try:
        return float(token["number"])
    except ValueError as error:
        near = token.string[max(token.start() - 20, 0) : token.end()]
        raise ValueError(
            f"`{token['number']}` at character {token.start('number') + 1} of the prompt (…{near}) stands where a "
            "weight is read, and is no number. Write one such as `(word:1.2)`, or `\\(word:1.2.3\\)` to draw the text "
            "itself."
        ) from error


def _split_at_break(text: str) -> list[tuple[str, float]]:
    """Literal text around its BREAKs; the blanks beside one belong to it."""
    parts: list[tuple[str, float]] = []
    start = 0
    for word in _BREAK_WORD.finditer(text):
        part = text[start : word.start()].rstrip()
        parts += [(part.lstrip() if start else part, 1.0), ("BREAK", -1.0)]
        start = word.end()
    rest = text[start:]
    return [*parts, (rest.lstrip() if start else rest, 1.0)]


def _multiply_from(weights: np.ndarray, starts: list[int], factor: float) -> np.ndarray:
    """Every weight times `factor` once for each of the rising `starts` at or before it: brackets left open.

    One product after the other, which rounds as the webui does; equal weights share them. From _ENOUGH_FACTORS on
    nothing changes: a weight is infinite, or the least there is, by then.
    """
    starts = starts[:_ENOUGH_FACTORS]
    values, which = np.unique(weights, return_inverse=True)
    if len(values) > _SHARED_WEIGHTS:
        for start in starts:
            weights[start:] *= factor
        return weights
    products = np.multiply.accumulate(np.vstack([values[None], np.full((len(starts), len(values)), factor)]))
    times = np.searchsorted(starts, np.arange(len(weights)), side="right")
    return products[times, which]


def _merge_equal(fragments: list[tuple[str, float]], weights: list[float]) -> list[tuple[str, float]]:
    merged: list[tuple[list[str], float]] = []
    for (text, _), weight in zip(fragments, weights):
        if merged and merged[-1][1] == weight:
            merged[-1][0].append(text)
        else:
            merged.append(([text], weight))
    return [("".join(texts), weight) for texts, weight in merged]
