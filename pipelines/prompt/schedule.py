r"""Which text is read at which step.

    written            read, at 10 steps
    [cat:dog:0.5]      1-5 cat, 6-10 dog
    [cat:dog:3]        1-3 cat, 4-10 dog
    [dog:3]            1-3 nothing, 4-10 dog
    [cat::3]           1-3 cat, 4-10 nothing
    [cat|dog|]         cat, dog, nothing, cat, ...
    [a [b:4]:c:6]      edits nest: 1-4 a, 5-6 a b, 7-10 c
    (cat:1.2) [cat]    themselves: weights are read later
    \[cat:dog:3\]      itself
    [cat               itself
    cat|dog            itself, and no edit anywhere in the prompt counts

The webui parses this with an Earley parser over an ambiguous grammar. Here one pass with a stack reads the same: a
bracket group counts if everything inside balances, otherwise its opening bracket is a literal sign, and what stands
inside is read on. (Where a stray bracket or colon follows an edit, the webui's own result differs from process to
process; this is one of its results.)
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple


class PromptEdit(NamedTuple):
    """`[before:after:number]`."""

    before: "list[PromptItem]"
    after: "list[PromptItem]"
    number: str  # as written: a number with a point is a share of the steps, one without a step


class PromptAlternation(NamedTuple):
    """`[one|two|three]`: another part at every step."""

    parts: "list[list[PromptItem]]"


class PromptTree(NamedTuple):
    """A prompt read once, for any number of steps."""

    items: "list[PromptItem]"
    numbers: list[str]  # of all edits, reachable or not
    alternates: bool


class _OpenGroup(NamedTuple):
    sign: str  # "(" or "["
    start: int  # index of the opening sign among the items
    separators: list[tuple[int, str]]  # (index among the items, ":" or "|")


PromptItem = str | PromptEdit | PromptAlternation

_SCHEDULE_TOKEN = re.compile(r"(?P<plain>(?:[^\\\[\]():|]+|\\.)+)|(?P<sign>[\[\]():|])")
_SCHEDULE_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")


def parse_schedule(
    text: str, steps: int, hires_steps: int | None = None, legacy: bool = False
) -> list[tuple[int, str]]:
    """The texts of a prompt over the steps: (last step it is read at, text), in rising order of steps.

    steps: sampler steps of the first pass, at least 1 (twice the user's for a second-order sampler). hires_steps: the
    same of the hires pass, which makes this the schedule of that pass: whole numbers count on from the first pass, and
    shares run from 1.0 to 2.0. legacy: the option "Old prompt editing timelines" (before 1.6): numbers below 1 are
    shares, all others steps, and the hires pass counts as the first one did.

    >>> parse_schedule("a [b:c:0.5]", 10)
    [(5, 'a b'), (10, 'a c')]
    """
    total = steps if hires_steps is None or legacy else hires_steps
    if total < 1:
        raise ValueError(
            f"`{'steps' if total is steps else 'hires_steps'}` must be at least 1 to lay a prompt out over steps; "
            f"got {total}. Pass the number of sampler steps of the pass."
        )
    tree = read_prompt_tree(text)
    if tree is None:
        return [(total, text)]
    first_step, first_share = (0, 0.0) if hires_steps is None or legacy else (steps, 1.0)
    whens = {number: _edit_step(number, total, first_step, first_share, legacy) for number in tree.numbers}
    ends = {total, *(when for when in whens.values() if when >= 1)}
    if tree.alternates:
        ends.update(range(1, total + 1))
    return [(end, _text_at(tree.items, end, whens)) for end in sorted(ends)]


def read_prompt_tree(text: str) -> PromptTree | None:
    """Read the edits and alternations of a prompt, or None where a lone `|` or `\\` makes the whole prompt literal."""
    items: list[PromptItem] = []
    numbers: list[str] = []
    alternates = False
    groups: list[_OpenGroup] = []
    position = 0
    for token in _SCHEDULE_TOKEN.finditer(text):
        if token.start() != position:
            return None  # a backslash before a line break
        position = token.end()
        sign = token["sign"]
        if sign and sign in "([":
            groups.append(_OpenGroup(sign, len(items), []))
        elif sign == "|" and not (groups and groups[-1].sign == "["):
            return None
        elif sign and sign in ":|" and groups:
            groups[-1].separators.append((len(items), sign))
        elif sign and sign in ")]" and groups:
            group = groups.pop()
            node = _close_group(group, sign, items)
            if node is None:  # it and all around it were no groups
                if _has_bar([*groups, group]):
                    return None
                groups.clear()
            elif not isinstance(node, str):
                alternates = alternates or isinstance(node, PromptAlternation)
                numbers += [node.number] if isinstance(node, PromptEdit) else []
                items[group.start :] = [node]
                continue
        items.append(token[0])
    if position != len(text) or _has_bar(groups):
        return None
    return PromptTree(items, numbers, alternates)


def _close_group(group: _OpenGroup, sign: str, items: list[PromptItem]) -> PromptItem | None:
    """What a bracket pair is: an edit, an alternation, its closing sign where it is plain, None if it is no group."""
    signs = {separator for _, separator in group.separators}
    if group.sign == "(":
        return sign if sign == ")" and len(group.separators) <= 1 else None
    if sign != "]" or len(signs) > 1:
        return None
    if not signs:
        return sign
    bounds = [group.start, *(index for index, _ in group.separators), len(items)]
    parts = [items[start + 1 : end] for start, end in zip(bounds, bounds[1:])]
    if signs == {"|"}:
        return PromptAlternation(parts)
    number = parts[-1][0] if len(parts) in (2, 3) and len(parts[-1]) == 1 else None
    written = _SCHEDULE_NUMBER.fullmatch(number) if isinstance(number, str) else None
    if written is None:
        return None
    return PromptEdit(parts[0] if len(parts) == 3 else [], parts[-2], written[1])


def _has_bar(groups: list[_OpenGroup]) -> bool:
    """Whether a `|` of these groups is left alone when they turn out to be none."""
    return any(sign == "|" for group in groups for _, sign in group.separators)


def _edit_step(number: str, total: int, first_step: int, first_share: float, legacy: bool) -> int:
    """The last step that still reads `before`; below 1: none does."""
    value = float(number)
    if legacy:
        value = value * total if value < 1 else value
    elif "." in number:
        value = (value - first_share) * total
    else:
        value = value - first_step
    return math.trunc(min(total, max(value, -1.0)))


def _text_at(items: list[PromptItem], step: int, whens: dict[str, int]) -> str:
    """The text read at `step`, counted from 1. Nesting is walked with a stack: it may be thousands deep."""
    texts: list[str] = []
    stack: list[Iterator[PromptItem]] = [iter(items)]
    while stack:
        item = next(stack[-1], None)
        if item is None:
            stack.pop()
        elif isinstance(item, str):
            texts.append(item)
        elif isinstance(item, PromptEdit):
            stack.append(iter(item.before if step <= whens[item.number] else item.after))
        else:
            stack.append(iter(item.parts[(step - 1) % len(item.parts)]))
    return "".join(texts)
