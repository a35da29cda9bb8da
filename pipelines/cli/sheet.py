"""A sheet of pictures with the labels of three axes beside and above them."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .axes import Axis


class SheetLook(NamedTuple):
    """Sizes in pixels."""

    cell: tuple[int, int]
    margin: int
    font: Any
    letters: int  # that fit over a cell


Cell = Path | Image.Image | None  # None: it failed


def labelled_sheet(cells: Sequence[Cell], axes: Sequence[Axis], margin: int = 4) -> Image.Image:
    """One picture of all cells, in the order of `grid_jobs`; z makes blocks below one another."""
    x, y, z = axes
    look = _sheet_look(cells, margin)
    columns, rows = len(x.labels), len(y.labels)
    left = _label_width(look, y)
    top = _label_height(look, x)
    title = _label_height(look, z, columns)
    block = title + top + rows * (look.cell[1] + margin)
    sheet = Image.new("RGB", (left + columns * (look.cell[0] + margin), block * len(z.labels)), "white")
    pen = ImageDraw.Draw(sheet)
    for k, z_label in enumerate(z.labels):
        y0 = k * block
        _label(pen, look, z_label and f"{z.name}: {z_label}", (sheet.width // 2, y0 + title // 2), columns)
        for i, label in enumerate(x.labels):
            at = left + i * (look.cell[0] + margin) + look.cell[0] // 2, y0 + title + top // 2
            _label(pen, look, label and f"{x.name}: {label}", at)
        for j, label in enumerate(y.labels):
            cell_top = y0 + title + top + j * (look.cell[1] + margin)
            _label(pen, look, label and f"{y.name}: {label}", (left // 2, cell_top + look.cell[1] // 2))
            for i in range(columns):
                _paste_cell(
                    sheet, cells[(k * rows + j) * columns + i], look, (left + i * (look.cell[0] + margin), cell_top)
                )
    return sheet


def _sheet_look(cells: Sequence[Cell], margin: int) -> SheetLook:
    sizes = []
    for cell in cells:
        if cell is not None:
            with _opened(cell) as picture:
                sizes.append(picture.size)
    if not sizes:
        raise ValueError("no picture of the grid could be drawn, so there is no sheet.")
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    size = max(10, min(width, height) // 20)
    font = ImageFont.load_default(size)
    return SheetLook((width, height), margin, font, max(8, int(width / (size * 0.55))))


def _lines(look: SheetLook, text: str, cells: int = 1) -> list[str]:
    """Text in lines that fit over so many cells."""
    return textwrap.wrap(text, look.letters * cells)[:6]


def _label_height(look: SheetLook, axis: Axis, cells: int = 1) -> int:
    lines = max(len(_lines(look, f"{axis.name}: {label}", cells)) if label else 0 for label in axis.labels)
    return int(lines * look.font.size * 1.4) + (2 * look.margin if lines else 0)


def _label_width(look: SheetLook, axis: Axis) -> int:
    texts = [line for label in axis.labels if label for line in _lines(look, f"{axis.name}: {label}")]
    return max((int(look.font.getlength(line)) for line in texts), default=-2 * look.margin) + 2 * look.margin


def _label(pen: ImageDraw.ImageDraw, look: SheetLook, text: str, at: tuple[int, int], cells: int = 1) -> None:
    if text:
        pen.multiline_text(at, "\n".join(_lines(look, text, cells)), "black", look.font, anchor="mm", align="center")


def _paste_cell(sheet: Image.Image, cell: Cell, look: SheetLook, at: tuple[int, int]) -> None:
    if cell is None:
        sheet.paste("lightgray", (*at, at[0] + look.cell[0], at[1] + look.cell[1]))
        return
    with _opened(cell) as picture:
        sheet.paste(picture.convert("RGB"), at)


@contextmanager
def _opened(cell: Path | Image.Image) -> Iterator[Image.Image]:
    """A picture, or that of a file, which is closed afterwards."""
    if isinstance(cell, Image.Image):
        yield cell
        return
    with Image.open(cell) as picture:
        yield picture
