"""Stepping with a diffusers scheduler: what draws when no sampler of the webui is named.

The loop is that of diffusers' StableDiffusionPipeline and StableDiffusionImg2ImgPipeline, around our denoiser, so that
prompt editing, AND and networks work with any scheduler.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from torch import Generator, Tensor

from .denoiser import GuidedDenoiser


def scheduler_timesteps(
    scheduler: Any,
    steps: int,
    device: torch.device,
    *,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    denoising_end: float | None = None,
    strength: float | None = None,
) -> Tensor:
    """Set the scheduler up and return the timesteps to run, descending.

    timesteps, sigmas, denoising_end: as in diffusers' pipelines. strength: 0..1, run only the last
    int(steps * strength) steps, as diffusers' img2img does.
    """
    every, count = retrieve_timesteps(scheduler, steps, device, timesteps, sigmas)
    first = 0
    if strength is not None:
        first = max(count - min(int(count * strength), count), 0) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    if denoising_end is not None and 0 < denoising_end < 1:
        train = scheduler.config.num_train_timesteps
        every = every[every >= round(train - denoising_end * train)]
    return every[first:]


def sample_with_scheduler(
    scheduler: Any,
    denoiser: GuidedDenoiser,
    latents: Tensor,
    timesteps: Tensor,
    *,
    eta: float = 0.0,
    generator: Generator | list[Generator] | None = None,
    on_step: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """Run `timesteps` from `latents` (b, c, h, w), which are already at the first one's noise level."""
    accepted = inspect.signature(scheduler.step).parameters
    extra = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}
    values = timesteps.tolist()  # once, so that no step waits for them
    for i, t in enumerate(timesteps):
        output = denoiser.output(scheduler.scale_model_input(latents, t), values[i])
        latents = scheduler.step(output, t, latents, **extra, return_dict=False)[0]
        if on_step is not None:
            latents = on_step(i, latents)
    return latents
