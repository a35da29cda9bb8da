"""Inpainting in latents: what is kept and what is drawn anew, cell by cell; hard, or by degrees (soft inpainting)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class LatentMask:
    """Where the latent is kept and where it is drawn. All broadcast to (b, c, h, w); keep + change = 1."""

    init: Tensor  # the clean latent
    keep: Tensor
    change: Tensor

    def at(self, size: tuple[int, int]) -> "LatentMask":
        """The same for latents of another (h, w), which Euler SMEA Dy looks at."""
        if self.init.shape[-2:] == size:
            return self
        init, keep, change = (nearest_cells(each, size) for each in (self.init, self.keep, self.change))
        return replace(self, init=init, keep=keep, change=change)

    def blend(self, drawn: Tensor, level: Tensor) -> Tensor:
        """What a step sees: `drawn` (b, c, h, w), and the clean latent where that is kept. level: sigma, or the
        timestep in loops over timesteps; ignored here."""
        return drawn * self.change + self.init * self.keep

    def finished(self, latents: Tensor) -> Tensor:
        """The latents after the last step: as `blend`, so that what is kept is exact."""
        return latents * self.change + self.init * self.keep


@dataclass(frozen=True)
class SoftLatentMask(LatentMask):
    """Soft inpainting: cells are kept by degrees, less as noise falls, and mixed ones keep their contrast."""

    schedule_bias: float = 1.0
    preservation_strength: float = 0.5
    transition_contrast_boost: float = 4.0

    def blend(self, drawn: Tensor, level: Tensor) -> Tensor:
        """Mixed by `change_at` this level, then scaled to the weighted power mean of both norms over the channels.

        Norms are float32, as in the webui; their means and the factor float64.
        """
        change = self.change_at(level)
        keep = 1 - change
        mixed = self.init * keep + drawn * change
        power = self.transition_contrast_boost
        kept_norm, drawn_norm, mixed_norm = (
            part.norm(p=2, dim=1, keepdim=True).to(torch.float64) for part in (self.init, drawn, mixed)
        )
        wanted = (kept_norm**power * keep[:, :1] + drawn_norm**power * change[:, :1]) ** (1 / power)
        return mixed * (wanted / (mixed_norm + 1e-5)).to(mixed.dtype)

    def change_at(self, level: Tensor) -> Tensor:
        """How much of each cell is drawn anew at a noise level: change^(level^bias * preservation), (…, c, h, w).

        level: without dimensions; one on the CPU is a mere number for cells on a GPU, which then waits for nothing.
        """
        exponent = level.float() ** self.schedule_bias * self.preservation_strength
        change = self.change**exponent
        return change if change.ndim == 4 else change[None]

    def finished(self, latents: Tensor) -> Tensor:
        """The latents as they are: the overlay decides what of the picture is kept."""
        return latents


def nearest_cells(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(…, c, h, w) values at another size (h, w), each the nearest; (…, 1, 1) stays."""
    if values.shape[-2:] in (size, (1, 1)):
        return values
    batch = values if values.ndim == 4 else values[None]
    return interpolate(batch, size=size, mode="nearest-exact")
