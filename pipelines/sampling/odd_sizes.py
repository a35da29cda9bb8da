"""Latents whose sides the UNet cannot halve: how it comes back from the half to the odd size."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn


@contextmanager
def webui_odd_sizes(unet: nn.Module | None) -> Iterator[None]:
    """Inside the block a UNet enlarges to twice the size, convolves, and takes the nearest cells of the odd size, as
    the webui does where its ControlNet extension runs the UNet. diffusers enlarges to the odd size and then convolves.

    unet: a UNet2DConditionModel; None leaves all as it is.
    """
    hooks: list[Any] = []
    for module in [] if unet is None else unet.modules():
        if isinstance(module, Upsample2D):
            sizes: list[Any] = []
            hooks.append(module.register_forward_pre_hook(_without_size(sizes), with_kwargs=True))
            hooks.append(module.register_forward_hook(_at_size(sizes)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _without_size(sizes: list[Any]) -> Any:
    """Keeps the size that an Upsample2D is asked for, and lets it double instead."""

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        sizes[:] = [kwargs["output_size"] if "output_size" in kwargs else (args[1] if len(args) > 1 else None)]
        return args[:1], {name: value for name, value in kwargs.items() if name != "output_size"}

    return hook


def _at_size(sizes: list[Any]) -> Any:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if sizes[0] is None or tuple(output.shape[-2:]) == tuple(sizes[0]):
            return output
        return F.interpolate(output, tuple(sizes[0]), mode="nearest")

    return hook
