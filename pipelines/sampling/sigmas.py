"""make_sigmas: the noise levels of one pass, from names and options."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..options import sampling_options
from .discrete_schedule import NoiseTable, scheduled_alphas_cumprod
from .labels import AUTOMATIC_SCHEDULE, find_schedule
from .samplers import Sampler, find_sampler
from .schedules import SCHEDULES, ScheduleInputs, end_at_zero


OLD_KARRAS_RANGE = (0.1, 10.0)


def make_sigmas(
    schedule: str | None,
    steps: int,
    alphas_cumprod: Tensor,
    *,
    sampler: str | None = None,
    options: Mapping[str, object] | None = None,
    is_sdxl: bool = False,
) -> Tensor:
    """The sigmas of `steps` sampler steps, falling, float32 on the CPU: (steps + 1,) with few exceptions.

    schedule: a label, name or alias of `SCHEDULES`; None or "Automatic" is the sampler's own.
    alphas_cumprod: (n,) as trained, or already after `scheduled_alphas_cumprod`.
    sampler: a label or alias of `SAMPLERS`; None is one without a schedule of its own. options: the webui's names.
    Raises ValueError for an unknown name (with the near ones) and for steps below 1.

    >>> make_sigmas("Karras", 2, default_alphas_cumprod(), sampler="Euler")
    tensor([14.6146,  0.0292,  0.0000])
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1; got {steps}.")
    table = NoiseTable(scheduled_alphas_cumprod(alphas_cumprod.cpu(), options))
    row = find_sampler(sampler) if sampler is not None else None
    return pass_sigmas(row, find_schedule(schedule), steps, table, sampling_options(options), is_sdxl=is_sdxl)


def pass_sigmas(
    sampler: Sampler | None,
    schedule: str,
    steps: int,
    table: NoiseTable,
    options: Mapping[str, Any],
    *,
    is_sdxl: bool = False,
) -> Tensor:
    """The same for a row of SAMPLERS and a label, as `resolve_sampler` gives them. options: all of them."""
    discards = (sampler is not None and sampler.discards) or options["always_discard_next_to_last_sigma"]
    if schedule == AUTOMATIC_SCHEDULE:
        label = None if sampler is None else sampler.schedule
    else:
        label = schedule
    levels = table.lcm if sampler is not None and sampler.lcm else table
    sigmas = _scheduled(label, steps + bool(discards), levels, options, is_sdxl)
    return torch.cat([sigmas[:-2], sigmas[-1:]]) if discards else sigmas


def _scheduled(label: str | None, steps: int, table: NoiseTable, options: Mapping[str, Any], is_sdxl: bool) -> Tensor:
    if label is None:
        return end_at_zero(table.uniform_sigmas(steps))
    low, high = OLD_KARRAS_RANGE if options["use_old_karras_scheduler_sigmas"] else (table.sigma_min, table.sigma_max)
    inputs = ScheduleInputs(
        steps=steps,
        sigma_min=options["sigma_min"] or low,
        sigma_max=options["sigma_max"] or high,
        table=table,
        rho=options["rho"] or None,
        quantize=bool(options["enable_quantization"]),
        beta_alpha=options["beta_dist_alpha"],
        beta_beta=options["beta_dist_beta"],
        is_sdxl=is_sdxl,
    )
    return SCHEDULES[label].function(inputs)
