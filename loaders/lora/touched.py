"""One module whose weight or bias networks change, with the originals of what they change.

Whatever is cut short, and wherever: an original is noted before the first value is written, and is let go only after
it is back, so that putting back can be begun again at any time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..weight_files import NetworkError
from .arithmetic import merged_bias, merged_weight
from .families.table import BIAS_PARTS, NUMBER_PARTS
from .originals import Original
from .plan import MergeStep, module_weight, weight_store


@dataclass
class TouchedModule:
    """Steps in a module's parameters, and a way back."""

    module: nn.Module
    keep: Callable[[str, Tensor], Original]  # parameter's name, value -> its original
    fused: tuple[nn.Module, slice] | None = None  # rows of another module that compute in its place
    originals: dict[str, Original] = field(default_factory=dict)  # by "weight", "bias"
    new_bias: bool = False  # the module had none
    steps: list[MergeStep] = field(default_factory=list)

    @torch.no_grad()
    def write(self, steps: list[MergeStep]) -> None:
        """The weight and bias with these steps, from the originals. Raises NetworkError before a value is written."""
        with_weight = [step for step in steps if step.layer.keys.keys() - BIAS_PARTS.keys() - set(NUMBER_PARTS)]
        with_bias = [step for step in steps if step.layer.keys.keys() & BIAS_PARTS.keys()]
        if with_weight:
            self._set("weight", merged_weight(self._original("weight"), with_weight))
        elif "weight" in self.originals:
            self._put_back("weight")
        if with_bias:
            self._write_bias(with_bias)
        elif self.new_bias:
            self._drop_bias()
        elif "bias" in self.originals:
            self._put_back("bias")
        self.steps = steps

    @torch.no_grad()
    def put_back(self) -> None:
        """The originals, and no bias where there was none."""
        for name in list(self.originals):
            self._put_back(name)
        if self.new_bias:
            self._drop_bias()

    def _put_back(self, name: str) -> None:
        self._set(name, self.originals[name].read())
        del self.originals[name]

    def _original(self, name: str) -> Tensor:
        """The value that the parameter had at first; noted, where nothing has been written yet."""
        value = self._live(name)
        if name in self.originals:
            return self.originals[name].read().to(value.device)
        mirror = self._mirror(name)
        if mirror is not None and not torch.equal(mirror, value):
            raise NetworkError(
                f"The fused projection of a {type(self.module).__name__} ({name}) is not what it was fused from, so "
                "no network can be merged into it. Call `unet.fuse_qkv_projections()` again, or do without fusing."
            )
        self.originals[name] = self.keep(name, value)
        return value

    def _set(self, name: str, value: Tensor) -> None:
        self._live(name).copy_(value)
        mirror = self._mirror(name)
        if mirror is not None:
            mirror.copy_(value)

    def _mirror(self, name: str) -> Tensor | None:
        """The rows of the fused layer that compute what this parameter does by name."""
        if self.fused is None:
            return None
        layer, rows = self.fused
        value = module_weight(layer, name)
        return None if value is None else writable_weight(layer, name)[rows]

    def _write_bias(self, steps: list[MergeStep]) -> None:
        weight = self._live("weight")
        if self.fused is not None and self.fused[0]._parameters.get("bias") is None:
            raise NetworkError(
                f"`{steps[0].network.path}`: layer `{steps[0].layer.name}` brings a bias, and the model's q, k and v "
                "are fused without one. Call `unet.unfuse_qkv_projections()` first."
            )
        if module_weight(self.module, "bias") is not None and not self.new_bias:
            self._set("bias", merged_bias(self._original("bias"), steps, self._live("bias")))
            return
        value = merged_bias(None, steps, weight)
        if self.new_bias and self.module._parameters["bias"] is not None:
            self._live("bias").copy_(value)
        else:
            self._add_bias(value)

    def _add_bias(self, value: Tensor) -> None:
        """A bias for a layer without: beside the weight, also where accelerate keeps that."""
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
        return writable_weight(self.module, name)


def writable_weight(module: nn.Module, name: str = "weight") -> Tensor:
    """A parameter that can be changed in place: floating point and in memory. Raises NetworkError for another."""
    value = module_weight(module, name)
    plain = type(value) in (Tensor, nn.Parameter)
    if plain and value.device.type != "meta" and value.is_floating_point():  # type: ignore[union-attr]
        return value.detach()  # type: ignore[union-attr]  # shares memory and version counter
    if plain and value.device.type == "meta":  # type: ignore[union-attr]
        raise NetworkError(
            f"The {name} of a {type(module).__name__} is not in memory, so no network can be merged into it. Load the "
            "model without disk offloading, or use `lora_backend='peft'`, which puts the network beside it."
        )
    kind = type(value).__name__ if not plain and isinstance(value, Tensor) else type(module).__name__
    raise NetworkError(
        f"The weights of this model are quantised ({kind}), so no network can be merged into them. Use "
        "`lora_backend='peft'`, which puts the network beside them, or load the model in float16 or float32."
    )


def _offloaded_entries(store: object) -> dict:
    """The dict behind accelerate's table of offloaded weights."""
    while hasattr(store, "dataset"):
        store = store.dataset
    return getattr(store, "state_dict", store)  # type: ignore[arg-type, return-value]


def _offloaded_name(store: object, name: str) -> str:
    return f"{getattr(store, 'prefix', '')}{name}"
