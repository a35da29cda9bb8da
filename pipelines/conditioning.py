"""What prompts become and samplers read: encoded texts, each with the denoiser calls it is for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


@dataclass(frozen=True)
class SizeNumbers:
    """diffusers' `time_ids` of both sides: [H, W, top, left, target H, target W], or [H, W, top, left, score]."""

    positive: tuple[float, ...]
    negative: tuple[float, ...]


@dataclass(frozen=True)
class SizeArguments:
    """The arguments of StableDiffusionXLPipeline's call, as given; pairs are (height, width) and (top, left)."""

    original_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    negative_original_size: tuple[int, int] | None = None
    negative_crops_coords_top_left: tuple[int, int] | None = None
    negative_target_size: tuple[int, int] | None = None


def size_numbers(asked: tuple[int, int], options: Mapping[str, Any], given: SizeArguments) -> SizeNumbers:
    """The base model's numbers. asked: (height, width) of the pass as asked for, not rounded to latent cells.

    The webui tells both sides the same: this size twice, and the crop of the options. Arguments win over that; those
    of the negative side count, as in diffusers, where both its sizes are given.
    """
    crop = given.crops_coords_top_left or (options["sdxl_crop_top"], options["sdxl_crop_left"])
    positive = (*(given.original_size or asked), *crop, *(given.target_size or asked))
    size, target = given.negative_original_size, given.negative_target_size
    if size is None or target is None:
        return SizeNumbers(positive, positive)
    return SizeNumbers(positive, (*size, *(given.negative_crops_coords_top_left or (0, 0)), *target))


def refiner_numbers(asked: tuple[int, int], options: Mapping[str, Any], given: SizeArguments) -> SizeNumbers:
    """The refiner's numbers: no target size, and a score for each side."""
    base = size_numbers(asked, options, given)
    return SizeNumbers(
        (*base.positive[:4], options["sdxl_refiner_high_aesthetic_score"]),
        (*base.negative[:4], options["sdxl_refiner_low_aesthetic_score"]),
    )
