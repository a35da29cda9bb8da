"""Samplers and schedules by name: one row each, with all that is known of them before anything is computed.

Imports no torch, so that reading a parameters text needs none. A row's loop is `sample_<loop>` in a file of this
folder that ends in a table of its loops; its schedule's function is `get_sigmas_<name>` in schedules.py.

Rows with `recorded` are the webui's (1.10.1), in its order, and held to recordings of it. The others are samplers of
its forks, held to the code or paper of those who invented them; what the forks themselves draw was not recorded.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...loaders.utils import unknown_choice


AUTOMATIC_SCHEDULE = "Automatic"
ETA, CHURN = ("eta", "s_noise"), ("s_churn", "s_tmin", "s_tmax", "s_noise")
UNIPC = ("t_start", "variant", "skip_type", "order", "lower_order_final")


@dataclass(frozen=True)
class SamplerRow:
    """What is known of a sampler. Spellings that `plain_name` makes alike are one."""

    label: str
    loop: str  # k-diffusion's name of it, where it has one
    aliases: tuple[str, ...] = ()  # short names that the webui knows
    schedule: str | None = None  # what "Automatic" means; None: evenly spaced timesteps
    takes: tuple[str, ...] = ()  # keyword arguments of the loop, filled from options or from the model's table
    fixed: tuple[tuple[str, Any], ...] = ()  # keyword arguments of the loop that are part of the name
    kind: str = "sigmas"  # "sigmas": the loop gets a schedule; "range": its two ends; "timesteps": whole timesteps
    second_order: bool = False  # counted as two denoiser calls per step
    discards: bool = False  # its schedule is one step longer, without the last sigma above 0
    brownian: bool = False  # step noise comes from Brownian paths
    lcm: bool = False  # denoiser and schedule of a consistency model: 50 noise levels
    uses_ensd: bool = False  # its infotext names the option eta_noise_seed_delta
    eta_option: str = "eta_ancestral"  # what `eta` is where the call names none; "": the loop's own default
    guidance_divisor: float = 1.0  # the guidance scale is divided by this
    also: tuple[str, ...] = ()  # other programs' names, and diffusers' classes
    recorded: bool = True

    @property
    def calls_per_step(self) -> int:
        """Denoiser calls that a step counts for in prompt editing and in shares of the whole pass."""
        return 2 if self.second_order else 1

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.label, *(() if self.fixed else (self.loop,)), *self.aliases, *self.also)


@dataclass(frozen=True)
class ScheduleRow:
    """What is known of a schedule. Spellings count as a sampler's do."""

    label: str
    name: str
    aliases: tuple[str, ...] = ()  # further names that the webui knows
    also: tuple[str, ...] = ()  # other programs' names
    recorded: bool = True

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.label, self.name, *self.aliases, *self.also)


def plain_name(name: str) -> str:
    """A name as it is compared: letters and digits, "++" as "pp", without what says where a loop is from or runs.

    >>> plain_name("DPM++ 2M SDE"), plain_name("sample_dpmpp_2m_sde_gpu"), plain_name("k_dpmpp_2m_sde")
    ('dpmpp2msde', 'dpmpp2msde', 'dpmpp2msde')
    """
    name = name.strip().lower().replace("++", "pp")
    name = re.sub(r"^(sample_|k_)+", "", name).removesuffix("_gpu")
    return re.sub(r"[^a-z0-9]", "", name)


def find_sampler_row(name: str) -> SamplerRow:
    """The row of a sampler named in any spelling. Raises ValueError with the near names."""
    row = _samplers_by_name().get(plain_name(name))
    if row is None:
        raise ValueError(unknown_choice("sampler", name, [row.label for row in SAMPLER_ROWS]))
    return row


def find_schedule(name: str | None) -> str:
    """The label of a schedule named in any spelling; None is "Automatic". Raises ValueError with the near names."""
    if name is None:
        return AUTOMATIC_SCHEDULE
    label = _schedules_by_name().get(plain_name(name))
    if label is None:
        labels = [AUTOMATIC_SCHEDULE, *(row.label for row in SCHEDULE_ROWS)]
        raise ValueError(unknown_choice("schedule", name, labels))
    return label


