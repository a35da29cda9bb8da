"""Numbers that a GPU needs of the CPU, sent so that neither waits for the other."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`; from the CPU to a GPU by pinned memory, so that neither waits for the other."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class SentNumbers:
    """Short lists of numbers as tensors (n,) on a device, each sent there once."""

    def __init__(self):
        self._kept: dict[tuple, Tensor] = {}

    def __call__(self, numbers: Sequence[float], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """dtype: None for places of rows, else that of the tensor."""
        key = (*numbers, device, dtype)
        if key not in self._kept:
            self._kept[key] = sent(torch.tensor(numbers, dtype=dtype or torch.long), device)
        return self._kept[key]
