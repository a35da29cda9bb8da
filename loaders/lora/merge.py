"""Networks merged into the weights in place, in order, and taken out again without a trace.

>>> with merged_networks(pipe, [(network, 0.8, 0.8)]) as reports:
...     image = pipe(prompt).images[0]

Each touched weight is written once per change of the set, from a copy of the original, and a copy is put back at the
end: no error adds up, a thousand switches leave every bit as it was.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..weight_files import NetworkError
from .families.family import LayerStrength
from .families.lora import low_rank_factors
from .families.table import BIAS_PARTS, NUMBER_PARTS, changed_weight
from .plan import (
    MergeStep,
    ModuleKey,
    NetworkReport,
    module_weight,
    network_uses,
    plan_networks,
    weight_store,
)
from .targets import PipeLayers


@contextmanager
def merged_networks(
    pipe: object,
    uses: Iterable[Sequence],
    semantics: str = "webui",
    *,
    strict: bool = True,
    backup_device: torch.device | str | None = None,
) -> Iterator[list[NetworkReport]]:
    """These networks in the weights of `pipe` for one block of code; then every bit as before, whatever happened.

    uses: (network, te, unet), with `dyn` and per-block strengths after them if wanted, in the order of application.
    semantics: "webui", "reference" or "auto"; strict: see plan_networks. backup_device: where the originals are kept;
    by default on the CPU. Gives the reports. Blocks nest: the inner one works on, and restores, what it finds.
    Raises NetworkError or ValueError with the weights untouched.
    """
    merger = NetworkMerger(pipe, backup_device)
    try:
        yield merger.switch(uses, semantics, strict=strict)
    finally:
        merger.restore()


class NetworkMerger:
    """Keeps a set of networks merged into a pipeline's weights, and changes the set at little cost.

    >>> merger = NetworkMerger(pipe)
    >>> merger.switch([(a, 1.0, 1.0)])
    >>> merger.switch([(b, 1.0, 0.7)])  # each weight that differs is written once, from its original
    >>> merger.restore()
    """

    reports: list[NetworkReport]  # of the set that is on

    def __init__(self, pipe: object, backup_device: torch.device | str | None = None):
        self.reports = []
        self._pipe = pipe
        self._backup_device = torch.device(backup_device or "cpu")
        self._touched: dict[ModuleKey, _TouchedModule] = {}

    @property
    def active(self) -> bool:
        """Whether any weight differs from its original."""
        return bool(self._touched)

    def switch(
        self,
        uses: Iterable[Sequence],
        semantics: str = "webui",
        *,
        strict: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[NetworkReport]:
        """Make these, and no others, the networks that are on. Arguments and errors of merged_networks.

        progress: called with (modules done, modules in all). If anything fails, the set that was on stays on.
        """
        layers = PipeLayers(self._pipe)
        self._leave_replaced(layers)
        plan, reports = plan_networks(layers, network_uses(uses), semantics, strict=strict)
        before = {key: touched.steps for key, touched in self._touched.items()}
        changed = [key for key in {**before, **plan} if before.get(key) != plan.get(key)]
        try:
            for done, key in enumerate(changed):
                self._apply(key, layers.modules[key], plan.get(key, []))
                if progress is not None:
                    progress(done + 1, len(changed))
        except BaseException:
            self._back_to(before, changed, layers)
            raise
        self.reports = reports
        return reports

    def restore(self) -> None:
        """Put every original back, bit for bit. An interrupt is held until that is done."""
        interrupt: BaseException | None = None
        while self._touched:
            key, touched = next(iter(self._touched.items()))
            try:
                touched.put_back()
                del self._touched[key]
            except KeyboardInterrupt as error:
                interrupt = error
        self.reports = []
        if interrupt is not None:
            raise interrupt

    def _apply(self, key: ModuleKey, module: nn.Module, steps: list[MergeStep]) -> None:
        touched = self._touched.get(key)
        if not steps:
            if touched is not None:
                touched.put_back()
                del self._touched[key]
            return
        if touched is None:
            touched = self._touched[key] = _TouchedModule(module, self._backup_device)
        touched.write(steps)

    def _back_to(self, before: dict[ModuleKey, list[MergeStep]], changed: list[ModuleKey], layers: PipeLayers) -> None:
        """Undo a half-made switch; if even that is cut short, to the originals."""
        try:
            for key in changed:
                self._apply(key, layers.modules[key], before.get(key, []))
        except BaseException:
            self.restore()
            raise

    def _leave_replaced(self, layers: PipeLayers) -> None:
        """Modules that the caller has exchanged since: restore the old ones, begin anew with the others."""
        for key, touched in list(self._touched.items()):
            if layers.modules.get(key) is not touched.module:
                touched.put_back()
                del self._touched[key]


@dataclass
class _TouchedModule:
    """A module whose weight or bias is changed, with the originals of what is."""

    module: nn.Module
    backup_device: torch.device
    originals: dict[str, Tensor] = field(default_factory=dict)  # "weight", "bias" -> copy
    new_bias: bool = False  # the module had none
    steps: list[MergeStep] = field(default_factory=list)

    @torch.no_grad()
    def write(self, steps: list[MergeStep]) -> None:
        """The weight and bias with these steps, from the originals."""
        with_weight = [step for step in steps if step.layer.keys.keys() - BIAS_PARTS.keys() - set(NUMBER_PARTS)]
        with_bias = [step for step in steps if step.layer.keys.keys() & BIAS_PARTS.keys()]
        if with_weight:
            weight = self._live("weight")
            first = "weight" not in self.originals
            if first:
                self.originals["weight"] = self._kept(weight)
            original = weight if first else self.originals["weight"].to(weight.device)
            _merge_weight(original, with_weight, weight)
        elif "weight" in self.originals:
            self._live("weight").copy_(self.originals.pop("weight"))
        self._write_bias(with_bias)
        self.steps = steps

    @torch.no_grad()
    def put_back(self) -> None:
        """The originals, and no bias where there was none."""
        for name, value in self.originals.items():
            self._live(name).copy_(value)
        if self.new_bias:
            self._drop_bias()

    def _write_bias(self, steps: list[MergeStep]) -> None:
        bias = module_weight(self.module, "bias")
        if not steps:
            if self.new_bias:
                self._drop_bias()
            elif "bias" in self.originals:
                self._live("bias").copy_(self.originals.pop("bias"))
            return
        device = self._live("weight").device
        change = torch.stack([_bias_change(step, device) for step in steps]).sum(0)
        if bias is None:
            self._add_bias(torch.zeros_like(change))
        elif "bias" not in self.originals and not self.new_bias:
            self.originals["bias"] = self._kept(self._live("bias"))
        if "bias" in self.originals:
            change = change + self.originals["bias"].to(change)
        self._live("bias").copy_(change)

    def _add_bias(self, value: Tensor) -> None:
        """A bias for a layer without: beside the weight, also where accelerate keeps that."""
        weight = self._live("weight")
        value = value.to(weight.dtype)
        self.new_bias = True
        store = weight_store(self.module)
        if store is not None:
            _offloaded_entries(store)[_offloaded_name(store, "bias")] = value
            value = value.to("meta")
        self.module._parameters["bias"] = nn.Parameter(value, requires_grad=False)

    def _drop_bias(self) -> None:
        store = weight_store(self.module)
        if store is not None:
            _offloaded_entries(store).pop(_offloaded_name(store, "bias"), None)
        self.module._parameters["bias"] = None
        self.new_bias = False

    def _live(self, name: str) -> Tensor:
        value = module_weight(self.module, name)
        if not isinstance(value, Tensor) or value.device.type == "meta" or not value.is_floating_point():
            what = "quantised" if isinstance(value, Tensor) and value.device.type != "meta" else "not in memory"
            raise NetworkError(
                f"The {name} of a {type(self.module).__name__} is {what}, so no network can be merged into it. "
                "Load the model in float16 or float32, without disk offloading, or use the PEFT route."
            )
        return value.detach()  # shares memory and version counter

    def _kept(self, value: Tensor) -> Tensor:
        return value.to(self.backup_device, copy=True)


def _merge_weight(original: Tensor, steps: list[MergeStep], out: Tensor) -> None:
    """Write `original` with all steps into `out`: computed in float32, low-rank ones in one product, cast once.

    The two may be the same tensor.
    """
    wide = torch.promote_types(out.dtype, torch.float32)
    runs = _runs(steps)
    if len(runs) == 1 and _is_low_rank(steps[0]):
        up, down = _joint_factors(steps, original.shape, out.device, wide)
        flat = original.reshape(original.shape[0], -1)
        if out is original and out.dtype == wide and out.is_contiguous():
            out.view(flat.shape).addmm_(up, down)
        elif out.dtype == wide and out.is_contiguous():
            torch.addmm(flat, up, down, out=out.view(flat.shape))
        else:
            out.copy_(torch.addmm(flat.to(wide), up, down).view(original.shape))
        return
    weight = original.to(wide, copy=True).contiguous()
    for run in runs:
        if _is_low_rank(run[0]):
            up, down = _joint_factors(run, original.shape, out.device, wide)
            weight.view(weight.shape[0], -1).addmm_(up, down)
            continue
        for step in run:
            weight = changed_weight(step.layer.family, _float_parts(step, out.device, wide), weight, _how(step))
            if not bool(torch.isfinite(weight).all()):
                raise NetworkError(
                    f"`{step.network.path}`: layer `{step.layer.name}` makes NaN or infinite weights of the model's. "
                    "The file does not belong to this model, or is damaged; do without it."
                )
    out.copy_(weight)


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


def _offloaded_entries(store: object) -> dict:
    """The dict behind accelerate's table of offloaded weights."""
    while hasattr(store, "dataset"):
        store = store.dataset
    return getattr(store, "state_dict", store)  # type: ignore[arg-type, return-value]


def _offloaded_name(store: object, name: str) -> str:
    return f"{getattr(store, 'prefix', '')}{name}"
