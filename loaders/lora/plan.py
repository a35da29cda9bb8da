"""What a set of networks will do to a pipeline's weights, worked out before any weight is touched; and the report."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from ..utils import LOGGER, near_names
from ..weight_files import NetworkError
from .block_weights import block_strengths
from .families.table import empty_part
from .keys import NetworkLayer, is_for_controlnet, layer_prefix, names_no_component
from .read import Network
from .targets import LayerTarget, PipeLayers


NETWORK_SEMANTICS = ("webui", "reference", "auto")

ModuleKey = tuple[str, str]  # component, path


class NetworkUse(NamedTuple):
    """One network at its strengths, as callers write it: a tuple of the first three to five."""

    network: Network
    te: float  # in the text encoders
    unet: float
    dyn: int | None = None  # keep that many components of its low-rank pairs
    blocks: Mapping[str, float] | None = None  # block label -> factor (blocks.py)


class MergeStep(NamedTuple):
    """One layer of one network on one module. Equal steps make equal weights."""

    network: Network
    layer: NetworkLayer
    strength: float
    dyn: int | None
    reference: bool


@dataclass
class NetworkReport:
    """What became of one network's layers, by their names in the file."""

    name: str
    path: str
    applied: list[str] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)  # layer -> why; the webui leaves it out too
    unknown: list[str] = field(default_factory=list)  # keys and layers with no place in this model
    errors: dict[str, str] = field(default_factory=dict)  # layer -> why it does not fit (only with strict=False)

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.applied)} layers applied ({self.path})"]
        for what, table in (("passed over", self.passed_over), ("does not fit", self.errors)):
            whys: dict[str, list[str]] = {}
            for layer, why in table.items():
                whys.setdefault(why, []).append(layer)
            lines += [f"  {len(names)} {what}: {why} ({names[0]} ...)" for why, names in whys.items()]
        if self.unknown:
            lines.append(f"  {len(self.unknown)} not of this model: {', '.join(self.unknown[:4])} ...")
        return "\n".join(lines)


def network_uses(uses: Iterable[Sequence]) -> list[NetworkUse]:
    """Uses as callers write them, checked: (network, te, unet[, dyn][, blocks]); blocks is a dict, a string of
    numbers or a sequence of them, so it may stand in dyn's place."""
    return [_network_use(tuple(use)) for use in uses]


def plan_networks(
    layers: PipeLayers, uses: Sequence[NetworkUse], semantics: str = "webui", *, strict: bool = True
) -> tuple[dict[ModuleKey, list[MergeStep]], list[NetworkReport]]:
    """Steps by module, in the order of application, and a report per use. Reads headers only.

    semantics: "webui" (what the webui passes over is passed over, and reported), "reference" (the formats' own
    libraries: nothing is), or "auto" (the webui's, but files in a layout unknown to it by the reference).
    strict: a layer that has its place but not its shape raises; otherwise it is reported, as in the webui.
    Raises NetworkError where a file has no place in this model at all, or the webui refuses it; ValueError for
    another `semantics`.
    """
    if semantics not in NETWORK_SEMANTICS:
        near = near_names(semantics, NETWORK_SEMANTICS, 1) or NETWORK_SEMANTICS
        known = ", ".join(NETWORK_SEMANTICS)
        raise ValueError(f"`semantics` is {semantics!r}, and only {known} are known. Perhaps {near[0]!r} is meant.")
    steps: dict[ModuleKey, list[MergeStep]] = {}
    reports = []
    for use in uses:
        report = NetworkReport(use.network.name, str(use.network.path), unknown=list(use.network.unknown_keys))
        for key, step in _use_steps(layers, use, semantics, report, strict):
            steps.setdefault(key, []).append(step)
        reports.append(report)
        _warn(report)
    return steps, reports


