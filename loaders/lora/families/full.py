"""The change itself, of a weight or of its bias alone."""

import math

from ...lazy_torch import TorchTensor, lazy_torch
from .family import Family, LayerStrength, Parts, Shapes


class FullFamily(Family):
    name = "full"
    sets = (frozenset({"diff"}),)
    reference_sets = ((frozenset({"diff_b"}), "it takes no `diff_b` without `diff`"),)

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        shape = shapes.get("diff")
        return None if shape is None else ((shape or (1,))[0], math.prod(shape[1:]))

    def delta(self, parts: Parts, weight: TorchTensor, how: LayerStrength) -> TorchTensor:
        return parts["diff"] if "diff" in parts else lazy_torch.zeros_like(weight)
