"""Texts hidden in the pixels of a picture ("stealth pnginfo"): one bit a value, column by column.

signature            bits of         content
stealth_pnginfo      alpha           UTF-8
stealth_pngcomp      alpha           UTF-8, gzip
stealth_rgbinfo      red green blue  UTF-8
stealth_rgbcomp      red green blue  UTF-8, gzip

The signature is followed by the number of bits of the content in 32 bits, the highest first, and by the content. The
format is that of github.com/ashen-sensored/sd_webui_stealth_pnginfo; pictures of NovelAI hold their texts as JSON.
"""

import zlib

import numpy as np
from PIL import Image


STEALTH_SIGNATURES = {
    b"stealth_pnginfo": ("A", False),
    b"stealth_pngcomp": ("A", True),
    b"stealth_rgbinfo": ("RGB", False),
    b"stealth_rgbcomp": ("RGB", True),
}
_SIGNATURE_BITS, _LENGTH_BITS = 15 * 8, 32
MOST_STEALTH_PIXELS, MOST_STEALTH_BYTES = 64_000_000, 16_000_000


def read_stealth_text(picture: Image.Image) -> str:
    """The text in a picture's pixels, "" where there is none. Pictures over 64 megapixels are not looked at.

    >>> read_stealth_text(Image.new("RGBA", (8, 8)))
    ''
    """
    if picture.mode not in ("RGBA", "RGB") or picture.width * picture.height > MOST_STEALTH_PIXELS:
        return ""
    pixels = np.asarray(picture)
    values = {"RGB": pixels[:, :, :3]} | ({"A": pixels[:, :, 3:]} if picture.mode == "RGBA" else {})
    for signature, (channels, compressed) in STEALTH_SIGNATURES.items():
        if channels in values and _packed(values[channels], 0, _SIGNATURE_BITS) == signature:
            return _hidden_content(values[channels], compressed)
    return ""


def _hidden_content(values: np.ndarray, compressed: bool) -> str:
    start = _SIGNATURE_BITS + _LENGTH_BITS
    length = int.from_bytes(_packed(values, _SIGNATURE_BITS, _LENGTH_BITS), "big")
    if not 0 < length <= values.size - start:
        return ""
    content = _packed(values, start, length)
    if compressed:
        try:
            content = zlib.decompressobj(wbits=31).decompress(content, MOST_STEALTH_BYTES)
        except zlib.error:
            return ""
    return content.decode("utf-8", "replace")


def _packed(values: np.ndarray, start: int, count: int) -> bytes:
    """`count` lowest bits from the `start`-th on, in columns: (h, w, c) -> bytes. Only their columns are touched."""
    height, _, channels = values.shape
    column = height * channels
    first, last = start // column, -(-(start + count) // column)
    bits = (values[:, first:last] & 1).transpose(1, 0, 2).reshape(-1)
    return np.packbits(bits[start - first * column :][:count]).tobytes()
