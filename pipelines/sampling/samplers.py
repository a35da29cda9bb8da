"""The samplers by name, each with its loop."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from .cfgpp_samplers import CFGPP_LOOPS
from .dpm_solver import DPM_SOLVER_LOOPS
from .euler_dy_samplers import EULER_DY_LOOPS
from .labels import SAMPLER_ROWS, SamplerRow, find_sampler_row, resolve_names
from .multistep_samplers import MULTISTEP_LOOPS
from .ode_samplers import ODE_LOOPS
from .sde_samplers import SDE_LOOPS
from .timestep_samplers import TIMESTEP_LOOPS
from .unipc import sample_unipc


SAMPLER_LOOPS: tuple[Callable[..., Tensor], ...] = (
    *ODE_LOOPS,
    *SDE_LOOPS,
    *DPM_SOLVER_LOOPS,
    *TIMESTEP_LOOPS,
    *MULTISTEP_LOOPS,
    *EULER_DY_LOOPS,
    *CFGPP_LOOPS,
    sample_unipc,
)


@dataclass(frozen=True)
class Sampler(SamplerRow):
    """A row of `SAMPLERS`: what labels.py knows of a sampler, and its loop."""

    function: Callable[..., Tensor] = field(kw_only=True)


def find_sampler(name: str) -> Sampler:
    """The sampler of a name in any spelling. Raises ValueError with the near names."""
    return SAMPLERS[find_sampler_row(name).label]


def resolve_sampler(name: str, schedule: str | None = None) -> tuple[Sampler, str]:
    """`resolve_names` with the sampler's loop."""
    row, label = resolve_names(name, schedule)
    return SAMPLERS[row.label], label


def loop_of(row: SamplerRow) -> Callable[..., Tensor]:
    """The loop that a row names."""
    return next(function for function in SAMPLER_LOOPS if function.__name__ == f"sample_{row.loop}")


SAMPLERS = {row.label: Sampler(**vars(row), function=loop_of(row)) for row in SAMPLER_ROWS}
