"""LoKr: dW = kron(w1, w2), each factor whole, a product of two, or (w2) a Tucker product."""

import math
from collections.abc import Callable

from ...lazy_torch import TorchTensor, lazy_torch
from .family import Family, LayerStrength, Parts, Shape, Shapes, thin_pair, tucker_product


class LokrFamily(Family):
    name = "lokr"
    sets = tuple(
        frozenset(w1 | w2)
        for w1 in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
        for w2 in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
    )
    dims = {
        **dict.fromkeys(("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a"), (2,)),
        **dict.fromkeys(("lokr_w2", "lokr_w2_b"), (2, 4)),
        "lokr_t2": (4,),
    }

    def rank(self, shapes: Shapes) -> int | None:
        return next((shapes[part][0] for part in ("lokr_w2_b", "lokr_w1_b") if part in shapes), None)

    def alpha_scale(self, shapes: Shapes, reference: bool, rank_stabilised: bool) -> Callable[[float], float] | None:
        """Two whole factors have no rank r to divide by, and scale 1; but with `rs_lora`, LyCORIS trains them at
        sqrt(r) and writes alpha = r * sqrt(r) (lycoris/modules/lokr.py, `__init__`)."""
        if self.rank(shapes) is None and reference and rank_stabilised:
            return lambda alpha: abs(alpha) ** (1 / 3)
        return super().alpha_scale(shapes, reference, rank_stabilised)

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        w1, w2 = _lokr_w1(shapes), _lokr_w2(shapes)
        return w1[0] * w2[0], w1[1] * w2[1]

    def flaw(self, shapes: Shapes) -> str:
        pairs = [("lokr_w1_a", "lokr_w1_b")] if "lokr_w1" not in shapes else []
        if "lokr_w2" not in shapes and "lokr_t2" not in shapes:
            pairs.append(("lokr_w2_a", "lokr_w2_b"))
        for a, b in pairs:
            if shapes[a][1] != shapes[b][0]:
                return f"`{a}` {shapes[a]} and `{b}` {shapes[b]} disagree about the rank"
        if "lokr_t2" in shapes and "lokr_w2" not in shapes:
            a, b, core = (shapes[part] for part in ("lokr_w2_a", "lokr_w2_b", "lokr_t2"))
            if len(b) != 2 or core[:2] != (a[0], b[0]):
                return f"`lokr_t2` {core} joins neither `lokr_w2_a` {a} nor `lokr_w2_b` {b}"
        return ""

    def delta(self, parts: Parts, weight: TorchTensor, how: LayerStrength) -> TorchTensor:
        w1 = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
        if "lokr_w2" in parts:
            w2 = parts["lokr_w2"]
        elif "lokr_t2" in parts:
            w2 = tucker_product(parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
        else:
            w2 = parts["lokr_w2_a"] @ parts["lokr_w2_b"].flatten(1)
        return lazy_torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2.contiguous())

    def pair_rank(self, shapes: Shapes) -> int | None:
        w1 = min(shapes["lokr_w1"]) if "lokr_w1" in shapes else shapes["lokr_w1_b"][0]
        if "lokr_w2" in shapes:
            w2 = min(shapes["lokr_w2"][0], math.prod(shapes["lokr_w2"][1:]))
        else:
            w2 = shapes["lokr_w2_a"][0 if "lokr_t2" in shapes else 1]
        return w1 * w2

    def pair(self, parts: Parts, weight: Shape, how: LayerStrength) -> tuple[TorchTensor, TorchTensor]:
        """U = u1 (x) u2, D = d1 (x) d2, where w1 = u1 d1 and w2 = u2 d2."""
        if "lokr_w1" in parts:
            up1, down1 = thin_pair(parts["lokr_w1"])
        else:
            up1, down1 = parts["lokr_w1_a"], parts["lokr_w1_b"]
        kernel = tuple(weight[2:]) or (1, 1)
        if "lokr_w2" in parts:
            up2, down2 = thin_pair(parts["lokr_w2"].flatten(1))
        elif "lokr_t2" in parts:
            up2 = parts["lokr_w2_a"].T
            down2 = lazy_torch.einsum("pq..., qi -> pi...", parts["lokr_t2"], parts["lokr_w2_b"]).flatten(1)
        else:
            up2, down2 = parts["lokr_w2_a"], parts["lokr_w2_b"].flatten(1)
        up = lazy_torch.einsum("ap, bq -> abpq", up1, up2).flatten(2).flatten(0, 1)
        down = lazy_torch.einsum("pc, qdkl -> pqcdkl", down1, down2.reshape(len(down2), -1, *kernel))
        return up, down.flatten(2).flatten(0, 1)


def _lokr_w1(shapes: Shapes) -> tuple[int, int]:
    if "lokr_w1" in shapes:
        return shapes["lokr_w1"][0], shapes["lokr_w1"][1]
    return shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1]


def _lokr_w2(shapes: Shapes) -> tuple[int, int]:
    if "lokr_w2" in shapes:
        return shapes["lokr_w2"][0], math.prod(shapes["lokr_w2"][1:])
    if "lokr_t2" in shapes:
        return shapes["lokr_w2_a"][1], math.prod(shapes["lokr_w2_b"][1:]) * math.prod(shapes["lokr_t2"][2:])
    return shapes["lokr_w2_a"][0], math.prod(shapes["lokr_w2_b"][1:])
