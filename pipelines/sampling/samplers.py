"""The twenty samplers of the webui (1.10.1) by name."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...loaders.utils import unknown_choice
from .dpm_solver import sample_dpm_adaptive, sample_dpm_fast
from .ode_samplers import sample_dpm_2, sample_dpmpp_2m, sample_euler, sample_heun, sample_lms, sample_restart
from .schedules import AUTOMATIC_SCHEDULE, SCHEDULES, find_schedule
from .sde_samplers import (
    sample_dpm_2_ancestral,
    sample_dpmpp_2m_sde,
    sample_dpmpp_2m_sde_heun,
    sample_dpmpp_2s_ancestral,
    sample_dpmpp_3m_sde,
    sample_dpmpp_sde,
    sample_euler_ancestral,
    sample_lcm,
)
from .timestep_samplers import sample_ddim, sample_ddim_cfgpp, sample_plms
from .unipc import sample_unipc


CHURN_ARGUMENTS = ("s_churn", "s_tmin", "s_tmax", "s_noise")
UNIPC_ARGUMENTS = ("t_start", "variant", "skip_type", "order", "lower_order_final")


@dataclass(frozen=True)
class Sampler:
    """A row of `SAMPLERS`: a loop, and what the webui knows of it."""

    label: str
    aliases: tuple[str, ...]
    function: Callable[..., Tensor]
    schedule: str | None = None  # what "Automatic" means; None: evenly spaced timesteps
    takes: tuple[str, ...] = ()  # keyword arguments of `function` that come from options
    kind: str = "sigmas"  # "sigmas": the loop gets a schedule; "range": its two ends; "timesteps": whole timesteps
    second_order: bool = False  # counted as two denoiser calls per step
    discards: bool = False  # its schedule is one step longer, without the last sigma above 0
    brownian: bool = False  # step noise comes from Brownian paths
    lcm: bool = False  # denoiser and schedule of a consistency model: 50 noise levels
    uses_ensd: bool = False  # its infotext names the option eta_noise_seed_delta
    eta_option: str = "eta_ancestral"  # what `eta` is where the call names none
    guidance_divisor: float = 1.0  # the guidance scale is divided by this

    @property
    def calls_per_step(self) -> int:
        """Denoiser calls that a step counts for in prompt editing and in shares of the whole pass."""
        return 2 if self.second_order else 1


def find_sampler(name: str) -> Sampler:
    """The row of a sampler named by label or alias, in any case. Raises ValueError with the near names."""
    for row in SAMPLERS.values():
        if name.lower() in (known.lower() for known in (row.label, *row.aliases)):
            return row
    raise ValueError(unknown_choice("sampler", name, SAMPLERS))


def resolve_sampler(name: str, schedule: str | None = None) -> tuple[Sampler, str]:
    """Sampler and schedule label of the names of a call, old combined names ("DPM++ 2M Karras") among them.

    The schedule in a combined name wins over `schedule`. A sampler with timesteps of its own keeps the label too,
    though it has no use for it. Raises ValueError with the near names.

    >>> resolve_sampler("DPM++ 2M SDE Karras")[1]
    'Karras'
    """
    label = find_schedule(schedule)
    for row in SCHEDULES.values():
        for ending in (row.label, row.name, *row.aliases):
            stem = name[: -len(ending)]
            if name.lower().endswith(" " + ending.lower()) and stem.strip():
                return find_sampler(stem.strip()), row.label
    if name.lower().endswith(" " + AUTOMATIC_SCHEDULE.lower()):
        return find_sampler(name[: -len(AUTOMATIC_SCHEDULE)].strip()), label
    return find_sampler(name), label


SAMPLERS = {
    row.label: row
    for row in (
        Sampler("DPM++ 2M", ("k_dpmpp_2m",), sample_dpmpp_2m, "Karras"),
        Sampler(
            "DPM++ SDE",
            ("k_dpmpp_sde",),
            sample_dpmpp_sde,
            "Karras",
            ("eta", "s_noise"),
            second_order=True,
            brownian=True,
        ),
        Sampler(
            "DPM++ 2M SDE",
            ("k_dpmpp_2m_sde",),
            sample_dpmpp_2m_sde,
            "Exponential",
            ("eta", "s_noise"),
            brownian=True,
        ),
        Sampler(
            "DPM++ 2M SDE Heun",
            ("k_dpmpp_2m_sde_heun",),
            sample_dpmpp_2m_sde_heun,
            "Exponential",
            ("eta", "s_noise"),
            brownian=True,
        ),
        Sampler(
            "DPM++ 2S a",
            ("k_dpmpp_2s_a",),
            sample_dpmpp_2s_ancestral,
            "Karras",
            ("eta", "s_noise"),
            second_order=True,
            uses_ensd=True,
        ),
        Sampler(
            "DPM++ 3M SDE",
            ("k_dpmpp_3m_sde",),
            sample_dpmpp_3m_sde,
            "Exponential",
            ("eta", "s_noise"),
            discards=True,
            brownian=True,
        ),
        Sampler("Euler a", ("k_euler_a", "k_euler_ancestral"), sample_euler_ancestral, takes=("eta",), uses_ensd=True),
        Sampler("Euler", ("k_euler",), sample_euler, takes=CHURN_ARGUMENTS),
        Sampler("LMS", ("k_lms",), sample_lms),
        Sampler("Heun", ("k_heun",), sample_heun, takes=CHURN_ARGUMENTS, second_order=True),
        Sampler("DPM2", ("k_dpm_2",), sample_dpm_2, "Karras", CHURN_ARGUMENTS, second_order=True, discards=True),
        Sampler(
            "DPM2 a",
            ("k_dpm_2_a",),
            sample_dpm_2_ancestral,
            "Karras",
            ("eta", "s_noise"),
            second_order=True,
            discards=True,
            uses_ensd=True,
        ),
        Sampler("DPM fast", ("k_dpm_fast",), sample_dpm_fast, takes=("eta", "s_noise"), kind="range", uses_ensd=True),
        Sampler("DPM adaptive", ("k_dpm_ad",), sample_dpm_adaptive, takes=("eta",), kind="range", uses_ensd=True),
        Sampler("Restart", ("restart",), sample_restart, "Karras", second_order=True),
        Sampler("DDIM", ("ddim",), sample_ddim, takes=("eta",), kind="timesteps", eta_option="eta_ddim"),
        Sampler(
            "DDIM CFG++",
            ("ddim_cfgpp",),
            sample_ddim_cfgpp,
            takes=("eta",),
            kind="timesteps",
            eta_option="eta_ddim",
            guidance_divisor=12.5,
        ),
        Sampler("PLMS", ("plms",), sample_plms, kind="timesteps"),
        Sampler("UniPC", ("unipc",), sample_unipc, takes=UNIPC_ARGUMENTS, kind="timesteps"),
        Sampler("LCM", ("k_lcm",), sample_lcm, lcm=True),
    )
}
