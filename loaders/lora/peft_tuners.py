"""Which of PEFT's tuners holds a component's share of a network, with its configuration and its tensors.

LoHa and LoKr go through PEFT's own tuners where the file fits what those can be configured to: one flag for all
convolutions, one factorisation and one way to decompose for all of LoKr. What does not fit, and files of several
families, become one LoRA of the same change.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from peft.tuners.lokr.layer import factorization
from torch import Tensor, nn

from .keys import NetworkLayer
from .peft_factors import AdapterFactors, adapter_factors, adapter_parts
from .plan import MergeStep
from .targets import compute_dtype, on_meta, plain_shape


class ComponentAdapter(NamedTuple):
    """One adapter of one model, before it is injected."""

    config: PeftConfig
    state: dict[str, Tensor]  # "<module path>.lora_A.weight" and so on, in the modules' dtypes


def component_adapter(steps: Mapping[str, MergeStep], modules: Mapping[str, nn.Module]) -> ComponentAdapter:
    """The adapter for these layers (module path -> step), without strengths. modules: the layers themselves, by path.

    Ask adapter_refusal of every layer first. Raises NetworkError for values that are NaN or infinite.
    """
    layers = {path: step.layer for path, step in steps.items()}
    families = {_tunable_family(layer) for layer in layers.values()}
    if any(on_meta(modules[path]) for path in steps):
        families = set()  # accelerate, which offloads layer by layer, does not find the tensors of LoHa and LoKr
    if families == {"loha"}:
        flag = _loha_flag(layers, modules)
        if flag is not None:
            return _own_tuner(LoHaConfig, {"use_effective_conv2d": flag}, steps, modules)
    if families == {"lokr"}:
        settings = _lokr_settings(layers, modules)
        if settings is not None:
            return _own_tuner(LoKrConfig, settings, steps, modules)
    factors = {path: adapter_factors(step, plain_shape(modules[path])) for path, step in steps.items()}
    return lora_adapter(factors, modules)


def lora_adapter(factors: Mapping[str, AdapterFactors], modules: Mapping[str, nn.Module]) -> ComponentAdapter:
    """A LoRA with the rank and the alpha of every module its own. All of `factors` are DoRA, or none is."""
    state: dict[str, Tensor] = {}
    with_bias = any(each.bias is not None for each in factors.values())
    for path, each in factors.items():
        module, rank = modules[path], each.rank
        shape, down, up = plain_shape(module), each.down, each.up
        if len(shape) == 4:
            down, up = down.reshape(rank, *shape[1:]), up[..., None, None]
        state[f"{path}.lora_A.weight"] = _as_weight(down, module)
        state[f"{path}.lora_B.weight"] = _as_weight(up, module)
        if with_bias:
            bias = up.new_zeros(len(up)) if each.bias is None else each.bias
            state[f"{path}.lora_B.bias"] = _as_weight(bias, module)
        if each.magnitude is not None:
            row = (1, -1, 1, 1) if len(shape) == 4 else (-1,)
            state[f"{path}.lora_magnitude_vector"] = _as_weight(each.magnitude.reshape(row), module)
    ranks = {path: each.rank for path, each in factors.items()}
    usual_rank, rank_pattern = _patterns(ranks)
    usual_alpha, alpha_pattern = _patterns({path: each.scale * each.rank for path, each in factors.items()})
    config = LoraConfig(
        r=usual_rank,
        lora_alpha=usual_alpha,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        target_modules=list(factors),
        use_dora=any(each.magnitude is not None for each in factors.values()),
        lora_bias=with_bias,
    )
    return ComponentAdapter(config, state)


def _own_tuner(
    kind: type[PeftConfig], settings: Mapping, steps: Mapping[str, MergeStep], modules: Mapping[str, nn.Module]
) -> ComponentAdapter:
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path, step in steps.items():
        module = modules[path]
        ranks[path] = _own_rank(step.layer)
        alphas[path] = step.network.scale(step.layer, reference=True) * ranks[path]
        shapes = _own_shapes(step.layer, module)
        for part, value in adapter_parts(step).items():
            state[f"{path}.{part}"] = _as_weight(value.reshape(shapes[part]), module)
    usual_rank, rank_pattern = _patterns(ranks)
    usual_alpha, alpha_pattern = _patterns(alphas)
    config = kind(
        r=usual_rank,
        alpha=usual_alpha,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        target_modules=list(steps),
        **settings,
    )
    return ComponentAdapter(config, state)


def _patterns(values: Mapping[str, float]) -> tuple:
    """The commonest value, and a pattern by module path for every other.

    PEFT compares every module with every pattern, anchored at its end only, and Python keeps 512 compiled ones: so
    one pattern for all modules of a value, anchored at both ends, instead of one for each.
    """
    usual = Counter(values.values()).most_common(1)[0][0]
    others: dict[float, list[str]] = {}
    for path, value in values.items():
        if value != usual:
            others.setdefault(value, []).append(re.escape(path))
    return usual, {f"^{paths[0]}" if len(paths) == 1 else f"^(?:{'|'.join(paths)})": v for v, paths in others.items()}


def _as_weight(value: Tensor, module: nn.Module) -> Tensor:
    return value.detach().to(compute_dtype(module)).contiguous()


def _tunable_family(layer: NetworkLayer) -> str:
    """The family whose own tuner could take the layer; "lora" where only a LoRA of the same change can."""
    return "lora" if layer.dora or "bias" in layer.keys else layer.family


def _loha_flag(layers: Mapping[str, NetworkLayer], modules: Mapping[str, nn.Module]) -> bool | None:
    """LoHaConfig's `use_effective_conv2d` under which all shapes fit; None where there is no one."""
    flags = set()
    for path, layer in layers.items():
        shapes, weight = layer.shapes, plain_shape(modules[path])
        if shapes["hada_w1_b"][0] != shapes["hada_w2_b"][0] or _changes_less(weight):
            return None
        tucker, kernel = "hada_t1" in shapes, weight[2:].numel()
        if tucker and kernel == 1:
            return None
        if kernel > 1:
            flags.add(tucker)
    return None if len(flags) > 1 else bool(flags and flags.pop())


