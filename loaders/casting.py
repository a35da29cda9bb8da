"""Models in another dtype."""

from typing import TypeVar

import torch
from torch import nn


Model = TypeVar("Model", bound=nn.Module)


def cast(model: Model, dtype: torch.dtype) -> Model:
    """The model itself with its weights in `dtype`.

    The `to` of diffusers' models warns of modules that should stay in float32, also where there are none.
    """
    return nn.Module.to(model, dtype)
