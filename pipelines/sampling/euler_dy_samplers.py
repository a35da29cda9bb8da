"""Euler Dy and Euler SMEA Dy: Euler steps that take a second look at another size early on.

After Koishi-Star/Euler-Smea-Dyn-Sampler, smea_sampling.py at d98a504 (Apache-2.0). The protocol is in loops.py; the
denoiser is also called with latents of other sizes. Quirks of that code, kept: noise is put in (subtracted) at every
sigma that the window of churn holds, as if s_churn were as large as it may be; the second looks come at fixed steps.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .loops import DenoiserFn, NoiseFn, StepFn, keep_latents, to_d


DY_STEPS = (2, 3)  # of Euler Dy
SMEA_STEP, SMEA_DY_STEP = 0, 1  # of Euler SMEA Dy
SMEA_SCALE = 1.25


def sample_euler_dy(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
) -> Tensor:
    """Euler steps; before steps 2 and 3 every second cell of every second row takes a step of its own."""
    for i in range(len(sigmas) - 1):
        eps = noise(sigmas[i], sigmas[i + 1]) * s_noise
        x, sigma_hat = _with_full_churn(x, sigmas[i], eps, s_churn / (len(sigmas) - 1), (s_tmin, s_tmax))
        d, dt = to_d(x, sigma_hat, denoiser(x, sigma_hat)), sigmas[i + 1] - sigma_hat
        if sigmas[i + 1] > 0 and i in DY_STEPS:
            x = dy_step(denoiser, x, sigma_hat, dt)
        x = on_step(i, x + d * dt)
    return x


def sample_euler_smea_dy(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
) -> Tensor:
    """Euler steps; after step 0 one of the enlarged latent, after step 1 one of every second cell."""
    for i in range(len(sigmas) - 1):
        eps = noise(sigmas[i], sigmas[i + 1]) * s_noise
        x, sigma_hat = _with_full_churn(x, sigmas[i], eps, s_churn / (len(sigmas) - 1), (s_tmin, s_tmax))
        d, dt = to_d(x, sigma_hat, denoiser(x, sigma_hat)), sigmas[i + 1] - sigma_hat
        x = x + d * dt
        if sigmas[i + 1] > 0 and i == SMEA_DY_STEP:
            x = dy_step(denoiser, x, sigma_hat, dt)
        if sigmas[i + 1] > 0 and i == SMEA_STEP:
            x = smea_step(denoiser, x, sigma_hat, dt)
        x = on_step(i, x)
    return x


def dy_step(denoiser: DenoiserFn, x: Tensor, sigma: Tensor, dt: Tensor) -> Tensor:
    """An Euler step of the cells with odd row and odd column alone, seen as a latent of half the size."""
    cells = x[:, :, 1::2, 1::2].contiguous()
    x = x.clone()
    x[:, :, 1::2, 1::2] = cells + to_d(cells, sigma, denoiser(cells, sigma)) * dt
    return x


def smea_step(denoiser: DenoiserFn, x: Tensor, sigma: Tensor, dt: Tensor) -> Tensor:
    """An Euler step of the latent enlarged by SMEA_SCALE, and back to its size."""
    size = x.shape[-2:]
    x = interpolate(x, scale_factor=(SMEA_SCALE, SMEA_SCALE), mode="nearest-exact")
    x = x + to_d(x, sigma, denoiser(x, sigma)) * dt
    return interpolate(x, size=size, mode="nearest-exact")


def _with_full_churn(
    x: Tensor, sigma: Tensor, eps: Tensor, share: float, window: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """(x, sigma_hat): noise of at least sqrt(2) - 1 times sigma, where the window of churn holds it."""
    if not window[0] <= sigma <= window[1]:
        return x, sigma
    sigma_hat = sigma * (max(share, 2**0.5 - 1) + 1)
    return x - eps * torch.sqrt(sigma_hat**2 - sigma**2), sigma_hat


EULER_DY_LOOPS = (sample_euler_dy, sample_euler_smea_dy)
