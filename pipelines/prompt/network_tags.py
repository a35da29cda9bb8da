"""Networks named in a prompt.

    written                          read
    <lora:name>                      1.0 in text encoders and UNet
    <lora:name:0.8>                  0.8 in both
    <lora:name:0.5:0.7>              0.5 in the text encoders, 0.7 in the UNet
    <lora:name:te=0.5:unet=0.7>      the same
    <lora:name:1:1:8>, :dyn=8        only the first 8 ranks
    <hypernet:name:0.4>              a tag of another kind
    < lora:a>, <lora:>, a < b > c    themselves

A tag ends at the first `>`, whatever stands in it, and leaves the blanks around it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple


class NetworkTag(NamedTuple):
    """`<kind:positional:key=value>` as written; a part with exactly one `=` is a named one."""

    kind: str
    positional: tuple[str, ...]
    named: dict[str, str]


_TAG_START = re.compile(r"<(\w+):")


def split_network_tags(text: str) -> tuple[str, list[NetworkTag]]:
    """`text` without its tags, and the tags in order.

    >>> split_network_tags("cat <lora:add_detail:0.8>, dog")
    ('cat , dog', [NetworkTag(kind='lora', positional=('add_detail', '0.8'), named={})])
    """
    kept: list[str] = []
    tags: list[NetworkTag] = []
    position = 0
    while start := _TAG_START.search(text, position):
        end = text.find(">", start.end())
        if end < 0:
            break
        if end > start.end():
            tags.append(_read_tag(start[1], text[start.end() : end]))
            kept.append(text[position : start.start()])
        else:
            kept.append(text[position : end + 1])
        position = end + 1
    return "".join([*kept, text[position:]]), tags


def split_batch_tags(prompts: Sequence[str]) -> tuple[list[str], list[NetworkTag]]:
    """Prompts of a batch without their tags, and the tags of the first one: the webui uses no others in a batch."""
    split = [split_network_tags(prompt) for prompt in prompts]
    return [text for text, _ in split], split[0][1] if split else []


def _read_tag(kind: str, arguments: str) -> NetworkTag:
    parts = arguments.split(":")
    named = dict(part.split("=") for part in parts if part.count("=") == 1)
    return NetworkTag(kind, tuple(part for part in parts if part.count("=") != 1), named)
