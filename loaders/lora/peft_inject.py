"""Adapters put into models by PEFT, and models put back exactly as they were."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.hotswap import hotswap_adapter_from_state_dict
from torch import Tensor, nn

from ..model_lock import making_modules
from .peft_tuners import ComponentAdapter
from .targets import PipeLayers


def module_paths(layers: PipeLayers, component: str) -> dict[str, str]:
    """Path as network files have it -> the module's own in this model.

    CLIPTextModel's modules begin with `text_model.` before transformers 5.6 only.
    """
    bare = component != "unet" and not hasattr(layers.components[component], "text_model")
    paths = [path for owner, path in layers.modules if owner == component]
    return {path: path.removeprefix("text_model.") if bare else path for path in paths}


def inject_component(model: nn.Module, adapter: ComponentAdapter, name: str) -> None:
    """Put one adapter on a model; it becomes the active one, as with diffusers' own loader.

    Raises RuntimeError where PEFT takes not just these tensors: the versions of PEFT and this file disagree.
    """
    with making_modules(), warnings.catch_warnings(), _lora_innermost(model, adapter):
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        inject_adapter_in_model(adapter.config, model, name, low_cpu_mem_usage=True, state_dict=adapter.state)
        left = set_peft_model_state_dict(model, adapter.state, name, low_cpu_mem_usage=True)
    missing = [key for key in left.missing_keys if f".{name}." in f"{key}."]
    if missing or left.unexpected_keys:
        raise RuntimeError(
            f"PEFT put adapter `{name}` together otherwise than its tensors are: missing {missing[:3]}, left over "
            f"{left.unexpected_keys[:3]}. This PEFT is too new or too old; install the version that is asked for."
        )
    model._hf_peft_config_loaded = True
    for layer in tuner_layers(model).values():  # PEFT tells only those of its own kind
        layer.set_adapter([name])


@contextmanager
def _lora_innermost(model: nn.Module, adapter: ComponentAdapter) -> Iterator[None]:
    """The layers without their LoHa and LoKr while a LoRA is put on: PEFT's LoRA wraps a plain convolution only."""
    aside: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
    if isinstance(adapter.config, LoraConfig):
        for parent, name, outer in _outer_tuner_layers(model):
            inner = outer
            while isinstance(inner.base_layer, BaseTunerLayer) and not isinstance(inner.base_layer, LoraLayer):
                inner = inner.base_layer
            setattr(parent, name, inner.base_layer)
            aside.append((parent, name, outer, inner))
    try:
        yield
    finally:
        for parent, name, outer, inner in aside:
            inner.base_layer = getattr(parent, name)
            setattr(parent, name, outer)


def _outer_tuner_layers(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, layer) of layers that PEFT has wrapped with something else than LoRA outside."""
    return [
        (parent, name, child)
        for parent in model.modules()
        if not isinstance(parent, BaseTunerLayer)
        for name, child in parent.named_children()
        if isinstance(child, BaseTunerLayer) and not isinstance(child, LoraLayer)
    ]


def tuner_layers(model: nn.Module) -> dict[str, BaseTunerLayer]:
    """All layers of a model that PEFT has wrapped, by path; outer ones first where they are nested."""
    return {path: module for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def adapter_names(models: Mapping[str, nn.Module]) -> set[str]:
    """The names of all adapters on these models."""
    return {name for model in models.values() for name in getattr(model, "peft_config", None) or ()}


@contextmanager
def offloading_paused(pipe: object) -> Iterator[None]:
    """The pipeline without accelerate's hooks for one block of code, as diffusers' own loader does it."""
    pause = getattr(pipe, "_optionally_disable_offloading", None)
    whole, layerwise, grouped = pause(pipe) if pause is not None else (False, False, False)
    try:
        yield
    finally:
        if whole:
            pipe.enable_model_cpu_offload()
        elif layerwise:
            pipe.enable_sequential_cpu_offload()
        elif grouped:
            for component in pipe.components.values():
                if isinstance(component, nn.Module):
                    _maybe_remove_and_reapply_group_offloading(component)


@contextmanager
def scaled_adapters(models: Iterable[nn.Module], scale: float) -> Iterator[None]:
    """The adapters that are active on these models, times `scale`, for one block of code; then as they were."""
    layers = [layer for model in models for layer in tuner_layers(model).values()] if scale != 1 else []
    before = [dict(getattr(layer, "scaling", {})) for layer in layers]
    try:
        for layer in layers:
            layer.scale_layer(scale)
        yield
    finally:
        for layer, scaling in zip(layers, before):
            if scaling:
                layer.scaling.clear()
                layer.scaling.update(scaling)


def swap_component(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Put other tensors into an adapter in place, as torch.compile needs it; layers that get none do nothing then.

    state: "<module path>.lora_A.weight" and so on, with the strength in them. Ask swap_obstacle first.
    """
    keys = {key: f"{key.removesuffix('.weight')}.{name}.weight" for key in state}
    plain = LoraConfig(r=1, lora_alpha=1)  # a scaling of 1, whatever the rank
    hotswap_adapter_from_state_dict(model, {keys[key]: value for key, value in state.items()}, name, plain)
    old = model.peft_config[name]
    model.peft_config[name] = LoraConfig(r=old.r, lora_alpha=old.r, target_modules=old.target_modules)


