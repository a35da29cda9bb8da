"""LoHa: dW = (w1a w1b) * (w2a w2b), elementwise; with `hada_t1` and `hada_t2`, each bracket a Tucker product."""

import math

from ...lazy_torch import TorchTensor, lazy_torch
from .family import Family, LayerStrength, Parts, Shape, Shapes, tucker_product


class LohaFamily(Family):
    name = "loha"
    sets = (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),)
    dims = {
        **dict.fromkeys(("hada_w1_a", "hada_w2_a"), (2,)),
        **dict.fromkeys(("hada_w1_b", "hada_w2_b"), (2, 4)),
        **dict.fromkeys(("hada_t1", "hada_t2"), (4,)),
    }
    pairs = (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"))

    def rank(self, shapes: Shapes) -> int | None:
        return shapes["hada_w1_b"][0]

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        if "hada_t1" in shapes:
            return shapes["hada_w1_a"][1], math.prod(shapes["hada_w1_b"][1:]) * math.prod(shapes["hada_t1"][2:])
        return shapes["hada_w1_a"][0], math.prod(shapes["hada_w1_b"][1:])

    def flaw(self, shapes: Shapes) -> str:
        if ("hada_t1" in shapes) != ("hada_t2" in shapes):
            return "one of its two halves has a core, and the other has none"
        if "hada_t1" not in shapes:
            halves = [(shapes[f"hada_w{n}_a"][0], math.prod(shapes[f"hada_w{n}_b"][1:])) for n in (1, 2)]
            return super().flaw(shapes) or ("" if halves[0] == halves[1] else "its two halves have different sizes")
        if any(shapes[f"hada_{part.format(1)}"] != shapes[f"hada_{part.format(2)}"] for part in _HALF):
            return "its two halves have different shapes"
        if len(shapes["hada_w1_b"]) != 2 or shapes["hada_t1"][:2] != (shapes["hada_w1_a"][0], shapes["hada_w1_b"][0]):
            return f"`hada_t1` {shapes['hada_t1']} joins neither `hada_w1_a` nor `hada_w1_b`"
        return ""

    def delta(self, parts: Parts, weight: TorchTensor, how: LayerStrength) -> TorchTensor:
        halves = []
        for half in ("1", "2"):
            a, b = parts[f"hada_w{half}_a"], parts[f"hada_w{half}_b"]
            core = parts.get(f"hada_t{half}")
            halves.append(a @ b.flatten(1) if core is None else tucker_product(core, a, b))
        return halves[0] * halves[1]

    def pair_rank(self, shapes: Shapes) -> int | None:
        axis = 0 if "hada_t1" in shapes else 1
        return shapes["hada_w1_a"][axis] * shapes["hada_w2_a"][axis]

    def pair(self, parts: Parts, weight: Shape, how: LayerStrength) -> tuple[TorchTensor, TorchTensor]:
        """U[o, pq] = a1[o, p] a2[o, q], D[pq, i] = b1[p, i] b2[q, i]."""
        ups, downs = [], []
        for half in ("1", "2"):
            a, b, core = parts[f"hada_w{half}_a"], parts[f"hada_w{half}_b"], parts.get(f"hada_t{half}")
            ups.append(a if core is None else a.T)
            downs.append(b.flatten(1) if core is None else lazy_torch.einsum("pq..., qi -> pi...", core, b).flatten(1))
        up = lazy_torch.einsum("op, oq -> opq", *ups).flatten(1)
        return up, lazy_torch.einsum("pi, qi -> pqi", *downs).flatten(0, 1)


_HALF = ("w{}_a", "w{}_b", "t{}")
