"""What each family of network does to a weight W (out, in[, kh, kw]): dW, in float32, from the current W.

    family   parts                                   dW
    lora     lora_up U, lora_down D [, lora_mid]     U D
    loha     hada_w1_a, _b, hada_w2_a, _b            (w1a w1b) * (w2a w2b)
    lokr     lokr_w1 or its _a _b; the same for w2   kron(w1, w2)
    full     diff [, diff_b]                         diff
    norm     w_norm, b_norm                          w_norm
    ia3      weight v, on_input                      W * v, along the input or the output axis
    glora    a1, a2, b1, b2                          W a2 a1 + b2 b1, or W a1 a2 + b1 b2 (today's LyCORIS)
    oft      oft_blocks or oft_diag [, rescale]      R^T W - W, or the butterfly's (BOFT)

Any of them may come with `alpha`, `scale`, `bias` (dense, of the weight's shape) and `dora_scale`. The formulas are
LyCORIS' (github.com/KohakuBlueleaf/LyCORIS, lycoris/functional and lycoris/modules, 4.1.3, Apache-2.0) and
sd-scripts' (networks/oft.py); where the webui differs, both are here and `reference` chooses.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class LayerStrength(NamedTuple):
    """How strongly, and by whose rules, one layer is applied."""

    strength: float  # the caller's: text encoder or UNet strength, times the block's
    scale: float  # alpha / rank, or what stands for it
    alpha: float = 0.0  # as in the file; OFT reads it as its constraint
    dyn: int | None = None  # keep that many components of a low-rank pair
    reference: bool = False  # by the format's own library instead of the webui's rules
    peft: bool = False  # the file is in PEFT's layout (its DoRA scales before it normalises)


def changed_weight(family: str, parts: Mapping[str, Tensor], weight: Tensor, how: LayerStrength) -> Tensor:
    """W with one layer of a network applied. weight: float32, (out, in[, kh, kw]) or (out,); a new tensor returns.

    parts: float32, checked by layer_misfit. W' = W + m s dW, but for DoRA and for OFT by its library's rule.
    """
    if family == "oft" and how.reference:
        return _oft_weight(parts, weight, how, inside=how.strength)
    delta = weight_delta(family, parts, weight, how)
    if "dora_scale" in parts:
        return _dora_weight(parts["dora_scale"], delta, weight, how)
    return weight + (how.strength * how.scale) * delta


def weight_delta(family: str, parts: Mapping[str, Tensor], weight: Tensor, how: LayerStrength) -> Tensor:
    """dW of the family, shaped like `weight`, without strength and scale.

    A change of 4 input channels on a convolution with 9 (an inpainting UNet's first) leaves the other 5 alone.
    """
    delta = _FAMILY_DELTAS[family](parts, weight, how)
    if delta.numel() != weight.numel():
        narrow = delta.reshape(weight.shape[0], 4, *weight.shape[2:])
        delta = torch.zeros_like(weight)
        delta[:, :4] = narrow
    delta = delta.reshape(weight.shape)
    return delta + parts["bias"].reshape(weight.shape) if "bias" in parts else delta


def low_rank_factors(parts: Mapping[str, Tensor], how: LayerStrength) -> tuple[Tensor, Tensor]:
    """U (out, r) and D (r, in * kh * kw) with dW = U D. A `lora_mid` is folded into D.

    dyn keeps the first components; on a layer with `lora_mid` it has no effect.
    """
    up, down, mid = parts["lora_up.weight"], parts["lora_down.weight"], parts.get("lora_mid.weight")
    up, down = up.reshape(up.shape[0], -1), down.reshape(down.shape[0], -1)
    if mid is not None:
        return up, torch.einsum("nj..., ji -> ni...", mid, down).flatten(1)
    return (up, down) if how.dyn is None else (up[:, : how.dyn], down[: how.dyn])


def _delta_lora(parts: Mapping[str, Tensor], weight: Tensor, how: LayerStrength) -> Tensor:
    up, down = low_rank_factors(parts, how)
    return up @ down


def _delta_loha(parts: Mapping[str, Tensor], weight: Tensor, how: LayerStrength) -> Tensor:
    halves = []
    for half in ("1", "2"):
        a, b = parts[f"hada_w{half}_a"], parts[f"hada_w{half}_b"]
        core = parts.get(f"hada_t{half}")
        halves.append(a @ b.flatten(1) if core is None else _tucker(core, a, b))
    return halves[0] * halves[1]


def _delta_lokr(parts: Mapping[str, Tensor], weight: Tensor, how: LayerStrength) -> Tensor:
    w1 = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if "lokr_w2" in parts:
        w2 = parts["lokr_w2"]
    elif "lokr_t2" in parts:
        w2 = _tucker(parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
    else:
        w2 = parts["lokr_w2_a"] @ parts["lokr_w2_b"].flatten(1)
    return torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2.contiguous())


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """T[o, i, k, l] = sum_pq core[p, q, k, l] a[p, o] b[q, i]."""
    return torch.einsum("pq..., po, qi -> oi...", core, a, b)


def _delta_full(parts: Mapping[str, Tensor], weight: Tensor, how: LayerStrength) -> Tensor:
    return parts["diff"] if "diff" in parts else torch.zeros_like(weight)


def _delta_norm(parts: Mapping[str, Tensor], weight: Tensor, how: LayerStrength) -> Tensor:
    return parts["w_norm"]


def _delta_ia3(parts: Mapping[str, Tensor], weight: Tensor, how: LayerStrength) -> Tensor:
    axis = 1 if bool(parts["on_input"].flatten()[0] != 0) else 0
    ones = [1] * (weight.ndim - 2)
    return weight * parts["weight"].reshape(*((1, -1) if axis else (-1, 1)), *ones)


def _delta_glora(parts: Mapping[str, Tensor], weight: Tensor, how: LayerStrength) -> Tensor:
    """The first generation, which the webui reads, as W a2 a1 + b2 b1; today's with 1 and 2 changing places."""
    a1, a2, b1, b2 = (parts[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    if glora_is_new({name: tuple(part.shape) for name, part in parts.items()}, tuple(weight.shape)):
        a1, a2, b1, b2 = a2, a1, b2, b1
    inner = a2.flatten(1) @ a1.flatten(1)
    turned = torch.einsum("oi..., ij -> oj...", weight, inner)
    if "bm.weight" in parts:
        low = torch.einsum("mn..., om, ni -> oi...", parts["bm.weight"], b2.flatten(1), b1.flatten(1))
    else:
        low = b2.flatten(1) @ b1.flatten(1)
    return low.reshape(weight.shape) + turned


def _delta_oft(parts: Mapping[str, Tensor], weight: Tensor, how: LayerStrength) -> Tensor:
    return _oft_weight(parts, weight, how, inside=1.0) - weight


def _oft_weight(parts: Mapping[str, Tensor], weight: Tensor, how: LayerStrength, inside: float) -> Tensor:
    """rescale * rotated W, with every rotation R taken as I + inside (R - I).

    The webui rotates fully and blends the result with W by the strength; LyCORIS blends the rotation.
    """
    rotation = _rotations(parts, weight.shape[0], how.alpha)
    if inside != 1.0:
        rotation = torch.lerp(torch.eye(rotation.shape[-1]).to(rotation), rotation, inside)
    turned = _butterfly(rotation, weight) if rotation.ndim == 4 else _turn_blocks(rotation, weight)
    if "rescale" in parts:
        turned = turned * parts["rescale"].reshape(-1, *[1] * (weight.ndim - 1))
    return turned


def _rotations(parts: Mapping[str, Tensor], out: int, alpha: float) -> Tensor:
    """R = (I + Q)(I - Q)^-1 with Q = B - B^T, |Q| over all blocks held under alpha * out (0: free).

    LyCORIS cuts |Q| at the constraint; kohya and the webui write min(|Q|, c) + 1e-8 over |Q| + 1e-8: equal to 1e-8.
    """
    if "oft_blocks" not in parts:
        return parts["oft_diag"]
    blocks = parts["oft_blocks"]
    skew = blocks - blocks.transpose(-1, -2)
    limit = alpha * out
    if limit != 0:
        norm = skew.norm()
        skew = skew * ((norm.clamp(max=limit) + 1e-8) / (norm + 1e-8))
    eye = torch.eye(blocks.shape[-1]).to(blocks)
    return (eye + skew) @ torch.linalg.inv(eye - skew)


def _turn_blocks(rotation: Tensor, weight: Tensor) -> Tensor:
    """W'_k = R_k^T W_k for rows in blocks. rotation: (k, n, n); weight: (k * n, ...)."""
    rows = weight.unflatten(0, (rotation.shape[0], rotation.shape[1]))
    return torch.einsum("knm, kn... -> km...", rotation, rows).flatten(0, 1)


def _butterfly(rotation: Tensor, weight: Tensor) -> Tensor:
    """BOFT: stage i mixes rows 2^i * b/2 apart, by R and not its transpose. rotation: (stages, blocks, b, b)."""
    size = rotation.shape[-1]
    for stage, turn in enumerate(rotation):
        reach = 2**stage * (size // 2)
        rows = weight.unflatten(0, (-1, 2, reach)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, size))
        rows = torch.einsum("bij, bj... -> bi...", turn, rows)
        weight = rows.flatten(0, 1).unflatten(0, (-1, reach, 2)).transpose(1, 2).flatten(0, 2)
    return weight


def _dora_weight(dora: Tensor, delta: Tensor, weight: Tensor, how: LayerStrength) -> Tensor:
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
    return whole * (m * (wanted / (_axis_norm(whole, int(on_input)) + torch.finfo(whole.dtype).eps) - 1) + 1)


def _axis_norm(weight: Tensor, axis: int) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=[d for d in range(weight.ndim) if d != axis], keepdim=True)


def dora_on_input(dora: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether `dora_scale` (1, in[, 1, 1]) has a length per input channel; else it is (out, 1[, 1, 1]) or (out,)."""
    count = math.prod(dora)
    return count == weight[1] if len(dora) > 1 and dora[0] == 1 else count != weight[0]


def glora_is_new(shapes: Mapping[str, tuple[int, ...]], weight: tuple[int, ...]) -> bool:
    """Whether a GLoRA layer is of today's layout: a1 (in, r), b1 (out, r). The first had a1 (r, in), b1 (r, in)."""
    a1, b1 = shapes["a1.weight"], shapes["b1.weight"]
    return a1[0] == weight[1] and b1[0] == weight[0] and b1[1] == a1[1]


_FAMILY_DELTAS: dict[str, Callable[[Mapping[str, Tensor], Tensor, LayerStrength], Tensor]] = {
    "lora": _delta_lora,
    "loha": _delta_loha,
    "lokr": _delta_lokr,
    "full": _delta_full,
    "norm": _delta_norm,
    "ia3": _delta_ia3,
    "glora": _delta_glora,
    "oft": _delta_oft,
}
