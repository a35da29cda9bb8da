"""Where the pipelines enter: the plan of a pass, and the two ways to run it, from noise and from a latent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..options import sampling_options
from .brownian import BrownianNoise
from .denoiser import GuidedDenoiser
from .discrete_schedule import NoiseTable
from .loops import NoiseFn, StepFn, keep_latents
from .noise import GeneratorNoise, SeededNoise
from .samplers import Sampler
from .sigmas import pass_sigmas
from .timestep_samplers import ddim_timesteps
from .unipc import UniPCTime


@dataclass(frozen=True)
class SamplingPlan:
    """One pass, settled before anything is drawn.

    levels: the whole schedule: sigmas, falling, (n + 1,) float32; of a timestep sampler timesteps, rising, (n,) int64.
    run: the part of it that is run. t_enc: of a pass from a latent, steps beyond the first; None: a pass from noise.
    arguments: keyword arguments of the sampler's loop. sgm_noise, extra_noise: options about the first latent.
    quantize: the option that makes timesteps whole.
    """

    sampler: Sampler
    schedule: str
    steps: int
    table: NoiseTable
    levels: Tensor
    run: Tensor
    t_enc: int | None
    arguments: Mapping[str, Any]
    sgm_noise: bool
    extra_noise: float
    quantize: bool = False

    @property
    def calls(self) -> int:
        """Denoiser calls as the webui counts them beforehand, whatever the loop then makes of it."""
        return (self.steps if self.t_enc is None else self.t_enc + 1) * self.sampler.calls_per_step

    @property
    def step_count(self) -> int | None:
        """How often `on_step` will be called; None if only the pictures will tell (DPM adaptive)."""
        if self.sampler.label == "DPM adaptive":
            return None
        if self.sampler.label == "DPM fast":
            return self.range[2] // 3 + 1
        return len(self.run) if self.sampler.loop == "unipc" else max(len(self.run) - 1, 0)

    @property
    def timesteps(self) -> Tensor:
        """The timestep that each step begins at, float32, falling: what `scheduler.timesteps` says in diffusers.

        DPM fast and DPM adaptive have a grid of their own, and loops of two calls a step call between these.
        """
        if self.sampler.loop == "unipc":
            time, start = UniPCTime(self.table.alphas_cumprod), float(self.arguments["t_start"])
            ts = time.grid(self.arguments["skip_type"], start, len(self.run))[:-1]
            return (ts - 1.0 / time.rows) * 1000.0
        if self.sampler.kind == "timesteps":
            return self.run.flip(0)[:-1].float()
        table = self.table.lcm if self.sampler.lcm else self.table
        return table.sigma_to_t(self.run[:-1], quantize=self.quantize).float()

    @property
    def range(self) -> tuple[float, float, int]:
        """(sigma_min, sigma_max, calls) of the samplers with a grid of their own."""
        if self.t_enc is None:
            return self.table.sigma_min, self.table.sigma_max, self.steps
        return self.run[-2].item(), self.run[0].item(), len(self.run) - 1

    @property
    def places(self) -> tuple[Any, ...]:
        """What a loop of the sampler's kind gets of the schedule, behind `x`."""
        if self.sampler.kind == "timesteps":
            return self.run, self.table.alphas_cumprod.float()
        return self.range if self.sampler.kind == "range" else (self.run,)


def plan_sampling(
    sampler: Sampler,
    schedule: str,
    steps: int,
    table: NoiseTable,
    *,
    t_enc: int | None = None,
    options: Mapping[str, Any] | None = None,
    is_sdxl: bool = False,
    eta: float | None = None,
) -> SamplingPlan:
    """Settle a pass of `steps` steps, of which one from a latent runs the last t_enc + 1 (`img2img_steps` has both).

    sampler, schedule: as `resolve_sampler` gives them. table: of the model, options applied. options: the webui's
    names. eta: of this call; None is the option's. Raises ValueError for numbers of steps out of range.
    """
    chosen = sampling_options(options)
    if steps < 1:
        raise ValueError(f"`steps` is {steps}: at least one is needed (a strength of 0 with exact steps leaves none).")
    trained = len(table.alphas_cumprod)
    if sampler.kind == "timesteps":
        levels = ddim_timesteps(steps + bool(chosen["always_discard_next_to_last_sigma"]), trained)
        run = levels if t_enc is None else levels[:t_enc]
    else:
        levels = pass_sigmas(sampler, schedule, steps, table, chosen, is_sdxl=is_sdxl)
        run = levels if t_enc is None else levels[steps - t_enc - 1 :]
    known = {
        "eta": chosen.get(sampler.eta_option) if eta is None else eta,
        "s_churn": chosen["s_churn"],
        "s_tmin": chosen["s_tmin"],
        "s_tmax": chosen["s_tmax"] or float("inf"),
        "s_noise": chosen["s_noise"],
        # In img2img UniPC starts a thousandth above the last timestep that is run.
        "t_start": 1.0 if t_enc is None or not len(run) else run[-1].item() / trained + 1 / trained,
        "variant": chosen["uni_pc_variant"],
        "skip_type": chosen["uni_pc_skip_type"],
        "order": chosen["uni_pc_order"],
        "lower_order_final": chosen["uni_pc_lower_order_final"],
        "table": table,
    }
    return SamplingPlan(
        sampler=sampler,
        schedule=schedule,
        steps=steps,
        table=table,
        levels=levels,
        run=run,
        t_enc=t_enc,
        arguments={name: known[name] for name in sampler.takes if known[name] is not None} | dict(sampler.fixed),
        sgm_noise=bool(chosen["sgm_noise_multiplier"]),
        extra_noise=float(chosen["img2img_extra_noise"]),
        quantize=bool(chosen["enable_quantization"]),
    )


