"""What one call asks for, as plain values: read from the arguments, checked before any work, never changed."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from ..loaders.utils import unknown_choice
from .images.hires import HiresTarget, hires_target
from .prompt.encode import as_negatives
from .prompt.network_tags import NetworkTag, split_batch_tags
from .prompt.prompt_2 import SecondTexts, second_texts
from .prompt.text_encoder import PromptSettings
from .sampling.noise import NOISE_SOURCES
from .sampling.samplers import Sampler, resolve_sampler


PIXELS_PER_CELL = 8
HIRES_REFINER_PASSES = ("first pass", "second pass", "both passes")
DEPRECATED_ARGUMENTS = ("callback", "callback_steps")  # of diffusers; its own call still takes them

Picked = TypeVar("Picked")


@dataclass(frozen=True)
class NoiseRequest:
    """Seeds of a batch, one each an image, and how they become noise."""

    seeds: list[int]
    subseeds: list[int]
    subseed_strength: float = 0.0
    seed_resize: tuple[int, int] | None = None  # (width, height) in pixels
    source: str = "gpu"


@dataclass(frozen=True)
class StepArguments:
    """`timesteps`, `sigmas` and `denoising_end` of diffusers' calls, as given. A scheduler reads them."""

    timesteps: Sequence[int] | None = None  # instead of `num_inference_steps`
    sigmas: Sequence[float] | None = None  # the same
    denoising_end: float | None = None  # the share of the noise levels at which to stop, 0..1

    def count(self, steps: int) -> int:
        """How many steps are asked for; `steps` where neither list is given."""
        given = self.timesteps if self.timesteps is not None else self.sigmas
        return steps if given is None else len(given)


@dataclass(frozen=True)
class PassRequest:
    """One pass over the latents of a batch."""

    prompts: list[str]  # one an image, without network tags
    negatives: list[str]
    tags: list[NetworkTag]  # those of the first prompt: they hold for the whole batch
    sampler: Sampler | None  # None: the pipeline's scheduler does the stepping
    schedule: str | None
    steps: int
    width: int  # of the latents, in pixels
    height: int
    asked_size: tuple[int, int]  # (height, width) as asked for, not rounded to cells: what SDXL is told
    first_pass_calls: int | None = None  # hires only: the first pass's steps as prompts count them
    strength: float | None = None  # hires and img2img
    seconds: SecondTexts | None = None  # for SDXL's second encoder, without network tags
    asked_steps: StepArguments = StepArguments()  # read by the scheduler

    @property
    def prompt_steps(self) -> int:
        """Denoiser calls that prompt editing counts with: twice the steps for two-call samplers."""
        return self.steps * (2 if self.sampler is not None and self.sampler.second_order else 1)

    @property
    def batch_size(self) -> int:
        return len(self.prompts)

    @property
    def is_hires(self) -> bool:
        """Whether this is the second pass of hires fix."""
        return self.first_pass_calls is not None


@dataclass(frozen=True)
class HiresRequest:
    """The second pass: how large, by what, and the pass itself."""

    target: HiresTarget
    upscaler: str | None
    second: PassRequest


def noise_request(
    count: int,
    seed: int | Sequence[int] | None,
    subseed: int | Sequence[int] | None,
    subseed_strength: float,
    seed_resize: tuple[int, int] | None,
    noise_source: str,
) -> NoiseRequest:
    """Seeds for `count` images. Image i gets seed + i; with a variation all share `seed` and get subseed + i.

    seed: None or -1 draws one; a list gives every image its own.
    """
    if noise_source not in NOISE_SOURCES:
        raise ValueError(unknown_choice("`noise_source`:", noise_source, NOISE_SOURCES))
    seeds = _seed_list("seed", count, seed, step=0 if subseed_strength else 1)
    subseeds = _seed_list("subseed", count, 0 if subseed is None else subseed, step=1)
    return NoiseRequest(seeds, subseeds, float(subseed_strength), seed_resize, noise_source)


def _seed_list(argument: str, count: int, seed: int | Sequence[int] | None, step: int) -> list[int]:
    if seed is None or seed == -1:
        seed = random.SystemRandom().randrange(2**32)
    if isinstance(seed, Sequence):
        if len(seed) != count:
            raise ValueError(
                f"`{argument}` lists {len(seed)} numbers for {count} images. Give one for each, or a single number: "
                "the images then count up from it."
            )
        return [int(number) for number in seed]
    return [int(seed) + i * step for i in range(count)]


