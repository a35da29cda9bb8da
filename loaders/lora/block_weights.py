"""Strengths per block of the UNet, by the labels that block-weight users know.

    SD1, SD2   BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 ... OUT11      17: the blocks with attention
    SDXL       BASE IN04 IN05 IN07 IN08 M00 OUT00 ... OUT05                12
    any        BASE IN00 ... IN11 M00 OUT00 ... OUT11                      26
    SDXL       BASE IN00 ... IN08 M00 OUT00 ... OUT08                      20

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


_EVERY_XL_BLOCK = tuple(label for label in _EVERY_BLOCK if label[-2:] not in ("09", "10", "11"))


def block_strengths(blocks: Mapping[str, float] | Sequence[float] | str) -> dict[str, float]:
    """Label -> factor of the strength, from a dict by label, or from 17 or 26 (SD), 12 or 20 (SDXL) numbers in order.

    A string holds such numbers with commas between, or is "ALL" (1 everywhere) or "NONE" (0).

    >>> block_strengths({"IN04": 0.5})
    {'IN04': 0.5}

    Raises ValueError for an unknown label, another count of numbers, or what is no finite number.
    """
    if isinstance(blocks, str) and blocks.strip() in _NAMED_BLOCKS:
        blocks = dict.fromkeys(_EVERY_BLOCK, _NAMED_BLOCKS[blocks.strip()])
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
    labels = {len(row): row for row in (SD_BLOCKS, SDXL_BLOCKS, _EVERY_BLOCK, _EVERY_XL_BLOCK)}.get(len(blocks))
    if labels is None:
        raise ValueError(
            f"{len(blocks)} block strengths were given; SD 1 and 2 have 17 blocks with attention "
            f"({', '.join(SD_BLOCKS)}) of 26, and SDXL has 12 ({', '.join(SDXL_BLOCKS)}) of 20. Give that many, or a "
            "dict by label."
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


_NAMED_BLOCKS = {"ALL": 1.0, "NONE": 0.0}
