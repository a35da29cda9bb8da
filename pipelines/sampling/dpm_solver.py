"""DPM fast and DPM adaptive: DPM-Solver in eps, on their own grids. Lu et al. (2022), arXiv:2206.00927.

After k-diffusion 0.1.1, sampling.py, class DPMSolver (MIT). Time is t = -ln(sigma). Both take noise in by default (eta
is 1 in the webui), which makes them stochastic. The protocol is in loops.py, but that the loops get a range instead
of sigmas.
"""

import math

import torch
from torch import Tensor

from .loops import DenoiserFn, NoiseFn, StepFn, ancestral_step, keep_latents


# Of the adaptive solver: tolerances on x, first step in t, share of the wanted step below which it is done again.
ADAPTIVE_RTOL, ADAPTIVE_ATOL = 0.05, 0.0078
ADAPTIVE_FIRST_STEP = 0.05
ADAPTIVE_SAFETY = 0.81


def sample_dpm_fast(
    denoiser: DenoiserFn,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    n: int,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver-Fast: `n` calls from sigma_max to sigma_min in groups of three, each a step of that order."""
    t_start, t_end = _dpm_range(sigma_min, sigma_max)
    groups = n // 3 + 1
    orders = [3] * (groups - 2) + [2, 1] if n % 3 == 0 else [3] * (groups - 1) + [n % 3]
    ts = torch.linspace(float(t_start), float(t_end), groups + 1)
    for i, order in enumerate(orders):
        t_next, deviation = _noised_step(ts[i], ts[i + 1], t_end, eta)
        x = _dpm_step(denoiser, x, ts[i], t_next, order)[-1]
        x = on_step(i, x + deviation * s_noise * noise((-ts[i]).exp(), (-ts[i + 1]).exp()))
    return x


def sample_dpm_adaptive(
    denoiser: DenoiserFn,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    n: int,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    eta: float = 0.0,
) -> Tensor:
    """DPM-Solver-23: steps as long as orders 2 and 3 agree. `n` has no say.

    Quirk: the disagreement is measured over the whole batch, so a picture depends on its batch mates.
    """
    t, t_end = _dpm_range(sigma_min, sigma_max)
    atol, rtol = torch.tensor(ADAPTIVE_ATOL), torch.tensor(ADAPTIVE_RTOL)
    h, accepted, x_low_last = ADAPTIVE_FIRST_STEP, 0, x
    while t < t_end - 1e-5:
        t_to = torch.minimum(t_end, t + h)
        t_next, deviation = _noised_step(t, t_to, t_end, eta)
        x_low, x_high = _dpm_step(denoiser, x, t, t_next, 3)
        delta = torch.maximum(atol.to(x.device), rtol * torch.maximum(x_low.abs(), x_low_last.abs()))
        error = float(torch.linalg.norm((x_low - x_high) / delta) / x.numel() ** 0.5)
        if math.isnan(error):  # the network's output is: no step would ever be short enough
            return x_high
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / (1.5 if eta else 3)) - 1)
        if factor >= ADAPTIVE_SAFETY:
            x_low_last = x_low
            x = on_step(accepted, x_high + deviation * noise((-t).exp(), (-t_to).exp()))
            t, accepted = t_to, accepted + 1
        h *= factor
    return x


def _dpm_range(sigma_min: float, sigma_max: float) -> tuple[Tensor, Tensor]:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"DPM fast and DPM adaptive need a range of sigmas above 0; got {sigma_min} to {sigma_max}. "
            "In img2img a single step has none: raise `strength` or the number of steps, or use another sampler."
        )
    return -torch.tensor(sigma_max).log(), -torch.tensor(sigma_min).log()


def _noised_step(t: Tensor, t_next: Tensor, t_end: Tensor, eta: float) -> tuple[Tensor, Tensor | float]:
    """Where to step to, and the deviation of the noise that then leads to t_next. Never beyond t_end."""
    if not eta:
        return t_next, 0.0
    sigma_down, _ = ancestral_step((-t).exp(), (-t_next).exp(), eta)
    t_down = torch.minimum(t_end, -sigma_down.log())
    return t_down, ((-t_next).exp() ** 2 - (-t_down).exp() ** 2) ** 0.5


def _dpm_step(denoiser: DenoiserFn, x: Tensor, t: Tensor, t_next: Tensor, order: int) -> tuple[Tensor, ...]:
    """A step of `order` from t to t_next. Order 3 gives two: that of order 2 by the same calls, then its own."""

    def eps_at(x: Tensor, t: Tensor) -> Tensor:
        sigma = (-t).exp()
        return (x - denoiser(x, sigma)) / sigma

    h, sigma_next = t_next - t, (-t_next).exp()
    eps = eps_at(x, t)
    euler = x - sigma_next * h.expm1() * eps
    if order == 1:
        return (euler,)
    r1, r2 = (1 / 2, None) if order == 2 else (1 / 3, 2 / 3)
    s1 = t + r1 * h
    eps_r1 = eps_at(x - (-s1).exp() * (r1 * h).expm1() * eps, s1)
    x_2 = euler - sigma_next / (2 * r1) * h.expm1() * (eps_r1 - eps)
    if r2 is None:
        return (x_2,)
    s2 = t + r2 * h
    turn = (r2 / r1) * ((r2 * h).expm1() / (r2 * h) - 1)
    eps_r2 = eps_at(x - (-s2).exp() * (r2 * h).expm1() * eps - (-s2).exp() * turn * (eps_r1 - eps), s2)
    return x_2, euler - sigma_next / r2 * (h.expm1() / h - 1) * (eps_r2 - eps)


DPM_SOLVER_LOOPS = (sample_dpm_fast, sample_dpm_adaptive)