def check_leftovers(kwargs: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse keyword arguments that the call does not have, with the near ones."""
    for name in kwargs:
        if name not in DEPRECATED_ARGUMENTS:
            raise ValueError(unknown_choice("argument", name, known))


def check_callback_inputs(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse tensors for `callback_on_step_end` that there are not. known: the names there are."""
    for name in names:
        if name not in known:
            raise ValueError(unknown_choice("`callback_on_step_end_tensor_inputs`:", name, known))


def pick(kind: type[Picked], given: Mapping[str, Any], prefix: str = "") -> Picked:
    """A dataclass of arguments, filled with those of the call: field `scale` from the argument `<prefix>scale`."""
    return kind(**{name: given[prefix + name] for name in kind.__dataclass_fields__})


def checked_strength(argument: str, strength: float) -> float:
    """How much is drawn anew, 0 to 1. Raises ValueError for anything else."""
    if not 0 <= strength <= 1 or math.isnan(strength):
        raise ValueError(f"`{argument}` must be from 0 (keep the picture) to 1 (draw anew); got {strength}.")
    return float(strength)


def refuse_unread(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse arguments that only diffusers' own drawing reads, where they are not at their `defaults`."""
    for name, default in defaults.items():
        if given[name] is not None and (default is None or given[name] != default):
            raise ValueError(
                f"`{name}` is read by diffusers' own drawing only, and this call asks for more: a webui argument, or "
                f"prompts with syntax or of more than 75 tokens. Leave out `{name}`, or those."
            )


def prompt_list(
    prompt: str | Sequence[str] | None, negative: Any, images: int, embeds: Tensor | None = None
) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts, one an image: each prompt is repeated for its `images` pictures.

    embeds: `prompt_embeds` (b, tokens, dim), which stand for the prompts; those are empty then.
    """
    if embeds is not None:
        if prompt is not None:
            raise ValueError("`prompt` and `prompt_embeds` are both given: pass one of them, they say the same thing.")
        prompt = [""] * len(embeds)
    prompts = list(prompt or []) if isinstance(prompt, (list, tuple)) or prompt is None else [prompt]
    for text in prompts:
        if not isinstance(text, str):
            raise ValueError(f"`prompt` must be a text or a list of texts; got {type(text).__name__} ({text!r:.40}).")
    if not prompts:
        raise ValueError("`prompt` is empty: pass a text, a list of texts, or `prompt_embeds`.")
    if images < 1:
        raise ValueError(f"`num_images_per_prompt` must be at least 1; got {images}.")
    negatives = as_negatives(negative, len(prompts))
    return [text for text in prompts for _ in range(images)], [text for text in negatives for _ in range(images)]


def first_pass(
    prompts: list[str],
    negatives: list[str],
    size: tuple[int, int],
    steps: int,
    sampler: str | None,
    schedule: str | None,
    *,
    asked_steps: StepArguments | None = None,
) -> PassRequest:
    """The first pass. size: (width, height) in pixels. Raises ValueError for unknown names and bad numbers."""
    width, height = size
    asked_steps = asked_steps or StepArguments()
    steps = asked_steps.count(steps)
    if steps < 1:
        raise ValueError(f"`num_inference_steps` must be at least 1; got {steps}.")
    if min(width, height) < PIXELS_PER_CELL:
        raise ValueError(f"`width` and `height` must be at least {PIXELS_PER_CELL} pixels; got {width}x{height}.")
    if sampler is None and schedule is not None:
        raise ValueError(
            f"`schedule` is {schedule!r} but no `sampler` is named: the pipeline's scheduler has its own. "
            'Name a sampler (sampler="Euler", say), or set the scheduler up instead.'
        )
    texts, tags = split_batch_tags(prompts)
    chosen, label = (None, None) if sampler is None else resolve_sampler(sampler, schedule)
    return PassRequest(
        prompts=texts,
        negatives=negatives,
        tags=tags,
        sampler=chosen,
        schedule=label,
        steps=steps,
        width=width // PIXELS_PER_CELL * PIXELS_PER_CELL,
        height=height // PIXELS_PER_CELL * PIXELS_PER_CELL,
        asked_size=(height, width),
        asked_steps=asked_steps,
    )


def with_second_texts(
    plan: PassRequest,
    prompt_2: str | Sequence[str] | None,
    negative_prompt_2: str | Sequence[str] | None,
    *,
    is_sdxl: bool,
) -> PassRequest:
    """The pass with other texts for SDXL's second encoder, one for each prompt of the call. Network tags in
    `prompt_2` that the prompt has not count with its own."""

    def each_image(texts: str | Sequence[str] | None) -> str | list[str] | None:
        if texts is None or isinstance(texts, str):
            return texts
        repeats = plan.batch_size // len(texts) if texts and plan.batch_size % len(texts) == 0 else 1
        return [text for text in texts for _ in range(repeats)]

    pair = second_texts(each_image(prompt_2), each_image(negative_prompt_2), plan.batch_size, is_sdxl)
    if pair is None or pair[0] is None:
        return replace(plan, seconds=pair)
    texts, tags = split_batch_tags(pair[0])
    return replace(plan, seconds=(texts, pair[1]), tags=plan.tags + [tag for tag in tags if tag not in plan.tags])


@dataclass(frozen=True)
class HiresArguments:
    """The hires_… arguments of the call, as given."""

    scale: float | None = None
    size: tuple[int, int] | None = None
    upscaler: str | None = None
    steps: int = 0
    strength: float = 0.7
    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    sampler: str | None = None
    schedule: str | None = None


def hires_request(
    asked: HiresArguments, first: PassRequest, prompts: list[str], negatives: list[str]
) -> HiresRequest | None:
    """The second pass that follows `first`, or None. prompts, negatives: the first pass's, with their tags."""
    if not asked.scale and not any(asked.size or ()):
        return None
    checked_strength("hires_strength", asked.strength)
    target = hires_target(first.asked_size[1], first.asked_size[0], asked.scale, asked.size)
    texts = _same_or_list("hires_prompt", asked.prompt, prompts)
    plain, tags = split_batch_tags(texts)
    sampler, schedule = first.sampler, first.schedule
    if asked.sampler is not None or asked.schedule is not None:
        if first.sampler is None and asked.sampler is None:
            raise ValueError("`hires_schedule` needs a sampler: name `hires_sampler` (or `sampler`) too.")
        sampler, schedule = resolve_sampler(asked.sampler or first.sampler.label, asked.schedule or first.schedule)
    second = replace(
        first,
        prompts=plain,
        negatives=_same_or_list("hires_negative_prompt", asked.negative_prompt, negatives),
        tags=tags,
        sampler=sampler,
        schedule=schedule,
        steps=asked.steps or first.steps,
        width=target.width,
        height=target.height,
        asked_size=(target.enlarged_height, target.enlarged_width),
        first_pass_calls=first.prompt_steps,
        strength=asked.strength,
        asked_steps=StepArguments(),
    )
    return HiresRequest(target, asked.upscaler, second)


def _same_or_list(argument: str, given: str | Sequence[str] | None, default: list[str]) -> list[str]:
    """The hires text of every image; an empty one means the first pass's."""
    if not given:
        return default
    texts = [given] * len(default) if isinstance(given, str) else list(given)
    if len(texts) != len(default):
        raise ValueError(
            f"`{argument}` has {len(texts)} entries for {len(default)} images: give one text, or one each."
        )
    return [text or before for text, before in zip(texts, default, strict=True)]


class RefinedPasses(NamedTuple):
    """In which passes the refiner takes over."""

    first: bool
    second: bool


def refined_passes(
    switch_at: float | None, options: Mapping[str, Any], has_hires: bool, refiner: object | None
) -> RefinedPasses:
    """Where the refiner works. With hires fix that is a matter of the option `hires_fix_refiner_pass`."""
    if switch_at is None:
        return RefinedPasses(False, False)
    if refiner is None:
        raise ValueError(
            f"`refiner_switch_at` is {switch_at} but the pipeline has no refiner. Load one: "
            "`pipe.register_modules(refiner=unet)` with the refiner's UNet2DConditionModel."
        )
    if not 0 <= switch_at <= 1:
        raise ValueError(f"`refiner_switch_at` must be from 0 to 1; got {switch_at}.")
    which = options["hires_fix_refiner_pass"]
    if which not in HIRES_REFINER_PASSES:
        raise ValueError(unknown_choice("`hires_fix_refiner_pass`:", which, HIRES_REFINER_PASSES))
    if not has_hires:
        return RefinedPasses(True, False)
    return RefinedPasses(which != "second pass", which != "first pass")


def prompt_settings(options: Mapping[str, Any], clip_skip: int | None) -> PromptSettings:
    """The options that prompts are read with; `clip_skip` counts skipped layers and wins over the option."""
    names = PromptSettings.__dataclass_fields__
    settings = {name: options[name] for name in names}
    if clip_skip is not None:
        settings["CLIP_stop_at_last_layers"] = clip_skip + 1
    return PromptSettings(**settings)


def check_step_arguments(asked: StepArguments, sampler: str | None, has_hires: bool) -> None:
    """Refuse what nobody would read: steps beside a sampler of the webui, two lists, an end before a second pass."""
    given = [name for name in ("timesteps", "sigmas", "denoising_end") if getattr(asked, name) is not None]
    if given and sampler is not None:
        raise ValueError(
            f"`{given[0]}` is for the pipeline's scheduler, and the sampler {sampler!r} takes its steps from "
            "`schedule` and `num_inference_steps`. Leave out one of the two."
        )
    if asked.timesteps is not None and asked.sigmas is not None:
        raise ValueError("`timesteps` and `sigmas` are both given: pass one of them, they say the same thing.")
    if asked.denoising_end is None:
        return
    if not 0 < asked.denoising_end <= 1:
        raise ValueError(f"`denoising_end` must be above 0 and at most 1; got {asked.denoising_end}.")
    if has_hires:
        raise ValueError(
            "`denoising_end` leaves noise in the latents, which the hires pass would enlarge. Leave out one of them."
        )
