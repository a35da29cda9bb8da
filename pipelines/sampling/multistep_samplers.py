"""Multistep loops that webui forks have: iPNDM, iPNDM_v, DEIS, Gradient Estimation, SA-Solver, ER-SDE.

Each after the code of its authors, named in its docstring. The protocol is in loops.py.
"""

from collections.abc import Sequence
from math import exp

import numpy as np
from torch import Tensor

from .discrete_schedule import NoiseTable
from .loops import DenoiserFn, NoiseFn, StepFn, keep_latents, to_d


MULTISTEP_ORDER = 4
IPNDM_WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
DEIS_BETA_RANGE = (0.002, 80.0)  # sigmas at the ends of the continuous time that DEIS interpolates in
DEIS_FIRST_TIME = 1e-3
DEIS_NODES = 24
GRADIENT_GAMMA = 2.0
SA_NOISE_TIMESTEPS = (200, 800)  # SA-Solver adds noise between these timesteps
ER_SDE_POINTS = 100
ER_SDE_CLIP = 1e-6


def sample_ipndm(
    denoiser: DenoiserFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: StepFn = keep_latents
) -> Tensor:
    """iPNDM: Adams-Bashforth of order 4 with the weights of even steps. Draws no noise.

    Zhang & Chen (2023), arXiv:2204.13902, after zju-pi/diff-sampler, diff-solvers-main/solvers.py at 68d5ce4
    (Apache-2.0), `ipndm_sampler`.
    """
    ds: list[Tensor] = []  # newest first
    for i in range(len(sigmas) - 1):
        ds = [to_d(x, sigmas[i], denoiser(x, sigmas[i])), *ds[: MULTISTEP_ORDER - 1]]
        slope = sum(w * d for w, d in zip(IPNDM_WEIGHTS[len(ds) - 1], ds))
        x = on_step(i, x + slope * (sigmas[i + 1] - sigmas[i]))
    return x


def sample_ipndm_v(
    denoiser: DenoiserFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: StepFn = keep_latents
) -> Tensor:
    """iPNDM_v: Adams-Bashforth of order 4 with weights for uneven steps. Draws no noise.

    After zju-pi/diff-sampler, diff-solvers-main/solvers.py at 68d5ce4 (Apache-2.0), `ipndm_v_sampler`.
    """
    levels, ds = sigmas.double().tolist(), []  # newest first
    for i in range(len(sigmas) - 1):
        ds = [to_d(x, sigmas[i], denoiser(x, sigmas[i])), *ds[: MULTISTEP_ORDER - 1]]
        steps = [levels[i + 1 - k] - levels[i - k] for k in range(len(ds))]
        slope = sum(w * d for w, d in zip(ipndm_v_weights(steps), ds))
        x = on_step(i, x + slope * (sigmas[i + 1] - sigmas[i]))
    return x


def ipndm_v_weights(steps: Sequence[float]) -> list[float]:
    """Weights of the slopes, newest first. steps: the step to take, and the 0 to 3 before it, newest first.

    Quirk of the authors' code, kept: the weights of orders 3 and 4 are not those of Adams and Bashforth.
    """
    h, *before = steps
    if not before:
        return [1.0]
    h1 = before[0]
    weights = [1 + h / h1 / 2, -h / h1 / 2]
    if len(before) == 1:
        return weights
    h2 = before[1]
    third = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
    weights = [weights[0] + third, weights[1] - (1 + h1 / h2) * third, third * h1 / h2]
    if len(before) == 2:
        return weights
    h3 = before[2]
    fourth = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
    fourth *= (h * (h + h1) * (h + h1 + h2)) / (h1 * (h1 + h2) * (h1 + h2 + h3))
    ratio = h1 * (h1 + h2) / (h2 * (h2 + h3))
    return [
        weights[0] + fourth,
        weights[1] - (1 + h1 / h2 + ratio) * fourth,
        weights[2] + (h1 / h2 + ratio * (1 + h2 / h3)) * fourth,
        -fourth * ratio * h1 / h2,
    ]


def sample_deis(
    denoiser: DenoiserFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: StepFn = keep_latents
) -> Tensor:
    """tAB-DEIS of order 4: eps is a polynomial in continuous time between evaluations. Draws no noise.

    Zhang & Chen (2023), arXiv:2204.13902, after zju-pi/diff-sampler, diff-solvers-main/solvers.py and solver_utils.py
    at 68d5ce4 (Apache-2.0), `deis_sampler` with `deis_mode="tab"`.
    """
    levels, ds = sigmas.double().tolist(), []  # newest first
    for i in range(len(sigmas) - 1):
        ds = [to_d(x, sigmas[i], denoiser(x, sigmas[i])), *ds[: MULTISTEP_ORDER - 1]]
        weights = deis_weights(levels, i, len(ds))
        x = on_step(i, x + sum(w * d for w, d in zip(weights, ds)))
    return x


def deis_weights(levels: Sequence[float], i: int, order: int) -> list[float]:
    """Integrals over sigma, from levels[i] to levels[i + 1], of the Lagrange polynomials through the times of the
    last `order` levels, newest first. The authors sum 10,000 points over time; Gauss's rule over sigma is exact here.
    """
    nodes, shares = np.polynomial.legendre.leggauss(DEIS_NODES)
    half = (levels[i + 1] - levels[i]) / 2
    times = deis_times(levels[i] + half * (nodes + 1))
    known = deis_times(np.array([levels[i - k] for k in range(order)]))
    weights = []
    for j in range(order):
        values = np.ones(DEIS_NODES)
        for k in range(order):
            if k != j:
                values *= (times - known[k]) / (known[j] - known[k])
        weights.append(float(half * np.dot(shares, values)))
    return weights