def swap_obstacle(model: nn.Module, state: Mapping[str, Tensor], name: str) -> str:
    """Why adapter `name` of a model cannot take these tensors in place; empty if it can."""
    config = (getattr(model, "peft_config", None) or {}).get(name)
    layers = tuner_layers(model)
    if config is None:
        return (
            f"no adapter of that name is on it, only {sorted(getattr(model, 'peft_config', None) or ())}"
            if state
            else ""
        )
    if not isinstance(config, LoraConfig) or config.use_dora:
        return f"the adapter is a {type(config).__name__}{' with DoRA' if isinstance(config, LoraConfig) else ''}"
    if any(name in layer.merged_adapters for layer in layers.values()):
        return "the adapter is fused into the weights"
    for path in {key.rpartition(".lora_")[0] for key in state}:
        if name not in getattr(layers.get(path), "lora_A", {}):
            return f"the adapter has nothing at `{path}`, which the new file changes"
    return ""


class _LayerState(NamedTuple):
    adapters: set[str]
    active: list[str]
    scaling: dict[str, float]
    disabled: bool


class AdapterSnapshot:
    """What PEFT has put on models so far. No weight is copied: adapters leave those of the model alone.

    >>> before = AdapterSnapshot({"unet": pipe.unet})
    >>> before.restore()
    """

    def __init__(self, models: Mapping[str, nn.Module]):
        self._models = [_ModelSnapshot(model) for model in models.values()]

    def restore(self) -> None:
        """Modules, adapters, which of them are active and how strongly, and what is trained: as they were."""
        for model in self._models:
            model.restore()


class _ModelSnapshot:
    def __init__(self, model: nn.Module):
        self._model = model
        self._attributes = {key: model.__dict__[key] for key in _MODEL_ATTRIBUTES if key in model.__dict__}
        self._configs = dict(self._attributes.get("peft_config") or {})
        self._layers = [(layer, _layer_state(layer)) for layer in tuner_layers(model).values()]
        self._places = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.Linear | nn.Conv2d | BaseTunerLayer)
        ]
        self._trained = [
            (module, name, value.requires_grad)
            for module in model.modules()
            for name, value in module.named_parameters(recurse=False)
        ]

    def restore(self) -> None:
        for parent, name, child in self._places:
            if parent._modules.get(name) is not child:
                setattr(parent, name, child)
        for layer, state in self._layers:
            _restore_layer(layer, state)
        for key in _MODEL_ATTRIBUTES:
            self._model.__dict__.pop(key, None)
        self._model.__dict__.update(self._attributes)
        if "peft_config" in self._attributes:
            self._model.peft_config.clear()
            self._model.peft_config.update(self._configs)
        for module, name, trained in self._trained:
            module._parameters[name].requires_grad_(trained)


def _layer_state(layer: BaseTunerLayer) -> _LayerState:
    scaling = dict(getattr(layer, "scaling", {}))
    return _LayerState(layer._get_available_adapters(), list(layer.active_adapters), scaling, layer.disable_adapters)


def _restore_layer(layer: BaseTunerLayer, state: _LayerState) -> None:
    with making_modules(), warnings.catch_warnings():  # the filter is every thread's
        warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
        for name in layer._get_available_adapters() - state.adapters:
            layer.delete_adapter(name)
    layer.set_adapter(state.active)
    layer.enable_adapters(not state.disabled)
    if state.scaling:
        layer.scaling.clear()
        layer.scaling.update(state.scaling)


def fused_adapter_names(models: Mapping[str, nn.Module]) -> set[str]:
    """Names of adapters that are fused into the weights of these models."""
    return {
        name for model in models.values() for layer in tuner_layers(model).values() for name in layer.merged_adapters
    }


_MODEL_ATTRIBUTES = ("peft_config", "_hf_peft_config_loaded")
