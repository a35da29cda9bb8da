"""torch for modules that answer much without it: imported by the first use of a name in it.

What a network file holds is told from its header and raw bytes, in 0.4 s and 40 MB; with torch it would be seconds and
some hundred MB. A module that also has formulas on tensors writes `lazy_torch.einsum(...)`, and `TorchTensor` where
it annotates.
"""

from importlib import import_module
from typing import Any


TorchTensor = Any  # a torch.Tensor; naming that class would import it


class LazyTorch:
    """The module `torch`, by attribute."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("torch"), name)


lazy_torch = LazyTorch()
