"""Noise schedules: which sigmas a picture passes through, by the webui's labels (1.10.1)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from ..options import SAMPLING_DEFAULTS
from .discrete_schedule import NoiseTable
from .labels import SCHEDULE_ROWS, ScheduleRow


# Sabour et al. (2024), "Align Your Steps", arXiv:2404.14507: optimized for 10 steps.
AYS_SD = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)

LAPLACE_SCALE = 0.5
LINEAR_QUADRATIC_THRESHOLD = 0.025


@dataclass(frozen=True)
class ScheduleInputs:
    """What a schedule is made from."""

    steps: int
    sigma_min: float
    sigma_max: float
    table: NoiseTable
    rho: float | None = None  # None: the schedule's own
    quantize: bool = False  # timesteps of sigma_min and sigma_max are whole
    beta_alpha: float = SAMPLING_DEFAULTS["beta_dist_alpha"]
    beta_beta: float = SAMPLING_DEFAULTS["beta_dist_beta"]
    is_sdxl: bool = False


@dataclass(frozen=True)
class Schedule(ScheduleRow):
    """A row of `SCHEDULES`. function: (ScheduleInputs) -> sigmas (about steps + 1,), falling, float32."""

    function: Callable[[ScheduleInputs], Tensor] = field(kw_only=True)


def get_sigmas_uniform(inputs: ScheduleInputs) -> Tensor:
    """Evenly spaced timesteps over the whole table; the range of sigmas asked for has no say."""
    return end_at_zero(inputs.table.uniform_sigmas(inputs.steps))


def get_sigmas_karras(inputs: ScheduleInputs) -> Tensor:
    """Evenly spaced sigma ** (1 / rho), rho = 7."""
    return karras_sigmas(inputs.steps, inputs.sigma_min, inputs.sigma_max, inputs.rho or 7.0)


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Karras et al. (2022), equation 5, and a 0: (n + 1,) float32. After k-diffusion 0.1.1, sampling.py (MIT)."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return end_at_zero((high + torch.linspace(0, 1, n) * (low - high)) ** rho)


def get_sigmas_exponential(inputs: ScheduleInputs) -> Tensor:
    """Evenly spaced ln(sigma). After k-diffusion 0.1.1, sampling.py (MIT)."""
    return end_at_zero(torch.linspace(math.log(inputs.sigma_max), math.log(inputs.sigma_min), inputs.steps).exp())


def get_sigmas_polyexponential(inputs: ScheduleInputs) -> Tensor:
    """Polynomial in ln(sigma), rho = 1. After k-diffusion 0.1.1, sampling.py (MIT)."""
    ramp = torch.linspace(1, 0, inputs.steps) ** (inputs.rho or 1.0)
    low, high = math.log(inputs.sigma_min), math.log(inputs.sigma_max)
    return end_at_zero(torch.exp(ramp * (high - low) + low))


def get_sigmas_sgm_uniform(inputs: ScheduleInputs) -> Tensor:
    """Evenly spaced timesteps that stop one short of sigma_min, as in Stability's generative-models."""
    return end_at_zero(inputs.table.t_to_sigma(_timestep_ramp(inputs, inputs.steps + 1)[:-1]))


def get_sigmas_normal(inputs: ScheduleInputs) -> Tensor:
    """Evenly spaced timesteps from sigma_max to sigma_min."""
    return end_at_zero(inputs.table.t_to_sigma(_timestep_ramp(inputs, inputs.steps)))


def get_sigmas_kl_optimal(inputs: ScheduleInputs) -> Tensor:
    """Evenly spaced arctan(sigma); "Align Your Steps", arXiv:2404.14507, theorem 3.1. Ends at sigma_min, not at 0."""
    ramp = torch.arange(inputs.steps + 1).float() / inputs.steps
    return torch.tan(ramp * math.atan(inputs.sigma_min) + (1 - ramp) * math.atan(inputs.sigma_max))


def get_sigmas_align_your_steps(inputs: ScheduleInputs) -> Tensor:
    """The paper's table for 10 steps, or points evenly spaced along it in ln(sigma)."""
    knots = np.array(AYS_SDXL if inputs.is_sdxl else AYS_SD)
    if inputs.steps != len(knots):
        places = np.linspace(0, 1, inputs.steps)
        knots = np.exp(np.interp(places, np.linspace(0, 1, len(knots)), np.log(knots[::-1])))[::-1]
        knots = knots.copy()
    return end_at_zero(torch.from_numpy(knots).float())


def get_sigmas_simple(inputs: ScheduleInputs) -> Tensor:
    """Every n-th row of the table, from the top."""
    rows = len(inputs.table.sigmas)
    places = [rows - 1 - int(i * rows / inputs.steps) for i in range(inputs.steps)]
    return end_at_zero(inputs.table.sigmas[places])


