"""Layers of network files as factors that PEFT's tuners can hold: dW = scale * up @ down, exactly, or a refusal.

    family   as LoRA                                                                   rank
    lora     up, down; a lora_mid folded into down; the first `dyn` components         r
    loha     U[o, pq] = a1[o, p] a2[o, q], D[pq, i] = b1[p, i] b2[q, i]                r * r
    lokr     U = u1 (x) u2, D = d1 (x) d2, where w1 = u1 d1 and w2 = u2 d2             rank(w1) * rank(w2)
    full     the identity and the change                                               min(out, in * kh * kw)

None has a rank over min(out, in * kh * kw): above it, the change itself and an identity hold the same. What changes a
weight by its present value (IA3, GLoRA, OFT), norms and biases cannot be held by a tuner that answers to strengths.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .families.dora import dora_on_input
from .families.family import LayerStrength, thin_pair
from .families.table import NUMBER_PARTS, weight_delta
from .keys import NetworkLayer
from .plan import MergeStep
from .targets import plain_shape


class AdapterFactors(NamedTuple):
    """One layer as LoRA, in float32: dW = scale * up @ down."""

    up: Tensor  # (out, r)
    down: Tensor  # (r, in * kh * kw)
    scale: float
    magnitude: Tensor | None = None  # (out,): DoRA, the length of every output's weights
    bias: Tensor | None = None  # (out,): added to the layer's own, times scale

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def adapter_refusal(layer: NetworkLayer, module: nn.Module) -> str:
    """Why no PEFT tuner computes this layer exactly at any strength; empty if one does."""
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return f"PEFT has no tuner for a {type(module).__name__}"
    if isinstance(module, nn.Conv2d) and type(module.weight) is not nn.Parameter:
        return f"PEFT has no tuner for a quantised convolution ({type(module).__name__})"
    if layer.algorithm.no_tuner:
        return layer.algorithm.no_tuner
    if "diff_b" in layer.keys:
        return "it changes the layer's bias, which no PEFT tuner does"
    if "lora_up.bias" in layer.keys and module.bias is None:
        return "it brings a bias to a layer without, which PEFT cannot merge"
    if layer.dora and not layer.peft and dora_on_input(layer.shapes["dora_scale"], tuple(plain_shape(module))):
        return "its DoRA lengths are per input channel, and PEFT's are per output"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return "the convolution has groups"
    return ""


def adapter_factors(step: MergeStep, shape: torch.Size) -> AdapterFactors:
    """The layer of `step` as LoRA for a weight of `shape` (out, in[, kh, kw]), on the CPU, without its strength.

    Ask adapter_refusal first. Raises NetworkError for values that are NaN or infinite.
    """
    parts = adapter_parts(step)
    how = LayerStrength(1.0, 1.0, dyn=step.dyn, reference=True)
    family, most = step.layer.algorithm, min(shape[0], shape[1:].numel())
    rank = family.pair_rank(step.layer.shapes)
    if rank is None or "bias" in parts or (rank > most and family.name != "lora"):
        up, down = thin_pair(weight_delta(family.name, parts, torch.zeros(shape), how).flatten(1))
    else:
        up, down = family.pair(parts, tuple(shape), how)
    if down.shape[1] != shape[1:].numel():  # four channels of an inpainting UNet's nine
        down = nn.functional.pad(down, (0, shape[1:].numel() - down.shape[1]))
    magnitude, bias = parts.get("dora_scale"), parts.get("lora_up.bias")
    return AdapterFactors(
        up,
        down,
        step.network.scale(step.layer, reference=True),
        None if magnitude is None else magnitude.flatten(),
        None if bias is None else bias.flatten(),
    )


def adapter_parts(step: MergeStep) -> dict[str, Tensor]:
    """The tensors of a layer in float32, without the numbers of its scale."""
    layer = step.layer
    return {part: step.network.tensor(layer, part).float() for part in layer.keys if part not in NUMBER_PARTS}


def joined_factors(parts: list[tuple[AdapterFactors, float]]) -> AdapterFactors:
    """The sum of changes at their strengths, as one of scale 1: their ranks side by side."""
    ups = [factors.up * (factors.scale * strength) for factors, strength in parts]
    biases = [factors.bias * (factors.scale * strength) for factors, strength in parts if factors.bias is not None]
    return AdapterFactors(
        torch.cat(ups, 1),
        torch.cat([factors.down for factors, _ in parts]),
        1.0,
        bias=torch.stack(biases).sum(0) if biases else None,
    )
