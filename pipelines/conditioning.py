"""What a UNet is conditioned on: encoded texts, each with the model evaluations it is for, and SDXL's sizes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor


class TimedCond(NamedTuple):
    """One encoded text of a prompt's schedule."""

    until: int  # the last model evaluation, counted from 0, that reads it
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

    def __len__(self) -> int:
        """How many images."""
        return len(self.positive)

    def repeated(self, each: int) -> "Conditioning":
        """The same for `each` images instead of one."""
        positive = [pieces for pieces in self.positive for _ in range(each)]
        return replace(self, positive=positive, negative=[schedule for schedule in self.negative for _ in range(each)])


def entry_at(schedule: Sequence[tuple], evaluation: int) -> int:
    """Index of the entry that model evaluation number `evaluation` reads. schedule: (last step, ...) in rising order.

    Evaluations count from 0 in each pass, steps from 1: so the webui reads the first entry one evaluation longer than
    its number says, and an evaluation beyond the last step reads the first entry again. Both kept: images depend on
    them.

    >>> [entry_at([(2, "a"), (4, "b")], evaluation) for evaluation in range(6)]
    [0, 0, 0, 1, 1, 0]
    """
    return next((index for index, (end, *_) in enumerate(schedule) if evaluation <= end), 0)


def cond_at_call(schedule: Sequence[TimedCond], evaluation: int) -> TimedCond:
    """The entry that model evaluation `evaluation`, counted from 0, reads; see `entry_at`."""
    return schedule[entry_at(schedule, evaluation)]


def repeated_whole(texts: Sequence[Tensor]) -> list[Tensor]:
    """Encoded texts (tokens, dim) at one length, each repeated as a whole: attention reads that as reading it once.

    >>> [len(text) for text in repeated_whole([Tensor(77, 8), Tensor(154, 8)])]
    [154, 154]
    """
    length = math.lcm(*(len(text) for text in texts))
    return [text.repeat(length // len(text), 1) for text in texts]


def given_conditioning(given: Mapping[str, Any], *, is_sdxl: bool = False) -> Conditioning:
    """Conditioning from the arguments `prompt_embeds` (b, tokens, dim), `pooled_prompt_embeds` (b, dim) and their
    negative ones, each row repeated for its `num_images_per_prompt` images.

    `prompt_embeds` may be a Conditioning, which holds both sides. uncond is empty where it is to be encoded from
    `negative_prompt`. Raises ValueError for tensors that do not go
    together, and on SDXL for missing pooled ones.
    """
    embeds = given["prompt_embeds"]
    if isinstance(embeds, Conditioning):
        return embeds.repeated(given["num_images_per_prompt"])
    pooled = given["pooled_prompt_embeds"]
    negative, negative_pooled = given["negative_prompt_embeds"], given["negative_pooled_prompt_embeds"]
    for argument, one, other in (("pooled", embeds, pooled), ("negative_pooled", negative, negative_pooled)):
        if is_sdxl and one is not None and other is None:
            raise ValueError(
                f"`{argument}_prompt_embeds` is missing: SDXL reads it beside the embeddings of each token. Pass what "
                "`encode_prompt` or `PromptEncoder` gives with them."
            )
    if negative is not None and given["negative_prompt"] is not None:
        raise ValueError("`negative_prompt` and `negative_prompt_embeds` are both given: pass one of them.")
    if negative is not None and len(negative) != len(embeds):
        raise ValueError(
            f"`negative_prompt_embeds` has {len(negative)} rows and `prompt_embeds` {len(embeds)}: every prompt needs "
            "its own negative one."
        )

    def timed(rows: Tensor, pools: Tensor | None) -> list[list[TimedCond]]:
        entries = [TimedCond(2**31, row, None if pools is None else pools[i]) for i, row in enumerate(rows)]
        return [[entry] for entry in entries for _ in range(given["num_images_per_prompt"])]

    positive = [[WeightedCond(1.0, schedule)] for schedule in timed(embeds, pooled)]
    return Conditioning(positive, [] if negative is None else timed(negative, negative_pooled))


def completed_conditioning(
    given: Conditioning, encode: Callable[[], Conditioning] | None, width: int | None = None
) -> Conditioning:
    """Given conditioning with its uncond, which `encode` encodes where it is missing; zeros without `encode`.

    width: keep the last `width` channels, those of SDXL's second encoder, which its refiner reads alone.
    """

    def cut(schedule: Sequence[TimedCond]) -> Sequence[TimedCond]:
        if width is None:  # the same tensors: by them a denoiser knows what it has stacked
            return schedule
        return [entry._replace(embeds=entry.embeds[:, -width:]) for entry in schedule]

    positive = [[WeightedCond(piece.weight, cut(piece.schedule)) for piece in pieces] for pieces in given.positive]
    if given.negative:
        empty = given.empty if given.empty is None or width is None else given.empty[:, -width:]
        return replace(given, positive=positive, negative=[cut(schedule) for schedule in given.negative], empty=empty)
    if encode is not None:
        return replace(given, positive=positive, negative=encode().negative)
    nothing = [
        [
            e._replace(embeds=e.embeds * 0, pooled=None if e.pooled is None else e.pooled * 0)
            for e in pieces[0].schedule
        ]
        for pieces in positive
    ]
    return replace(given, positive=positive, negative=nothing)


@dataclass(frozen=True)
class SizeNumbers:
    """diffusers' `time_ids`: [H, W, top, left, target H, target W], or [H, W, top, left, score]."""

    cond: tuple[float, ...]
    uncond: tuple[float, ...]


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

    In the webui cond and uncond read the same: this size twice, and the crop of the options. Arguments win over that;
    those of uncond count, as in diffusers, where both its sizes are given.
    """
    crop = given.crops_coords_top_left or (options["sdxl_crop_top"], options["sdxl_crop_left"])
    positive = (*(given.original_size or asked), *crop, *(given.target_size or asked))
    size, target = given.negative_original_size, given.negative_target_size
    if size is None or target is None:
        return SizeNumbers(positive, positive)
    return SizeNumbers(positive, (*size, *(given.negative_crops_coords_top_left or (0, 0)), *target))


def refiner_numbers(asked: tuple[int, int], options: Mapping[str, Any], given: SizeArguments) -> SizeNumbers:
    """The refiner's numbers: no target size, and a score each for cond and uncond."""
    base = size_numbers(asked, options, given)
    return SizeNumbers(
        (*base.cond[:4], options["sdxl_refiner_high_aesthetic_score"]),
        (*base.uncond[:4], options["sdxl_refiner_low_aesthetic_score"]),
    )
