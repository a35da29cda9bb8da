"""Numbers of a .safetensors file as they lie there, in blocks of bytes: told without torch, in little memory."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class NumberFormat(NamedTuple):
    """How a .safetensors file writes a number, little-endian."""

    size: int  # bytes
    torch: str  # what torch calls it
    exponent: int = 0  # the bits that are all set in NaN and infinity; 0 for a format without these
    numpy: str = ""  # empty where numpy has no such format


NUMBER_FORMATS = {
    "F64": NumberFormat(8, "float64", 0x7FF0000000000000, "<f8"),
    "F32": NumberFormat(4, "float32", 0x7F800000, "<f4"),
    "F16": NumberFormat(2, "float16", 0x7C00, "<f2"),
    "BF16": NumberFormat(2, "bfloat16", 0x7F80),
    "F8_E4M3": NumberFormat(1, "float8_e4m3fn", 0x7F),  # no infinity, and NaN has all bits set
    "F8_E5M2": NumberFormat(1, "float8_e5m2", 0x7C),
    "I64": NumberFormat(8, "int64", numpy="<i8"),
    "I32": NumberFormat(4, "int32", numpy="<i4"),
    "I16": NumberFormat(2, "int16", numpy="<i2"),
    "I8": NumberFormat(1, "int8", numpy="<i1"),
    "U8": NumberFormat(1, "uint8", numpy="<u1"),
    "BOOL": NumberFormat(1, "bool", numpy="<u1"),
}


def count_not_finite(blocks: Iterable[bytes], form: NumberFormat) -> int:
    """How many numbers are NaN or infinite. Every block holds whole numbers."""
    count = 0
    for block in blocks if form.exponent else ():
        exponents = np.frombuffer(block, f"<u{form.size}") & form.exponent
        count += int(np.count_nonzero(exponents == form.exponent))
    return count


def first_number(raw: bytes, form: NumberFormat) -> float | None:
    """The first number as Python's float; None for a format that numpy does not have, but for bfloat16."""
    if form.torch == "bfloat16":
        return float(np.frombuffer(bytes(2) + raw[:2], "<f4")[0])
    return float(np.frombuffer(raw[: form.size], form.numpy)[0]) if form.numpy else None
