"""Where tiles lie, as plain arithmetic.

Two ways of covering a side of a picture with tiles:

    webui   equally spaced whole tiles; a side shorter than a tile is one tile that begins left of the picture
    own     whole tiles with a margin around them that is thrown away or blended, mirrored at the picture's border
"""

from math import ceil


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
    return [min(int(i * step), length - tile) for i in range(count)]


def check_tile(tile: int, overlap: int) -> None:
    """Raise ValueError unless tiles of this size can advance: 0 <= overlap < tile."""
    if not 0 <= overlap < tile:
        raise ValueError(
            f"`overlap` must be at least 0 and less than `tile`; got tile={tile}, overlap={overlap}. "
            "The webui's own are 192 and 8."
        )
