"""The weight that steps make of an original: computed in float32, low-rank ones in one product, cast once."""

import math

import torch
from torch import Tensor, nn

from ..weight_files import NetworkError
from .families.family import LayerStrength
from .families.lora import low_rank_factors
from .families.table import BIAS_PARTS, NUMBER_PARTS, changed_weight
from .plan import MergeStep


def merged_weight(original: Tensor, steps: list[MergeStep]) -> Tensor:
    """`original` (out[, in[, kh, kw]]) with all steps, in its dtype and on its device; it stays as it is.

    Raises NetworkError where the result has a value that is NaN or infinite, also where only the cast makes it so.
    """
    wide = torch.promote_types(original.dtype, torch.float32) if original.element_size() > 1 else torch.float32
    weight = original.to(wide).contiguous()
    for run in _runs(steps):
        try:
            weight = _with_run(weight, run, wide, in_place=weight.data_ptr() != original.data_ptr())
        except torch.linalg.LinAlgError as error:
            raise NetworkError(_not_finite(run[0], "cannot be worked out: a matrix in it has no inverse")) from error
        if not all_finite(weight):
            raise NetworkError(_not_finite(run[-1], "makes NaN or infinite weights of the model's"))
    merged = weight.to(original.dtype)
    if merged.dtype != wide and not all_finite(merged):
        raise NetworkError(_not_finite(steps[-1], f"makes weights too large for the model's {merged.dtype}"))
    return merged


def merged_bias(original: Tensor | None, steps: list[MergeStep], like: Tensor) -> Tensor:
    """`original` with the steps' changes of the bias; without one, the changes alone, in the dtype of `like`.

    Raises NetworkError as merged_weight does.
    """
    change = torch.stack([_bias_change(step, like.device) for step in steps]).sum(0)
    if original is not None:
        change = change + original.to(change)
    merged = change.to(like.dtype)
    if not all_finite(merged):
        raise NetworkError(_not_finite(steps[-1], "makes a NaN or infinite bias of the model's"))
    return merged


def all_finite(value: Tensor) -> bool:
    """Whether no value is NaN or infinite. A sum shows both for less than isfinite; it may itself overflow."""
    value = value if value.element_size() > 1 else value.float()  # 8-bit numbers have no arithmetic
    return math.isfinite(float(value.sum())) or bool(torch.isfinite(value).all())


def _with_run(weight: Tensor, run: list[MergeStep], wide: torch.dtype, *, in_place: bool) -> Tensor:
    """in_place: whether `weight` may be changed."""
    if _is_low_rank(run[0]):
        up, down = _joint_factors(run, weight.shape, weight.device, wide)
        flat = weight.view(weight.shape[0], -1)
        return (flat.addmm_(up, down) if in_place else flat.addmm(up, down)).view(weight.shape)
    return changed_weight(run[0].layer.family, _float_parts(run[0], weight.device, wide), weight, _how(run[0]))


def _runs(steps: list[MergeStep]) -> list[list[MergeStep]]:
    """Neighbouring plain low-rank steps together, every other one by itself; the order stays."""
    runs: list[list[MergeStep]] = []
    for step in steps:
        if runs and _is_low_rank(step) and _is_low_rank(runs[-1][0]):
            runs[-1].append(step)
        else:
            runs.append([step])
    return runs


def _is_low_rank(step: MergeStep) -> bool:
    return step.layer.family == "lora" and not step.layer.dora and "bias" not in step.layer.keys


def _joint_factors(
    steps: list[MergeStep], shape: torch.Size, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """U (out, sum of ranks) with the strengths in it, and D (sum of ranks, in * kh * kw), of all steps."""
    ups, downs = [], []
    for step in steps:
        how = _how(step)
        up, down = low_rank_factors(_float_parts(step, device, dtype), how)
        if down.shape[1] != shape[1:].numel():  # four channels of an inpainting UNet's nine
            down = nn.functional.pad(down, (0, shape[1:].numel() - down.shape[1]))
        ups.append(up * (how.strength * how.scale))
        downs.append(down)
    return (ups[0], downs[0]) if len(ups) == 1 else (torch.cat(ups, 1), torch.cat(downs, 0))


def _float_parts(step: MergeStep, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    layer = step.layer
    return {
        part: step.network.tensor(layer, part).to(device, dtype)
        for part in layer.keys
        if part not in NUMBER_PARTS and part not in BIAS_PARTS
    }


def _how(step: MergeStep) -> LayerStrength:
    network, layer = step.network, step.layer
    return LayerStrength(
        strength=step.strength,
        scale=network.scale(layer, step.reference),
        alpha=network.value(layer, "alpha") if layer.algorithm.alpha_is_limit and "alpha" in layer.keys else 0.0,
        dyn=step.dyn,
        reference=step.reference,
        peft=layer.peft,
    )


def _bias_change(step: MergeStep, device: torch.device) -> Tensor:
    part, scaled = next((part, scaled) for part, scaled in BIAS_PARTS.items() if part in step.layer.keys)
    factor = step.strength * (step.network.scale(step.layer, step.reference) if scaled else 1.0)
    return factor * step.network.tensor(step.layer, part).to(device, torch.float32).flatten()


def _not_finite(step: MergeStep, what: str) -> str:
    return (
        f"`{step.network.path}`: layer `{step.layer.name}` {what}. The file does not belong to this model, or is "
        "damaged; do without it, or use a smaller strength."
    )
