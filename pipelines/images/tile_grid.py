"""Where tiles lie, as plain arithmetic.

Two ways of covering a side of a picture with tiles:

    webui   equally spaced whole tiles; a side shorter than a tile is one tile that begins left of the picture
    own     whole tiles with a margin around them that is thrown away or blended, mirrored at the picture's border
"""

from math import ceil
from typing import Any


def webui_tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the webui's tiles of `tile` pixels begin along a side of `length` pixels, `overlap` pixels shared.

    The tiles are spaced equally (rounded down) and the last ends with the picture. A side shorter than a tile is one
    tile with a negative start: the picture lies at its end, black before it.

    >>> webui_tile_starts(512, tile=192, overlap=8)
    [0, 160, 320]
    >>> webui_tile_starts(64, tile=192, overlap=8)
    [-128]
    """
    check_tile(tile, overlap)
    count = ceil((length - overlap) / (tile - overlap))
    if count <= 1:
        return [length - tile]
    step = (length - tile) / (count - 1)
    return [*(int(i * step) for i in range(count - 1)), length - tile]


def check_tile(tile: int, overlap: int) -> None:
    """Raise ValueError unless tiles of this size can advance: 0 <= overlap < tile."""
    if not 0 <= overlap < tile:
        raise ValueError(
            f"`overlap` must be at least 0 and less than `tile`; got tile={tile}, overlap={overlap}. "
            "The webui's own are 192 and 8."
        )


def tile_spans(length: int, tile: int, blend: int) -> list[tuple[int, int]]:
    """(start, stop) of equally large spans that cover a side of `length` pixels.

    Each span advances by `tile` at most, and shares at least `blend` pixels with its neighbour. The first begins and
    the last ends with the picture; a side no longer than `tile` is one span, and so is any with `tile` 0.

    >>> tile_spans(1024, tile=512, blend=8)
    [(0, 516), (508, 1024)]
    """
    if tile < 0 or blend < 0 or 0 < tile <= blend:
        raise ValueError(
            f"`tile` must be 0 (no tiles) or more and `blend` less than `tile`; got tile={tile}, blend={blend}."
        )
    count = ceil(length / tile) if tile else 1
    if count == 1:
        return [(0, length)]
    span = ceil((length + (count - 1) * blend) / count)
    starts = [i * (length - span) // (count - 1) for i in range(count)]
    return [(start, start + span) for start in starts]


def mirrored_positions(start: int, stop: int, length: int) -> list[int]:
    """start .. stop - 1, what lies outside of 0 .. length - 1 folded back as often as it takes: ... 2 1 0 1 2 ...

    >>> mirrored_positions(-2, 6, 4)
    [2, 1, 0, 1, 2, 3, 2, 1]
    """
    return [mirrored_position(i, length) for i in range(start, stop)]


def mirrored_position(index: Any, length: int) -> Any:
    """A position, or an array of them, folded back into 0 .. length - 1 without repeating the ends: reflect-101."""
    last = length - 1
    return last - abs(index % max(2 * last, 1) - last) if last else index * 0
