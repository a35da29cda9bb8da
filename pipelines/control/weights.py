"""How strongly each residual of a control network counts. Residuals are numbered as they come, the middle one last."""

from collections.abc import Sequence

import torch

from .units import ControlUnit


_SOFT = 0.825
_SOFT_EXPONENT = 12  # of the first residual, however many there are
_SOFT_IN_SECOND_PASS = ("canny", "mlsd")  # names of modules


def residual_scales(unit: ControlUnit, count: int, *, second_pass: bool = False) -> list[float]:
    """A factor for each of `count` residuals, by the unit's mode as in the webui's extension.

    Every mode but "Balanced" counts the early, large residuals less: 0.825^(12 - i). So does any in the second pass of
    hires fix behind an edge detector. Raises ValueError for an `advanced_weighting` of another length.
    """
    if unit.advanced_weighting is not None:
        if len(unit.advanced_weighting) != count:
            raise ValueError(
                f"`control_units[{unit.place}]`: `advanced_weighting` has {len(unit.advanced_weighting)} factors, and "
                f"this ControlNet gives {count} residuals: list one for each, the middle block's last."
            )
        return list(unit.advanced_weighting)
    edges = second_pass and any(name in unit.module.lower() for name in _SOFT_IN_SECOND_PASS)
    if unit.control_mode == "Balanced" and not edges:
        return [unit.weight] * count
    return [unit.weight * _SOFT ** (_SOFT_EXPONENT - i) for i in range(count)]


def guess_mode_scales(scale: float, count: int) -> list[float]:
    """diffusers' factors with `guess_mode`: 0.1 to 1.0 in equal steps of the logarithm, times `scale`."""
    return [scale * factor for factor in torch.logspace(-1, 0, count).tolist()]


def unit_rows(number: int, units: int, uncond: Sequence[bool], *, marked: bool = True) -> list[float]:
    """Which rows of a model evaluation a unit acts on, 1 or 0, where each unit is for one image of the batch.

    number: of the unit, from 0, of `units`. uncond: for each row whether it is of the negative prompt; both kinds are
    counted for themselves. marked: rows of the negative prompt are told apart, else all count as one kind.
    """
    seen = {False: 0, True: 0}
    rows = []
    for kind in uncond if marked else [False] * len(uncond):
        rows.append(1.0 if seen[kind] % units == number else 0.0)
        seen[kind] += 1
    return rows
