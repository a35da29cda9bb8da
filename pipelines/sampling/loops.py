"""What every sampler loop shares.

Sampling here is a function over sigmas and not `scheduler.step`: the webui's pictures come of k-diffusion's loops, of
one noise stream per image and of conditioning that changes by step, and a scheduler's `step` sees none of these.

A loop gets
    denoiser   D(x, sigma): the guided estimate of x0. x (b, c, h, w) float32; sigma a tensor without dimensions
    x          (b, c, h, w) float32 = x0 + sigmas[0] * noise
    sigmas     (n + 1,) falling, float32, on the CPU: its arithmetic then never waits for a device
    noise      (sigma, sigma_next) -> (b, c, h, w) of unit variance, for the step between the two
    on_step    (i, x) -> x: called after step i = 0, 1, ... with its latents, and may replace them or raise
and returns the latents at the last sigma. Letters are those of Karras et al. (2022), arXiv:2206.00364.
"""

from collections.abc import Callable

import torch
from torch import Tensor


DenoiserFn = Callable[[Tensor, Tensor], Tensor]
NoiseFn = Callable[[Tensor, Tensor], Tensor]
StepFn = Callable[[int, Tensor], Tensor]


def keep_latents(i: int, x: Tensor) -> Tensor:
    """The `on_step` that does nothing."""
    return x


def to_d(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """dx/dsigma of the probability flow: (x - D) / sigma."""
    return (x - denoised) / sigma


def ancestral_step(sigma_from: Tensor, sigma_to: Tensor, eta: float) -> tuple[Tensor, Tensor | float]:
    """(sigma_down, sigma_up): step down to the first, then add noise of the second. eta: 0 (no noise) to 1.

    After k-diffusion 0.1.1, sampling.py, get_ancestral_step (MIT), as are the loops that call it.
    """
    if not eta:
        return sigma_to, 0.0
    sigma_up = min(sigma_to, eta * (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5)
    return (sigma_to**2 - sigma_up**2) ** 0.5, sigma_up


def ancestral_steps(sigmas: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """`ancestral_step` of all steps at once: (n,) sigma_down and (n,) sigma_up. sigmas: (n + 1,)."""
    start, end = sigmas[:-1], sigmas[1:]
    if not eta:
        return end, torch.zeros_like(end)
    ups = torch.minimum(end, eta * (end**2 * (start**2 - end**2) / start**2) ** 0.5)
    return (end**2 - ups**2) ** 0.5, ups
