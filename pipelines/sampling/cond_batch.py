"""The texts of a call as rows of UNet runs: stacked, padded, and brought to the UNet once for as long as they hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..conditioning import TimedCond, repeated_whole
from ..device_copies import SentNumbers, sent


class CondRows(NamedTuple):
    """One side's texts, cond or uncond. Row r is for image `images[r]`, and counts `weights[r]` times the scale."""

    images: list[int]
    weights: list[float]
    embeds: Tensor  # (rows, tokens, dim)
    pooled: Tensor | None  # (rows, dim)


class UNetRows(NamedTuple):
    """The rows of one UNet run, with all that stays the same as long as the texts do, on its device, in its dtype."""

    images: list[int]
    uncond: list[bool]
    index: Tensor | None  # `images`; None: every image in order, once or twice
    given: dict[str, Any]  # keyword arguments of the UNet

    def take(self, x: Tensor) -> Tensor:
        """(rows, …) of x (images, …)."""
        if self.index is not None:
            return x.index_select(0, self.index)
        return x if len(self.images) == len(x) else torch.cat([x, x])


@dataclass
class CondBatch:
    """The texts that hold at a call.

    runs: the UNet runs made of them so far; key: whether uncond is left out.
    """

    cond: CondRows
    uncond: CondRows | None
    runs: dict[bool, list[UNetRows]] = field(default_factory=dict)
    numbers: SentNumbers = field(default_factory=SentNumbers)

    @cached_property
    def in_order(self) -> bool:
        """Whether each image has one text."""
        return self.cond.images == list(range(len(self.cond.images)))

    @cached_property
    def is_plain(self) -> bool:
        """Whether each image has one text, and all count alike."""
        return self.in_order and len(set(self.cond.weights)) == 1

    def of_images(self, x: Tensor) -> Tensor:
        """The image of each cond row, (rows, …) of x (images, …)."""
        return x if self.in_order else x.index_select(0, self.numbers(self.cond.images, x.device))

    def first_rows(self, rows: Tensor) -> Tensor:
        """The first cond row of each image, (images, …) of (rows, …)."""
        return rows if self.in_order else rows.index_select(0, self.numbers(self._firsts, rows.device))

    @cached_property
    def _firsts(self) -> list[int]:
        images = self.cond.images
        return [images.index(image) for image in range(max(images) + 1)]


def unet_rows(
    sides: Sequence[tuple[CondRows, int]],
    images: int,
    place: Tensor,
    *,
    time_ids: tuple[Tensor, Tensor] | None = None,
    image_embeds: tuple[list[Tensor], list[Tensor]] | None = None,
    **others: Any,
) -> UNetRows:
    """The rows of these sides (0 is cond) as arguments of a UNet run.

    images: of the batch. place: a tensor of the UNet's dtype on its device. time_ids, image_embeds: as in
    `DenoiserModel` and `Guidance`. others: keyword arguments of the UNet.
    """
    every = [image for rows, _ in sides for image in rows.images]

    def ready(parts: Iterable[Tensor]) -> Tensor:
        return sent(torch.cat(list(parts)), place.device).to(place.dtype)

    added: dict[str, Any] = {}
    if time_ids is not None:
        added["text_embeds"] = ready(rows.pooled for rows, _ in sides)
        added["time_ids"] = ready(time_ids[side].expand(len(rows.images), -1) for rows, side in sides)
    if image_embeds is not None:
        pairs = zip(*image_embeds, strict=True)
        index = {side: sent(torch.tensor(rows.images), place.device) for rows, side in sides}
        added["image_embeds"] = [torch.cat([pair[side][index[side]] for _, side in sides]) for pair in pairs]
    given = {
        "encoder_hidden_states": ready(rows.embeds for rows, _ in sides),
        "added_cond_kwargs": added or None,
        **others,
    }
    in_order = all(rows.images == list(range(images)) for rows, _ in sides)
    places = None if in_order else sent(torch.tensor(every), place.device)
    return UNetRows(every, [side == 1 for rows, side in sides for _ in rows.images], places, given)


def padded_sides(
    cond: CondRows, uncond: CondRows, empty: Tensor | None, *, pad: bool, pad_v0: bool
) -> tuple[CondRows, CondRows]:
    """Sides of different length made equal, where an option wants it. empty: (77, dim), the encoding of ""."""
    length = cond.embeds.shape[1]
    if pad_v0:
        return cond, uncond._replace(embeds=_repeat_last(uncond.embeds, length)[:, :length])
    if pad and empty is not None:
        length = max(length, uncond.embeds.shape[1])
        return _append_empty(cond, empty, length), _append_empty(uncond, empty, length)
    return cond, uncond


def stack_conds(chosen: Sequence[tuple[int, float, TimedCond]], *, repeats_last: bool = True) -> CondRows:
    """Rows (image, weight, entry) as one half of a run. Shorter texts repeat their own last token vector, as in the
    webui, or themselves, which draws each as it is drawn alone."""
    texts = [entry.embeds for _, _, entry in chosen]
    length = max(len(text) for text in texts)
    return CondRows(
        images=[image for image, _, _ in chosen],
        weights=[weight for _, weight, _ in chosen],
        embeds=torch.cat([_repeat_last(text[None], length) for text in texts])
        if repeats_last
        else torch.stack(repeated_whole(texts)),
        pooled=None if chosen[0][2].pooled is None else torch.stack([entry.pooled for _, _, entry in chosen]),
    )


def joined_rows(sides: Sequence[Tensor]) -> Tensor:
    """(rows, tokens, dim) of several sides as one; shorter texts repeat their last vector."""
    length = max(rows.shape[1] for rows in sides)
    return torch.cat([_repeat_last(rows, length) for rows in sides])


def _repeat_last(embeds: Tensor, length: int) -> Tensor:
    """(rows, tokens, dim), at least `length` tokens long."""
    missing = length - embeds.shape[1]
    return embeds if missing <= 0 else torch.cat([embeds, embeds[:, -1:].expand(-1, missing, -1)], dim=1)


def _append_empty(rows: CondRows, empty: Tensor, length: int) -> CondRows:
    """The rows with the encoding of "" appended once per missing chunk. empty: (77, dim)."""
    missing = (length - rows.embeds.shape[1]) // len(empty)
    tail = empty.repeat(missing, 1).expand(len(rows.images), -1, -1)
    return rows._replace(embeds=torch.cat([rows.embeds, tail.to(rows.embeds)], dim=1))
