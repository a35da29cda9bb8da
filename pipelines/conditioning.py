"""What prompts become and samplers read: encoded texts, each with the denoiser calls it is for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .prompt.composition import entry_at


class TimedCond(NamedTuple):
    """One encoded text of a prompt's schedule."""

    until: int  # the last denoiser call, counted from 0, that reads it
    embeds: Tensor  # (tokens, dim); tokens is a multiple of 77
    pooled: Tensor | None = None  # (dim,), SDXL only


class WeightedCond(NamedTuple):
    """One piece of `a AND b:0.7`."""

    weight: float
    schedule: Sequence[TimedCond]


@dataclass(frozen=True)
class Conditioning:
    """All that a batch of images is drawn from. Lists have one entry an image."""

    positive: Sequence[Sequence[WeightedCond]]
    negative: Sequence[Sequence[TimedCond]]
    empty: Tensor | None = None  # (77, dim): the encoding of "", for the option pad_cond_uncond
    embeddings: tuple[str, ...] = ()  # names of the textual inversions in use, as "TI hashes" lists them


def cond_at_call(schedule: Sequence[TimedCond], call: int) -> TimedCond:
    """The entry that denoiser call `call`, counted from 0, reads; see `entry_at`."""
    return schedule[entry_at(schedule, call)]
