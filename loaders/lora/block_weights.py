"""Strengths per block of the UNet, by the labels that block-weight users know.

    SD1, SD2   BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 ... OUT11      17: the blocks with attention
    SDXL       BASE IN04 IN05 IN07 IN08 M00 OUT00 ... OUT05                12

BASE is the text encoders. All other labels of the models (IN00-IN11, OUT00-OUT11) may be named too. A block that is
not named, and a layer outside every block (time embedding, output), keeps the plain strength.
"""

import math
from collections.abc import Mapping, Sequence

from ..utils import near_names


SD_BLOCKS = (
    *("BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00"),
    *(f"OUT{number:02d}" for number in range(3, 12)),
)
SDXL_BLOCKS = ("BASE", "IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{number:02d}" for number in range(6)))

_EVERY_BLOCK = (
    "BASE",
    *(f"IN{number:02d}" for number in range(12)),
    "M00",
    *(f"OUT{number:02d}" for number in range(12)),
)


def block_strengths(blocks: Mapping[str, float] | Sequence[float] | str) -> dict[str, float]:
    """Label -> factor of the strength, from a dict by label, or from 17 (SD) or 12 (SDXL) numbers in their order.

    A string holds such numbers with commas between.

    >>> block_strengths({"IN04": 0.5})
    {'IN04': 0.5}

    Raises ValueError for an unknown label, another count of numbers, or what is no finite number.
    """
    if isinstance(blocks, str):
        blocks = [_block_number(text.strip()) for text in blocks.split(",")]
    if isinstance(blocks, Mapping):
        for label in blocks:
            if label not in _EVERY_BLOCK:
                near = near_names(label, _EVERY_BLOCK, 3)
                raise ValueError(
                    f"`{label}` is no block of a UNet. Labels are BASE, IN00-IN11, M00 and OUT00-OUT11"
                    + (f"; perhaps {' or '.join(near)}." if near else ".")
                )
        return {label: _block_number(value) for label, value in blocks.items()}
    labels = {len(SD_BLOCKS): SD_BLOCKS, len(SDXL_BLOCKS): SDXL_BLOCKS}.get(len(blocks))
    if labels is None:
        raise ValueError(
            f"{len(blocks)} block strengths were given; SD 1 and 2 have 17 blocks ({', '.join(SD_BLOCKS)}) and SDXL "
            f"has 12 ({', '.join(SDXL_BLOCKS)}). Give that many, or a dict by label."
        )
    return {label: _block_number(value) for label, value in zip(labels, blocks)}


def _block_number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"`{value}` is no strength of a block: a finite number is wanted, as 0.5.")
    return number
