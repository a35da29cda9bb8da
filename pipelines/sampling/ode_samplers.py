"""Loops that add no noise, or only Karras's churn: Euler, Heun, DPM2, LMS, DPM++ 2M, Restart.

After k-diffusion 0.1.1, sampling.py (MIT), unless a loop says otherwise. The protocol is in loops.py.
"""

import numpy as np
from torch import Tensor

from .loops import DenoiserFn, NoiseFn, StepFn, keep_latents, to_d
from .schedules import karras_sigmas


LMS_ORDER = 4

# Restart from this many steps on: (least steps, steps of one restart; None = a quarter, times).
RESTART_PLANS = ((36, None, 2), (20, 9, 1))
RESTART_LOW, RESTART_HIGH = 0.1, 2.0


def churned_sigma(sigma: Tensor, steps: int, s_churn: float, s_tmin: float, s_tmax: float) -> Tensor | None:
    """sigma_hat of Karras et al. (2022), algorithm 2, or None where no noise is put in."""
    gamma = min(s_churn / steps, 2**0.5 - 1) if s_tmin <= sigma <= s_tmax else 0.0
    return sigma * (gamma + 1) if gamma > 0 else None


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
    """Euler steps: Karras et al. (2022), algorithm 2 without the second order.

    A draw is taken in every step, also where there is no churn, so that a window of churn sees the right draws.
    """
    for i in range(len(sigmas) - 1):
        eps = noise(sigmas[i], sigmas[i + 1]) * s_noise
        sigma_hat = churned_sigma(sigmas[i], len(sigmas) - 1, s_churn, s_tmin, s_tmax)
        if sigma_hat is None:
            sigma_hat = sigmas[i]
        else:
            x = x + eps * (sigma_hat**2 - sigmas[i] ** 2) ** 0.5
        d = to_d(x, sigma_hat, denoiser(x, sigma_hat))
        x = on_step(i, x + d * (sigmas[i + 1] - sigma_hat))
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
    for i in range(len(sigmas) - 1):
        eps = noise(sigmas[i], sigmas[i + 1]) * s_noise
        sigma_hat = churned_sigma(sigmas[i], len(sigmas) - 1, s_churn, s_tmin, s_tmax)
        if sigma_hat is None:
            sigma_hat = sigmas[i]
        else:
            x = x + eps * (sigma_hat**2 - sigmas[i] ** 2) ** 0.5
        x = on_step(i, heun_step(denoiser, x, sigma_hat, sigmas[i + 1]))
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
    for i in range(len(sigmas) - 1):
        eps = noise(sigmas[i], sigmas[i + 1]) * s_noise
        sigma_hat = churned_sigma(sigmas[i], len(sigmas) - 1, s_churn, s_tmin, s_tmax)
        if sigma_hat is None:
            sigma_hat = sigmas[i]
        else:
            x = x + eps * (sigma_hat**2 - sigmas[i] ** 2) ** 0.5
        d = to_d(x, sigma_hat, denoiser(x, sigma_hat))
        if sigmas[i + 1] == 0:
            x = x + d * (sigmas[i + 1] - sigma_hat)  # Euler
        else:
            sigma_mid = sigma_hat.log().lerp(sigmas[i + 1].log(), 0.5).exp()
            x_2 = x + d * (sigma_mid - sigma_hat)
            x = x + to_d(x_2, sigma_mid, denoiser(x_2, sigma_mid)) * (sigmas[i + 1] - sigma_hat)
        x = on_step(i, x)
    return x


def sample_lms(
    denoiser: DenoiserFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: StepFn = keep_latents
) -> Tensor:
    """Linear multistep (Adams-Bashforth on uneven sigmas), order 4. Draws no noise."""
    levels = sigmas.cpu().numpy()
    ds: list[Tensor] = []  # newest first
    for i in range(len(sigmas) - 1):
        ds = [to_d(x, sigmas[i], denoiser(x, sigmas[i])), *ds[: LMS_ORDER - 1]]
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
    old_denoised = None
    for i in range(len(sigmas) - 1):
        denoised = denoiser(x, sigmas[i])
        t, t_next = -sigmas[i].log(), -sigmas[i + 1].log()
        h = t_next - t
        denoised_d = denoised
        if old_denoised is not None and sigmas[i + 1] > 0:
            r = (t + sigmas[i - 1].log()) / h
            denoised_d = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * old_denoised
        x = on_step(i, ((-t_next).exp() / (-t).exp()) * x - (-h).expm1() * denoised_d)
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
