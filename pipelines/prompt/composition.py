"""Several prompts in one.

    written                  read
    a cat AND a dog          `a cat` 1.0, ` a dog` 1.0
    a cat AND a dog :0.5     `a cat` 1.0, ` a dog` 0.5
    a photo, 16:9            `a photo, 16` 9.0     any prompt that ends in a number; kept, pictures depend on it
    candy and sand           itself                the word is AND

Only positive prompts are read this way; in a negative one AND and the number are text.
"""

import re
from collections.abc import Sequence


_AND_WORD = re.compile(r"\bAND\b")
_AND_WEIGHT = re.compile(r"\s*([+-]?(?:\d+\.?|\d*\.\d+))")


def split_and(text: str) -> list[tuple[str, float]]:
    """The pieces of a prompt between ANDs, each with its weight. A piece keeps its leading blanks.

    >>> split_and("a cat AND a dog :0.5")
    [('a cat', 1.0), (' a dog', 0.5)]
    """
    return [_piece_weight(piece.rstrip()) for piece in _AND_WORD.split(text)]


def split_prompts(prompts: Sequence[str]) -> tuple[list[str], list[list[tuple[int, float]]]]:
    """The distinct texts of a batch in order of first appearance, and per prompt its pieces as (text number, weight).

    >>> split_prompts(["a AND b:2", "a"])
    (['a', ' b'], [[(0, 1.0), (1, 2.0)], [(0, 1.0)]])
    """
    numbers: dict[str, int] = {}
    pieces = [
        [(numbers.setdefault(text, len(numbers)), weight) for text, weight in split_and(prompt)] for prompt in prompts
    ]
    return list(numbers), pieces


def _piece_weight(piece: str) -> tuple[str, float]:
    text, colon, suffix = piece.rpartition(":")
    weight = _AND_WEIGHT.fullmatch(suffix) if colon else None
    return (text.rstrip(), float(weight[1])) if weight else (piece, 1.0)
