"""Single arguments of a call: read, and refused where they cannot be drawn as asked."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ..loaders.utils import unknown_choice
from .argument_values import WEBUI_API_NAMES, check_values
from .images.hires import LATENT_CELL
from .prompt.prompt_2 import as_negatives
from .request import NoiseRequest, StepArguments
from .sampling.noise import NOISE_SOURCES


DEPRECATED_ARGUMENTS = ("callback", "callback_steps")  # of diffusers; its own call still takes them


def prompt_list(
    prompt: str | Sequence[str] | None, negative: Any, images: int, embeds: Tensor | None = None
) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts, one an image: each prompt is repeated for its `images` images.

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


def noise_request(given: Mapping[str, Any], count: int, device: torch.device) -> NoiseRequest:
    """The noise of `count` images. Image i gets seed + i; with a variation all share `seed` and get subseed + i.

    seed: -1 draws one, and None too where a sampler is named and no generator given; a list gives every image its own.
    """
    if given["noise_source"] not in NOISE_SOURCES:
        raise ValueError(unknown_choice("`noise_source`:", given["noise_source"], NOISE_SOURCES))
    generator, variation = given["generator"], float(given["subseed_strength"])
    if given["seed"] is None and (given["sampler"] is None or generator is not None):
        return NoiseRequest(generator=generator, device=device)
    return NoiseRequest(
        seeds=_seed_list("seed", count, given["seed"], step=0 if variation else 1),
        subseeds=_seed_list("subseed", count, 0 if given["subseed"] is None else given["subseed"], step=1),
        subseed_strength=variation,
        seed_resize=given["seed_resize"],
        source=given["noise_source"],
        generator=generator,
        device=device,
    )


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


def call_size(pipe: Any, width: int | None, height: int | None, sampler: str | None) -> tuple[int, int]:
    """(width, height) in pixels, by default the model's own.

    With a sampler named any size from one latent cell up is drawn, as in the webui: the latents are cut to whole cells
    of 8 pixels. Without one, diffusers' rule holds.
    """
    sample = pipe.unet.config.sample_size
    rows, columns = (sample, sample) if isinstance(sample, int) else sample
    width, height = width or columns * pipe.vae_scale_factor, height or rows * pipe.vae_scale_factor
    if min(width, height) < LATENT_CELL:
        raise ValueError(f"`width` and `height` must be at least {LATENT_CELL} pixels; got {width}x{height}.")
    if (width % LATENT_CELL or height % LATENT_CELL) and sampler is None:
        raise ValueError(
            f"`width` and `height` must be multiples of 8 (a latent cell is 8x8 pixels); got {width}x{height}. "
            f"The nearest are {round(width / 8) * 8 or 8}x{round(height / 8) * 8 or 8}."
        )
    return width, height


def check_leftovers(kwargs: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that the call does not have, with the near ones; and values of another kind.

    given: the call's own arguments by name.
    """
    for name in kwargs:
        if name in WEBUI_API_NAMES and name not in given:
            raise ValueError(f"argument {name!r} is of the webui's API; here it is {WEBUI_API_NAMES[name]}.")
        if name not in DEPRECATED_ARGUMENTS:
            raise ValueError(unknown_choice("argument", name, given))
    check_values(given)


def check_callback_inputs(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse tensors for `callback_on_step_end` that there are not. known: the names there are."""
    for name in names:
        if name not in known:
            raise ValueError(unknown_choice("`callback_on_step_end_tensor_inputs`:", name, known))


def checked_strength(argument: str, strength: float) -> float:
    """How much is drawn anew, 0 to 1. Raises ValueError for anything else."""
    if not 0 <= strength <= 1 or math.isnan(strength):
        raise ValueError(f"`{argument}` must be from 0 (keep the picture) to 1 (draw anew); got {strength}.")
    return float(strength)


def refuse_unread(pipe: Any, given: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse arguments of the pipeline's call that only diffusers' own drawing reads, where they are not at their
    defaults."""
    parameters = signature(type(pipe).__call__).parameters
    for name in (name for name in names if name in parameters):
        default = parameters[name].default
        if given[name] is not None and (default is None or given[name] != default):
            raise ValueError(
                f"`{name}` is read by diffusers' own drawing only, and this call asks for more: a webui argument, or "
                f"prompts with edits, AND or networks. Leave out `{name}`, or those."
            )


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
