"""Pictures whose left edge meets the right one, and the top the bottom."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def seamless_tiling(*models: nn.Module) -> Iterator[None]:
    """Every 2-D convolution of `models` pads in a circle inside the block; the modes are given back whatever happens.

    As the webui's "Tiling": UNet and VAE, encoder and decoder. The VAE encoder's own asymmetric padding is no
    convolution's and stays zero.
    """
    convolutions = [module for model in models for module in model.modules() if isinstance(module, nn.Conv2d)]
    before = [convolution.padding_mode for convolution in convolutions]
    try:
        for convolution in convolutions:
            convolution.padding_mode = "circular"
        yield
    finally:
        for convolution, mode in zip(convolutions, before, strict=True):
            convolution.padding_mode = mode
