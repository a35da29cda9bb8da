"""Loops that add no noise, or only Karras's churn: Euler, Heun, DPM2, LMS, DPM++ 2M, Restart.

After k-diffusion 0.1.1, sampling.py (MIT), unless a loop says otherwise. The protocol is in loops.py.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .loops import DenoiserFn, NoiseFn, StepFn, keep_latents, to_d
from .schedules import karras_sigmas


LMS_ORDER = 4

# Restart from this many steps on: (least steps, steps of one restart; None = a quarter, times).
RESTART_PLANS = ((36, None, 2), (20, 9, 1))
RESTART_LOW, RESTART_HIGH = 0.1, 2.0


class Churn(NamedTuple):
    """Karras et al. (2022), algorithm 2: the sigmas that a schedule's steps really start from.

    hats: (n,) sigma_hat. spreads: deviations of the noise that leads to them, 0 where the window holds no sigma.
    """

    hats: Tensor
    spreads: list[float]

    @property
    def draws(self) -> bool:
        """Whether noise is put in anywhere. Then each step takes a draw, so that a window sees the right ones."""
        return any(self.spreads)


def churned(sigmas: Tensor, s_churn: float, s_tmin: float, s_tmax: float) -> Churn:
    """`Churn` of the options of these names. sigmas: (n + 1,)."""
    starts = sigmas[:-1]
    gamma = min(s_churn / max(len(starts), 1), 2**0.5 - 1)
    inside = (s_tmin <= starts) & (starts <= s_tmax) if gamma > 0 else torch.zeros_like(starts, dtype=torch.bool)
    hats = torch.where(inside, starts * (gamma + 1), starts)
    return Churn(hats, ((hats**2 - starts**2) ** 0.5).tolist())


def sample_euler(
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
    """Euler steps: Karras et al. (2022), algorithm 2 without the second order."""
    churn = churned(sigmas, s_churn, s_tmin, s_tmax)
    steps = zip(sigmas[:-1], sigmas[1:], churn.hats, sigmas[1:] - churn.hats, churn.spreads)
    for i, (sigma, sigma_next, sigma_hat, dt, spread) in enumerate(steps):
        if churn.draws:
            eps = noise(sigma, sigma_next) * s_noise
            x = x + eps * spread if spread else x
        x = on_step(i, x + to_d(x, sigma_hat, denoiser(x, sigma_hat)) * dt)
    return x


def sample_heun(
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
    """Heun steps: Karras et al. (2022), algorithm 2. Draws as `sample_euler` does."""
    churn = churned(sigmas, s_churn, s_tmin, s_tmax)
    steps = zip(sigmas[:-1], sigmas[1:], churn.hats, churn.spreads)
    for i, (sigma, sigma_next, sigma_hat, spread) in enumerate(steps):
        if churn.draws:
            eps = noise(sigma, sigma_next) * s_noise
            x = x + eps * spread if spread else x
        x = on_step(i, heun_step(denoiser, x, sigma_hat, sigma_next))
    return x


def heun_step(denoiser: DenoiserFn, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One Heun step; to 0 it is an Euler step."""
    dt = sigma_next - sigma
    d = to_d(x, sigma, denoiser(x, sigma))
    if sigma_next == 0:
        return x + d * dt
    x_2 = x + d * dt
    d_2 = to_d(x_2, sigma_next, denoiser(x_2, sigma_next))
    return x + (d + d_2) / 2 * dt


