"""DoRA, which any family may have: the changed weight V with the length that the file says, by three rules."""

import math

from ...lazy_torch import TorchTensor, lazy_torch
from .family import LayerStrength, Shape


def dora_weight(dora: TorchTensor, delta: TorchTensor, weight: TorchTensor, how: LayerStrength) -> TorchTensor:
    """V = W + s dW on the length that `dora_scale` d says, blended with W by the strength m.

    webui 1.10: W + m (V d / n - W), n always over the input axis, so that a file with d per output channel, today's
    usual, comes out otherwise than its trainer meant. LyCORIS: V (m (d / n - 1) + 1), n over the axis d has. PEFT:
    V = W + m s dW, then V d / n.
    """
    m, s = how.strength, how.scale
    on_input = not how.peft and dora_on_input(tuple(dora.shape), tuple(weight.shape))
    wanted = dora.reshape(*((1, -1) if on_input else (-1, 1)), *[1] * (weight.ndim - 2))
    if how.peft:
        whole = weight + (m * s) * delta
        return whole * wanted / _axis_norm(whole, 0)
    whole = weight + s * delta
    if not how.reference:
        return weight + m * (whole * wanted / _axis_norm(whole, 1) - weight)
    return whole * (m * (wanted / (_axis_norm(whole, int(on_input)) + lazy_torch.finfo(whole.dtype).eps) - 1) + 1)


def dora_on_input(dora: Shape, weight: Shape) -> bool:
    """Whether `dora_scale` (1, in[, 1, 1]) has a length per input channel; else it is (out, 1[, 1, 1]) or (out,)."""
    count = math.prod(dora)
    return count == weight[1] if len(dora) > 1 and dora[0] == 1 else count != weight[0]


def _axis_norm(weight: TorchTensor, axis: int) -> TorchTensor:
    return lazy_torch.linalg.vector_norm(weight, dim=[d for d in range(weight.ndim) if d != axis], keepdim=True)
