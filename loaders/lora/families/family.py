"""What a family of network is made of. A new one is a subclass in a module of its own, and a row of the table."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ...lazy_torch import TorchTensor, lazy_torch


Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # part -> shape
Parts = Mapping[str, TorchTensor]  # part -> value, float32


class LayerStrength(NamedTuple):
    """How strongly, and by whose rules, one layer is applied."""

    strength: float  # the caller's: text encoder or UNet strength, times the block's
    scale: float  # alpha / rank, or what stands for it
    alpha: float = 0.0  # as in the file; OFT reads it as its constraint
    dyn: int | None = None  # keep that many components of a low-rank pair
    reference: bool = False  # by the format's own library instead of the webui's rules
    peft: bool = False  # the file has PEFT's DoRA, which scales before it normalises


class Family:
    """One algorithm. The methods get shapes by part; a weight's shape is (out[, in[, kh, kw]])."""

    name: str
    sets: tuple[frozenset[str], ...]  # a layer with all parts of one of these is of the family
    reference_sets: tuple[tuple[frozenset[str], str], ...] = ()  # what only the reference takes; why not the webui
    dims: Mapping[str, tuple[int, ...]] = {}  # part -> how many axes it may have
    pairs: tuple[tuple[str, str], ...] = ()  # columns of the one and rows of the other must agree
    switches: tuple[str, ...] = ()  # parts that are yes or no, and decide what fits
    alpha_is_limit = False  # alpha is a constraint in the formula, and no scale
    no_tuner = ""  # why PEFT has no tuner that is exact at any strength

    def rank(self, shapes: Shapes) -> int | None:
        """What alpha is divided by; None where alpha is no scale."""
        return None

    def alpha_scale(self, shapes: Shapes, reference: bool, rank_stabilised: bool) -> Callable[[float], float] | None:
        """alpha -> the layer's scale; None where alpha is not read. rank_stabilised: trained with `rs_lora`."""
        rank = self.rank(shapes)
        return None if not rank else lambda alpha: alpha / rank

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        """(out, in * kh * kw) of the change; None for families that take it from the weight."""
        return None

    def flaw(self, shapes: Shapes) -> str:
        """How the factors disagree with each other, whatever the model; empty if they do not."""
        for a, b in self.pairs:
            if a in shapes and b in shapes and math.prod(shapes[a][1:]) != shapes[b][0]:
                return f"`{a}` {shapes[a]} and `{b}` {shapes[b]} disagree about the rank"
        return ""

    def misfit(self, shapes: Shapes, weight: Shape, switches: Mapping[str, bool]) -> str:
        """Why the layer does not fit a weight of this shape, beyond `size`; empty if it does."""
        return ""

    def webui_limit(self, shapes: Shapes, weight: Shape, switches: Mapping[str, bool]) -> str:
        """Why the webui fails on a layer that means something; empty where it does not fail."""
        return ""

    def delta(self, parts: Parts, weight: TorchTensor, how: LayerStrength) -> TorchTensor:
        """dW without strength and scale, reshapeable to `weight`."""
        raise NotImplementedError

    def changed(self, parts: Parts, weight: TorchTensor, how: LayerStrength) -> TorchTensor | None:
        """W' where the family's library blends by the strength otherwise than W + m s dW; else None."""
        return None

    def pair_rank(self, shapes: Shapes) -> int | None:
        """The rank of `pair`; None where the change is no product of two thin factors."""
        return None

    def pair(self, parts: Parts, weight: Shape, how: LayerStrength) -> tuple[TorchTensor, TorchTensor]:
        """U (out, r) and D (r, in * kh * kw) with dW = U D, for families with a pair_rank."""
        raise NotImplementedError


def tucker_product(core: TorchTensor, a: TorchTensor, b: TorchTensor) -> TorchTensor:
    """T[o, i, k, l] = sum_pq core[p, q, k, l] a[p, o] b[q, i]."""
    return lazy_torch.einsum("pq..., po, qi -> oi...", core, a, b)


def thin_pair(matrix: TorchTensor) -> tuple[TorchTensor, TorchTensor]:
    """A matrix as a product of itself and an identity, on the side that makes the inner size the smaller."""
    rows, columns = matrix.shape
    if rows <= columns:
        return lazy_torch.eye(rows).to(matrix), matrix
    return matrix, lazy_torch.eye(columns).to(matrix)
