"""Mixes of networks as PEFT adapters for a while: one mix for a whole batch, or one for each of its images.

A mix becomes one LoRA that holds the sum of its networks at their strengths, so that PEFT's per-sample adapters, which
give every sample one adapter, draw a batch of different mixes in one forward pass.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ..weight_files import NetworkError
from .peft_adapters import check_exact, free_adapter_name, inject_adapters
from .peft_factors import AdapterFactors, adapter_factors, joined_factors
from .peft_inject import AdapterSnapshot, fused_adapter_names, module_paths, offloading_paused, tuner_layers
from .peft_tuners import ComponentAdapter, lora_adapter
from .plan import MergeStep, ModuleKey, NetworkReport, NetworkUse, network_uses, plan_networks
from .targets import PipeLayers, plain_shape


Mix = list[NetworkUse]


class AdapterMixer:
    """Keeps mixes of networks on a pipeline's models as adapters, beside those that are active, and takes them off.

    >>> mixer = AdapterMixer(pipe)
    >>> mixer.switch([(a, 1.0, 1.0), (b, 0.5, 0.7)])
    >>> mixer.switch_images([[(a, 1.0, 1.0)], []])  # a batch of two: the first with a, the second without
    >>> mixer.restore()
    """

    reports: list[NetworkReport]  # of the mixes that are on

    def __init__(self, pipe: object):
        self.reports = []
        self._pipe = pipe
        self._before: AdapterSnapshot | None = None
        self._hooks: list[RemovableHandle] = []
        self._mixes: list[Mix] = []
        self._kept: dict[str, list[str]] = {}  # the caller's own adapters that act, by component

    def switch(self, uses: Iterable[Sequence]) -> list[NetworkReport]:
        """Make this mix the one that all images are drawn with. uses: as for merged_networks.

        Raises NetworkError where PEFT cannot hold a network exactly; the mix that was on stays on then.
        """
        return self._switch([network_uses(uses)])

    def switch_images(self, mixes: Sequence[Iterable[Sequence]]) -> list[NetworkReport]:
        """Draw image i of a batch with mixes[i]. Batches of a multiple of that size repeat the order, as guidance has
        them. Raises ValueError where one_pass says no."""
        found = [network_uses(uses) for uses in mixes]
        if not self.one_pass(found):
            raise ValueError(
                "These mixes cannot be drawn in one pass: PEFT's per-sample adapters know no DoRA, and no adapters "
                "that are active for the whole batch. Draw each mix by itself."
            )
        return self._switch(found)

    def one_pass(self, mixes: Sequence[Sequence[Sequence]]) -> bool:
        """Whether PEFT can draw a batch with one of these mixes for every image."""
        networks = [network for mix in mixes for network, *_ in mix]
        if any(layer.dora for network in networks for layer in network.layers.values()):
            return False
        if self._before is not None:
            return not any(self._kept.values())
        return not any(map(_active_names, PipeLayers(self._pipe).components.values()))

    def restore(self) -> None:
        """Take the mixes off: every module and adapter is as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._before is not None:
            self._before.restore()
        self._before, self._mixes, self.reports = None, [], []

    def _switch(self, mixes: list[Mix]) -> list[NetworkReport]:
        if mixes == self._mixes or not (self._mixes or any(mixes)):
            return self.reports
        layers = PipeLayers(self._pipe)
        models = layers.components
        distinct = [mix for i, mix in enumerate(mixes) if mix and mix not in mixes[:i]]
        made = [_mix_adapters(layers, mix) for mix in distinct]
        self.restore()
        fused = fused_adapter_names(models)
        if fused and distinct:
            raise ValueError(
                f"Adapters are fused into the weights ({', '.join(sorted(fused))}), and PEFT lets no others "
                "act beside them. Call `unfuse_lora()`, or keep them for good with `unload_lora_weights()`."
            )
        with offloading_paused(self._pipe):
            self._kept = {component: _active_names(model) for component, model in models.items()}
            self._before = AdapterSnapshot(models)
            try:
                names = self._inject(models, [adapters for adapters, _ in made])
            except BaseException:
                self.restore()
                raise
        if len(mixes) > 1:
            own = [names[distinct.index(mix)] if mix else [] for mix in mixes]
            self._hooks = _name_samples(models, [each[0] if each else _BASE for each in own])
        self._mixes, self.reports = mixes, [report for _, reports in made for report in reports]
        return self.reports

    def _inject(
        self, models: Mapping[str, nn.Module], made: list[list[dict[str, ComponentAdapter]]]
    ) -> list[list[str]]:
        """Put the adapters of every mix on the models and make them active; -> their names, by mix."""
        names: list[list[str]] = []
        for adapters in made:
            names.append([])
            for group in adapters:
                names[-1].append(free_adapter_name(models, "mix"))
                inject_adapters(self._pipe, models, group, names[-1][-1])
        ours = [name for each in names for name in each]
        for component, model in models.items():
            for layer in tuner_layers(model).values():
                layer.set_adapter([*self._kept[component], *ours])
                layer.enable_adapters(True)
        return names


