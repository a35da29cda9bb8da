"""Inpainting in latents: what is kept and what is drawn anew, cell by cell; hard, or by degrees (soft inpainting)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentMask:
    """Where the latent is kept and where it is drawn. All broadcast to (b, c, h, w); keep + change = 1."""

    init: Tensor  # the clean latent
    keep: Tensor
    change: Tensor

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
        """How much of each cell is drawn anew at a noise level: change^(level^bias * preservation), (…, c, h, w)."""
        exponent = level.float() ** self.schedule_bias * self.preservation_strength
        change = self.change ** exponent.to(self.change.device)
        return change if change.ndim == 4 else change[None]

    def finished(self, latents: Tensor) -> Tensor:
        """The latents as they are: the overlay decides what of the picture is kept."""
        return latents
