"""`grid`: the webui's X/Y/Z plot. Any arguments on the axes, one labelled sheet, resumable as a batch is."""

import hashlib
import itertools
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from PIL import Image, ImageDraw, ImageFont

from ..infotext.files import read_infotext, save_picture
from ..infotext.write import quote_field
from .axes import NO_AXIS, Axis, read_axis
from .batch import draw_jobs
from .common import EXIT_FAILED, EXIT_USAGE, is_main_process, say, tell, told
from .jobs import Job, JobFolder, make_jobs
from .models import ModelSetup, with_model_options
from .options import merge_call, with_call_options, with_usual_sampler
from .txt2img import arguments_from


MOST_CELLS = 10_000


class SheetLook(NamedTuple):
    """Sizes in pixels."""

    cell: tuple[int, int]
    margin: int
    font: Any
    letters: int  # that fit over a cell


@told
@with_model_options
@with_call_options
def grid_command(
    setup: ModelSetup,
    prompt: Annotated[str | None, typer.Argument(help="In the webui's grammar.")] = None,
    x: Annotated[str | None, typer.Option("--x", help="NAME=VALUES, such as steps=10-30 (+10).")] = None,
    y: Annotated[str | None, typer.Option("--y", help='Such as sampler="Euler a,DPM++ 2M".')] = None,
    z: Annotated[str | None, typer.Option("--z", help="Such as replace=red,green,blue.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="A picture whose parameters to start from.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder.")] = Path("grid"),
    extension: Annotated[str, typer.Option("--format", help="png, jpg, webp, avif.")] = "png",
    quality: Annotated[int | None, typer.Option(help="1..100, for jpg, webp, avif.")] = None,
    margin: Annotated[int, typer.Option(min=0, help="Pixels between pictures.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
    **call: Any,
) -> None:
    """Draw a sheet with arguments along its axes; run it again to go on after a stop.

    Axes take any argument or setting, by its name here or the webui's label; `model`; `prompt`; and `replace`.
    """
    base, report = arguments_from(source, model=setup.model) if source is not None else ({}, [])
    call = merge_call(base, {**call, **({} if prompt is None else {"prompt": prompt})})
    axes = (read_axis(x), read_axis(y), read_axis(z))
    if all(axis is NO_AXIS for axis in axes) or (call.get("prompt") is None and "prompt" not in _names(axes)):
        say("Nothing to draw: give a prompt, and at least one of --x, --y, --z.", "red")
        raise typer.Exit(EXIT_USAGE)
    for line in report:
        say(f"Note: {line}", "yellow")
    jobs = grid_jobs(call, axes, setup.model)
    folder = JobFolder(out / "cells", extension, quality)
    done = draw_jobs(jobs, setup, folder)
    files = {record["key"]: folder.out / record["files"][0]["path"] for record in done.results}
    cells = [files.get(job.key) for job in jobs]
    if is_main_process():
        _write_sheet(cells, axes, out, extension, quality, margin, as_json)
    if done.failed:
        raise typer.Exit(EXIT_FAILED)


def _write_sheet(
    cells: Sequence[Path | None],
    axes: Sequence[Axis],
    out: Path,
    extension: str,
    quality: int | None,
    margin: int,
    as_json: bool,
) -> None:
    sheet = out / f"grid.{extension.lower().lstrip('.')}"
    save_picture(labelled_sheet(cells, axes, margin), sheet, _sheet_text(cells, axes), quality=quality)
    found = {
        "sheet": str(sheet),
        "cells": [cell and str(cell) for cell in cells],
        "axes": {a.name: a.labels for a in axes},
    }
    tell(found, as_json, lambda _: typer.echo(str(sheet)))


def grid_jobs(call: Mapping[str, Any], axes: Sequence[Axis], model: str | None) -> list[Job]:
    """A job for each cell: x changes fastest, then y, then z. Without a seed all cells get the same one."""
    x, y, z = axes
    total = len(x.changes) * len(y.changes) * len(z.changes)
    if total > MOST_CELLS:
        raise ValueError(f"the axes make {total} pictures; a grid has at most {MOST_CELLS}. Shorten one.")
    start = {"model": model, **with_usual_sampler(call)}
    if start.get("seed") in (None, -1):
        written = json.dumps([call, [axis.labels for axis in axes]], sort_keys=True, default=str)
        start["seed"] = int(hashlib.sha256(written.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16)
    cells = []
    for number, (in_z, in_y, in_x) in enumerate(itertools.product(z.changes, y.changes, x.changes), start=1):
        cells.append((number, None, in_x(in_y(in_z(start)))))
    return make_jobs(cells)


def labelled_sheet(cells: Sequence[Path | None], axes: Sequence[Axis], margin: int = 4) -> Image.Image:
    """One picture of all cells, in the order of `grid_jobs`; z makes blocks below one another. None: it failed."""
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


def _sheet_look(cells: Sequence[Path | None], margin: int) -> SheetLook:
    sizes = []
    for cell in cells:
        if cell is not None:
            with Image.open(cell) as picture:
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


def _paste_cell(sheet: Image.Image, cell: Path | None, look: SheetLook, at: tuple[int, int]) -> None:
    if cell is None:
        sheet.paste("lightgray", (*at, at[0] + look.cell[0], at[1] + look.cell[1]))
        return
    with Image.open(cell) as picture:
        sheet.paste(picture.convert("RGB"), at)


def _names(axes: Sequence[Axis]) -> list[str]:
    return [axis.name.lower() for axis in axes]


def _sheet_text(cells: Sequence[Path | None], axes: Sequence[Axis]) -> str:
    """The first cell's text, and the axes as the webui names them."""
    first = next((cell for cell in cells if cell is not None), None)
    fields = ["Script: X/Y/Z plot"]
    for letter, axis in zip("XYZ", axes):
        if axis is not NO_AXIS:
            fields += [
                f"{letter} Type: {quote_field(axis.name)}",
                f"{letter} Values: {quote_field(', '.join(axis.labels))}",
            ]
    text = "" if first is None else str(read_infotext(first))
    return f"{text}, {', '.join(fields)}" if text else ""
