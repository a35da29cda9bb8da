"""load_lora_weights of the pipelines: what diffusers' own takes, read as every network file is here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

from ..weight_files import NetworkError, WeightFile
from .families.table import layer_family
from .keys import split_network_key
from .peft_adapters import attach_network, check_exact, free_adapter_name
from .peft_factors import adapter_factors
from .peft_inject import adapter_names, module_paths, swap_component, swap_obstacle
from .peft_tuners import lora_adapter
from .plan import MergeStep, ModuleKey, NetworkReport, network_uses, plan_networks
from .read import Network, read_network, sort_network_keys
from .sources import open_network
from .targets import PipeLayers, plain_shape


def load_network_as_adapter(
    pipe: object,
    source: str | Path | Mapping[str, Tensor] | Network,
    adapter_name: str | None = None,
    *,
    fallback: Callable[..., Any],
    **kwargs: Any,
) -> NetworkReport | None:
    """Load a network as a PEFT adapter; the arguments are those of diffusers' `load_lora_weights`.

    source: a file, a folder, an id on the Hub, or a state dict in any naming. adapter_name: by default `default_<n>`.
    fallback: diffusers' own method, called with the same arguments for what is no network file (then None returns).
    With `hotswap=True`, the tensors go into adapter `adapter_name` in place, of all models or, if one cannot, of none.
    Raises NetworkError where the file is broken, for another base model, or beyond what PEFT holds exactly.
    """
    network = source if hasattr(source, "layers") else _network_of(source, kwargs)
    if network is None:
        return fallback(source, adapter_name=adapter_name, **kwargs)
    if kwargs.get("hotswap"):
        return _swap_network(pipe, network, adapter_name)
    name = free_adapter_name(PipeLayers(pipe).components) if adapter_name is None else adapter_name
    return attach_network(pipe, network, name)


class StateDictTensors(WeightFile):
    """Tensors in memory, as a file."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__(Path("state dict"), {})
        self._tensors = dict(tensors)

    def keys(self) -> list[str]:
        return list(self._tensors)

    def tensor(self, key: str) -> Tensor:
        return self._tensors[key].detach().cpu()

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].dtype

    def close(self) -> None:
        self._tensors = {}


def _network_of(source: object, options: Mapping[str, Any]) -> Network | None:
    """The network that `source` is, or None where no key of it is a network's."""
    if isinstance(source, Mapping):
        tensors = {key: value for key, value in source.items() if isinstance(value, Tensor)}
        if not _has_layers(tensors):
            return None
        file = StateDictTensors(tensors)
        return Network(file, *sort_network_keys(file, {}))
    place = _network_place(str(source), options)
    try:
        return read_network(place)
    except NetworkError as error:
        if Path(place).exists() and not _holds_layers(place):
            return None
        raise error


def _swap_network(pipe: object, network: Network, name: str | None) -> NetworkReport:
    layers = PipeLayers(pipe)
    steps, reports = plan_networks(layers, network_uses([(network, 1.0, 1.0)]), "reference")
    check_exact(layers, steps)
    states = _plain_states(layers, steps)
    if name not in adapter_names(layers.components):
        raise ValueError(
            f"`hotswap=True` puts a network in the place of adapter {name!r}, and there is no existing adapter by "
            f"that name ({', '.join(sorted(adapter_names(layers.components))) or 'none'}). Load the first one without."
        )
    for component, state in states.items():
        obstacle = swap_obstacle(layers.components[component], state, name)
        if obstacle:
            raise NetworkError(
                f"`{network.path}` cannot be swapped in for adapter `{name}`: on `{component}`, {obstacle}. Load the "
                "network with the most layers first, or load this one beside it, without `hotswap`."
            )
    for component, model in layers.components.items():
        if name in (getattr(model, "peft_config", None) or ()):
            swap_component(model, states[component], name)
    return reports[0]


def _plain_states(layers: PipeLayers, steps: Mapping[ModuleKey, list[MergeStep]]) -> dict[str, dict[str, Tensor]]:
    """LoRA tensors of every component by PEFT's names, with the strengths in them: that needs no alphas."""
    states: dict[str, dict[str, Tensor]] = {component: {} for component in layers.components}
    paths = {component: module_paths(layers, component) for component in layers.components}
    for (component, path), found in steps.items():
        layer = found[-1].layer
        if layer.dora or "lora_up.bias" in layer.keys:
            raise NetworkError(
                f"`{found[-1].network.path}`: layer `{layer.name}` has more than two factors, and only those can be "
                "swapped in place. Load the network beside the other, without `hotswap`."
            )
        module, own = layers.modules[component, path], paths[component][path]
        factors = adapter_factors(found[-1], plain_shape(module))
        whole = factors._replace(up=factors.up * factors.scale)
        states[component] |= lora_adapter({own: whole}, {own: module}).state
    return states


def _network_place(source: str, options: Mapping[str, Any]) -> str | Path:
    """The file that diffusers' arguments `subfolder`, `weight_name` and those about the Hub mean."""
    inner = "/".join(str(options[key]) for key in ("subfolder", "weight_name") if options.get(key))
    local = Path(source)
    if local.exists():
        return local / inner if inner and local.is_dir() else local
    about_hub = {key: options[key] for key in _HUB_OPTIONS if options.get(key) is not None}
    if options.get("weight_name"):
        return Path(hf_hub_download(source, inner, **about_hub))
    if about_hub:
        raise NetworkError(
            f"`{source}` is on the Hub, and {', '.join(about_hub)} go with a file's name only. "
            'Name the file: `weight_name="pytorch_lora_weights.safetensors"`, say.'
        )
    return f"{source}/{inner}" if inner else source


def _has_layers(keys: Mapping[str, object]) -> bool:
    parts: dict[str, set[str]] = {}
    for key in keys:
        layer, part = split_network_key(key)
        parts.setdefault(layer, set()).add(part)
    return any(layer_family(have) is not None for have in parts.values())


def _holds_layers(place: str | Path) -> bool:
    """Whether a file that cannot be read as a network is one all the same: broken, and not another kind of file."""
    try:
        file, _ = open_network(place)
    except NetworkError:
        return True
    return not len(file) or any("lora" in key or "lycoris" in key for key in file.keys()) or _has_layers(file)


_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "proxies")
