"""Names a caller may get wrong."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_choice(kind: str, name: object, known: Iterable[str]) -> str:
    """What to say about a `name` that is not among `known`: the near matches, or all of them.

    >>> unknown_choice("sampler", "Eulr", ["Euler", "Heun"])
    "sampler 'Eulr' is unknown. Did you mean 'Euler'?"
    """
    by_lower = {choice.lower(): choice for choice in known}
    near = get_close_matches(str(name).lower(), by_lower, n=4, cutoff=0.5)
    if near:
        return f"{kind} {name!r} is unknown. Did you mean {', '.join(repr(by_lower[match]) for match in near)}?"
    return f"{kind} {name!r} is unknown. Known: {', '.join(map(repr, by_lower.values()))}."
