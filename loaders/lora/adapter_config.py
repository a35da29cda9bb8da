"""PEFT's configuration of an adapter, as far as it decides strengths: alpha / r of every module, patterns included.

The numbers come out of a file, and so do the patterns: each is checked, names are compared as names, and what is a
regular expression beyond names has a limit of time.
"""

import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import regex

from ..weight_files import NetworkError


class _Pattern(NamedTuple):
    """One entry of `rank_pattern` or `alpha_pattern`."""

    place: int  # in the table; the first that matches counts
    value: float
    search: regex.Pattern | None = None


class AdapterConfig:
    """One component's `r`, `lora_alpha` (or `alpha`), `use_rslora` and patterns.

    Raises NetworkError for numbers that are none, a rank below 1, and patterns that cannot be read.
    """

    def __init__(self, path: Path, table: Mapping):
        self._path = path
        self._rank = self._number("r", table.get("r"), least=1)
        self._alpha = self._number("alpha", table.get("lora_alpha", table.get("alpha")))
        self._root = bool(table.get("use_rslora"))
        self._seconds = _PATTERN_SECONDS
        self._ranks = self._patterns("rank_pattern", table.get("rank_pattern"), least=1)
        self._alphas = self._patterns("alpha_pattern", table.get("alpha_pattern"))

    def scale(self, module: str, rank: int | None) -> float:
        """alpha / r of a module (dotted path), or alpha / sqrt(r) with `use_rslora`.

        rank: that of its tensors, for a table that names none. The rule is PEFT's (github.com/huggingface/peft,
        utils/other.py, `get_pattern_key`, and tuners/lora/layer.py, 0.21.2, Apache-2.0).
        """
        r = self._wanted(self._ranks, module, self._rank or rank or 1)
        alpha = self._wanted(self._alphas, module, r if self._alpha is None else self._alpha)
        return alpha / (math.sqrt(r) if self._root else r)

    def _wanted(self, patterns: Mapping[str, list[_Pattern]], module: str, usual: float) -> float:
        if not patterns:
            return usual
        names = module.split(".")
        found = [pattern for i in range(len(names)) for pattern in patterns.get(".".join(names[i:]), ())]
        found += patterns.get(f"^{module}", ())
        found += [pattern for pattern in patterns.get("", ()) if self._matches(pattern, module)]
        return min(found).value if found else usual

    def _matches(self, pattern: _Pattern, module: str) -> bool:
        begun = time.monotonic()
        try:
            return (
                pattern.search is not None
                and pattern.search.match(module, timeout=max(self._seconds, 1e-3)) is not None
            )
        except TimeoutError:
            raise self._error("a pattern that takes too long to compare", f"{pattern.search}") from None
        finally:
            self._seconds -= time.monotonic() - begun

    def _patterns(self, what: str, table: object, least: float = -math.inf) -> dict[str, list[_Pattern]]:
        """The table by module name ("^" before whole paths), with regular expressions under the empty name."""
        found: dict[str, list[_Pattern]] = {}
        if table is None:
            return found
        if not isinstance(table, Mapping):
            raise self._error(what, table)
        for place, (text, given) in enumerate(table.items()):
            value = self._number(f"{what}[{str(text)[:60]!r}]", given, least)
            names = pattern_names(str(text))
            if value is None:
                raise self._error(what, given)
            for name in names or ():
                found.setdefault(name, []).append(_Pattern(place, value))
            if names is None:
                found.setdefault("", []).append(_Pattern(place, value, self._compiled(str(text))))
        if len(found.get("", ())) > _MOST_EXPRESSIONS:
            raise self._error(what, f"{len(found[''])} regular expressions")
        return found

    def _compiled(self, text: str) -> regex.Pattern:
        if len(text) > _LONGEST_EXPRESSION:
            raise self._error("pattern", f"{text[:40]}...")
        try:
            return regex.compile(rf"(?:.*\.)?(?:{text})$")
        except (regex.error, RecursionError, OverflowError, ValueError) as error:
            raise self._error("pattern", text) from error

    def _number(self, what: str, value: object, least: float = -math.inf) -> float | None:
        if value is None:
            return None
        try:
            number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or number < least:
            raise self._error(what, value)
        return number

    def _error(self, what: str, value: object) -> NetworkError:
        shown = repr(value)
        return NetworkError(
            f"`{self._path}`: PEFT's configuration has {what} = {shown[:80]}, and the strength of the layers cannot "
            "be worked out from that. Save the adapter again with PEFT or diffusers, or correct its configuration."
        )


def pattern_names(text: str) -> list[str] | None:
    """The module names that a pattern lists, "^" before those that stand for whole paths; None for an expression.

    >>> pattern_names(r"^(?:mid_block\\.attn|conv_in)")
    ['^mid_block.attn', '^conv_in']
    """
    whole, rest = text.startswith("^"), text.removeprefix("^").removesuffix("$")
    group = re.fullmatch(r"\((?:\?:)?([^()]*)\)", rest)
    names = [re.sub(r"\\([^0-9A-Za-z])", r"\1", name) for name in (group[1] if group else rest).split("|")]
    if not text or any(set(name) & set("\\*+?[](){}^$") or not name for name in names):
        return None
    if whole and len(names) > 1 and not group:
        return None
    return [f"^{name}" if whole else name for name in names]


_PATTERN_SECONDS = 2.0  # for all comparisons of one configuration
_MOST_EXPRESSIONS = 64
_LONGEST_EXPRESSION = 1000
