"""The webui's script SD upscale: a picture cut into overlapping tiles, and tiles joined again."""

from collections.abc import Sequence

from PIL import Image

from .tile_grid import webui_tile_starts
from .upscale import paste_with_ramp


def cut_tiles(picture: Image.Image, tile: tuple[int, int], overlap: int) -> list[Image.Image]:
    """Tiles of `tile` (width, height) that share `overlap` pixels at least, row by row.

    A picture smaller than a tile lies at its right and bottom, black before it, as in the webui.
    """
    columns, rows = _tile_starts(picture.size, tile, overlap)
    return [picture.crop((x, y, x + tile[0], y + tile[1])) for y in rows for x in columns]


def join_tiles(
    tiles: Sequence[Image.Image], size: tuple[int, int], tile: tuple[int, int], overlap: int
) -> Image.Image:
    """The picture of `size` (width, height) from its tiles; each fades in over the one before, by 8-bit weights."""
    columns, rows = _tile_starts(size, tile, overlap)
    joined = Image.new("RGB", size)
    for j, y in enumerate(rows):
        band = Image.new("RGB", (size[0], tile[1]))
        for i, x in enumerate(columns):
            paste_with_ramp(band, tiles[j * len(columns) + i], (x, 0), overlap)
        paste_with_ramp(joined, band, (0, y), overlap)
    return joined


def tile_seeds(count: int, batch_size: int, seed: int) -> list[list[int]]:
    """The seeds of each group of `batch_size` tiles: a group begins one after the group before, whatever its size."""
    groups = -(-count // batch_size)
    return [[seed + group + b for b in range(batch_size)] for group in range(groups)]


def _tile_starts(size: tuple[int, int], tile: tuple[int, int], overlap: int) -> tuple[list[int], list[int]]:
    return webui_tile_starts(size[0], tile[0], overlap), webui_tile_starts(size[1], tile[1], overlap)
