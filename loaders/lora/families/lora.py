"""LoRA and LoCon: dW = U D; with `lora_mid`, a Tucker product."""

import math

from ...lazy_torch import TorchTensor, lazy_torch
from .family import Family, LayerStrength, Parts, Shape, Shapes


class LoraFamily(Family):
    name = "lora"
    sets = (frozenset({"lora_up.weight", "lora_down.weight"}),)
    dims = {"lora_up.weight": (2, 4), "lora_down.weight": (2, 4), "lora_mid.weight": (4,)}
    pairs = (("lora_up.weight", "lora_down.weight"),)

    def rank(self, shapes: Shapes) -> int | None:
        return shapes["lora_down.weight"][0]

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        mid = math.prod(shapes["lora_mid.weight"][2:]) if "lora_mid.weight" in shapes else 1
        return shapes["lora_up.weight"][0], math.prod(shapes["lora_down.weight"][1:]) * mid

    def flaw(self, shapes: Shapes) -> str:
        if "lora_mid.weight" not in shapes:
            return super().flaw(shapes)
        up, mid, down = (shapes[f"lora_{part}.weight"] for part in ("up", "mid", "down"))
        if mid[:2] != (math.prod(up[1:]), down[0]):
            return f"`lora_mid` {mid} joins neither `lora_up` nor `lora_down`"
        return ""

    def delta(self, parts: Parts, weight: TorchTensor, how: LayerStrength) -> TorchTensor:
        up, down = low_rank_factors(parts, how)
        return up @ down

    def pair_rank(self, shapes: Shapes) -> int | None:
        return math.prod(shapes["lora_up.weight"][1:])

    def pair(self, parts: Parts, weight: Shape, how: LayerStrength) -> tuple[TorchTensor, TorchTensor]:
        return low_rank_factors(parts, how)


def low_rank_factors(parts: Parts, how: LayerStrength) -> tuple[TorchTensor, TorchTensor]:
    """U (out, r) and D (r, in * kh * kw) with dW = U D. A `lora_mid` is folded into D.

    dyn keeps the first components; on a layer with `lora_mid` it has no effect.
    """
    up, down, mid = parts["lora_up.weight"], parts["lora_down.weight"], parts.get("lora_mid.weight")
    up, down = up.reshape(up.shape[0], -1), down.reshape(down.shape[0], -1)
    if mid is not None:
        return up, lazy_torch.einsum("nj..., ji -> ni...", mid, down).flatten(1)
    return (up, down) if how.dyn is None else (up[:, : how.dyn], down[: how.dyn])
