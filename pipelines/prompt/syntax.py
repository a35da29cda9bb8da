"""Whether a text carries any of the webui's syntax, and whether that makes more than one encoding of it."""

from functools import lru_cache

from .attention import parse_attention
from .comments import strip_comments
from .composition import split_and
from .network_tags import split_network_tags
from .schedule import parse_schedule


@lru_cache(maxsize=512)
def has_syntax(text: str) -> bool:
    """Whether the webui reads a text otherwise than letter by letter."""
    whole = split_and(text) == [(text, 1.0)] and strip_comments(text) == text and split_network_tags(text)[0] == text
    return not (whole and parse_attention(text) == [(text, 1.0)] and parse_schedule(text, 2) == [(2, text)])


def single_text(text: str, *, negative: bool = False) -> str | None:
    """A text without comments, if it is one encoding all the time: without edits and alternation, and a prompt also
    without AND, a weight at its end and network tags. None for others.

    >>> single_text("a (red:1.2) fox"), single_text("a [red:blue:0.5] fox")
    ('a (red:1.2) fox', None)
    """
    plain = strip_comments(text)
    if not negative:
        (piece, weight), *more = split_and(plain)
        if more or weight != 1 or split_network_tags(plain)[0] != plain:
            return None
        plain = piece
    return plain if parse_schedule(plain, 2) == [(2, plain)] else None
