"""attach_network: a network as a PEFT adapter, exact at any strength, or refused.

>>> attach_network(pipe, read_network("moxin.safetensors"), "moxin")
>>> pipe.set_adapters(["moxin"], [{"text_encoder": 0.5, "unet": 0.8}])

All that diffusers does with adapters works on it: set_adapters, get_active_adapters, fuse_lora, unload_lora_weights,
delete_adapters, save_lora_weights. A layer that no tuner represents exactly refuses the whole file: networks like
that are merged instead (merged_networks).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from ..utils import LOGGER
from ..weight_files import NetworkError
from .peft_factors import adapter_refusal
from .peft_inject import (
    AdapterSnapshot,
    adapter_names,
    fused_adapter_names,
    inject_component,
    module_paths,
    offloading_paused,
)
from .peft_tuners import ComponentAdapter, component_adapter
from .plan import MergeStep, ModuleKey, NetworkReport, network_uses, plan_networks
from .read import Network, read_network
from .targets import PipeLayers


def attach_network(pipe: object, network: Network | str | Path, adapter_name: str) -> NetworkReport:
    """Put a network on the text encoders and the UNet as adapter `adapter_name`, active at strength 1.

    Every layer has the file's own alpha / rank. Strengths are set_adapters', for each component by itself.
    Raises NetworkError (file, layer, why) where no tuner of PEFT is exact, and for a network of another base model;
    ValueError for a name that is taken or holds a dot. The models are as before then.
    """
    if not hasattr(network, "layers"):
        network = read_network(network)
    layers = PipeLayers(pipe)
    check_adapter_name(layers.components, adapter_name)
    steps, reports = plan_networks(layers, network_uses([(network, 1.0, 1.0)]), "reference")
    check_exact(layers, steps)
    if not steps:
        raise NetworkError(
            f"`{network.path}` holds embeddings and no layers, so there is nothing to make an adapter of. "
            "Load it as a textual inversion."
        )
    if any(step.layer.dora and not step.layer.peft for found in steps.values() for step in found):
        LOGGER.warning(
            "%s: PEFT applies DoRA exactly at strength 1 only; merge the network to use it at others.", network.path
        )
    adapters = component_adapters(layers, {key: found[-1] for key, found in steps.items()})
    fused = fused_adapter_names(layers.components)
    if fused:
        LOGGER.warning(
            "Adapters are fused into the weights (%s): `%s` acts only when it is fused, too, or they are unfused.",
            ", ".join(sorted(fused)),
            adapter_name,
        )
    inject_adapters(pipe, layers.components, adapters, adapter_name)
    return reports[0]


def inject_adapters(
    pipe: object, models: Mapping[str, nn.Module], adapters: Mapping[str, ComponentAdapter], name: str
) -> None:
    """Put adapters on the models, by component, under one name; on all of them or, if one fails, on none."""
    with offloading_paused(pipe):
        before = AdapterSnapshot(models)
        try:
            for component, adapter in adapters.items():
                inject_component(models[component], adapter, name)
        except BaseException:
            before.restore()
            raise


def component_adapters(layers: PipeLayers, steps: Mapping[ModuleKey, MergeStep]) -> dict[str, ComponentAdapter]:
    """The adapter of every component that the steps touch, without strengths, under the models' own paths."""
    found = {}
    for component in layers.components:
        paths = module_paths(layers, component)
        own = {paths[path]: step for (owner, path), step in steps.items() if owner == component}
        modules = {paths[path]: layers.modules[owner, path] for owner, path in steps if owner == component}
        if own:
            found[component] = component_adapter(own, modules)
    return found


def check_exact(layers: PipeLayers, steps: Mapping[ModuleKey, Sequence[MergeStep]]) -> None:
    """Raises NetworkError for the first layer that PEFT cannot hold, and for a component that is DoRA in part."""
    for key, found in steps.items():
        fused = layers.fused_projection(key) is not None
        for step in found:
            why = _FUSED if fused else adapter_refusal(step.layer, layers.modules[key])
            if why:
                raise NetworkError(_no_adapter(step, why))
    for component in layers.components:
        own = [step for (owner, _), found in steps.items() if owner == component for step in found]
        partly = [step for step in own if step.layer.dora]
        if partly and len(partly) < len(own):
            raise NetworkError(_no_adapter(partly[0], "one adapter of PEFT's is DoRA in all of its layers or in none"))


def check_adapter_name(models: Mapping[str, nn.Module], name: str) -> None:
    """Raises ValueError for a name that PEFT cannot use, or that an adapter has already."""
    if not isinstance(name, str) or not name or "." in name:
        raise ValueError(
            f"`adapter_name` is {name!r}, and PEFT makes a module's name of it: a text without dots is wanted."
        )
    if name in adapter_names(models):
        raise ValueError(
            f"Adapter name {name} is already in use in the model. Take another name, or remove that adapter first: "
            f'`pipe.delete_adapters("{name}")`.'
        )


def free_adapter_name(models: Mapping[str, nn.Module], stem: str = "default") -> str:
    """`<stem>_0`, or the first number that no adapter of these models has."""
    taken = adapter_names(models)
    number = 0
    while f"{stem}_{number}" in taken:
        number += 1
    return f"{stem}_{number}"


def _no_adapter(step: MergeStep, why: str) -> str:
    return (
        f"`{step.network.path}`: layer `{step.layer.name}` ({step.layer.family}) cannot be a PEFT adapter: {why}. "
        'Merge the network instead: `merged_networks(pipe, [(network, 1, 1)], "reference")`, or '
        '`lora_backend="reference"` (or "webui") where a pipeline has that argument.'
    )


_FUSED = (
    "the model's q, k and v are fused, and an adapter beside the unfused ones would do nothing. Call "
    "`unet.unfuse_qkv_projections()` first, or merge"
)
