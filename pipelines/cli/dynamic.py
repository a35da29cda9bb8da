"""Prompts with choices and wildcards, filled in by the package `dynamicprompts`; only where --dynamic asks for it.

written                        becomes
a {red|blue} fox               a red fox                      one of them, by the picture's seed
a {2$$red|blue|green} fox      a red,green fox                two of them
a __animal__                   a heron                        a line of animal.txt in --wildcards
"""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ...loaders.utils import near_names, require
from .common import add_options


MOST_COMBINATIONS = 10_000
_WILDCARD_TAG = re.compile(r"__([^\s_][\w/*.-]*?)__")
_FILLED_PROMPTS = ("prompt", "negative_prompt")

dynamic_options = add_options(
    click.option(
        "--dynamic", is_flag=True, help="Fill in {a|b} and __wildcards__ in prompts, by each picture's seed."
    ),
    click.option("--dynamic-all", is_flag=True, help="The same, and draw every combination of the prompt."),
    click.option(
        "--wildcards",
        type=click.Path(path_type=Path, file_okay=False, exists=True),
        metavar="FOLDER",
        help="Where wildcards are looked for: NAME.txt with a text a line.",
    ),
)


def is_dynamic(values: Mapping[str, Any]) -> bool:
    """Whether a command's options ask for prompts to be filled in."""
    if values["wildcards"] is not None and not (values["dynamic"] or values["dynamic_all"]):
        raise click.UsageError("--wildcards is for --dynamic or --dynamic-all: name one of them too.")
    return values["dynamic"] or values["dynamic_all"]


def filled_calls(call: Mapping[str, Any], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A call for each picture that `--count` or the combinations make, its prompts filled in and its seed its own.

    Raises ValueError for a template that cannot be read, or a wildcard without a file.
    """
    images = int(call.get("num_images_per_prompt") or 1)
    seed = call.get("seed")
    if seed in (None, -1):
        seed = random.SystemRandom().randrange(2**32)
    combinations = all_combinations(str(call.get("prompt")), values["wildcards"]) if values["dynamic_all"] else []
    rounds = len(combinations) * values["count"] if combinations else values["count"]
    calls = []
    for index in range(rounds):
        seeds = [seed + index * images + image for image in range(images)] if isinstance(seed, int) else list(seed)
        filled = dict(call)
        for name in _FILLED_PROMPTS:
            if isinstance(call.get(name), str):
                texts = [fill_in(call[name], own, values["wildcards"]) for own in seeds]
                filled[name] = texts[0] if len(set(texts)) == 1 else texts
        if combinations:
            filled["prompt"] = combinations[index % len(combinations)]
        if isinstance(filled["prompt"], list):
            filled["num_images_per_prompt"] = 1
        calls.append({**filled, "seed": seeds[0] if isinstance(seed, int) else seed})
    return calls


def fill_in(template: str, seed: int, wildcards: Path | None) -> str:
    """A prompt of a template, the same for the same seed."""
    generators = _generators()
    found = _generated(generators.RandomPromptGenerator(_manager(template, wildcards), seed=seed), template, 1)
    return found[0] if found else template


def all_combinations(template: str, wildcards: Path | None) -> list[str]:
    """Every prompt of a template. Raises ValueError for more than MOST_COMBINATIONS."""
    generator = _generators().CombinatorialPromptGenerator(_manager(template, wildcards))
    found = _generated(generator, template, MOST_COMBINATIONS + 1)
    if len(found) > MOST_COMBINATIONS:
        raise ValueError(f"the prompt has more than {MOST_COMBINATIONS} combinations. Shorten it, or use --dynamic.")
    return found or [template]


def _generators() -> Any:
    return require("dynamicprompts.generators", extra="dynamic", feature="--dynamic")


def _generated(generator: Any, template: str, count: int) -> Sequence[str]:
    try:
        return list(generator.generate(template, count))
    except Exception as error:  # the parser's own classes
        raise ValueError(f"the prompt cannot be filled in: {error}. Brackets {{ }} must be closed.") from error


def _manager(template: str, wildcards: Path | None) -> Any:
    """The wildcards' files, all that the template names checked."""
    manager = require("dynamicprompts.wildcards", extra="dynamic", feature="--dynamic").WildcardManager(wildcards)
    for name in dict.fromkeys(_WILDCARD_TAG.findall(template)):
        if not len(manager.get_values(name)):
            near = near_names(name, manager.get_collection_names())
            where = "no folder is named with --wildcards" if wildcards is None else f"`{wildcards}` has no {name}.txt"
            more = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"the wildcard `__{name}__` has no texts: {where}.{more}")
    return manager
