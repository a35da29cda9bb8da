"""DDIM, DDIM CFG++ and PLMS: loops over whole timesteps, in the model's own scale x = sqrt(a) x0 + sqrt(1 - a) eps.

A loop gets
    denoiser         has `eps(x, t)`: (guided eps, eps of the negative prompt), t a float tensor without dimensions
    x                (b, c, h, w) float32 at the noise level the loop starts from
    timesteps        (n,) rising, int64
    alphas_cumprod   (1000,) float32, on the CPU
and `noise` and `on_step` as in loops.py. Webui quirk, kept: the last step ends at timesteps[0] = 1 and not at the
clean latent, so that n timesteps make n - 1 steps. Square roots are taken in float32: PLMS shows the difference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .loops import NoiseFn, StepFn, keep_latents


def ddim_timesteps(steps: int, train_steps: int = 1000) -> Tensor:
    """1, 1 + q, 1 + 2q, ... with q = train_steps // steps, int64, rising: often more than `steps` (webui quirk).

    >>> ddim_timesteps(4)
    tensor([  1, 251, 501, 751])
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"DDIM, PLMS and UniPC take 1 to {train_steps} steps, one a timestep at most; got {steps}.")
    return (torch.arange(0, train_steps, train_steps // steps) + 1).clamp(max=train_steps - 1)


def sample_ddim(
    denoiser: Any,
    x: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    eta: float = 0.0,
    cfgpp: bool = False,
) -> Tensor:
    """Song et al. (2021), arXiv:2010.02502, equation 12. Where eta is not 0, every step takes a draw.

    cfgpp: the direction back to the noise follows the negative prompt's eps: Chung et al. (2024), arXiv:2406.08070.
    """
    falling = timesteps.flip(0)
    a, a_prev = alphas_cumprod[falling[:-1]], alphas_cumprod[falling[1:]]
    sigmas = _ddim_sigma(a.double(), a_prev.double(), eta)
    roots = (1 - a).sqrt(), a.sqrt(), a_prev.sqrt(), (1 - a_prev - sigmas**2).sqrt()
    steps = zip(falling[:-1].float(), falling[1:], *roots, sigmas)
    for i, (t, t_prev, noise_now, signal_now, signal, noise_kept, sigma) in enumerate(steps):
        e, e_uncond = denoiser.eps(x, t)
        x0 = (x - noise_now * e) / signal_now
        x = signal * x0 + noise_kept * (e_uncond if cfgpp else e)
        if eta:
            x = x + sigma * noise(t, t_prev)
        x = on_step(i, x)
    return x


def sample_ddim_cfgpp(
    denoiser: Any,
    x: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    eta: float = 0.0,
) -> Tensor:
    """DDIM CFG++. The guidance scale it is run at is the asked one divided by `Sampler.guidance_divisor`."""
    return sample_ddim(denoiser, x, timesteps, alphas_cumprod, noise=noise, on_step=on_step, eta=eta, cfgpp=True)


def sample_plms(
    denoiser: Any,
    x: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
) -> Tensor:
    """Pseudo linear multistep: Liu et al. (2022), arXiv:2202.09778, equations 11 and 12. Draws no noise."""
    falling = timesteps.flip(0)
    a, a_prev = alphas_cumprod[falling[:-1]], alphas_cumprod[falling[1:]]

    def transfer(x: Tensor, e: Tensor, roots: Sequence[Tensor]) -> Tensor:
        noise_now, signal_now, signal, noise_kept = roots
        return signal * ((x - noise_now * e) / signal_now) + noise_kept * e

    es: list[Tensor] = []  # newest first, at most three
    steps = zip(
        falling[:-1].float(), falling[1:].float(), (1 - a).sqrt(), a.sqrt(), a_prev.sqrt(), (1 - a_prev).sqrt()
    )
    for i, (t, t_prev, *roots) in enumerate(steps):
        e = denoiser.eps(x, t)[0]
        if len(es) == 0:
            e_prime = (e + denoiser.eps(transfer(x, e, roots), t_prev)[0]) / 2
        elif len(es) == 1:
            e_prime = (3 * e - es[0]) / 2
        elif len(es) == 2:
            e_prime = (23 * e - 16 * es[0] + 5 * es[1]) / 12
        else:
            e_prime = (55 * e - 59 * es[0] + 37 * es[1] - 9 * es[2]) / 24
        x = on_step(i, transfer(x, e_prime, roots))
        es = [e, *es[:2]]
    return x


def _ddim_sigma(a: Tensor, a_prev: Tensor, eta: float) -> Tensor:
    """Equation 16, float32; the root is taken in float64."""
    return eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)).sqrt().float()


TIMESTEP_LOOPS = (sample_ddim, sample_ddim_cfgpp, sample_plms)