def _mix_adapters(layers: PipeLayers, mix: Mix) -> tuple[list[dict[str, ComponentAdapter]], list[NetworkReport]]:
    """A mix as adapters by component: one for its plain networks and one for its DoRA, where it has such."""
    steps, reports = plan_networks(layers, mix, "reference")
    by_kind: dict[bool, dict[ModuleKey, list[MergeStep]]] = {False: {}, True: {}}
    for key, found in steps.items():
        dora = any(step.layer.dora for step in found)
        if dora:
            _check_dora(found)
        by_kind[dora][key] = found
    groups = []
    for dora, own in by_kind.items():
        check_exact(layers, own)
        group = _joint_adapters(layers, own, dora) if own else {}
        groups += [group] if group else []
    return groups, reports


def _joint_adapters(
    layers: PipeLayers, steps: Mapping[ModuleKey, list[MergeStep]], dora: bool
) -> dict[str, ComponentAdapter]:
    found = {}
    for component in layers.components:
        paths = module_paths(layers, component)
        factors: dict[str, AdapterFactors] = {}
        for (owner, path), own in steps.items():
            if owner != component:
                continue
            shape = plain_shape(layers.modules[owner, path])
            parts = [(adapter_factors(step, shape), step.strength) for step in own]
            only, strength = parts[0]
            scaled = only._replace(scale=only.scale * strength)
            factors[paths[path]] = scaled if dora or len(parts) == 1 else joined_factors(parts)
        if factors:
            modules = {paths[path]: layers.modules[owner, path] for owner, path in steps if owner == component}
            found[component] = lora_adapter(factors, modules)
    return found


def _check_dora(steps: list[MergeStep]) -> None:
    """Raises NetworkError unless PEFT's DoRA is exact here: alone on its module, and by PEFT's own rule or at 1."""
    step = next(step for step in steps if step.layer.dora)
    if len(steps) > 1:
        why = (
            "DoRA works on the weight that other networks have changed, and PEFT's adapters know only the model's own"
        )
    elif step.strength != 1 and not step.layer.peft:
        why = f"PEFT applies DoRA exactly at strength 1 only, and {step.strength:g} is asked for"
    else:
        return
    raise NetworkError(
        f"`{step.network.path}`: layer `{step.layer.name}` cannot be in this mix: {why}. "
        'Use `lora_backend="reference"` (or "webui"), which merges.'
    )


def _active_names(model: nn.Module) -> list[str]:
    """The adapters of a model that act: active somewhere, and not switched off."""
    found: dict[str, None] = {}
    for layer in tuner_layers(model).values():
        if not layer.disable_adapters:
            found |= dict.fromkeys(name for name in layer.active_adapters if name in layer._get_available_adapters())
    return list(found)


def _name_samples(models: Mapping[str, nn.Module], names: list[str]) -> list[RemovableHandle]:
    """Tell every layer which adapter each sample of a batch takes: PEFT's argument `adapter_names`."""
    ours = set(names) - {_BASE}
    layers = [layer for model in models.values() for layer in tuner_layers(model).values()]
    return [
        layer.register_forward_pre_hook(partial(_with_names, names), with_kwargs=True)
        for layer in layers
        if ours & layer._get_available_adapters()
    ]


def _with_names(names: list[str], layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    rows = len(args[0])
    if rows % len(names):
        raise ValueError(
            f"A batch of {rows} rows came to a model that draws {len(names)} images with networks of their own, and "
            "which row belongs to which image is not clear. Give every image the same networks here."
        )
    return args, {**kwargs, "adapter_names": names * (rows // len(names))}


_BASE = "__base__"  # PEFT's name for no adapter
