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


class LoraUse(NamedTuple):
    """What a `<lora:...>` tag asks for."""

    name: str
    te: float = 1.0  # factor in the text encoders
    unet: float = 1.0  # factor in the UNet; a tag that leaves it out means te
    dyn: int | None = None  # use only this many ranks


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


def read_lora_tag(tag: NetworkTag) -> LoraUse:
    """The strengths of a `lora` or `lyco` tag. Raises ValueError for a strength that is no number, or no name.

    >>> read_lora_tag(NetworkTag("lora", ("a", "0.5"), {"unet": "0.2"}))
    LoraUse(name='a', te=0.5, unet=0.2, dyn=None)
    """
    if not tag.positional:
        raise ValueError(f"`<{tag.kind}:...>` with {tag.named} names no network. Write `<{tag.kind}:name:0.8>`.")
    name, *rest = tag.positional
    written = dict(zip(("te", "unet", "dyn"), rest)) | tag.named
    te = _tag_number(tag, "te", written["te"]) if "te" in written else 1.0
    unet = _tag_number(tag, "unet", written["unet"]) if "unet" in written else te
    if "dyn" not in written:
        return LoraUse(name, te, unet)
    try:
        return LoraUse(name, te, unet, int(written["dyn"]))
    except ValueError as error:
        raise ValueError(
            f"`<{tag.kind}:{name}>`: dyn is `{written['dyn']}`, which is no whole number; it says how many ranks are "
            "used. Write `dyn=8`, or leave it out to use all."
        ) from error


def _read_tag(kind: str, arguments: str) -> NetworkTag:
    parts = arguments.split(":")
    named = dict(part.split("=") for part in parts if part.count("=") == 1)
    return NetworkTag(kind, tuple(part for part in parts if part.count("=") != 1), named)


def _tag_number(tag: NetworkTag, key: str, written: str) -> float:
    try:
        return float(written)
    except ValueError as error:
        raise ValueError(
            f"`<{tag.kind}:{tag.positional[0]}>`: {key} is `{written}`, which is no number; it says how strongly the "
            "network acts. Write one such as `0.8`."
        ) from error