def img2img_steps(strength: float, steps: int, exact: bool = False) -> tuple[int, int]:
    """(total, t_enc): steps of the whole schedule, and how many but one of them are run, at `strength` 0 to 1.

    exact: exactly `steps` are run (an option of img2img; always so in the hires pass). Else `steps` is the total.

    >>> img2img_steps(0.5, 20), img2img_steps(0.5, 20, exact=True)
    ((20, 10), (40, 19))
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be between 0 (keep the picture) and 1 (draw anew); got {strength}.")
    fraction = min(strength, 0.999)
    if exact:
        return (int(steps / fraction) if strength > 0 else 0), steps - 1
    return steps, int(fraction * steps)


def sample_from_noise(
    plan: SamplingPlan,
    denoiser: Any,
    noise: SeededNoise | GeneratorNoise,
    *,
    latents: Tensor | None = None,
    on_step: StepFn = keep_latents,
) -> Tensor:
    """Latents (n, c, h, w) float32 drawn from the first noise, or from `latents` of unit variance in its place."""
    first = noise.next()
    x = first if latents is None else latents.to(first)
    if plan.sampler.kind != "timesteps":
        x = x * ((1.0 + plan.levels[0] ** 2) ** 0.5 if plan.sgm_noise else plan.levels[0])
    step_noise = _prepared(plan, denoiser, noise)
    with torch.no_grad():
        return plan.sampler.function(denoiser, x, *plan.places, noise=step_noise, on_step=on_step, **plan.arguments)


def sample_from_latents(
    plan: SamplingPlan,
    denoiser: Any,
    init: Tensor,
    noise: SeededNoise | GeneratorNoise,
    *,
    noise_multiplier: float = 1.0,
    on_step: StepFn = keep_latents,
) -> Tensor:
    """Latents (n, c, h, w) float32 drawn from `init` (n, c, h, w), clean, with the first noise put on it.

    For img2img and the hires pass; `plan.t_enc` must be set. noise_multiplier: img2img's option of that name.
    Quirk of the timestep samplers: the noise is that of timesteps[t_enc], but the first call is one timestep below.
    """
    eps = noise.next() * noise_multiplier
    init = init.to(eps)
    if plan.sampler.kind == "timesteps":
        ac = plan.table.alphas_cumprod[plan.levels[plan.t_enc]].float()
        x = ac.sqrt() * init + (1.0 - ac).sqrt() * eps
        extra = plan.extra_noise * ac.sqrt()
    else:
        x = init + eps * plan.run[0]
        extra = plan.extra_noise
    if plan.extra_noise > 0:
        x = x + eps * extra
    step_noise = _prepared(plan, denoiser, noise)
    with torch.no_grad():
        return plan.sampler.function(denoiser, x, *plan.places, noise=step_noise, on_step=on_step, **plan.arguments)


def _prepared(plan: SamplingPlan, denoiser: Any, noise: SeededNoise | GeneratorNoise) -> NoiseFn:
    """The step noise: Brownian increments over the whole schedule, also if only its tail is run; else one draw a step.

    The denoiser works the schedule's numbers out.
    """
    if isinstance(denoiser, GuidedDenoiser) and plan.sampler.kind == "sigmas":
        denoiser.prepare(plan.run)
    if plan.sampler.brownian:
        return BrownianNoise(noise, plan.levels[plan.levels > 0].min(), plan.levels.max())
    return lambda sigma, sigma_next: noise.next()
