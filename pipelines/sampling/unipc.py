"""UniPC: a predictor and corrector of one order, in x0, over continuous time. Zhao et al. (2023), arXiv:2302.04867.

Time runs from 1 to 1/1000; alpha at k/1000 is the model's at timestep k - 1, and between them ln(alpha) is linear.
lambda = ln(alpha / sigma). After wl-zhao/UniPC (MIT); diffusers' UniPCMultistepScheduler has the same
update (Apache-2.0).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..options import SAMPLING_DEFAULTS
from .loops import NoiseFn, StepFn, keep_latents


UNIPC_VARIANTS = ("bh1", "bh2", "vary_coeff")
UNIPC_SPACINGS = ("time_uniform", "time_quadratic", "logSNR")


class UniPCTime:
    """alpha, sigma and lambda of continuous time. alphas_cumprod: (n,)."""

    def __init__(self, alphas_cumprod: Tensor):
        self.log_alphas = 0.5 * alphas_cumprod.float().cpu().log()
        self.rows = len(self.log_alphas)
        self.times = torch.linspace(0.0, 1.0, self.rows + 1)[1:]

    def log_alpha(self, t: Tensor) -> Tensor:
        """ln(alpha) at t, any shape."""
        return _linear_between(t, self.times, self.log_alphas)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(alpha, sigma, lambda) at t."""
        log_alpha = self.log_alpha(t)
        variance = 1.0 - torch.exp(2.0 * log_alpha)
        return log_alpha.exp(), variance.sqrt(), log_alpha - 0.5 * variance.log()

    def at_lambda(self, lambdas: Tensor) -> Tensor:
        """Times of the given lambdas."""
        log_alpha = -0.5 * torch.logaddexp(torch.zeros(()), -2.0 * lambdas)
        return _linear_between(log_alpha, self.log_alphas.flip(0), self.times.flip(0))

    def grid(self, spacing: str, start: float, steps: int) -> Tensor:
        """(steps + 1,) times from `start` to 1/n, even in time, in its square root, or in lambda."""
        end = 1.0 / self.rows
        if spacing == "logSNR":
            ends = [float(self.levels(torch.tensor(t))[2]) for t in (start, end)]
            return self.at_lambda(torch.linspace(ends[0], ends[1], steps + 1))
        if spacing == "time_quadratic":
            return torch.linspace(start**0.5, end**0.5, steps + 1) ** 2
        return torch.linspace(start, end, steps + 1)


def sample_unipc(
    denoiser: Any,
    x: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    *,
    noise: NoiseFn,
    on_step: StepFn = keep_latents,
    t_start: float = 1.0,
    variant: str = SAMPLING_DEFAULTS["uni_pc_variant"],
    skip_type: str = SAMPLING_DEFAULTS["uni_pc_skip_type"],
    order: int = 3,
    lower_order_final: bool = True,
) -> Tensor:
    """UniPC, one call per step; as many steps as there are `timesteps`, whose values have no say.

    The order rises from 1 with the outputs at hand, and falls again to 1 at the end with `lower_order_final`. The last
    step is not corrected. Draws no noise. Other arguments as in timestep_samplers.py.
    """
    steps = len(timesteps)
    _check_unipc(steps, variant, skip_type, order)
    time = UniPCTime(alphas_cumprod)
    ts = time.grid(skip_type, t_start, steps)

    alphas, sigmas, lambdas = (each.unbind() for each in time.levels(ts))
    timesteps = ((ts - 1.0 / time.rows) * 1000.0).unbind()

    def x0_at(x: Tensor, i: int) -> Tensor:
        return (x - sigmas[i] * denoiser.eps(x, timesteps[i])[0]) / alphas[i]

    outputs = [x0_at(x, 0)]  # x0 estimates, newest last
    for step in range(1, steps + 1):
        k = min(order, step, steps + 1 - step) if lower_order_final and step >= order else min(order, step)
        alpha, lambda_0 = alphas[step], lambdas[step - 1]
        h = lambdas[step] - lambda_0
        rks = [(lambdas[step - 1 - j] - lambda_0) / h for j in range(1, k)]
        d1s = [(outputs[-1 - j] - outputs[-1]) / rk for j, rk in enumerate(rks, start=1)]
        scale, predicting, correcting = unipc_weights(variant, rks, -h)
        base = sigmas[step] / sigmas[step - 1] * x - alpha * (-h).expm1() * outputs[-1]
        x = base - alpha * scale * sum((w * d for w, d in zip(predicting, d1s)), torch.zeros(()))
        if step < steps:
            output = x0_at(x, step)
            d1s.append(output - outputs[-1])
            x = base - alpha * scale * sum(w * d for w, d in zip(correcting, d1s))
            outputs = [*outputs[-order:], output]
        x = on_step(step - 1, x)
    return x


