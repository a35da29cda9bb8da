"""IA3: the weight times a vector along its input or its output axis; the bias stays."""

import math
from collections.abc import Mapping

from ...lazy_torch import TorchTensor
from .family import Family, LayerStrength, Parts, Shape, Shapes


class Ia3Family(Family):
    name = "ia3"
    sets = (frozenset({"weight", "on_input"}),)
    switches = ("on_input",)
    no_tuner = "IA3 scales the present weight, and PEFT's cannot be given a strength"

    def misfit(self, shapes: Shapes, weight: Shape, switches: Mapping[str, bool]) -> str:
        if len(weight) < 2:
            return f"the model's layer is a norm (weight {weight}), which `ia3` does not change"
        if math.prod(shapes["weight"]) != weight[int(switches["on_input"])]:
            return f"`weight` is {shapes['weight']}, and the model's weight {weight}"
        return ""

    def webui_limit(self, shapes: Shapes, weight: Shape, switches: Mapping[str, bool]) -> str:
        if len(weight) == 4 and not switches["on_input"]:
            return "the webui cannot scale the outputs of a convolution (IA3)"
        return ""

    def delta(self, parts: Parts, weight: TorchTensor, how: LayerStrength) -> TorchTensor:
        axis = 1 if bool(parts["on_input"].flatten()[0] != 0) else 0
        ones = [1] * (weight.ndim - 2)
        return weight * parts["weight"].reshape(*((1, -1) if axis else (-1, 1)), *ones)