def _use_steps(
    layers: PipeLayers, use: NetworkUse, semantics: str, report: NetworkReport, strict: bool
) -> list[tuple[ModuleKey, MergeStep]]:
    network, file_base = use.network, use.network.base
    report.passed_over |= _controlnet_layers(network)
    own = [name for name in network.layers if name not in report.passed_over]
    targets = {name: layers.target(name, file_base=file_base) for name in own}
    report.unknown += [name for name, target in targets.items() if target is None]
    placed = {name: target for name, target in targets.items() if target is not None}
    foreign = _foreign(layers, network, targets)
    if own and (not placed or (strict and foreign)):
        raise NetworkError(foreign if placed else _other_base(layers, network))
    whole_attention = _fused_groups(layers, placed, file_base)
    found: dict[ModuleKey, MergeStep] = {}
    for name, target in placed.items():
        layer, key = network.layers[name], (target.component, target.path)
        weight = layers.weight_shape(key)
        reference = semantics == "reference" or (semantics == "auto" and (target.foreign or bool(layer.webui_refuses)))
        why = "" if reference else target.passed_over or _unfused(layers, target, whole_attention, file_base)
        if not why and layer.webui_refuses and not reference:
            raise NetworkError(_refused(network, layer))
        why = why or _without_effect(layer)
        switches = {} if why else network.switches(layer)
        why = why or ("" if reference else layer.webui_limit(weight, switches))
        misfit = "" if why else layer.misfit(weight, switches)
        strength = _strength(use, layers.block(target), target.component)
        if why or (strength == 0 and not misfit):
            report.passed_over[name] = _NO_STRENGTH if strength == 0 else why
        elif misfit:
            report.errors[name] = misfit
        else:
            # named twice in one file, in two spellings: the later counts, as in the webui
            found[key] = MergeStep(network, layer, strength, _dyn(use, reference), reference)
            report.applied.append(name)
    if report.errors and (strict or not (report.applied or report.passed_over)):
        raise NetworkError(_misfits(layers, network, report))
    if strict and semantics != "webui" and not report.applied:
        _check_some_effect(network, report)
    return list(found.items())


def _controlnet_layers(network: Network) -> dict[str, str]:
    """The layers for a ControlNet, and why they are passed over. Raises NetworkError for a file of such layers alone,
    or one in which the others may be a ControlNet's too."""
    found = [name for name in network.layers if is_for_controlnet(name)]
    others = [layer for name, layer in network.layers.items() if name not in found]
    unsure = [layer.name for layer in others if names_no_component(next(iter(layer.keys.values())))]
    if found and (unsure or not others):
        raise NetworkError(
            f"`{network.path}` is a network for a ControlNet: {len(found)} of its {len(network.layers)} layers "
            f"(`{found[0]}` ...) are one's"
            + (f", and `{unsure[0]}` ... may be too" if unsure else "")
            + ". Networks act on the base model alone: merge it into the ControlNet with the tool that trained it, "
            "and load that with `pipe.add_controlnet`."
        )
    return dict.fromkeys(found, "it is for a ControlNet, and networks act on the base model alone")


def _without_effect(layer: NetworkLayer) -> str:
    empty = empty_part(layer.shapes)
    return f"`{empty}` is empty, as with a rank of 0, so it changes nothing" if empty else ""


def _dyn(use: NetworkUse, reference: bool) -> int | None:
    """LyCORIS knows no `dyn`; the webui keeps the first components of its files, too."""
    from_lycoris = use.network.metadata.get("ss_network_module", "").startswith("lycoris")
    return None if reference and from_lycoris else use.dyn


def _check_some_effect(network: Network, report: NetworkReport) -> None:
    """Raises NetworkError for a network of which nothing is applied, but for strengths of 0."""
    whys = [why for why in report.passed_over.values() if why != _NO_STRENGTH]
    if not whys:
        return
    advice = (
        'Use `lora_backend="reference"` (`semantics="reference"`), which applies it as its own library does.'
        if "webui" in whys[0]
        else "Get another copy, or export it again from its trainer."
    )
    raise NetworkError(
        f"`{network.path}`: none of its {len(network.layers)} layers is applied: {whys[0]}. The picture would be the "
        f"one without it. {advice}"
    )


def _network_use(use: tuple) -> NetworkUse:
    if not 3 <= len(use) <= 5 or not hasattr(use[0], "layers"):
        raise ValueError(
            f"A network use is (network, te, unet), with dyn or block strengths after it if wanted; got {use!r}. "
            "Read the file with `read_network` first."
        )
    network, te, unet, *rest = use
    dyn, blocks = (rest + [None, None])[:2] if len(rest) != 1 or not _is_blocks(rest[0]) else (None, rest[0])
    for what, value in (("te", te), ("unet", unet)):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"`{what}` of network `{network.name}` is {value!r}; a finite number is wanted, as 0.8.")
    if dyn is not None and (not isinstance(dyn, int) or dyn < 0):
        raise ValueError(f"`dyn` of network `{network.name}` is {dyn!r}; a count of components is wanted, as 8.")
    return NetworkUse(network, float(te), float(unet), dyn, None if blocks is None else block_strengths(blocks))


def _is_blocks(value: object) -> bool:
    return value is not None and not isinstance(value, int | float)


def _strength(use: NetworkUse, block: str, component: str) -> float:
    plain = use.unet if component == "unet" else use.te
    return plain * (use.blocks or {}).get(block, 1.0)


def _fused_groups(layers: PipeLayers, placed: Mapping[str, LayerTarget], file_base: str) -> set[ModuleKey]:
    """Attentions that the webui holds as one matrix, and for which the file has all of q, k, v and out."""
    groups: dict[ModuleKey, set[str]] = {}
    for target in placed.values():
        if layers.is_fused(target, file_base) and not target.passed_over:
            attention, _, projection = target.path.rpartition(".")
            groups.setdefault((target.component, attention), set()).add(projection)
    return {group for group, members in groups.items() if len(members) == 4}


