"""Changes of a norm's weight and bias."""

import math

from ...lazy_torch import TorchTensor
from .family import Family, LayerStrength, Parts, Shapes


class NormFamily(Family):
    name = "norm"
    sets = (frozenset({"w_norm", "b_norm"}),)
    reference_sets = ((frozenset({"w_norm"}), "it takes no `w_norm` without `b_norm`"),)
    no_tuner = "it changes a norm, for which PEFT has no tuner"

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        shape = shapes["w_norm"]
        return (shape or (1,))[0], math.prod(shape[1:])

    def delta(self, parts: Parts, weight: TorchTensor, how: LayerStrength) -> TorchTensor:
        return parts["w_norm"]
