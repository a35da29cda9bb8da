"""CFG++: the estimate of x0 is the guided one, and the noise put back is the negative prompt's.

Chung et al. (2024), arXiv:2406.08070, section 3 and its rule for other solvers. The guidance scale is the paper's
lambda: useful from 0 to about 1, and not divided as DDIM CFG++'s is. A loop gets a denoiser with
`sides(x, sigma)`: (guided, negative prompt's) estimates of x0; otherwise the protocol is that of loops.py.
"""

from typing import Any

from torch import Tensor

from .loops import NoiseFn, StepFn, ancestral_step, keep_latents, to_d


def sample_euler_cfgpp(
    denoiser: Any, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: StepFn = keep_latents
) -> Tensor:
    """Euler steps, DDIM's in this scale: algorithm 2 of the paper. Draws no noise."""
    for i in range(len(sigmas) - 1):
        denoised, negative = denoiser.sides(x, sigmas[i])
        x = on_step(i, denoised + to_d(x, sigmas[i], negative) * sigmas[i + 1])
    return x


def sample_euler_ancestral_cfgpp(
    denoiser: Any,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    eta: float = 1.0,
) -> Tensor:
    """Euler steps to sigma_down, then noise up to the next sigma."""
    for i in range(len(sigmas) - 1):
        denoised, negative = denoiser.sides(x, sigmas[i])
        sigma_down, sigma_up = ancestral_step(sigmas[i], sigmas[i + 1], eta)
        x = denoised + to_d(x, sigmas[i], negative) * sigma_down
        if sigmas[i + 1] > 0:
            x = x + noise(sigmas[i], sigmas[i + 1]) * sigma_up
        x = on_step(i, x)
    return x


def sample_dpmpp_2m_cfgpp(
    denoiser: Any, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: StepFn = keep_latents
) -> Tensor:
    """DPM-Solver++(2M): x0 carried on from the step before, guided where it is kept, negative where noise is told from
    it. Without guidance it is `sample_dpmpp_2m`. Draws no noise."""
    last = None
    for i in range(len(sigmas) - 1):
        sides = denoiser.sides(x, sigmas[i])
        ahead = sides
        if last is not None and sigmas[i + 1] > 0:
            h_last, h = (sigmas[i - 1] / sigmas[i]).log(), (sigmas[i] / sigmas[i + 1]).log()
            reach = h / (2 * h_last)
            ahead = tuple(now + reach * (now - before) for now, before in zip(sides, last))
        denoised, negative = ahead
        x = on_step(i, denoised + sigmas[i + 1] / sigmas[i] * (x - negative))
        last = sides
    return x


CFGPP_LOOPS = (sample_euler_cfgpp, sample_euler_ancestral_cfgpp, sample_dpmpp_2m_cfgpp)