def sample_dpm_2(
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
    """DPM-Solver-2 steps with algorithm 2's churn. Draws as `sample_euler` does."""
    churn = churned(sigmas, s_churn, s_tmin, s_tmax)
    steps = zip(sigmas[:-1], sigmas[1:], churn.hats, sigmas[1:] - churn.hats, churn.spreads)
    for i, (sigma, sigma_next, sigma_hat, dt, spread) in enumerate(steps):
        if churn.draws:
            eps = noise(sigma, sigma_next) * s_noise
            x = x + eps * spread if spread else x
        d = to_d(x, sigma_hat, denoiser(x, sigma_hat))
        if sigma_next == 0:
            x = x + d * dt  # Euler
        else:
            sigma_mid = sigma_hat.log().lerp(sigma_next.log(), 0.5).exp()
            x_2 = x + d * (sigma_mid - sigma_hat)
            x = x + to_d(x_2, sigma_mid, denoiser(x_2, sigma_mid)) * dt
        x = on_step(i, x)
    return x


def sample_lms(
    denoiser: DenoiserFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: StepFn = keep_latents
) -> Tensor:
    """Linear multistep (Adams-Bashforth on uneven sigmas), order 4. Draws no noise."""
    levels = sigmas.cpu().numpy()
    ds: list[Tensor] = []  # newest first
    for i, sigma in enumerate(sigmas[:-1]):
        ds = [to_d(x, sigma, denoiser(x, sigma)), *ds[: LMS_ORDER - 1]]
        x = on_step(i, x + sum(w * d for w, d in zip(lms_weights(levels, i, len(ds)), ds)))
    return x


def lms_weights(levels: np.ndarray, i: int, order: int) -> list[float]:
    """Integrals, from levels[i] to levels[i + 1], of the Lagrange polynomials through the last `order` levels.

    k-diffusion integrates numerically; Gauss's rule with two nodes is exact up to degree 3. levels: float32, whose
    differences below the line stay float32.
    """
    nodes, shares = np.polynomial.legendre.leggauss(2)
    start, end = float(levels[i]), float(levels[i + 1])
    taus = start + (end - start) / 2 * (nodes + 1)
    weights = []
    for j in range(order):
        values = np.ones(2)
        for k in range(order):
            if k != j:
                values *= (taus - float(levels[i - k])) / float(levels[i - j] - levels[i - k])
        weights.append(float((end - start) / 2 * np.dot(shares, values)))
    return weights


def sample_dpmpp_2m(
    denoiser: DenoiserFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: StepFn = keep_latents
) -> Tensor:
    """DPM-Solver++(2M): Lu et al. (2022), arXiv:2211.01095, algorithm 2. Draws no noise."""
    t = -sigmas.log()
    h = t[1:] - t[:-1]
    reach = 1 / (2 * (h.roll(1) / h))  # of the difference from the step before
    steps = zip(sigmas[:-1], sigmas[1:].tolist(), (-t[1:]).exp() / (-t[:-1]).exp(), (-h).expm1(), 1 + reach, reach)
    old_denoised = None
    for i, (sigma, sigma_next, kept, turn, new, old) in enumerate(steps):
        denoised = denoiser(x, sigma)
        ahead = denoised
        if old_denoised is not None and sigma_next > 0:
            ahead = new * denoised - old * old_denoised
        x = on_step(i, kept * x - turn * ahead)
        old_denoised = denoised
    return x


def sample_restart(
    denoiser: DenoiserFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: StepFn = keep_latents
) -> Tensor:
    """Heun steps with leaps back up: Xu et al. (2023), "Restart Sampling", arXiv:2306.14878. From 20 steps on."""
    sigma = None
    for i, (sigma_from, sigma_to) in enumerate(restart_steps(sigmas)):
        if sigma is not None and sigma_from > sigma:
            x = x + noise(sigma, sigma_from) * (sigma_from**2 - sigma**2) ** 0.5
        x = on_step(i, heun_step(denoiser, x, sigma_from, sigma_to))
        sigma = sigma_to
    return x


def restart_steps(sigmas: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(from, to) of each Heun step, as many as `sigmas` has. A `from` above the last `to` is a leap back up.

    Webui quirk: from 20 steps on the schedule is made anew as Karras, whatever was asked for.
    """
    steps = len(sigmas) - 1
    plan = next(((length or steps // 4, times) for least, length, times in RESTART_PLANS if steps >= least), None)
    if plan is None:
        return list(zip(sigmas[:-1], sigmas[1:]))
    length, times = plan
    sigmas = karras_sigmas(steps - length * times, sigmas[sigmas > 0][-1].item(), sigmas[0].item())
    low, high = (int((sigmas - level).abs().argmin()) for level in (RESTART_LOW, RESTART_HIGH))
    path = list(zip(sigmas[:-1], sigmas[1:]))
    if high >= low:
        return path
    leap = karras_sigmas(length + 1, sigmas[low].item(), sigmas[high].item())[:-1]
    return [*path[:low], *list(zip(leap[:-1], leap[1:])) * times, *path[low:]]


ODE_LOOPS = (sample_euler, sample_heun, sample_dpm_2, sample_lms, sample_dpmpp_2m, sample_restart)