def get_sigmas_ddim(inputs: ScheduleInputs) -> Tensor:
    """DDIM's timesteps 1, 1 + k, 1 + 2k, ... with k = rows // steps: often more sigmas than steps (webui quirk)."""
    stride = max(len(inputs.table.sigmas) // inputs.steps, 1)
    return end_at_zero(inputs.table.sigmas[1::stride].flip(0))


def get_sigmas_beta(inputs: ScheduleInputs) -> Tensor:
    """Quantiles of a beta distribution, after "Beta Sampling is All You Need", arXiv:2407.12173.

    The webui spreads the quantiles over sigma, where the paper spreads them over timesteps; kept.
    """
    quantiles = betaincinv(inputs.beta_alpha, inputs.beta_beta, 1 - np.linspace(0, 1, inputs.steps))
    sigmas = inputs.sigma_min + quantiles * (inputs.sigma_max - inputs.sigma_min)
    return end_at_zero(torch.from_numpy(sigmas).float())


def end_at_zero(sigmas: Tensor) -> Tensor:
    """`sigmas` (n,) and a 0."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _timestep_ramp(inputs: ScheduleInputs, points: int) -> Tensor:
    ends = torch.tensor([inputs.sigma_max, inputs.sigma_min])
    t_max, t_min = inputs.table.sigma_to_t(ends, inputs.quantize).tolist()
    return torch.linspace(t_max, t_min, points)


def get_sigmas_turbo(inputs: ScheduleInputs) -> Tensor:
    """Timesteps counted from the last one down in even strides, as SDXL Turbo is released: diffusers' "trailing"."""
    rows = len(inputs.table.sigmas)
    places = np.arange(rows, 0, -rows / inputs.steps).round().astype(np.int64) - 1
    return end_at_zero(inputs.table.sigmas[torch.from_numpy(places)])


def get_sigmas_cosine(inputs: ScheduleInputs) -> Tensor:
    """Even times of the cosine schedule, sigma = tan((t + s) / (1 + s) pi / 2), between the two ends; its offset s
    then has no effect. Nichol & Dhariwal (2021), arXiv:2102.09672, equation 17."""
    return end_at_zero(torch.linspace(math.atan(inputs.sigma_max), math.atan(inputs.sigma_min), inputs.steps).tan())


def get_sigmas_laplace(inputs: ScheduleInputs) -> Tensor:
    """Even quantiles of ln(SNR) ~ Laplace(0, 1/2) between the two ends.

    Hang & Gu (2024), arXiv:2407.03297, table 1.
    """

    def quantile(sigma: float) -> float:
        distance = 2 * math.log(sigma) / LAPLACE_SCALE
        return 0.5 * math.exp(distance) if distance < 0 else 1 - 0.5 * math.exp(-distance)

    ramp = np.linspace(quantile(inputs.sigma_max), quantile(inputs.sigma_min), inputs.steps)
    inner = ramp[1:-1]
    log_snr = LAPLACE_SCALE * np.sign(0.5 - inner) * -np.log1p(-2 * np.abs(0.5 - inner))
    sigmas = [inputs.sigma_max, *np.exp(-log_snr / 2), inputs.sigma_min][: inputs.steps]
    return end_at_zero(torch.tensor(sigmas))


def get_sigmas_linear_quadratic(inputs: ScheduleInputs) -> Tensor:
    """Even steps down to 0.975 of sigma_max, then a parabola to 0. Polyak et al. (2024), "Movie Gen",
    arXiv:2410.13720, section 3.4.2, in units of sigma_max, as diffusers' `linear_quadratic_schedule` (Apache-2.0)."""
    linear = inputs.steps // 2
    if not linear:
        return end_at_zero(torch.tensor([inputs.sigma_max]))
    curved = inputs.steps - linear
    excess = linear - LINEAR_QUADRATIC_THRESHOLD * inputs.steps
    a, b = excess / (linear * curved**2), LINEAR_QUADRATIC_THRESHOLD / linear - 2 * excess / curved**2
    i = np.arange(inputs.steps)
    done = np.where(i < linear, i * LINEAR_QUADRATIC_THRESHOLD / linear, a * i**2 + b * i + a * linear**2)
    return end_at_zero(torch.from_numpy((1 - done) * inputs.sigma_max).float())


SIGMA_FUNCTIONS = (
    get_sigmas_uniform,
    get_sigmas_karras,
    get_sigmas_exponential,
    get_sigmas_polyexponential,
    get_sigmas_sgm_uniform,
    get_sigmas_kl_optimal,
    get_sigmas_align_your_steps,
    get_sigmas_simple,
    get_sigmas_normal,
    get_sigmas_ddim,
    get_sigmas_beta,
    get_sigmas_turbo,
    get_sigmas_cosine,
    get_sigmas_laplace,
    get_sigmas_linear_quadratic,
)


def sigmas_of(row: ScheduleRow) -> Callable[[ScheduleInputs], Tensor]:
    """The function that a row names."""
    return next(function for function in SIGMA_FUNCTIONS if function.__name__ == f"get_sigmas_{row.name}")


SCHEDULES = {row.label: Schedule(**vars(row), function=sigmas_of(row)) for row in SCHEDULE_ROWS}
