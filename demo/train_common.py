"""What every stage of the demo's training shares: the loop, averages, the learning rate's curve, checkpoints."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm


class Averaged:
    """Exponential moving average of parameters: the weights that are kept."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float = 0.998) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Early steps average over fewer, so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def copy_to(self) -> None:
        """Put the average into the parameters (for good)."""
        for parameter, mean in zip(self.parameters, self.shadow):
            parameter.copy_(mean)


def rate_factor(step: int, steps: int, warmup: int = 100, floor: float = 0.01) -> float:
    """Linear warm-up, then a cosine from 1 down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


class LossLog:
    """The means of named losses over `every` steps, kept as rows and written beside the checkpoint."""

    def __init__(self, path: Path, every: int = 25) -> None:
        self.path = path
        self.every = every
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._seen = 0

    def add(self, step: int, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._seen += 1
        if self._seen == self.every:
            self.rows.append({"step": step + 1, **{k: round(v / self.every, 6) for k, v in self._sums.items()}})
            self._sums, self._seen = {}, 0
            self.path.write_text("\n".join(json.dumps(row) for row in self.rows) + "\n")


class Run:
    """One stage's folder: `checkpoint.pt` (models, averages, optimiser, step) and `losses.jsonl`."""

    def __init__(
        self, folder: Path, models: dict[str, nn.Module], averaged: Averaged, optimiser: torch.optim.Optimizer
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "checkpoint.pt"
        self.models = models
        self.averaged = averaged
        self.optimiser = optimiser
        self.log = LossLog(folder / "losses.jsonl")

    def load(self) -> int:
        """Take up the last checkpoint; returns the first step still to do (0 without a checkpoint)."""
        if not self.file.exists():
            return 0
        kept = torch.load(self.file, weights_only=True)
        for name, model in self.models.items():
            model.load_state_dict(kept["models"][name])
        self.averaged.shadow = kept["averaged"]
        self.optimiser.load_state_dict(kept["optimiser"])
        self.log.rows = kept["losses"]
        return kept["step"]

    def save(self, step: int) -> None:
        """Write the checkpoint whole or not at all."""
        partial = self.file.with_suffix(".partial")
        torch.save(
            {
                "models": {name: model.state_dict() for name, model in self.models.items()},
                "averaged": self.averaged.shadow,
                "optimiser": self.optimiser.state_dict(),
                "losses": self.log.rows,
                "step": step,
            },
            partial,
        )
        partial.replace(self.file)


@dataclass(frozen=True)
class Recipe:
    """How the parameters of one stage are stepped: AdamW under `rate_factor`'s curve, their average kept."""

    rate: float
    warmup: int = 100
    decay: float = 0.998
    weight_decay: float = 0.0
    save_every: int = 250


def fit(
    models: dict[str, nn.Module],
    parameters: Iterable[nn.Parameter],
    losses_at: Callable[[int], dict[str, Tensor]],
    folder: Path,
    steps: int,
    recipe: Recipe,
) -> None:
    """Train (or go on) until `steps` steps are done; afterwards `parameters` hold their averages.

    `losses_at(step)` gives named losses: "loss" is the one that is made small, the others are only written down.
    """
    parameters = list(parameters)
    averaged = Averaged(parameters, recipe.decay)
    optimiser = torch.optim.AdamW(
        parameters, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
    )
    run = Run(folder, models, averaged, optimiser)
    first = run.load()
    for step in tqdm(range(first, steps), initial=first, total=steps, desc=folder.name, mininterval=5):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * rate_factor(step, steps, recipe.warmup)
        losses = losses_at(step)
        optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        averaged.update(step)
        run.log.add(step, {name: loss.item() for name, loss in losses.items()})
        if (step + 1) % recipe.save_every == 0 or step + 1 == steps:
            run.save(step + 1)
    averaged.copy_to()