def unipc_weights(variant: str, rks: Sequence[Tensor], hh: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Common factor, and weights of the differences D1 in the predictor (k - 1) and in the corrector (k).

    The corrector's last weight is for the new output. rks: the k - 1 earlier places in units of the step. hh: minus
    the step in lambda.
    """
    k = len(rks) + 1
    places = torch.stack([*rks, torch.ones(())])
    phis = [hh.expm1() / hh - 1]  # h phi_2, h phi_3, ...
    factorial = 1
    for i in range(1, k + 1):
        factorial *= i + 1
        phis.append(phis[-1] / hh - 1 / factorial)
    if variant == "vary_coeff":
        return torch.ones(()), *_vary_weights(places, phis)
    scale = hh if variant == "bh1" else hh.expm1()
    matrix = torch.stack([places**i for i in range(k)])
    factorials = torch.cumprod(torch.arange(1.0, k + 1), dim=0)
    target = torch.stack([phi * f / scale for phi, f in zip(phis, factorials)])
    # Orders 2 (predictor) and 1 (corrector) use 1/2, as the paper's code does.
    predicting = [torch.tensor(0.5)] if k == 2 else list(torch.linalg.solve(matrix[:-1, :-1], target[:-1]))
    correcting = [torch.tensor(0.5)] if k == 1 else list(torch.linalg.solve(matrix, target))
    return scale, predicting, correcting


def _vary_weights(places: Tensor, phis: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """UniPC_v, appendix C of the paper. The new output's weight is read one row early, as in the paper's code."""
    k = len(places)
    columns, column = [], torch.ones(k)
    for i in range(1, k + 1):
        columns.append(column)
        column = column * places / (i + 1)
    matrix = torch.stack(columns, dim=1)
    correct = torch.linalg.inv(matrix)
    if k == 1:
        return [], [phis[0] * correct[0, 0]]
    predict = torch.linalg.inv(matrix[:-1, :-1])
    predicting = [sum(phis[i] * predict[i, j] for i in range(k - 1)) for j in range(k - 1)]
    correcting = [sum(phis[i] * correct[i, j] for i in range(k - 1)) for j in range(k - 1)]
    return predicting, [*correcting, phis[k - 1] * correct[k - 2, k - 1]]


def _check_unipc(steps: int, variant: str, skip_type: str, order: int) -> None:
    if variant not in UNIPC_VARIANTS:
        raise ValueError(f"option uni_pc_variant={variant!r} is unknown: use one of {', '.join(UNIPC_VARIANTS)}.")
    if skip_type not in UNIPC_SPACINGS:
        raise ValueError(f"option uni_pc_skip_type={skip_type!r} is unknown: use one of {', '.join(UNIPC_SPACINGS)}.")
    if not 1 <= order <= steps:
        raise ValueError(
            f"UniPC of order {order} needs at least {order} steps; this pass has {steps}. "
            "Use more steps (in img2img: a higher `strength`), or lower the option uni_pc_order."
        )


def _linear_between(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear through (xs, ys), xs rising; the outer pieces go on beyond the ends."""
    i = torch.searchsorted(xs, x.contiguous(), right=True).clamp(1, len(xs) - 1)
    return ys[i - 1] + (x - xs[i - 1]) * (ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1])
