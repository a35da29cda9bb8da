"""A second text for SDXL's second encoder: which piece of a prompt it goes with, and when both hold.

The webui has no such thing; diffusers calls it `prompt_2`. It is written in the same grammar. Edits of the two texts
need not fall together:

    [cat:dog:4]  with  [red:blue:2], 8 steps      1-2 cat, red    3-4 cat, blue    5-8 dog, blue
    a AND b:2    with  x                          a with x, and b with x, twice
    a AND b:2    with  x AND y:3                  a with x, and b with y, twice: weights are the first text's
"""

from collections.abc import Sequence
from typing import NamedTuple

from .comments import strip_comments
from .composition import split_and


SecondTexts = tuple[Sequence[str] | None, Sequence[str] | None]  # positive, negative; None: the first encoder's texts


class TextPair(NamedTuple):
    """What the first encoder and the second one read."""

    first: str
    second: str


def as_negatives(negative_prompt: str | Sequence[str] | None, count: int) -> list[str]:
    """One negative prompt an image. Raises ValueError for another number of them than there are prompts."""
    if negative_prompt is None or isinstance(negative_prompt, str):
        return [negative_prompt or ""] * count
    if len(negative_prompt) != count:
        raise ValueError(
            f"`negative_prompt` has {len(negative_prompt)} entries and `prompt` {count}: every prompt needs its own. "
            "Pass one text for all, or as many as there are prompts."
        )
    return list(negative_prompt)


def second_texts(
    prompt_2: str | Sequence[str] | None, negative_prompt_2: str | Sequence[str] | None, count: int, is_sdxl: bool
) -> SecondTexts | None:
    """The texts for SDXL's second encoder, one for each of `count` prompts; None where both encoders read the same.

    An empty one counts as left out, as in diffusers. Raises ValueError for a model with one encoder, and for lists of
    another length.
    """
    sides: list[list[str] | None] = []
    for argument, given in (("prompt_2", prompt_2), ("negative_prompt_2", negative_prompt_2)):
        texts = [given] * count if isinstance(given, str) else list(given or [])
        if given and not is_sdxl:
            raise ValueError(f"`{argument}`: this model has no second text encoder to read it. Leave it out.")
        if given and len(texts) != count:
            raise ValueError(f"`{argument}` has {len(texts)} entries for {count} prompts. Give one text, or one each.")
        sides.append(texts if given else None)
    return (sides[0], sides[1]) if any(sides) else None


def paired_sides(
    prompts: Sequence[str], negatives: Sequence[str], seconds: SecondTexts | None, comments: bool
) -> tuple[list[TextPair], list[list[tuple[int, float]]], list[TextPair]]:
    """Pairs of positive texts, each prompt's pieces (see `pair_texts`), and the pair of each negative prompt.

    comments: take them out of the texts.
    """
    positive_2, negative_2 = seconds or (None, None)

    def plain(texts: Sequence[str]) -> list[str]:
        return [strip_comments(text) for text in texts] if comments else list(texts)

    pairs, pieces = pair_texts(plain(prompts), None if positive_2 is None else plain(positive_2))
    opposed = zip(plain(negatives), plain(negatives if negative_2 is None else negative_2), strict=True)
    return pairs, pieces, [TextPair(*texts) for texts in opposed]


def pair_texts(
    prompts: Sequence[str], seconds: Sequence[str] | None
) -> tuple[list[TextPair], list[list[tuple[int, float]]]]:
    """The distinct pairs of a batch in order of first appearance, and per prompt its pieces as (pair number, weight).

    Raises ValueError for a second text of several pieces (AND) that are not as many as the prompt's.

    >>> pair_texts(["a AND b:2"], ["x"])
    ([TextPair(first='a', second='x'), TextPair(first=' b', second='x')], [[(0, 1.0), (1, 2.0)]])
    """
    numbers: dict[TextPair, int] = {}
    pieces = []
    for prompt, second in zip(prompts, prompts if seconds is None else seconds, strict=True):
        parts, others = split_and(prompt), split_and(second)
        if len(others) not in (1, len(parts)):
            raise ValueError(
                f"`prompt_2`: {second!r} has {len(others)} pieces (AND), and {prompt!r} has {len(parts)}: each piece "
                "of the prompt goes with one of them. Write as many, or one for all."
            )
        others = others * len(parts) if len(others) == 1 else others
        pairs = [(TextPair(text, other), weight) for (text, weight), (other, _) in zip(parts, others, strict=True)]
        pieces.append([(numbers.setdefault(pair, len(numbers)), weight) for pair, weight in pairs])
    return list(numbers), pieces


def merge_schedules(first: Sequence[tuple[int, str]], second: Sequence[tuple[int, str]]) -> list[tuple[int, TextPair]]:
    """Two schedules of (last step, text) over the same steps as one of pairs, which changes where either does.

    >>> merge_schedules([(2, "a"), (4, "b")], [(4, "x")])
    [(2, TextPair(first='a', second='x')), (4, TextPair(first='b', second='x'))]
    """
    ends = sorted({end for end, _ in (*first, *second)})
    return [(end, TextPair(_text_read_at(first, end), _text_read_at(second, end))) for end in ends]


def _text_read_at(schedule: Sequence[tuple[int, str]], step: int) -> str:
    return next(text for end, text in schedule if step <= end)