def resolve_names(sampler: str, schedule: str | None = None) -> tuple[SamplerRow, str]:
    """Row and schedule label of the names of a call, combined names ("DPM++ 2M Karras", "euler_a_karras") among them.

    The schedule in a combined name wins over `schedule`. DDIM, PLMS and UniPC ignore the schedule; its label is
    returned for the infotext. Raises ValueError with the near names.

    >>> resolve_names("DPM++ 2M SDE Karras")[1]
    'Karras'
    """
    label = find_schedule(schedule)
    known = _samplers_by_name()
    if plain_name(sampler) in known:
        return known[plain_name(sampler)], label
    for stem, ending in _split_names(sampler):
        if plain_name(stem) in known:
            return known[plain_name(stem)], label if ending == AUTOMATIC_SCHEDULE else ending
    stem = next((stem for stem, _ in _split_names(sampler)), sampler)
    return find_sampler_row(stem), label


def _split_names(name: str) -> Iterator[tuple[str, str]]:
    """The ways to read a combined name: what stands before a schedule's name, and that schedule's label."""
    places = [match.start() for match in re.finditer(r"[\s_]", name)]
    for place in places:
        stem, ending = name[:place], name[place + 1 :]
        label = _schedules_by_name().get(plain_name(ending))
        if label is None and name[place] == "_" and ending.lower() == "k":  # InvokeAI's euler_k
            label = "Karras"
        if label is not None and stem.strip():
            yield stem, label


@cache
def _samplers_by_name() -> dict[str, SamplerRow]:
    """Plain name -> row. Earlier rows keep a name that a later one has too."""
    return _by_spelling((row, row.spellings) for row in SAMPLER_ROWS)


@cache
def _schedules_by_name() -> dict[str, str]:
    named = ((row.label, row.spellings) for row in SCHEDULE_ROWS)
    return {plain_name(AUTOMATIC_SCHEDULE): AUTOMATIC_SCHEDULE, **_by_spelling(named)}