def deis_times(sigmas: np.ndarray) -> np.ndarray:
    """Time of the variance preserving process with linear betas that ends at DEIS_BETA_RANGE: Karras et al. (2022),
    table 1."""
    low, high = (np.log(sigma**2 + 1) for sigma in DEIS_BETA_RANGE)
    beta_d = 2 * (low / DEIS_FIRST_TIME - high) / (DEIS_FIRST_TIME - 1)
    beta_min = high - 0.5 * beta_d
    return (np.sqrt(beta_min**2 + 2 * beta_d * np.log(sigmas**2 + 1)) - beta_min) / beta_d


def sample_gradient_estimation(
    denoiser: DenoiserFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: StepFn = keep_latents
) -> Tensor:
    """Euler steps along gamma d + (1 - gamma) d of the step before. Draws no noise.

    Permenter & Yuan (2024), arXiv:2306.04848, equation 12, gamma = 2, after ToyotaResearchInstitute/
    gradient-estimation-sampler, gescheduler/scheduling_gradient_estimation.py at 6809d28 (MIT).
    """
    d_last = None
    for i in range(len(sigmas) - 1):
        d = to_d(x, sigmas[i], denoiser(x, sigmas[i]))
        slope = d if d_last is None else GRADIENT_GAMMA * d + (1 - GRADIENT_GAMMA) * d_last
        x = on_step(i, x + slope * (sigmas[i + 1] - sigmas[i]))
        d_last = d
    return x


def sample_sa_solver(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    table: NoiseTable,
) -> Tensor:
    """SA-Solver, predictor and corrector of order 2 in x0, one evaluation a step; noise between timesteps 200 and 800.

    Xue et al. (2023), arXiv:2309.05019, after scxue/SA-Solver, sa_solver.py at 876f3dd (MIT), `sample_few_steps`, with
    the defaults of diffusers' SASolverScheduler (Apache-2.0). With k = 1 + tau**2 both updates have the closed forms
    below, the modification of order 2 included.
    """
    lambdas = -sigmas.log()
    d_last = None
    denoised = denoiser(x, sigmas[0])
    for i in range(len(sigmas) - 1):
        if sigmas[i + 1] == 0:
            return on_step(i, denoised)
        h, t = lambdas[i + 1] - lambdas[i], table.sigma_to_t(sigmas[i])
        tau = 1 if SA_NOISE_TIMESTEPS[0] <= t.round() <= SA_NOISE_TIMESTEPS[1] else 0
        k = 1 + tau**2
        decay = (-(tau**2) * h).exp() * sigmas[i + 1] / sigmas[i]
        base = decay * x - (-k * h).expm1() * denoised
        if tau:
            base = base + noise(sigmas[i], sigmas[i + 1]) * sigmas[i + 1] * (-(-2 * tau**2 * h).expm1()).sqrt()
        x = base
        last = i + 2 == len(sigmas)
        if d_last is not None and not last:
            x = x + k * h**2 / 2 / (lambdas[i] - lambdas[i - 1]) * (denoised - d_last)
        if not last:
            d_last, denoised = denoised, denoiser(x, sigmas[i + 1])
            x = base + k * h / 2 * (denoised - d_last)
        x = on_step(i, x)
    return x


def sample_er_sde(
    denoiser: DenoiserFn, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: StepFn = keep_latents
) -> Tensor:
    """ER-SDE-Solver of order 3, variance exploding, with the authors' noise scale sigma (exp(sigma**0.3) + 10).

    Cui et al. (2023), arXiv:2309.06169, after QinpengCui/ER-SDE-Solver, er_sde_solver.py at 25ca6c2 (MIT),
    `ve_3_order_taylor`, whose integrals are sums of 100 points; the last step, to 0, takes no draw.
    """
    levels = sigmas.double().tolist()
    old, d_old = None, None
    for i, (sigma, sigma_next) in enumerate(zip(levels[:-1], levels[1:])):
        denoised = denoiser(x, sigmas[i])
        scale = er_sde_scale(sigma_next)
        r = scale / er_sde_scale(sigma)
        moved = r * x + (1 - r) * denoised
        if old is not None and sigma_next > 0:
            d = (denoised - old) / (sigma - levels[i - 1])
            first, second = _er_sde_integrals(sigma, sigma_next)
            moved = moved + (sigma_next - sigma + first * scale) * d
            if d_old is not None:
                dd = 2 * (d - d_old) / (sigma - levels[i - 2])
                moved = moved + ((sigma_next - sigma) ** 2 / 2 + second * scale) * dd
            d_old = d
        variance = sigma_next**2 - sigma**2 * r**2
        if sigma_next > 0:
            draw = noise(sigmas[i], sigmas[i + 1])
            moved = moved + draw * (variance**0.5 if variance >= ER_SDE_CLIP else 0.0)
        old, x = denoised, on_step(i, moved)
    return x


def er_sde_scale(sigma: float) -> float:
    """The noise scale function of the paper's SDE 5."""
    return sigma * (exp(sigma**0.3) + 10)


def _er_sde_integrals(sigma: float, sigma_next: float) -> tuple[float, float]:
    """Sums for the integrals of 1 / scale and (s - sigma) / scale over s from sigma_next to sigma."""
    share = (sigma - sigma_next) / ER_SDE_POINTS
    places = [sigma_next + n * share for n in range(ER_SDE_POINTS)]
    inverse = [1 / er_sde_scale(place) for place in places]
    return share * sum(inverse), share * sum((place - sigma) * w for place, w in zip(places, inverse))


MULTISTEP_LOOPS = (
    sample_ipndm,
    sample_ipndm_v,
    sample_deis,
    sample_gradient_estimation,
    sample_sa_solver,
    sample_er_sde,
)
