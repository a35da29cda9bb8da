"""Which steps diffusers' scheduler is to take, where the caller says it with diffusers' arguments."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StepArguments:
    """`timesteps`, `sigmas` and `denoising_end` of diffusers' calls, as given. A scheduler reads them."""

    timesteps: Sequence[int] | None = None  # instead of `num_inference_steps`
    sigmas: Sequence[float] | None = None  # the same
    denoising_end: float | None = None  # the share of the noise levels at which to stop, 0..1

    def count(self, steps: int) -> int:
        """How many steps are asked for; `steps` where neither list is given."""
        given = self.timesteps if self.timesteps is not None else self.sigmas
        return steps if given is None else len(given)


def check_step_arguments(asked: StepArguments, sampler: str | None, has_hires: bool) -> None:
    """Refuse what nobody would read: steps beside a sampler of the webui, two lists, an end before a second pass."""
    given = [name for name in ("timesteps", "sigmas", "denoising_end") if getattr(asked, name) is not None]
    if given and sampler is not None:
        raise ValueError(
            f"`{given[0]}` is for the pipeline's scheduler, and the sampler {sampler!r} takes its steps from "
            "`schedule` and `num_inference_steps`. Leave out one of the two."
        )
    if asked.timesteps is not None and asked.sigmas is not None:
        raise ValueError("`timesteps` and `sigmas` are both given: pass one of them, they say the same thing.")
    if asked.denoising_end is None:
        return
    if not 0 < asked.denoising_end <= 1:
        raise ValueError(f"`denoising_end` must be above 0 and at most 1; got {asked.denoising_end}.")
    if has_hires:
        raise ValueError(
            "`denoising_end` leaves noise in the latents, which the hires pass would enlarge. Leave out one of them."
        )
