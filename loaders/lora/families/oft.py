"""OFT, kohya's and LyCORIS', and BOFT: rotations of the outputs in blocks, or in a butterfly of them."""

from collections.abc import Mapping

from ...lazy_torch import TorchTensor, lazy_torch
from .family import Family, LayerStrength, Parts, Shape, Shapes


class OftFamily(Family):
    name = "oft"
    sets = (frozenset({"oft_blocks"}), frozenset({"oft_diag"}))
    dims = {"oft_blocks": (3, 4), "oft_diag": (3,)}
    alpha_is_limit = True
    no_tuner = "OFT turns the outputs, and PEFT's turns the inputs"

    def flaw(self, shapes: Shapes) -> str:
        blocks = _oft_shape(shapes)
        return "" if blocks[-1] == blocks[-2] else "its rotation blocks are not square"

    def misfit(self, shapes: Shapes, weight: Shape, switches: Mapping[str, bool]) -> str:
        blocks = _oft_shape(shapes)
        if len(weight) < 2:
            return f"the model's layer is a norm (weight {weight}), which `oft` does not change"
        if blocks[-3] * blocks[-1] != weight[0]:
            return f"its rotation turns {blocks[-3] * blocks[-1]} outputs, and the model's layer has {weight[0]}"
        if len(blocks) == 4 and (blocks[-1] % 2 or weight[0] % (blocks[-1] << min(blocks[0] - 1, 64))):
            return f"{blocks[0]} butterfly stages of blocks of {blocks[-1]} do not go into {weight[0]} outputs"
        return ""

    def delta(self, parts: Parts, weight: TorchTensor, how: LayerStrength) -> TorchTensor:
        return _oft_weight(parts, weight, how, inside=1.0) - weight

    def changed(self, parts: Parts, weight: TorchTensor, how: LayerStrength) -> TorchTensor | None:
        return _oft_weight(parts, weight, how, inside=how.strength) if how.reference else None


def _oft_shape(shapes: Shapes) -> Shape:
    return shapes["oft_blocks"] if "oft_blocks" in shapes else shapes["oft_diag"]


def _oft_weight(parts: Parts, weight: TorchTensor, how: LayerStrength, inside: float) -> TorchTensor:
    """rescale * rotated W, with every rotation R taken as I + inside (R - I).

    The webui rotates fully and blends the result with W by the strength; LyCORIS blends the rotation.
    """
    rotation = _rotations(parts, weight.shape[0], how.alpha)
    if inside != 1.0:
        rotation = lazy_torch.lerp(lazy_torch.eye(rotation.shape[-1]).to(rotation), rotation, inside)
    turned = _butterfly(rotation, weight) if rotation.ndim == 4 else _turn_blocks(rotation, weight)
    if "rescale" in parts:
        turned = turned * parts["rescale"].reshape(-1, *[1] * (weight.ndim - 1))
    return turned


def _rotations(parts: Parts, out: int, alpha: float) -> TorchTensor:
    """R = (I + Q)(I - Q)^-1 with Q = B - B^T, |Q| over all blocks held under alpha * out (0: free).

    LyCORIS cuts |Q| at the constraint; kohya and the webui write min(|Q|, c) + 1e-8 over |Q| + 1e-8: equal to 1e-8.
    """
    if "oft_blocks" not in parts:
        return parts["oft_diag"]
    blocks = parts["oft_blocks"]
    skew = blocks - blocks.transpose(-1, -2)
    most = lazy_torch.finfo(lazy_torch.float32).max
    limit = max(min(alpha * out, most), -most)
    if limit != 0:
        norm = skew.norm()
        skew = skew * ((norm.clamp(max=limit) + 1e-8) / (norm + 1e-8))
    eye = lazy_torch.eye(blocks.shape[-1]).to(blocks)
    return (eye + skew) @ lazy_torch.linalg.inv(eye - skew)


def _turn_blocks(rotation: TorchTensor, weight: TorchTensor) -> TorchTensor:
    """W'_k = R_k^T W_k for rows in blocks. rotation: (k, n, n); weight: (k * n, ...)."""
    rows = weight.unflatten(0, (rotation.shape[0], rotation.shape[1]))
    return lazy_torch.einsum("knm, kn... -> km...", rotation, rows).flatten(0, 1)


def _butterfly(rotation: TorchTensor, weight: TorchTensor) -> TorchTensor:
    """BOFT: stage i mixes rows 2^i * b/2 apart, by R and not its transpose. rotation: (stages, blocks, b, b)."""
    size = rotation.shape[-1]
    for stage, turn in enumerate(rotation):
        reach = 2**stage * (size // 2)
        rows = weight.unflatten(0, (-1, 2, reach)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, size))
        rows = lazy_torch.einsum("bij, bj... -> bi...", turn, rows)
        weight = rows.flatten(0, 1).unflatten(0, (-1, reach, 2)).transpose(1, 2).flatten(0, 2)
    return weight
