"""The table of families, and what holds for layers of all of them."""

import math
from collections.abc import Iterable, Mapping

from ...lazy_torch import TorchTensor, lazy_torch
from .dora import dora_weight
from .family import Family, LayerStrength, Parts, Shape, Shapes
from .full import FullFamily
from .glora import GloraFamily
from .ia3 import Ia3Family
from .loha import LohaFamily
from .lokr import LokrFamily
from .lora import LoraFamily
from .norm import NormFamily
from .oft import OftFamily


# the first whose parts a layer has is its family: the webui's order
FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        LoraFamily(),
        LohaFamily(),
        Ia3Family(),
        LokrFamily(),
        FullFamily(),
        NormFamily(),
        GloraFamily(),
        OftFamily(),
    )
}

NUMBER_PARTS = ("alpha", "scale")
BIAS_PARTS = {"diff_b": False, "b_norm": False, "lora_up.bias": True}  # part -> whether the layer's scale is for it


def layer_family(parts: Iterable[str]) -> tuple[str, str] | None:
    """(family, why the webui refuses a file with it) by the parts of one layer; None where they make up no family.

    The reference libraries also take a bias without a weight, a norm without a bias and a GLoRA without alpha, for
    which the webui refuses the whole file.
    """
    have = set(parts)
    for family in FAMILIES.values():
        if any(wanted <= have for wanted in family.sets):
            return family.name, ""
    for family in FAMILIES.values():
        for wanted, why in family.reference_sets:
            if wanted <= have:
                return family.name, why
    return None


def shapes_flaw(family: Family, shapes: Shapes) -> str:
    """What is wrong with a layer whatever the model, in words for a message; empty if nothing is."""
    for part in (*NUMBER_PARTS, *family.switches):
        if part in shapes and math.prod(shapes[part]) != 1:
            return f"`{part}` holds {math.prod(shapes[part])} values, and one was expected"
    for part, wanted in family.dims.items():
        if part in shapes and len(shapes[part]) not in wanted:
            return f"`{part}` has shape {shapes[part]}, which is no factor of a weight"
    return family.flaw(shapes)


def empty_part(shapes: Shapes) -> str:
    """The first part without a value in it; empty text if all have some."""
    return next((part for part, shape in shapes.items() if 0 in shape), "")


def shapes_misfit(family: Family, shapes: Shapes, weight: Shape, switches: Mapping[str, bool]) -> str:
    """Why the layer does not fit a weight of this shape (out[, in[, kh, kw]]); empty if it does.

    switches: the values of the family's parts of that kind.
    """
    if not weight:
        return "the model's layer has no weight"
    out, row = weight[0], math.prod(weight[1:])
    size, dora = family.size(shapes), shapes.get("dora_scale")
    narrow = len(weight) == 4 and weight[1] == 9 and size == (out, 4 * math.prod(weight[2:]))
    if size and size != (out, row) and not (narrow and dora is None and "bias" not in shapes):
        return f"it changes a weight of {size[0]} by {size[1]}, and the model's is {out} by {row} {weight}"
    if dora is not None and len(weight) < 2:
        return f"the model's layer is a norm (weight {weight}), which DoRA does not change"
    flaw = family.misfit(shapes, weight, switches)
    for part in (*BIAS_PARTS, "rescale"):
        if part in shapes and math.prod(shapes[part]) != out:
            flaw = flaw or f"`{part}` is {shapes[part]}, and the model's layer has {out} outputs"
    if "bias" in shapes and math.prod(shapes["bias"]) != out * row:
        flaw = flaw or f"`bias` is {shapes['bias']}, and the model's weight {weight}"
    if dora is not None and math.prod(dora) not in (out, weight[1]):
        flaw = flaw or f"`dora_scale` is {dora}, and the model's weight {weight}"
    return flaw


def changed_weight(family: str, parts: Parts, weight: TorchTensor, how: LayerStrength) -> TorchTensor:
    """W with one layer of a network applied. weight: float32, (out, in[, kh, kw]) or (out,); a new tensor returns.

    parts: float32, checked by shapes_misfit. W' = W + m s dW, but for DoRA and for OFT by its library's rule.
    """
    changed = FAMILIES[family].changed(parts, weight, how)
    if changed is not None:
        return changed
    delta = weight_delta(family, parts, weight, how)
    if "dora_scale" in parts:
        return dora_weight(parts["dora_scale"], delta, weight, how)
    return ((how.strength * how.scale) * delta).add_(weight)


def weight_delta(family: str, parts: Parts, weight: TorchTensor, how: LayerStrength) -> TorchTensor:
    """dW of the family, shaped like `weight`, without strength and scale.

    A change of 4 input channels on a convolution with 9 (an inpainting UNet's first) leaves the other 5 alone.
    """
    delta = FAMILIES[family].delta(parts, weight, how)
    if delta.numel() != weight.numel():
        narrow = delta.reshape(weight.shape[0], 4, *weight.shape[2:])
        delta = lazy_torch.zeros_like(weight)
        delta[:, :4] = narrow
    delta = delta.reshape(weight.shape)
    return delta + parts["bias"].reshape(weight.shape) if "bias" in parts else delta
