"""`grid`: the webui's X/Y/Z plot. Any arguments on the axes, one labelled sheet, resumable as a batch is."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..infotext.files import read_infotext, save_picture
from ..infotext.write import quote_field
from .axes import NO_AXIS, Axis, read_axis, text_axes
from .batch import JobDrawer, draw_jobs
from .common import EXIT_FAILED, DrawCommand, is_main_process, json_option, print_result
from .control import control_image_option, with_control_images
from .draw import print_reports
from .job_folder import JobFolder
from .job_names import Job
from .jobs import make_jobs
from .library import CallFiles, library_options, read_library
from .models import model_options, read_setup
from .options import CALL_OPTIONS, call_options, merge_call, read_call, with_usual_sampler
from .outputs import format_option, out_option, quality_option
from .sheet import labelled_sheet
from .sources import SourceCall, call_from, read_source


MOST_CELLS = 10_000


@click.command("grid", cls=DrawCommand)
@click.argument("prompt", required=False)
@click.option("--x", metavar="NAME=VALUES", help="Such as steps=10-30 (+10).")
@click.option("--y", metavar="NAME=VALUES", help='Such as sampler="Euler a,DPM++ 2M".')
@click.option("--z", metavar="NAME=VALUES", help="Such as replace=red,green,blue.")
@click.option("--from", "source", metavar="PATH", help="A picture whose parameters to start from; -: standard input.")
@out_option("grid", "Folder.")
@format_option
@quality_option
@click.option(
    "--margin", metavar="N", type=click.IntRange(0), default=4, show_default=True, help="Pixels between pictures."
)
@json_option
@control_image_option
@call_options(CALL_OPTIONS)
@model_options
@library_options
def grid_command(prompt: str | None, source: str | None, out: Path, as_json: bool, **values: Any) -> None:
    """Draw a sheet with arguments along its axes; run it again to go on after a stop.

    Axes take any argument or setting, by its name here or the webui's label; `model`; `prompt`; and `replace`. Without
    any, those in the text of --from are drawn.
    """
    setup = read_setup(values)
    found = SourceCall("", {}, []) if source is None else call_from(read_source(source), source, model=setup.model)
    own = {**read_call(values), **({} if prompt is None else {"prompt": prompt})}
    call = with_control_images(merge_call(found.arguments, own), found.fields, values["control_images"])
    axes = (read_axis(values["x"]), read_axis(values["y"]), read_axis(values["z"]))
    if all(axis is NO_AXIS for axis in axes):
        axes = text_axes(found.fields)
    names = [axis.name.lower() for axis in axes]
    if all(axis is NO_AXIS for axis in axes) or (call.get("prompt") is None and "prompt" not in names):
        raise click.UsageError("nothing to draw: give a prompt, and at least one of --x, --y, --z.")
    print_reports([found._replace(report=[line for line in found.report if not line.startswith("X/Y/Z grid")])])
    jobs = [job._replace(fields=found.fields) for job in grid_jobs(call, axes, setup.model)]
    folder = JobFolder(out / "cells", values["extension"], values["quality"])
    files = CallFiles(read_library(values), own, without_missing=values["without_missing"])
    done = draw_jobs(jobs, JobDrawer(jobs, setup, files), folder)
    drawn = {record["key"]: folder.out / record["files"][0]["path"] for record in done.results}
    cells = [drawn.get(job.key) for job in jobs]
    if is_main_process():
        written = _write_sheet(cells, axes, out / f"grid.{values['extension']}", values)
        print_result(written, as_json, lambda _: click.echo(written["sheet"]))
    if done.failed:
        raise click.exceptions.Exit(EXIT_FAILED)


def _write_sheet(
    cells: Sequence[Path | None], axes: Sequence[Axis], sheet: Path, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Save the sheet, with the first cell's text and the axes; where everything is."""
    picture = labelled_sheet(cells, axes, values["margin"])
    save_picture(picture, sheet, _sheet_text(cells, axes), quality=values["quality"])
    return {
        "sheet": str(sheet),
        "cells": [cell and str(cell) for cell in cells],
        "axes": {axis.name: axis.labels for axis in axes},
    }


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
