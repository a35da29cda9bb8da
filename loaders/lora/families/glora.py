"""GLoRA in its two layouts: the first, which the webui reads, and today's, with 1 and 2 changing places."""

import math
from collections.abc import Callable, Mapping

from ...lazy_torch import TorchTensor, lazy_torch
from .family import Family, LayerStrength, Parts, Shape, Shapes


class GloraFamily(Family):
    name = "glora"
    sets = (frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"}),)
    reference_sets = (
        (frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight"}), "it takes no GLoRA without `alpha`"),
    )
    dims = {**dict.fromkeys(("a1.weight", "a2.weight", "b1.weight", "b2.weight"), (2, 4)), "bm.weight": (4,)}
    no_tuner = "GLoRA changes the weight by its present value, and PEFT has no such tuner"

    def alpha_scale(self, shapes: Shapes, reference: bool, rank_stabilised: bool) -> Callable[[float], float] | None:
        """The webui reads no alpha here; LyCORIS has alpha / r, with `rs_lora` alpha / sqrt(r) (modules/glora.py)."""
        rank = min(shapes["a1.weight"][:2])
        if not reference or not rank:
            return None
        return lambda alpha: alpha / (rank**0.5 if rank_stabilised else rank)

    def misfit(self, shapes: Shapes, weight: Shape, switches: Mapping[str, bool]) -> str:
        if len(weight) < 2:
            return f"the model's layer is a norm (weight {weight}), which `glora` does not change"
        a1, a2, b1, b2 = (shapes[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
        if glora_is_new(shapes, weight):
            a1, a2, b1, b2 = a2, a1, b2, b1
        core = shapes.get("bm.weight")
        row = math.prod(b1[1:]) * (math.prod(core[2:]) if core else 1)
        square = math.prod(a1[1:]) == a2[0] == weight[1] and math.prod(a2[1:]) == a1[0]
        joined = math.prod(b2[1:]) == b1[0] if core is None else core[:2] == (math.prod(b2[1:]), b1[0])
        if square and joined and b2[0] == weight[0] and row == math.prod(weight[1:]):
            return ""
        return f"its factors fit no weight of shape {weight}"

    def webui_limit(self, shapes: Shapes, weight: Shape, switches: Mapping[str, bool]) -> str:
        if len(weight) == 4:
            return "the webui applies GLoRA to linear layers only"
        if len(weight) == 2 and glora_is_new(shapes, weight):
            return "the webui reads the first GLoRA layout only, and this is today's"
        return ""

    def delta(self, parts: Parts, weight: TorchTensor, how: LayerStrength) -> TorchTensor:
        """The first generation as W a2 a1 + b2 b1; today's with 1 and 2 changing places."""
        a1, a2, b1, b2 = (parts[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
        if glora_is_new({name: tuple(part.shape) for name, part in parts.items()}, tuple(weight.shape)):
            a1, a2, b1, b2 = a2, a1, b2, b1
        inner = a2.flatten(1) @ a1.flatten(1)
        turned = lazy_torch.einsum("oi..., ij -> oj...", weight, inner)
        if "bm.weight" in parts:
            low = lazy_torch.einsum("mn..., om, ni -> oi...", parts["bm.weight"], b2.flatten(1), b1.flatten(1))
        else:
            low = b2.flatten(1) @ b1.flatten(1)
        return low.reshape(weight.shape) + turned


def glora_is_new(shapes: Shapes, weight: Shape) -> bool:
    """Whether a GLoRA layer is of today's layout: a1 (in, r), b1 (out, r). The first had a1 (r, in), b1 (r, in)."""
    a1, b1 = shapes["a1.weight"], shapes["b1.weight"]
    return a1[0] == weight[1] and b1[0] == weight[0] and b1[1] == a1[1]
