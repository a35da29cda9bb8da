"""Loops that add noise in every step: ancestral ones, the DPM++ SDE family, LCM.

After k-diffusion 0.1.1, sampling.py (MIT), unless a loop says otherwise. The protocol is in loops.py.
"""

import torch
from torch import Tensor

from .discrete_schedule import NoiseTable
from .loops import DenoiserFn, NoiseFn, StepFn, ancestral_step, ancestral_steps, keep_latents, to_d


TCD_SLACK = 1e-3  # timesteps of a sigma from the table are whole but for rounding


def sample_euler_ancestral(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    eta: float = 1.0,
) -> Tensor:
    """Euler steps to sigma_down, then noise up to the next sigma."""
    downs, ups = ancestral_steps(sigmas, eta)
    steps = zip(sigmas[:-1], sigmas[1:], (sigmas[1:] > 0).tolist(), downs - sigmas[:-1], ups)
    for i, (sigma, sigma_next, goes_on, dt, sigma_up) in enumerate(steps):
        x = x + to_d(x, sigma, denoiser(x, sigma)) * dt
        if goes_on:
            x = x + noise(sigma, sigma_next) * sigma_up
        x = on_step(i, x)
    return x


def sample_dpm_2_ancestral(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver-2 steps to sigma_down, then noise."""
    for i in range(len(sigmas) - 1):
        d = to_d(x, sigmas[i], denoiser(x, sigmas[i]))
        sigma_down, sigma_up = ancestral_step(sigmas[i], sigmas[i + 1], eta)
        if sigma_down == 0:
            x = x + d * (sigma_down - sigmas[i])  # Euler
        else:
            sigma_mid = sigmas[i].log().lerp(sigma_down.log(), 0.5).exp()
            x_2 = x + d * (sigma_mid - sigmas[i])
            x = x + to_d(x_2, sigma_mid, denoiser(x_2, sigma_mid)) * (sigma_down - sigmas[i])
            x = x + noise(sigmas[i], sigmas[i + 1]) * s_noise * sigma_up
        x = on_step(i, x)
    return x


def sample_dpmpp_2s_ancestral(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver++(2S) steps to sigma_down, r = 1/2, then noise. Lu et al. (2022), arXiv:2211.01095, algorithm 1."""
    r = 1 / 2
    for i in range(len(sigmas) - 1):
        denoised = denoiser(x, sigmas[i])
        sigma_down, sigma_up = ancestral_step(sigmas[i], sigmas[i + 1], eta)
        if sigma_down == 0:
            x = x + to_d(x, sigmas[i], denoised) * (sigma_down - sigmas[i])  # Euler
        else:
            t, t_next = -sigmas[i].log(), -sigma_down.log()
            h = t_next - t
            sigma_mid = (-(t + r * h)).exp()
            x_2 = (sigma_mid / (-t).exp()) * x - (-h * r).expm1() * denoised
            denoised_2 = denoiser(x_2, sigma_mid)
            x = ((-t_next).exp() / (-t).exp()) * x - (-h).expm1() * denoised_2
        if sigmas[i + 1] > 0:
            x = x + noise(sigmas[i], sigmas[i + 1]) * s_noise * sigma_up
        x = on_step(i, x)
    return x


def sample_dpmpp_sde(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver++ (stochastic), two calls per step, r = 1/2. `noise` should be increments of one Brownian path."""
    r = 1 / 2
    for i in range(len(sigmas) - 1):
        denoised = denoiser(x, sigmas[i])
        if sigmas[i + 1] == 0:
            x = x + to_d(x, sigmas[i], denoised) * (sigmas[i + 1] - sigmas[i])  # Euler
        else:
            t, t_next = -sigmas[i].log(), -sigmas[i + 1].log()
            sigma, sigma_mid, sigma_next = (-t).exp(), (-(t + (t_next - t) * r)).exp(), (-t_next).exp()
            # Step 1: to the middle
            sigma_down, sigma_up = ancestral_step(sigma, sigma_mid, eta)
            t_down = -sigma_down.log()
            x_2 = ((-t_down).exp() / sigma) * x - (t - t_down).expm1() * denoised
            x_2 = x_2 + noise(sigma, sigma_mid) * s_noise * sigma_up
            denoised_2 = denoiser(x_2, sigma_mid)
            # Step 2: the whole way, along the middle's estimate (fac = 1 / 2r = 1)
            sigma_down, sigma_up = ancestral_step(sigma, sigma_next, eta)
            t_down = -sigma_down.log()
            x = ((-t_down).exp() / sigma) * x - (t - t_down).expm1() * denoised_2
            x = x + noise(sigma, sigma_next) * s_noise * sigma_up
        x = on_step(i, x)
    return x


def sample_dpmpp_2m_sde(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    eta: float = 1.0,
    s_noise: float = 1.0,
    heun: bool = False,
) -> Tensor:
    """DPM-Solver++(2M) SDE, with the midpoint rule or Heun's. `noise` should be increments of one Brownian path."""
    h = sigmas[:-1].log() - sigmas[1:].log()
    h_eta = h + eta * h
    turn = (-h_eta).expm1().neg()
    half = turn / (-h_eta) + 1 if heun else 0.5 * turn
    kept, reach = sigmas[1:] / sigmas[:-1] * (-eta * h).exp(), half * (1 / (h.roll(1) / h))
    spread = (-2 * eta * h).expm1().neg().sqrt()
    old_denoised = None
    steps = zip(sigmas[:-1], sigmas[1:], (sigmas[1:] > 0).tolist(), kept, turn, reach, spread)
    for i, (sigma, sigma_next, goes_on, c_x, c_denoised, c_change, deviation) in enumerate(steps):
        denoised = denoiser(x, sigma)
        if not goes_on:
            x = denoised
        else:
            x = c_x * x + c_denoised * denoised
            if old_denoised is not None:
                x = x + c_change * (denoised - old_denoised)
            if eta:
                x = x + noise(sigma, sigma_next) * sigma_next * deviation * s_noise
        old_denoised = denoised
        x = on_step(i, x)
    return x


def sample_dpmpp_2m_sde_heun(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """`sample_dpmpp_2m_sde` with Heun's rule."""
    return sample_dpmpp_2m_sde(denoiser, x, sigmas, noise=noise, on_step=on_step, eta=eta, s_noise=s_noise, heun=True)


def sample_dpmpp_3m_sde(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver++(3M) SDE. `noise` should be increments of one Brownian path."""
    denoised_1, denoised_2, h_1, h_2 = None, None, None, None
    for i in range(len(sigmas) - 1):
        denoised = denoiser(x, sigmas[i])
        if sigmas[i + 1] == 0:
            x = denoised
        else:
            h = sigmas[i].log() - sigmas[i + 1].log()
            h_eta = h * (eta + 1)
            x = torch.exp(-h_eta) * x + (-h_eta).expm1().neg() * denoised
            phi_2 = h_eta.neg().expm1() / h_eta + 1
            if h_2 is not None:
                r0, r1 = h_1 / h, h_2 / h
                d1_0, d1_1 = (denoised - denoised_1) / r0, (denoised_1 - denoised_2) / r1
                d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
                d2 = (d1_0 - d1_1) / (r0 + r1)
                x = x + phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
            elif h_1 is not None:
                d = (denoised - denoised_1) / (h_1 / h)
                x = x + phi_2 * d
            if eta:
                spread = (-2 * h * eta).expm1().neg().sqrt()
                x = x + noise(sigmas[i], sigmas[i + 1]) * sigmas[i + 1] * spread * s_noise
            denoised_1, denoised_2, h_1, h_2 = denoised, denoised_1, h, h_1
        x = on_step(i, x)
    return x


def sample_lcm(
    denoiser: DenoiserFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: StepFn = keep_latents
) -> Tensor:
    """Latent consistency: jump to x0, put noise back. Luo et al. (2023), arXiv:2310.04378, algorithm 3."""
    for i in range(len(sigmas) - 1):
        x = denoiser(x, sigmas[i])
        if sigmas[i + 1] > 0:
            x = x + sigmas[i + 1] * noise(sigmas[i], sigmas[i + 1])
        x = on_step(i, x)
    return x


def sample_ddpm(
    denoiser: DenoiserFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: StepFn = keep_latents
) -> Tensor:
    """Ancestral sampling of DDPM: Ho et al. (2020), arXiv:2006.11239, algorithm 2, between any two noise levels.

    With the small of its two variances that is `sample_euler_ancestral` at eta = 1, whatever eta is asked for; so is
    diffusers' DDPMScheduler (Apache-2.0).
    """
    return sample_euler_ancestral(denoiser, x, sigmas, noise=noise, on_step=on_step)


def sample_tcd(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    table: NoiseTable,
    eta: float = 0.3,
) -> Tensor:
    """Trajectory consistency: back to timestep (1 - eta) t of the next level, then noise up to it.

    Zheng et al. (2024), arXiv:2402.19159, algorithm 4 (eta is its gamma), after diffusers' TCDScheduler (Apache-2.0).
    """
    for i in range(len(sigmas) - 1):
        denoised = denoiser(x, sigmas[i])
        if sigmas[i + 1] == 0:
            x = denoised
        else:
            t = (1 - eta) * table.sigma_to_t(sigmas[i + 1])
            sigma_s = torch.minimum(table.sigmas[int(t + TCD_SLACK)], sigmas[i + 1])
            x = denoised + to_d(x, sigmas[i], denoised) * sigma_s
            if eta:
                x = x + noise(sigmas[i], sigmas[i + 1]) * (sigmas[i + 1] ** 2 - sigma_s**2).sqrt()
        x = on_step(i, x)
    return x


SDE_LOOPS = (
    sample_euler_ancestral,
    sample_dpm_2_ancestral,
    sample_dpmpp_2s_ancestral,
    sample_dpmpp_sde,
    sample_dpmpp_2m_sde,
    sample_dpmpp_2m_sde_heun,
    sample_dpmpp_3m_sde,
    sample_lcm,
    sample_ddpm,
    sample_tcd,
)