def _unfused(layers: PipeLayers, target: LayerTarget, whole: set[ModuleKey], file_base: str) -> str:
    if not layers.is_fused(target, file_base) or (target.component, target.path.rpartition(".")[0]) in whole:
        return ""
    return "the webui applies this encoder's q, k, v and out all four or not at all"


def _foreign(layers: PipeLayers, network: Network, targets: Mapping[str, LayerTarget | None]) -> str:
    """Why a file is for another base model although some of its layers have a place here; empty if it is not."""
    base, unknown = network.base, [name for name, target in targets.items() if target is None]
    here = "this model is another" if layers.base is None else f"this model is {layers.base}"
    if base in ("SD3", "Flux"):
        return (
            f"`{network.path}` is a network for {base}, and {here}: only parts of it, as of a text encoder that both "
            f"have, could be applied. Load it on a {base} pipeline, or take this model's version of it."
        )
    other = base == "SDXL" if layers.base is None else base not in ("unknown", layers.base)
    if other and unknown:
        return (
            f"`{network.path}` is a network for {base}, and {here}: {len(unknown)} of its {len(targets)} layers "
            f"(`{unknown[0]}` ...) have no place here. Load it on {base}, or take this model's version of it."
        )
    unet = [name for name in targets if _is_denoiser(name)]
    lost = len(unet) + sum(map(_is_denoiser, network.unknown_keys))
    if lost and "unet" in layers.components and not any(targets.get(name) for name in unet):
        return (
            f"`{network.path}`: none of the layers that it has for a denoiser (`{[*unet, *network.unknown_keys][0]}` "
            f"...) has a place in this {layers.base or 'model'}, only text encoders' have: the file was made for "
            "another architecture. Load it on that."
        )
    return ""


def _is_denoiser(name: str) -> bool:
    """Whether a layer or a key belongs to what removes the noise, and not to a text encoder."""
    row = layer_prefix(name)
    return name.startswith(_TRANSFORMERS) if row is None else row.component == "unet"


def _other_base(layers: PipeLayers, network: Network) -> str:
    names = list(network.layers)
    guess = "" if network.base == "unknown" else f" ({network.base})"
    return (
        f"`{network.path}`: none of its {len(names)} layers (`{names[0]}` ...) has a place in this "
        f"{layers.base or 'model'}; the file looks made for another base model{guess}. "
        "Load it on that, or take this one's version of it."
    )


def _misfits(layers: PipeLayers, network: Network, report: NetworkReport) -> str:
    name, why = next(iter(report.errors.items()))
    fitting, total = len(report.applied), len(network.layers)
    guess = f" ({network.base})" if network.base not in ("unknown", layers.base) and layers.base else ""
    cause = f"made for another base model{guess}, or damaged" if fitting else f"made for another base model{guess}"
    return (
        f"`{network.path}`: layer `{name}` does not fit: {why}. {fitting} of {total} layers fit this "
        f"{layers.base or 'model'}, so the file was probably {cause}. Use it with its own base model"
        + ("; with strict=False the layers that fit are applied, as in the webui." if fitting else ".")
    )


def _refused(network: Network, layer: NetworkLayer) -> str:
    return (
        f"`{network.path}`: layer `{layer.name}` has parts for which the webui refuses the whole file: "
        f'{layer.webui_refuses}. Use semantics="reference" to apply it as its own library does.'
    )


def _warn(report: NetworkReport) -> None:
    quiet = all(why == _NO_STRENGTH for why in report.passed_over.values())
    if report.unknown or report.errors or not quiet:
        LOGGER.warning("%s", report)


def module_weight(module: nn.Module, name: str) -> object:
    """A parameter of a module, also where accelerate keeps it elsewhere and leaves a shell (sequential offloading).

    Returns None where the module has no such parameter.
    """
    parameter = module._parameters.get(name)
    if parameter is None or parameter.device.type != "meta":
        return parameter
    store = weight_store(module)
    if store is None or name not in store:
        return parameter
    value = store[name]
    return value if store[name] is value else parameter  # read from disk anew each time: nothing to change in place


def weight_store(module: nn.Module) -> Mapping | None:
    """accelerate's table of a module's offloaded weights, or None."""
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        store = getattr(each, "weights_map", None)
        if getattr(each, "offload", False) and store is not None:
            return store
    return None


_NO_STRENGTH = "its strength is 0"
_TRANSFORMERS = ("transformer.", "lora_transformer_", "diffusion_model.", "base_model.model.transformer_blocks.")