def _by_spelling(named: Iterable[tuple[Any, tuple[str, ...]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for value, spellings in named:
        for spelling in spellings:
            found.setdefault(plain_name(spelling), value)
    return found


# fmt: off
SAMPLER_ROWS = (
    SamplerRow("DPM++ 2M", "dpmpp_2m", ("k_dpmpp_2m",), "Karras",
               also=("DPMSolverMultistepScheduler", "DPMSolverMultistep", "DPM++ 2M v2")),
    SamplerRow("DPM++ SDE", "dpmpp_sde", ("k_dpmpp_sde",), "Karras", ETA, second_order=True, brownian=True,
               also=("DPMSolverSDEScheduler",)),
    SamplerRow("DPM++ 2M SDE", "dpmpp_2m_sde", ("k_dpmpp_2m_sde",), "Exponential", ETA, brownian=True),
    SamplerRow("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun", ("k_dpmpp_2m_sde_heun",), "Exponential", ETA, brownian=True),
    SamplerRow("DPM++ 2S a", "dpmpp_2s_ancestral", ("k_dpmpp_2s_a",), "Karras", ETA, second_order=True,
               uses_ensd=True),
    SamplerRow("DPM++ 3M SDE", "dpmpp_3m_sde", ("k_dpmpp_3m_sde",), "Exponential", ETA, discards=True, brownian=True),
    SamplerRow("Euler a", "euler_ancestral", ("k_euler_a", "k_euler_ancestral"), takes=("eta",), uses_ensd=True,
               also=("EulerAncestralDiscreteScheduler",)),
    SamplerRow("Euler", "euler", ("k_euler",), takes=CHURN, also=("EulerDiscreteScheduler",)),
    SamplerRow("LMS", "lms", ("k_lms",), also=("LMSDiscreteScheduler",)),
    SamplerRow("Heun", "heun", ("k_heun",), takes=CHURN, second_order=True, also=("HeunDiscreteScheduler",)),
    SamplerRow("DPM2", "dpm_2", ("k_dpm_2",), "Karras", CHURN, second_order=True, discards=True,
               also=("KDPM2DiscreteScheduler",)),
    SamplerRow("DPM2 a", "dpm_2_ancestral", ("k_dpm_2_a",), "Karras", ETA, second_order=True, discards=True,
               uses_ensd=True, also=("KDPM2AncestralDiscreteScheduler",)),
    SamplerRow("DPM fast", "dpm_fast", ("k_dpm_fast",), takes=ETA, kind="range", uses_ensd=True),
    SamplerRow("DPM adaptive", "dpm_adaptive", ("k_dpm_ad",), takes=("eta",), kind="range", uses_ensd=True),
    SamplerRow("Restart", "restart", ("restart",), "Karras", second_order=True),
    SamplerRow("DDIM", "ddim", ("ddim",), takes=("eta",), kind="timesteps", eta_option="eta_ddim",
               also=("DDIMScheduler", "ddim_v3")),
    SamplerRow("DDIM CFG++", "ddim_cfgpp", ("ddim_cfgpp",), takes=("eta",), kind="timesteps", eta_option="eta_ddim",
               guidance_divisor=12.5, also=("ddim_cfg_pp",)),
    SamplerRow("PLMS", "plms", ("plms",), kind="timesteps", also=("PNDM", "PNDMScheduler")),
    SamplerRow("UniPC", "unipc", ("unipc",), takes=UNIPC, kind="timesteps",
               also=("uni_pc", "UniPCMultistepScheduler")),
    SamplerRow("LCM", "lcm", ("k_lcm",), lcm=True, also=("LCMScheduler",)),
    # Of the forks
    SamplerRow("IPNDM", "ipndm", recorded=False, also=("IPNDMScheduler",)),
    SamplerRow("IPNDM_V", "ipndm_v", recorded=False),
    SamplerRow("DEIS", "deis", recorded=False, also=("DEISMultistepScheduler", "deis_multistep")),
    SamplerRow("DDPM", "ddpm", recorded=False, also=("DDPMScheduler",)),
    SamplerRow("TCD", "tcd", schedule="SGM Uniform", takes=("table", "eta"), eta_option="", recorded=False,
               also=("TCDScheduler",)),
    SamplerRow("SA-Solver", "sa_solver", takes=("table",), recorded=False, also=("SASolverScheduler",)),
    SamplerRow("ER SDE", "er_sde", recorded=False, also=("er_sde_solver",)),
    SamplerRow("Gradient Estimation", "gradient_estimation", recorded=False),
    SamplerRow("Euler Dy", "euler_dy", takes=CHURN, recorded=False),
    SamplerRow("Euler SMEA Dy", "euler_smea_dy", takes=CHURN, recorded=False),
    SamplerRow("Euler CFG++", "euler_cfgpp", recorded=False, also=("euler_cfg_pp",)),
    SamplerRow("Euler a CFG++", "euler_ancestral_cfgpp", takes=("eta",), recorded=False,
               also=("euler_ancestral_cfg_pp", "euler_a_cfg_pp")),
    SamplerRow("DPM++ 2M CFG++", "dpmpp_2m_cfgpp", schedule="Karras", recorded=False, also=("dpmpp_2m_cfg_pp",)),
    SamplerRow("UniPC BH2", "unipc", takes=UNIPC, fixed=(("variant", "bh2"),), kind="timesteps", recorded=False,
               also=("uni_pc_bh2",)),
)
SCHEDULE_ROWS = (
    ScheduleRow("Uniform", "uniform", also=("discrete", "native")),
    ScheduleRow("Karras", "karras"),
    ScheduleRow("Exponential", "exponential"),
    ScheduleRow("Polyexponential", "polyexponential"),
    ScheduleRow("SGM Uniform", "sgm_uniform", ("SGMUniform",)),
    ScheduleRow("KL Optimal", "kl_optimal"),
    ScheduleRow("Align Your Steps", "align_your_steps", also=("AYS", "Align Your Steps 11")),
    ScheduleRow("Simple", "simple"),
    ScheduleRow("Normal", "normal"),
    ScheduleRow("DDIM", "ddim", also=("ddim_uniform",)),
    ScheduleRow("Beta", "beta"),
    # Of the forks
    ScheduleRow("Turbo", "turbo", also=("trailing",), recorded=False),
    ScheduleRow("Cosine", "cosine", recorded=False),
    ScheduleRow("Laplace", "laplace", recorded=False),
    ScheduleRow("Linear Quadratic", "linear_quadratic", recorded=False),
)
# fmt: on
