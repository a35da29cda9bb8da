"""The model's noise levels: alphas_cumprod, and the maps between sigma and timestep."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..options import sampling_options


ZERO_TERMINAL_SNR = "Zero Terminal SNR"
ZERO_SNR_LAST_ALPHA = 4.8973451890853435e-08  # stands for 0: sigma_max becomes about 4518 instead of infinite
LCM_STRIDE = 20  # LCM was distilled on every 20th of 1000 timesteps: 19, 39, ..., 999


def default_alphas_cumprod(beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000) -> Tensor:
    """Products of 1 - beta of Stable Diffusion's "scaled linear" betas, (steps,) float32.

    The product is taken in float64 and rounded once, as the original trainer did; taking it in float32, as diffusers'
    schedulers do, is off by up to 1e-6 of each value.
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0).float()


def scheduled_alphas_cumprod(alphas_cumprod: Tensor, options: Mapping[str, object] | None = None) -> Tensor:
    """`alphas_cumprod` after the options "use_downcasted_alpha_bar" (-> float16) and "sd_noise_schedule" (-> float32).

    Applying it to its own result changes nothing.
    """
    chosen = sampling_options(options)
    schedule = chosen["sd_noise_schedule"] or "Default"
    if schedule not in ("Default", ZERO_TERMINAL_SNR):
        raise ValueError(f"option sd_noise_schedule={schedule!r} is unknown: use 'Default' or {ZERO_TERMINAL_SNR!r}.")
    alphas = alphas_cumprod.half() if chosen["use_downcasted_alpha_bar"] else alphas_cumprod
    alphas = alphas if alphas.dtype == torch.float16 else alphas.float()
    if schedule == "Default" or 0 < alphas[-1] < 1e-7:  # the latter: already rescaled
        return alphas
    return zero_terminal_snr(alphas)


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The table with its last signal-to-noise ratio brought to zero. Lin et al. (2023), arXiv:2305.08891, algorithm 1.

    sqrt(alpha) is moved and stretched so that the first value stays; the last is then set just above 0.
    """
    roots = alphas_cumprod.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    alphas = ((roots - last) * (first / (first - last))) ** 2
    alphas[-1] = ZERO_SNR_LAST_ALPHA
    return alphas


def trained_alphas_cumprod(scheduler: Any) -> Tensor:
    """The noise levels a model was trained on, from its scheduler's configuration: (1000,) float32.

    Stable Diffusion's own betas are multiplied in float64, as their trainer did; diffusers does it in float32.
    """
    config = scheduler.config
    if config.get("beta_schedule") == "scaled_linear" and config.get("trained_betas") is None:
        return default_alphas_cumprod(config["beta_start"], config["beta_end"], config["num_train_timesteps"])
    if not knows_betas(scheduler):
        raise ValueError(
            f"`scheduler`: {type(scheduler).__name__} knows no betas, so it is for another kind of model (EDM, as "
            "Playground v2.5 and CosXL, or flow matching). The webui's samplers need one of Stable Diffusion's "
            "schedulers: name no `sampler`, and the scheduler itself steps."
        )
    return scheduler.alphas_cumprod.float().cpu()


def knows_betas(scheduler: Any) -> bool:
    """Whether a scheduler is for models trained on discrete noise levels."""
    return scheduler.config.get("beta_schedule") is not None or getattr(scheduler, "alphas_cumprod", None) is not None


def scheduler_alphas_cumprod(scheduler: Any, options: Mapping[str, Any]) -> Tensor:
    """The same after the options. A scheduler that rescales its betas to zero terminal SNR asks for that too."""
    if scheduler.config.get("rescale_betas_zero_snr") and options["sd_noise_schedule"] == "Default":
        options = {**options, "sd_noise_schedule": ZERO_TERMINAL_SNR}
    return scheduled_alphas_cumprod(trained_alphas_cumprod(scheduler), options)


class NoiseTable:
    """Sigma and timestep of a model trained on discrete noise levels.

    alphas_cumprod: (n,), falling, above 0 and below 1. `sigmas` and `log_sigmas` are (n,) float32, rising. A float16
    table is worked out in float16, as the webui before 1.9 and its option "use_downcasted_alpha_bar" do.
    After k-diffusion 0.1.1, external.py, DiscreteSchedule (MIT).
    """

    def __init__(self, alphas_cumprod: Tensor):
        alphas = torch.as_tensor(alphas_cumprod).detach()
        self.alphas_cumprod = alphas if alphas.dtype == torch.float16 else alphas.float()
        sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5
        if alphas.ndim != 1 or len(alphas) < 2 or not bool((sigmas.isfinite() & (sigmas > 0)).all()):
            raise ValueError(
                "`alphas_cumprod` must be a row of numbers above 0 and below 1 with finite sigmas: 0 (zero terminal "
                "SNR) has none. Pass the table as trained and the option sd_noise_schedule='Zero Terminal SNR', "
                "without use_downcasted_alpha_bar."
            )
        self.sigmas = sigmas.float()
        self.log_sigmas = sigmas.log().float()

    @cached_property
    def lcm(self) -> "LcmTable":
        """The part of it that latent consistency models know."""
        return LcmTable(self.alphas_cumprod)

    @property
    def sigma_min(self) -> float:
        return self.sigmas[0].item()

    @property
    def sigma_max(self) -> float:
        return self.sigmas[-1].item()

    def nearest_row(self, sigma: Tensor) -> Tensor:
        """Row of the table nearest to `sigma` in ln(sigma), any shape, int64."""
        return (sigma.log().reshape(-1) - self.log_sigmas.to(sigma.device)[:, None]).abs().argmin(0).view(sigma.shape)

    def sigma_to_t(self, sigma: Tensor, quantize: bool = False) -> Tensor:
        """Timesteps of `sigma`, any shape: linear in ln(sigma) between two rows, or the nearest row if `quantize`."""
        if quantize:
            return self.nearest_row(sigma)
        log_sigma, levels = sigma.log(), self.log_sigmas.to(sigma.device)
        row = torch.searchsorted(levels, log_sigma.reshape(-1), right=True) - 1
        row = row.clamp(0, len(levels) - 2).view(sigma.shape)
        low, high = levels[row], levels[row + 1]
        w = ((low - log_sigma) / (low - high)).clamp(0, 1)
        return (1 - w) * row + w * (row + 1)

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """Sigmas of (fractional) timesteps, any shape: linear in ln(sigma) between two rows."""
        t = t.float()
        low, high, w = t.floor().long(), t.ceil().long(), t.frac()
        levels = self.log_sigmas.to(t.device)
        return ((1 - w) * levels[low] + w * levels[high]).exp()

    def uniform_sigmas(self, steps: int) -> Tensor:
        """(steps,) sigmas at evenly spaced timesteps, falling."""
        return self.t_to_sigma(torch.linspace(len(self.sigmas) - 1, 0, steps, device=self.sigmas.device))


class LcmTable(NoiseTable):
    """The 50 noise levels that a latent consistency model was distilled on. alphas_cumprod: the full table (1000,)."""

    def __init__(self, alphas_cumprod: Tensor):
        super().__init__(alphas_cumprod)
        self.sigmas = self.sigmas[LCM_STRIDE - 1 :: LCM_STRIDE]
        self.log_sigmas = self.log_sigmas[LCM_STRIDE - 1 :: LCM_STRIDE]

    def sigma_to_t(self, sigma: Tensor, quantize: bool = True) -> Tensor:
        """Timestep of the nearest row, always one of 19, 39, ..., 999, whatever `quantize` says."""
        return self.nearest_row(sigma) * LCM_STRIDE + (LCM_STRIDE - 1)

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """Sigmas of timesteps from 19 to 999, interpolated between rows though `sigma_to_t` never is (webui quirk)."""
        row = ((t.float() - (LCM_STRIDE - 1)) / LCM_STRIDE).clamp(0, len(self.sigmas) - 1)
        return super().t_to_sigma(row)

    def uniform_sigmas(self, steps: int) -> Tensor:
        """(steps,) sigmas at evenly spaced timesteps from 999 to 19, falling."""
        last = len(self.sigmas) * LCM_STRIDE - 1
        return self.t_to_sigma(torch.linspace(last, LCM_STRIDE - 1, steps, device=self.sigmas.device))

    def boundary_scalings(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out) of a consistency model at timestep `t`: D = c_skip x + c_out x0. Luo et al. (2023).

        sigma_data = 0.5 and time in tenths, as in the paper's code and in diffusers' LCMScheduler.
        """
        tau = t.float() * 10.0
        return 0.25 / (tau**2 + 0.25), tau / (tau**2 + 0.25) ** 0.5