def _lokr_settings(layers: Mapping[str, NetworkLayer], modules: Mapping[str, nn.Module]) -> dict | None:
    """LoKrConfig's settings under which PEFT's rules give every layer the shapes it has; None where none do."""
    if any(_changes_less(plain_shape(modules[path])) for path in layers):
        return None
    sizes = {size for layer in layers.values() for size in _lokr_left(layer)}
    for factor in [-1, *sorted(sizes)]:
        for both in (False, True):
            for effective in (False, True):
                settings = {
                    "decompose_factor": factor,
                    "decompose_both": both,
                    "use_effective_conv2d": effective,
                }
                if all(_lokr_fits(layer, modules[path], **settings) for path, layer in layers.items()):
                    return settings
    return None


def _lokr_fits(
    layer: NetworkLayer, module: nn.Module, decompose_factor: int, decompose_both: bool, use_effective_conv2d: bool
) -> bool:
    """Whether PEFT makes just these parts in just these sizes (peft/tuners/lokr/layer.py, `update_layer`, 0.21.2)."""
    weight, rank = plain_shape(module), _own_rank(layer)
    (out1, out2), (in1, in2) = (factorization(size, decompose_factor) for size in weight[:2])
    kernel = weight[2:].numel()
    shapes = {part: tuple(shape) for part, shape in _own_shapes(layer, module).items()}
    wanted: dict[str, tuple[int, ...]] = {}
    if decompose_both and rank < max(out1, in1) / 2:
        wanted |= {"lokr_w1_a": (out1, rank), "lokr_w1_b": (rank, in1)}
    else:
        wanted["lokr_w1"] = (out1, in1)
    if rank >= max(out2, in2) / 2:
        wanted["lokr_w2"] = (out2, in2, *weight[2:])
    elif use_effective_conv2d and kernel > 1:
        wanted |= {
            "lokr_t2": (rank, rank, *weight[2:]),
            "lokr_w2_a": (rank, out2),
            "lokr_w2_b": (rank, in2),
        }
    else:
        wanted |= {"lokr_w2_a": (out2, rank), "lokr_w2_b": (rank, in2 * kernel)}
    return shapes == wanted


def _lokr_left(layer: NetworkLayer) -> Iterable[int]:
    shapes = layer.shapes
    return shapes["lokr_w1"] if "lokr_w1" in shapes else (shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1])


def _own_rank(layer: NetworkLayer) -> int:
    """The rank as PEFT counts it; for LoKr without low-rank factors, one that makes PEFT leave them whole."""
    if layer.rank is not None:
        return layer.rank
    return max(*layer.shapes["lokr_w1"], *layer.shapes["lokr_w2"][:2])


def _own_shapes(layer: NetworkLayer, module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The parts' shapes as PEFT keeps them: factors flat, LoKr's whole second factor shaped like the weight."""
    shapes = {part: tuple(shape) for part, shape in layer.shapes.items() if part not in ("alpha", "scale")}
    kernel = tuple(plain_shape(module)[2:])
    for part, shape in shapes.items():
        if part == "lokr_w2":
            flat = shape[1:2] if len(shape) > 2 or not kernel else (shape[1] // (kernel[0] * kernel[1]),)
            shapes[part] = (shape[0], *flat, *kernel)
        elif part not in ("hada_t1", "hada_t2", "lokr_t2"):
            shapes[part] = (shape[0], math.prod(shape[1:]))
    return shapes


def _changes_less(weight: torch.Size) -> bool:
    """Whether the change is for four of an inpainting UNet's nine channels."""
    return len(weight) == 4 and weight[1] == 9
